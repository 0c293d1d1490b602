"""Figures against references, and detection, on numbers worked out by hand."""

import numpy as np
import pytest
import torch

from agents.evaluation.detection import THRESHOLD, Detection, flag
from agents.evaluation.figures_of_merit import normalised_score, relative_figures, rounds_to, with_attack_impact


def test_the_normalised_score_is_0_for_the_floor_1_for_the_oracle_and_nothing_where_they_are_close() -> None:
    assert normalised_score(0.7, 0.9, 0.7) == 0
    assert normalised_score(0.9, 0.9, 0.7) == pytest.approx(1)
    assert normalised_score(0.65, 0.9, 0.7) == pytest.approx(-0.25)
    assert normalised_score(0.9, 0.71, 0.7) is None
    assert normalised_score(0.9, 0.6, 0.7) is None
    assert normalised_score(0.9, None, 0.7) is None


def test_rounds_to_counts_from_one_and_takes_the_first_time() -> None:
    curve, rounds = np.array([0.1, 0.5, 0.4, 0.8]), np.array([0, 2, 4, 6])
    assert rounds_to(curve, rounds, 0.1) == 1
    assert rounds_to(curve, rounds, 0.45) == 3
    assert rounds_to(curve, rounds, 0.6) == 7
    assert rounds_to(curve, rounds, 0.9) is None


def test_relative_figures_of_a_cell_and_none_where_a_reference_failed() -> None:
    rows = {
        name: {"test_accuracy": value} for name, value in (("mine", 0.8), ("oracle", 0.9), ("anchored_oracle", 0.95))
    }
    curves = {"curve_rounds": np.array([0, 1, 2])}
    curves |= {f"{name}/accuracy": np.array([0.5, 0.81, 0.9]) for name in rows}
    relative_figures(rows, curves)
    mine = rows["mine"]
    assert mine["regret"] == pytest.approx(0.1)
    assert mine["regret_anchored"] == pytest.approx(0.15)
    assert mine["normalised_score"] is None  # no floor
    assert mine["rounds_to_oracle"] == 2  # 0.81 is 90 % of 0.9
    alone = {"mine": {"test_accuracy": 0.8}}
    relative_figures(alone, curves)
    assert set(alone["mine"].values()) == {0.8, None}


def test_the_impact_of_an_attack_is_what_it_costs_the_same_rule_in_the_same_circumstances() -> None:
    def row(rule: str, attack: str, accuracy: float, seed: int = 0, kind: str = "0.5") -> dict[str, object]:
        fraction = 0.0 if attack == "none" else 0.3
        named = {"rule": rule, "attack": attack, "malicious_fraction": fraction, "seed": seed}
        return {**named, "heterogeneity": kind, "test_accuracy": accuracy}

    rows = [row("a", "none", 0.9), row("b", "none", 0.5), row("a", "alie", 0.6), row("a", "alie", 0.6, seed=1)]
    impacts = [one["attack_impact"] for one in with_attack_impact(rows)]
    assert impacts[:3] == [0, 0, pytest.approx(0.3)]
    assert impacts[3] is None  # that seed was never run without attack


def test_a_client_is_flagged_below_a_share_of_the_mean_weight() -> None:
    weights = torch.tensor([0.4, 0.35, 0.2, 0.05])
    assert flag(weights, 0.5).tolist() == [False, False, False, True]
    assert flag(weights, 0.9).tolist() == [False, False, True, True]
    assert flag(torch.full((4,), 0.25), THRESHOLD).tolist() == [False] * 4
    assert flag(torch.zeros(3), THRESHOLD).tolist() == [True] * 3


def test_detection_over_two_rounds_by_hand() -> None:
    detection = Detection(0.5)
    corrupted = torch.tensor([True, True, False, False])
    detection.add(torch.tensor([0.0, 0.3, 0.3, 0.4]), corrupted)  # flags client 0, rightly
    detection.add(torch.tensor([0.0, 0.4, 0.0, 0.6]), corrupted)  # flags client 0 rightly, client 2 wrongly
    figures = detection.figures()
    assert figures["detection_precision"] == pytest.approx(2 / 3)
    assert figures["detection_recall"] == pytest.approx(2 / 4)
    assert figures["false_positive_rate"] == pytest.approx(1 / 4)
    assert figures["detection_auroc"] == pytest.approx(np.mean([3.5 / 4, 2.5 / 4]))
    assert figures["honest_weight_share"] == pytest.approx(np.mean([0.7, 0.6]))


def test_without_attackers_there_is_only_a_false_positive_rate_and_without_weights_nothing() -> None:
    detection = Detection(0.5)
    detection.add(torch.tensor([0.5, 0.45, 0.05]), torch.zeros(3, dtype=torch.bool))
    figures = detection.figures()
    assert figures.pop("false_positive_rate") == pytest.approx(1 / 3)
    assert set(figures.values()) == {None}
    silent = Detection(0.5)
    silent.add(None, torch.tensor([True, False]))
    assert set(silent.figures().values()) == {None}
