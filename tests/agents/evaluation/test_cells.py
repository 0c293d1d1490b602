"""A cell: paired, and with the figures that a loop by hand gives."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.deployed import save_policy
from agents.evaluation import CellResult, Grid, run_cell, run_grid, runs
from agents.evaluation.figures_of_merit import COLUMNS, TIMING_COLUMNS
from agents.evaluation.runs import curve_rounds
from agents.trust_net import TrustNet
from fl_core import Federation
from fl_core.aggregation import Aggregate, Rule, ServerView, register_rule
from fl_core.aggregation.base import _RULES
from fl_core.aggregation.mean import FedAvg
from fl_core.attacks import attack_factory, attack_names, register_attack
from fl_core.attacks.base import _ATTACKS
from fl_core.attacks.simple import SignFlip
from optigrad_env import TRAIN_ATTACKS

Row = dict[str, Any]


def select(rows: list[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_rows_have_the_columns_of_the_file(results: list[CellResult]) -> None:
    for result in results:
        assert not result.failures
        for row, timing in zip(result.rows, result.timings, strict=True):
            assert set(row) == set(COLUMNS)
            assert set(timing) == set(TIMING_COLUMNS)


def test_there_is_a_row_for_every_rule_scenario_and_seed(rows: list[Row]) -> None:
    rules = {"fedavg", "median", "shapley", "oracle", "anchored_oracle", "root_only"}
    scenarios = {("none", 0.0, 0), ("sign_flip", 0.4, 0), ("alie", 0.4, 0)}
    assert len(rows) == len(rules) * len(scenarios)
    assert {row["rule"] for row in rows} == rules
    assert {(row["attack"], row["malicious_fraction"], row["seed"]) for row in rows} == scenarios
    assert {row["attack"]: row["held_out"] for row in rows} == {"none": False, "sign_flip": False, "alie": True}


def test_regret_is_the_difference_to_the_oracles_of_the_same_scenario(rows: list[Row]) -> None:
    for row in rows:
        for name, oracle in (("regret", "oracle"), ("regret_anchored", "anchored_oracle")):
            (best,) = select(rows, rule=oracle, attack=row["attack"])
            assert row[name] == best["test_accuracy"] - row["test_accuracy"]


def test_without_attackers_the_oracle_is_fedavg(rows: list[Row]) -> None:
    (oracle,), (fedavg,) = (select(rows, rule=rule, attack="none") for rule in ("oracle", "fedavg"))
    for name in ("test_accuracy", "test_loss", "personalised_accuracy", "worst_class_accuracy"):
        assert oracle[name] == pytest.approx(fedavg[name], abs=1e-6)


def test_the_worst_class_and_client_are_no_better_than_the_mean(rows: list[Row]) -> None:
    for row in rows:
        assert row["worst_class_accuracy"] <= row["test_accuracy"] + 1e-12
        assert row["worst_client_accuracy"] <= row["personalised_accuracy"] + 1e-12


def test_detection_is_perfect_for_the_oracle_and_impossible_for_fedavg(rows: list[Row]) -> None:
    for row in select(rows, attack="none"):
        assert row["detection_auroc"] is row["detection_precision"] is row["detection_recall"] is None
    (oracle,), (fedavg,), (median,) = (
        select(rows, rule=rule, attack="alie") for rule in ("oracle", "fedavg", "median")
    )
    assert (oracle["detection_auroc"], oracle["detection_precision"], oracle["detection_recall"]) == (1, 1, 1)
    assert oracle["honest_weight_share"] == pytest.approx(1)
    assert (fedavg["detection_auroc"], fedavg["detection_precision"], fedavg["detection_recall"]) == (0.5, None, 0)
    assert fedavg["honest_weight_share"] == pytest.approx(0.6)
    assert select(rows, rule="fedavg", attack="none")[0]["false_positive_rate"] == 0
    assert median["detection_auroc"] is None  # a rule without weights has nothing to detect with


def test_figures_are_those_of_a_loop_by_hand(make_grid: Callable[..., Grid]) -> None:
    grid = make_grid(rules=("fedavg",), attacks=("sign_flip",), malicious_fractions=(0.4,), rounds=5)
    (cell,) = grid.cells()
    row = run_cell(grid, cell).rows[0]
    federation = Federation(grid.config(cell.env_id, 5, seed=0))
    federation.reset(cell.scenario(), entropy=0)
    accuracies, losses = [], []
    test = federation.dataset.test
    labels = federation.dataset.labels[test]
    for _ in range(5):
        federation.apply(federation.local_round().view.updates.mean(dim=0))
        local = federation.engine.reestimate(
            federation.shared[None], federation.local[-1:], federation.simulator.images
        )
        logits = federation.engine.logits(federation.shared[None], local, federation.dataset.images(test))[0]
        accuracies.append(float((logits.argmax(dim=1) == labels).double().mean()))
        chosen = -torch.log_softmax(logits.double(), dim=1)[torch.arange(len(labels)), labels]
        losses.append(float(chosen.clamp_max(2 * np.log(federation.dataset.num_classes)).mean()))
    assert row["test_accuracy"] == pytest.approx(np.mean(accuracies[-3:]), abs=1e-6)
    assert row["test_loss"] == pytest.approx(np.mean(losses[-3:]), abs=1e-5)


def test_all_rules_of_a_cell_see_the_same_partition_attackers_model_and_first_round(
    make_grid: Callable[..., Grid], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []

    class Watched(Federation):
        def local_round(self, rule: Any = None) -> Any:
            first, shared = self.round == 0, self.shared
            round_ = super().local_round(rule)
            if first:
                shards = tuple(tuple(shard.tolist()) for shard in self.shards)
                tensors = (self.malicious, shared, round_.view.updates, self.splits.reference)
                seen.append((shards, *(tensor.tolist() for tensor in tensors)))
            return round_

    monkeypatch.setattr(runs, "Federation", Watched)
    list(run_grid(make_grid(attacks=("alie",), malicious_fractions=(0.4,), seeds=(0, 1))))
    assert len(seen) == 10
    for cell in (seen[:5], seen[5:]):
        rules, references = cell[:2], cell[2:]
        assert all(one == rules[0] for one in rules)
        assert all(one == references[0] for one in references)
        # The references are run without the attack: what the malicious clients send is theirs alone.
        (*same, updates, root), (*again, honest_updates, again_root) = rules[0], references[0]
        assert (same, root) == (again, again_root)
        honest = ~np.array(same[1])
        assert np.array_equal(np.array(updates)[honest], np.array(honest_updates)[honest])
    assert all(one != other for one, other in zip(seen[0], seen[5], strict=True))


def every_attack() -> list[str]:
    return [
        name for name in attack_names() if name != "none" and attack_factory(name).__module__.startswith("fl_core.")
    ]


@pytest.mark.parametrize("env_id", ["OptiGrad/Softmax-v0", "OptiGrad/Digits-v0"])
def test_references_that_are_run_once_for_all_attacks_are_what_they_would_be_under_each(
    make_grid: Callable[..., Grid], monkeypatch: pytest.MonkeyPatch, env_id: str
) -> None:
    attacks = (*every_attack(), "on_off:honest_rounds=1,attack_rounds=1", "dba:target=2")
    if env_id != "OptiGrad/Softmax-v0":
        attacks = ("dba", "targeted_label_flip", "late_onset:onset=2", "sign_flip:scale=1.0e+9")
    grid = make_grid(env_ids=(env_id,), attacks=attacks, malicious_fractions=(0.0, 0.4), heterogeneities=("0.3", "iid"))
    once = list(run_grid(grid))
    monkeypatch.setattr(runs, "meets_attackers", lambda grid, contestant: True)
    for left, right in zip(once, run_grid(grid), strict=True):
        assert left.cell == right.cell
        assert left.rows == right.rows
        assert left.curves.keys() == right.curves.keys()
        for name, values in left.curves.items():
            np.testing.assert_array_equal(values, right.curves[name])


@pytest.fixture
def remembering() -> Iterator[str]:
    """An attack with a memory: when it is active, and what it wants of the model, come from what it has kept."""

    @register_attack("remembering")
    @dataclass(frozen=True, eq=False)
    class Remembering(SignFlip):
        kept: dict[str, Any] = field(default_factory=dict)

        def reset(self) -> None:
            self.kept.clear()
            self.kept["from"] = 2

        def active(self, round_: int) -> bool:
            return round_ >= self.kept["from"]

        def corrupt(self, own: Any, honest: Any, adversary: Any) -> Any:
            self.kept["target"] = 1
            return super().corrupt(own, honest, adversary)

        def triggered(self, images: Any, labels: Any) -> Any:
            return images, torch.full_like(labels, self.kept["target"]) if "target" in self.kept else labels

    yield "remembering"
    _ATTACKS._factories.pop("remembering")


def test_an_attack_that_remembers_is_asked_what_it_remembers(make_grid: Callable[..., Grid], remembering: str) -> None:
    grid = make_grid(attacks=(remembering,), malicious_fractions=(0.4,))
    result = run_cell(grid, grid.cells()[0])
    assert not result.failures
    assert result.curves["corrupted"].any(axis=1).tolist() == [False, False, True, True]
    (fedavg,), (oracle,) = select(result.rows, rule="fedavg"), select(result.rows, rule="oracle")
    assert 0 < fedavg["attack_success"] < 0.6  # of the target that it set, a class of ten
    assert oracle["attack_success"] == pytest.approx(oracle["test_accuracy"])  # it never met that model


def test_an_attack_that_fails_to_say_what_it_wants_costs_its_own_cells_alone(make_grid: Callable[..., Grid]) -> None:
    @register_attack("speechless")
    class Speechless(SignFlip):
        def triggered(self, images: Any, labels: Any) -> Any:
            raise ZeroDivisionError("no target")

    try:
        other, own = run_grid(make_grid(attacks=("sign_flip", "speechless"), malicious_fractions=(0.4,)))
    finally:
        _ATTACKS._factories.pop("speechless")
    assert not other.failures
    assert len(other.rows) == 5
    assert {failure.error for failure in own.failures} == {"ZeroDivisionError: no target"}
    assert len(own.failures) == 5


def test_a_rule_may_write_into_the_weights_that_it_has_returned(
    make_grid: Callable[..., Grid], monkeypatch: pytest.MonkeyPatch
) -> None:
    mean, kept = FedAvg.aggregate, torch.zeros(5)

    def reusing(rule: FedAvg, view: ServerView) -> Aggregate:
        kept.fill_(1 + view.round)
        return replace(mean(rule, view), weights=kept)

    monkeypatch.setattr(FedAvg, "aggregate", reusing)
    grid = make_grid(rules=("fedavg",), malicious_fractions=(0.0,))
    assert run_cell(grid, grid.cells()[0]).curves["fedavg/weights"][:, 0].tolist() == [1, 2, 3, 4]


def test_the_same_cell_gives_the_same_figures_again_whatever_ran_before(
    make_grid: Callable[..., Grid], results: list[CellResult]
) -> None:
    again = run_cell(make_grid(rules=("fedavg", "median", "shapley"), features=True), results[-1].cell)
    assert again.rows == results[-1].rows
    for name, values in again.curves.items():
        np.testing.assert_array_equal(values, results[-1].curves[name])


def test_a_round_in_which_a_rule_judges_nobody_keeps_its_place_in_the_curves(
    make_grid: Callable[..., Grid], monkeypatch: pytest.MonkeyPatch
) -> None:
    mean = FedAvg.aggregate

    def sometimes(rule: FedAvg, view: ServerView) -> Aggregate:
        aggregate = mean(rule, view)
        return aggregate if view.round == 1 else replace(aggregate, weights=None)

    monkeypatch.setattr(FedAvg, "aggregate", sometimes)
    grid = make_grid(rules=("fedavg",))
    weights = run_cell(grid, grid.cells()[0]).curves["fedavg/weights"]
    assert len(weights) == grid.rounds
    assert [int(i) for i in np.flatnonzero(~np.isnan(weights).any(axis=1))] == [1]


def test_curves_hold_the_final_accuracy_the_truth_and_bounded_features(results: list[CellResult]) -> None:
    result = results[-1]
    for row in result.rows:
        assert np.mean(result.curves[f"{row['rule']}/accuracy"][-3:]) == pytest.approx(row["test_accuracy"], abs=1e-6)
    assert result.curves["malicious"].sum() == 2
    assert result.curves["corrupted"].shape == (4, 5)
    assert result.curves["features"].shape == (4, 5, 6)
    assert np.abs(result.curves["features"]).max() <= 3
    assert result.curves["fedavg/weights"] == pytest.approx(0.2)


@pytest.mark.parametrize("rounds", [3, 20, 57, 1000])
def test_learning_curves_have_few_points_and_always_the_last_rounds(rounds: int) -> None:
    points = curve_rounds(rounds)
    assert points == sorted(set(points))
    assert points[0] == 0
    assert points[-3:] == [rounds - 3, rounds - 2, rounds - 1]
    assert len(points) <= 23


def test_features_are_not_recorded_where_an_attack_would_search_against_the_oracle(
    make_grid: Callable[..., Grid],
) -> None:
    for attack, recorded in (("optimised_ipm:evaluations=2", False), ("ipm", True)):
        grid = make_grid(rules=("fedavg",), attacks=(attack,), features=True)
        cell = next(cell for cell in grid.cells() if cell.malicious_fraction)
        assert ("features" in run_cell(grid, cell).curves) == recorded


def test_features_that_an_attack_computes_are_no_cost_of_the_rule(make_grid: Callable[..., Grid]) -> None:
    grid = make_grid(rules=("fedavg", "shapley"), attacks=("feature_box",), malicious_fractions=(0.4,), rounds=3)
    costs = {row["rule"]: row["feature_seconds"] for row in run_cell(grid, grid.cells()[0]).timings}
    assert costs["fedavg"] == 0
    assert costs["shapley"] > 0


def test_rules_that_were_fitted_to_attacks_have_seen_them(make_grid: Callable[..., Grid]) -> None:
    grid = make_grid(rules=("logistic", "nnm+feature_weights", "shapley"), attacks=("sign_flip", "alie"), rounds=3)
    seen = {one.label: one.seen for one in grid.contestants(grid.env_ids[0])}
    assert seen["logistic"] == seen["nnm+feature_weights"] == TRAIN_ATTACKS
    assert seen["shapley"] == seen["oracle"] == ()
    rows = [row for result in run_grid(grid) for row in result.rows]
    fitted = {row["attack"]: row["seen"] for row in select(rows, rule="logistic")}
    assert fitted == {"none": False, "sign_flip": True, "alie": False}


def test_a_policy_that_has_seen_an_attack_says_so_in_its_row(make_grid: Callable[..., Grid], tmp_path: Path) -> None:
    path = save_policy(TrustNet(), tmp_path / "mine", {"attacks_seen": ["sign_flip"], "detection_threshold": 0.0})
    grid = make_grid(policies=(str(path),), rounds=3)
    rows = [row for result in run_grid(grid) for row in result.rows]
    mine = {row["attack"]: row for row in select(rows, rule="mine")}
    assert {attack: row["seen"] for attack, row in mine.items()} == {"none": False, "sign_flip": True, "alie": False}
    assert not any(row["seen"] for row in select(rows, rule="fedavg"))
    assert mine["alie"]["detection_recall"] == 0  # the card's threshold of 0 flags nobody


def test_a_rule_that_fails_is_recorded_and_the_others_go_on(make_grid: Callable[..., Grid]) -> None:
    @register_rule("fails_late")
    class FailsLate(Rule):
        def aggregate(self, view: Any) -> Any:
            raise ZeroDivisionError(f"round {view.round}\nand more")

    try:
        grid = make_grid(rules=("fails_late", "fedavg"), malicious_fractions=(0.0,))
        result = run_cell(grid, grid.cells()[0])
    finally:
        _RULES._factories.pop("fails_late")
    (failure,) = result.failures
    assert (failure.rule, failure.error) == ("fails_late", "ZeroDivisionError: round 0")
    assert "FailsLate" in failure.trace or "aggregate" in failure.trace
    assert [row["rule"] for row in result.rows] == ["fedavg", "oracle", "anchored_oracle", "root_only"]
    assert result.rows[0]["regret"] == pytest.approx(0, abs=1e-6)
