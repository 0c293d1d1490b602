"""Figures of digits, the quickstart's too, are told as they were measured."""

from math import ceil

import numpy as np
import pytest

from .figures import (
    README,
    RESULTS,
    ROOT,
    ahead,
    attacks,
    circumstances,
    interval,
    is_told,
    mean,
    parts,
    regrets,
    rows_of,
    shown,
    table,
    worst,
)


def summary_of(name: str) -> str:
    return (ROOT / "results" / name / "summary.md").read_text()


def test_every_row_of_the_headline_is_a_row_of_the_summary() -> None:
    summary = {row["rule"]: row for row in table("\n" + summary_of("held_out") + "\n\n", "| rule |")}
    told = list(table(README, "| rule | accuracy, attacked |"))
    assert len(told) == len(summary) > 10
    for row in told:
        assert row == {column: summary[row["rule"]][column] for column in row}


def test_near_relatives_of_train_attacks_make_no_difference_on_digits() -> None:
    near = ("on_off", "late_onset", "ipm", "ipm_small", "optimised_ipm", "dynamic_label_flip")
    largest, apart = [], []
    for alpha in ("0.5", "0.1"):
        found = regrets("held_out", "optigradtrust", alpha, 0.3)
        means = {attack: mean(of.values()) for attack, of in found.items()}
        others = [value for attack, value in means.items() if attack not in near]
        assert len(others) == len(means) - len(near) == 21
        apart.append(abs(mean(others) - mean(means.values())))
        largest += [max(of.values()) for of in found.values()]
    assert is_told(RESULTS, f"regret without these six is the same within {ceil(10 * max(apart)) / 10} points.")
    assert is_told(README, f"in a single seed the policy loses {shown(max(largest))} points at most.")


def test_how_far_fitted_rules_are_behind_is_told_as_it_was_measured() -> None:
    ours = [row for row in rows_of("held_out") if row["rule"] == "optigradtrust"]
    fresh = rows_of("held_out_fitted_anew")
    told = {}
    for other in ("feature_weights", "logistic"):
        both = [*ours, *(row for row in fresh if row["rule"] == other)]
        for alpha in ("0.5", "0.1"):
            found = ahead(both, other, alpha, 0.3)
            assert found.seeds == 20
            told[other, alpha] = parts(found)
    (near, spread), (far, around) = told["feature_weights", "0.5"], told["feature_weights", "0.1"]
    (more, wide), (most, widest) = told["logistic", "0.5"], told["logistic", "0.1"]
    sentence = (
        f"ahead of `feature_weights` by {near} points {spread} at α 0.5 and {far} {around} at 0.1, and of `logistic`"
    )
    assert is_told(RESULTS, f"{sentence} by {more} {wide} and {most} {widest}.")
    assert is_told(README, f"is {near} {spread} behind at α 0.5 and {far} {around} at 0.1")
    fitted = circumstances("held_out_fitted_anew", "logistic")
    one, other = (shown(fitted[f"α {alpha}, 30 % malicious"]["regret"]) for alpha in ("0.5", "0.1"))
    assert is_told(README, f"(docs/results.md#refitted-baselines-digits), {one} and {other}).")
    apart = []
    for alpha in ("0.5", "0.1"):
        first, second = (
            regrets(name, "oracle", alpha, 0.3, "test_accuracy") for name in ("held_out", "held_out_fitted_anew")
        )
        apart += [first[attack][seed] - second[attack][seed] for attack in first for seed in first[attack]]
    average = f"{np.abs(apart).mean():.2f}"
    assert is_told(RESULTS, f"within {shown(max(map(abs, apart)))} points in every cell, and {average} on average.")


