"""Figures of Fashion-MNIST are told as they were measured."""

import csv

import numpy as np
import pytest

from agents.statistics import estimate, paired_scores

from .figures import (
    FASHION,
    README,
    RESULTS,
    ROOT,
    bare,
    circumstances,
    interval,
    is_told,
    mean,
    regrets,
    rows_of,
    shown,
    table,
)


def test_what_the_attacks_that_search_do_on_fashion_mnist_is_told_as_it_was_measured() -> None:
    searching = ("optimised_ipm", "policy_aware")
    plain, anchored = (
        regrets("held_out_fashion_mnist", "optigradtrust", "0.5", 0.3, column)
        for column in ("regret", "regret_anchored")
    )

    def told(of: dict[str, dict[float, float]]) -> list[tuple[str, str]]:
        found = [estimate(np.array([[value] for value in of[attack].values()])) for attack in searching]
        return [(shown(each.value), f"[{shown(each.low)}, {shown(each.high)}]") for each in found]

    (ipm, near), (aware, around) = told(plain)
    assert [sum(value > 0 for value in plain[attack].values()) for attack in searching] == [8, 9]
    assert is_told(
        RESULTS, f"by {ipm} points {near} and {aware} {around} on average, in eight and nine of the ten seeds"
    )
    assert is_told(
        README, f"{ipm} points {near} and {aware} {around} behind the oracle, in eight and nine of ten seeds"
    )
    worst = [shown(max(plain[attack].values())) for attack in searching]
    assert is_told(RESULTS, f"in seed 44 by {worst[0]} and {worst[1]}.")
    assert is_told(README, f"in one by {worst[0]} and {worst[1]}.")
    (ipm, near), (aware, around) = told(anchored)
    assert is_told(RESULTS, f"behind by {ipm} {near} and {aware} {around} under those two")
    others = {attack: mean(value for seed, value in of.items() if seed != 37) for attack, of in plain.items()}
    first, second = (shown(others[attack]) for attack in searching)
    average = shown(mean(others.values()))
    assert is_told(RESULTS, f"put it {first} and {second} points behind, and the mean over all attacks is {average}.")


def test_how_far_seeds_lie_apart_where_the_oracle_is_weak_is_told_as_it_was_measured() -> None:
    plain, anchored = (
        regrets(FASHION[1], "optigradtrust", "0.1", 0.3, column) for column in ("regret", "regret_anchored")
    )
    runs = [value for of in plain.values() for value in of.values()]
    behind = sum(value > 0 for value in runs)
    assert (len(runs), behind) == (540, 2)
    assert is_told(
        RESULTS, f"In two of the 540 federations under attack it is behind it, by {shown(max(runs))} at most."
    )
    averages = [mean(of[seed] for of in plain.values()) for seed in plain["zero"]]
    assert is_told(RESULTS, f"regret to it goes from {shown(min(averages))} to {shown(max(averages))}.")
    least = shown(-max(mean(of.values()) for of in anchored.values()))
    of_all = interval(circumstances(FASHION[1], "optigradtrust")["α 0.1, 30 % malicious"], "regret to anchored oracle")
    assert is_told(RESULTS, f"and {of_all} at 0.1, where it is ahead under each attack, by {least} points at least.")
    gains = []
    for alpha, name in zip(("0.5", "0.1"), FASHION, strict=True):
        row = circumstances(name, "optigradtrust")[f"α {alpha}, no attack"]
        found = {end: shown(-row[f"regret{end}"]) for end in ("", ", low", ", high")}
        gains.append((found[""], f"[{found[', high']}, {found[', low']}]"))
    (one, spread), (other, around) = gains
    assert is_told(RESULTS, f"ahead of FedAvg by {one} points {spread} and {other} {around}.")


def test_what_shared_voices_are_worth_is_told_as_it_was_measured() -> None:
    with (ROOT / "results" / "held_out_fashion_mnist_jitter" / "tables" / "attacks.csv").open() as file:
        measured = {row["scenario"].split(",")[0]: row for row in csv.DictReader(file)}
    told = list(table(RESULTS, "| regret, α 0.5 | `optimised_ipm`"))
    for row, rule in zip(told, ("optigradtrust", "optigradtrust (sybil_exponent=0)"), strict=True):
        for attack in ("optimised_ipm", "policy_aware"):
            assert row[f"`{attack}`"] == shown(float(measured[attack][rule]))
            assert row[f"`{attack}`, noisy"] == shown(float(measured[f"{attack}:jitter=1"][rule]))


def test_how_far_the_closest_rule_is_behind_on_fashion_mnist_is_told_as_it_was_measured() -> None:
    rows = rows_of("held_out_fashion_mnist_rules")
    told = []
    for alpha in ("0.5", "0.1"):
        chosen = [row for row in rows if row["heterogeneity"] == alpha and row["malicious_fraction"] > 0]
        others = {str(row["rule"]) for row in chosen} - {"optigradtrust", "oracle", "anchored_oracle", "root_only"}
        assert len(others) == 7
        found = {}
        for other in others:
            ours, theirs = paired_scores(chosen, "optigradtrust", other, "test_accuracy", 100)
            found[other] = estimate(ours - theirs)
            assert found[other].low > 0
        assert min(found, key=lambda other: found[other].value) == "shapley"
        closest = found["shapley"]
        told.append((shown(closest.value), f"[{shown(closest.low)}, {shown(closest.high)}]"))
    (near, spread), (far, other_spread) = told
    sentence = f"the closest is `shapley`, by {near} points {spread} at α 0.5 and {far} {other_spread} at 0.1"
    assert sentence in " ".join(RESULTS.split())


@pytest.mark.parametrize(
    ("head", "name", "intervals"),
    [
        ("with voices, malicious", "held_out_fashion_mnist_majority", True),
        ("malicious", "held_out_fashion_mnist_majority_sybil_exponent_0", False),
    ],
)
def test_more_attackers_on_fashion_mnist_are_told_as_they_were_measured(head: str, name: str, intervals: bool) -> None:
    measured = circumstances(name, "optigradtrust")
    told = list(table(RESULTS, f"| {head} | α | regret |"))
    assert len(told) == 4
    for row, fraction in zip(told, (45, 45, 60, 60), strict=True):
        of = measured[f"α {row['α']}, {fraction} % malicious"]
        assert row["regret"] == (interval(of, "regret") if intervals else shown(of["regret"]))
        if intervals:
            assert row["to `anchored_oracle`"] == interval(of, "regret to anchored oracle")
        assert bare(row["worst attack's"]) == shown(of["worst regret"])
        assert row["below `root_only`, worst attack"] == shown(-of["above root only, worst attack"])
