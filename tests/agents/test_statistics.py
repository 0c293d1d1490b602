"""Means and errors against numpy and by hand."""

import csv
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.statistics import Estimate, over_seeds, paired_difference, read_results, summarise, worst_attack

RULES = {"oracle": 0.0, "good": 0.02, "fedavg": 0.1}


def rows(alphas: tuple[float | None, ...] = (0.5, 0.1), seeds: int = 4) -> list[dict[str, Any]]:
    """Rows whose regret is known: rule's base, plus 0.3 for alie at the last alpha, plus noise of the seed."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, size=seeds)
    made = []
    for seed, alpha, (attack, fraction), (rule, base) in product(
        range(seeds), alphas, [("none", 0.0), ("alie", 0.3), ("ipm", 0.3)], RULES.items()
    ):
        worst = attack == "alie" and alpha == alphas[-1] and rule != "oracle"
        regret = base + 0.3 * worst + (noise[seed] if rule != "oracle" else 0)
        made.append(
            {
                "rule": rule,
                "attack": attack,
                "malicious_fraction": fraction,
                "alpha": alpha,
                "seed": seed,
                "test_accuracy": 0.9 - regret,
                "regret": regret,
                "regret_anchored": regret + 0.01,
                "seconds_per_round": 0.25,
            }
        )
    return made


def entry(entries: list[dict[str, Any]], rule: str) -> dict[str, Any]:
    return next(one for one in entries if one["rule"] == rule)


def test_over_seeds_is_numpys_mean_and_standard_error_of_the_seed_means() -> None:
    rng = np.random.default_rng(1)
    table = rng.normal(size=(6, 5))
    given = [{"seed": i, "x": value} for i, values in enumerate(table) for value in values]
    means = table.mean(axis=1)
    estimate = over_seeds(given, "x", scale=100)
    assert estimate.mean == pytest.approx(100 * means.mean())
    assert estimate.standard_error == pytest.approx(100 * means.std(ddof=1) / np.sqrt(6))
    assert estimate.seeds == 6


def test_the_order_of_rows_does_not_matter_and_missing_values_are_left_out() -> None:
    given = [{"seed": 0, "x": 1.0}, {"seed": 0, "x": None}, {"seed": 1, "x": 3.0}, {"seed": 2, "x": None}]
    for order in (given, given[::-1]):
        assert over_seeds(order, "x") == Estimate(2.0, pytest.approx(1.0), 2)


def test_one_seed_has_no_error_and_no_data_has_no_mean() -> None:
    alone = over_seeds([{"seed": 0, "x": 2.0}], "x")
    assert (alone.mean, alone.seeds) == (2.0, 1)
    assert np.isnan(alone.standard_error)
    nothing = over_seeds([], "x")
    assert np.isnan(nothing.mean)
    assert nothing.seeds == 0


def test_variation_between_scenarios_is_not_in_the_error() -> None:
    given = [{"seed": seed, "x": 10.0 * scenario} for seed in range(5) for scenario in range(3)]
    assert over_seeds(given, "x").standard_error == pytest.approx(0)


def test_an_estimate_shows_its_error_only_where_there_is_one() -> None:
    assert str(Estimate(1.234, 0.056, 5)) == "1.23 ± 0.06"
    assert str(Estimate(1.234, float("nan"), 1)) == "1.23"


def test_the_worst_attack_is_the_largest_mean_of_any_attack_and_alpha() -> None:
    chosen = [row for row in rows() if row["rule"] == "good" and row["malicious_fraction"] > 0]
    by_hand = np.mean([row["regret"] for row in chosen if row["attack"] == "alie" and row["alpha"] == 0.1])
    assert worst_attack(chosen, "regret", 100) == pytest.approx(100 * by_hand)
    assert np.isnan(worst_attack([], "regret"))


def test_the_summary_has_the_means_of_attacked_and_quiet_rows_by_hand() -> None:
    given = rows()
    good = entry(summarise(given), "good")
    attacked = [row for row in given if row["rule"] == "good" and row["malicious_fraction"] > 0]
    quiet = [row for row in given if row["rule"] == "good" and row["malicious_fraction"] == 0]

    def percent(column: str, some: list[dict[str, Any]]) -> float:
        return 100 * float(np.mean([row[column] for row in some]))

    assert good["regret"]["mean"] == pytest.approx(percent("regret", attacked))
    assert good["regret_anchored"]["mean"] == pytest.approx(percent("regret_anchored", attacked))
    assert good["accuracy"]["mean"] == pytest.approx(percent("test_accuracy", attacked))
    assert good["accuracy_no_attack"]["mean"] == pytest.approx(percent("test_accuracy", quiet))
    for alpha in (0.5, 0.1):
        expected = percent("regret", [row for row in attacked if row["alpha"] == alpha])
        assert good["regret_by_alpha"][str(alpha)]["mean"] == pytest.approx(expected)
    assert good["seconds_per_round"] == pytest.approx(0.25)


def test_the_summary_is_sorted_by_regret_under_attack() -> None:
    assert [one["rule"] for one in summarise(rows()[::-1])] == ["oracle", "good", "fedavg"]


def test_the_loss_to_fedavg_is_paired_by_seed() -> None:
    entries = summarise(rows())
    loss = entry(entries, "good")["loss_to_fedavg_no_attack"]
    assert loss["mean"] == pytest.approx(100 * (0.02 - 0.1))
    assert loss["standard_error"] == pytest.approx(0, abs=1e-9)  # both have the seed's noise, so it cancels
    assert entry(entries, "fedavg")["loss_to_fedavg_no_attack"]["mean"] == 0


def test_without_fedavg_or_without_quiet_rows_that_figure_is_missing_and_the_others_are_there() -> None:
    given = [row for row in rows() if row["rule"] != "fedavg"]
    assert entry(summarise(given), "good")["loss_to_fedavg_no_attack"]["seeds"] == 0
    attacked = [row for row in rows() if row["malicious_fraction"] > 0]
    assert entry(summarise(attacked), "good")["accuracy_no_attack"]["seeds"] == 0
    quiet = [row for row in rows() if row["malicious_fraction"] == 0]
    assert entry(summarise(quiet), "good")["regret"]["seeds"] == 0


def test_iid_rows_may_stand_beside_those_of_an_alpha() -> None:
    good = entry(summarise(rows(alphas=(None, 0.5))), "good")
    assert len(good["regret_by_alpha"]) == 2
    assert good["regret_by_alpha"]["0.5"]["seeds"] == 4
    assert good["worst_regret"] == pytest.approx(100 * (0.02 + 0.3), abs=1.5)


def test_the_paired_difference_is_the_mean_over_seeds_of_what_one_rule_gains_on_another(tmp_path: Path) -> None:
    given = rows(alphas=(0.5, 0.1))
    names = list(dict.fromkeys(row["rule"] for row in given))[:2]
    kept = [{**row, "held_out": True} for row in given]
    path = tmp_path / "results.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(kept[0]))
        writer.writeheader()
        writer.writerows(kept)
    found = paired_difference(read_results(path), *names)
    table: dict[Any, dict[str, list[float]]] = {}
    for row in given:
        if row["malicious_fraction"] > 0:
            table.setdefault(row["seed"], {}).setdefault(row["rule"], []).append(row["test_accuracy"])
    per_seed = [100 * (np.mean(seed[names[0]]) - np.mean(seed[names[1]])) for seed in table.values()]
    assert found.mean == pytest.approx(np.mean(per_seed))
    assert found.standard_error == pytest.approx(np.std(per_seed, ddof=1) / np.sqrt(len(per_seed)))