def test_under_which_attacks_another_rule_is_ahead_on_digits_is_told_as_it_was_measured() -> None:
    no_others = ("optigradtrust", "optigradtrust (safeguard=false)", "oracle", "anchored_oracle", "root_only")
    found = [
        (of["optigradtrust"] - value, rule, scenario)
        for scenario, of in attacks("held_out").items()
        for rule, value in of.items()
        if rule not in no_others
    ]
    assert all("α 0.5" in scenario for value, _, scenario in found if value > 1e-9)
    behind, rules, scenarios = zip(*sorted(found, reverse=True)[:5], strict=True)
    assert [scenario.split(",")[0] for scenario in scenarios] == ["free_rider"] + ["same_value"] * 4
    most, more, *same, less = map(shown, behind)
    assert same == [more] * 2
    first, *others, last = (f"`{rule}`" for rule in rules)
    sentence = f"{first} by {most} under `free_rider`; {', '.join(others[:2])} and {others[2]} by {more} and {last}"
    assert is_told(
        RESULTS, f"by {most} points at most, and at α 0.5 only: {sentence} by {less} under `same_value`. * At"
    )


def test_what_the_safeguard_and_the_clipping_do_on_digits_is_told_as_it_was_measured() -> None:
    bare = "optigradtrust (safeguard=false)"
    of_worst = [attacks("held_out")[f"policy_aware, α {alpha}, 30 %"] for alpha in ("0.5", "0.1")]
    before, after = (" and ".join(shown(of[rule]) for of in of_worst) for rule in (bare, "optigradtrust"))
    assert all("policy_aware" in worst("held_out", bare, alpha, "30 %") for alpha in ("0.5", "0.1"))
    first = str(ahead(rows_of("held_out"), bare, "0.5", 0.3)).replace(" [", " points [")
    gains = f"{first} of the mean at α 0.5 and {' '.join(parts(ahead(rows_of('held_out'), bare, '0.1', 0.3)))} at 0.1."
    assert is_told(RESULTS, f"from {before} points down to {after}, and gains {gains}")
    clipped = circumstances("held_out_median_clip", "optigradtrust")["α 0.5, no attack"]["behind FedAvg"]
    assert is_told(RESULTS, f"it lost {shown(clipped)} at α 0.5: on validation data")


@pytest.mark.parametrize(("clients", "alpha"), [("10", "0.5"), ("10", "0.1"), ("100", "0.5")])
def test_10_and_100_clients_are_told_as_they_were_measured(clients: str, alpha: str) -> None:
    told = []
    for column, unit in (("test_accuracy", " %"), ("regret_anchored", "")):
        here, there = (
            regrets(name, "optigradtrust", alpha, 0.3, column) for name in (f"held_out_{clients}_clients", "held_out")
        )
        seeds = here["zero"].keys()
        told += [f"{shown(mean(of[seed] for of in each.values() for seed in seeds))}{unit}" for each in (here, there)]
    assert is_told(RESULTS, f"| {' | '.join((clients, alpha, str(len(seeds)), *told))} |")


def test_more_attackers_are_told_as_they_were_measured() -> None:
    names = ("optigradtrust", "optigradtrust (safeguard=false)", "safeguarded_shapley", "oracle", "root_only")
    measured = {rule: circumstances("held_out_majority", rule) for rule in names}
    told = list(table(RESULTS, "| malicious | α | rule | regret"))
    assert [row["malicious"] for row in told] == ["45 %"] * 6 + ["60 %"] * 6
    assert [row["α"] for row in told] == (["0.5"] * 3 + ["0.1"] * 3) * 2
    assert [row["rule"].strip("`") for row in told] == list(names[:3]) * 4
    for row in told:
        key = f"α {row['α']}, {row['malicious']} malicious"
        of, best, floor = (measured[rule][key] for rule in (row["rule"].strip("`"), *names[3:]))
        assert row["regret"] == interval(of, "regret")
        assert row["to `anchored_oracle`"] == interval(of, "regret to anchored oracle")
        rule, malicious = row["rule"].strip("`"), row["malicious"]
        assert row["worst attack's"] == worst("held_out_majority", rule, row["α"], malicious)
        assert row["below `root_only`, worst attack"] == shown(-of["above root only, worst attack"])
        share = (of["accuracy"] - floor["accuracy"]) / (best["accuracy"] - floor["accuracy"])
        assert row["recovered"] == (f"{100 * share:.0f} %" if best["accuracy"] > floor["accuracy"] else "")


def test_what_a_majority_does_on_digits_is_told_as_it_was_measured() -> None:
    shares, most, lost = {}, {}, {}
    for alpha, fraction in (("0.5", 0.45), ("0.5", 0.6), ("0.1", 0.45), ("0.1", 0.6)):
        ours, root = (regrets("held_out_majority", rule, alpha, fraction) for rule in ("optigradtrust", "root_only"))
        below = np.array([ours[attack][seed] - root[attack][seed] for attack in ours for seed in ours[attack]])
        shares[alpha, fraction] = f"{100 * (below > 1e-9).mean():.1f}"
        most[alpha, fraction] = below.max()
        lost[alpha, fraction] = sorted((mean(of.values()) for of in ours.values()), reverse=True)
    assert shares["0.5", 0.45] == "0.0"
    largest = shown(max(most["0.5", 0.6], most["0.1", 0.6]))
    both = f"in {shares['0.5', 0.6]} and {shares['0.1', 0.6]} % of the runs with 60 %, by {largest} points at most"
    fewer = f"in {shares['0.1', 0.45]} % of those with 45 % at α 0.1, by {shown(most['0.1', 0.45])}."
    assert is_told(RESULTS, f"{both}, and {fewer}")
    behind = {case: sum(value > 1e-9 for value in values) for case, values in lost.items()}
    assert (behind["0.1", 0.45], behind["0.1", 0.6]) == (0, 0)
    assert is_told(
        RESULTS, f"under {behind['0.5', 0.45]} of the 27 attacks with 45 %, and under {behind['0.5', 0.6]} with"
    )
    first, second, third, fourth, fifth, *_ = map(shown, lost["0.5", 0.6])
    on_fashion = circumstances("held_out_fashion_mnist_majority", "optigradtrust")["α 0.5, 60 % malicious"]
    assert is_told(
        README,
        f"With 60 % malicious it loses up to {first} points at α 0.5, on Fashion-MNIST up to "
        f"{shown(on_fashion['worst regret'])}; and on digits {shares['0.5', 0.6]} and {shares['0.1', 0.6]} % of the "
        f"runs, at α 0.5 and 0.1, end below root data alone, by up to {largest} (",
    )
    assert is_told(
        RESULTS,
        f"{first} points under `zero`, {second} under `optimised_alie`, {third} under `policy_aware`, {fourth} under "
        f"`optimised_ipm`, {fifth} at most under the others.",
    )


def test_what_a_majority_did_with_the_clipping_before_and_does_without_the_safeguard_is_told_as_it_was_measured() -> (
    None
):
    zero = [attacks("held_out_majority_median_clip")[f"zero, α {alpha}, 60 %"] for alpha in ("0.5", "0.1")]
    before = " and ".join(shown(of["optigradtrust"] - of["root_only"]) for of in zero)
    assert is_told(RESULTS, f"on the seeds 20 to 29, `zero` did by {before} points with 60 %")
    bare = circumstances("held_out_majority", "optigradtrust (safeguard=false)")
    below = [-bare[f"α {alpha}, 60 % malicious"]["above root only, worst attack"] for alpha in ("0.5", "0.1")]
    assert is_told(RESULTS, f"Without the safeguard it would end {below[0]:.0f} and {below[1]:.0f} points below.")


def test_root_data_alone_ends_the_same_in_both_runs_on_digits() -> None:
    for alpha in ("0.5", "0.1"):
        one, other = (
            regrets(name, "root_only", alpha, fraction, "test_accuracy")["alie"]
            for name, fraction in (("held_out", 0.3), ("held_out_majority", 0.45))
        )
        assert len(other) == 10
        assert other == {seed: one[seed] for seed in other}


def test_what_the_quickstart_ends_with_is_told_as_it_was_measured() -> None:
    regret = {row["rule"]: row["regret"] for row in table("\n" + summary_of("quickstart") + "\n\n", "| rule |")}
    others = [regret[rule].split(" [")[0] for rule in ("shapley", "fltrust", "fedavg")]
    told = "regret {} for it, {} for `shapley`, {} for FLTrust, {} for FedAvg."
    assert is_told(RESULTS, told.format(regret["optigradtrust"], *others))
