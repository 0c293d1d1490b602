"""Figures of digits, the quickstart's too, are told as they were measured."""

import numpy as np
import pytest

from agents.statistics import estimate, paired_scores

from .figures import README, RESULTS, ROOT, bare, circumstances, interval, is_told, mean, regrets, rows_of, shown, table


def summary_of(name: str) -> str:
    return (ROOT / "results" / name / "summary.md").read_text()


def test_every_row_of_the_headline_is_a_row_of_the_summary() -> None:
    summary = {row["rule"]: row for row in table("\n" + summary_of("held_out") + "\n\n", "| rule |")}
    told = list(table(README, "| rule | accuracy, attacked |"))
    assert len(told) == len(summary) > 10
    for row in told:
        assert row == {column: summary[row["rule"]][column] for column in row}


@pytest.mark.parametrize(
    ("other", "alpha", "attacked", "sign", "sentence"),
    [
        ("safeguarded_shapley", "0.5", True, 1, "{} behind at α 0.5,"),
        ("safeguarded_shapley", "0.1", True, 1, "{short} at 0.1 (`python -m"),
        ("anchored_oracle", "0.5", True, -1, "it is {} behind at α 0.5"),
        ("anchored_oracle", "0.1", True, 1, "and {short} ahead at 0.1. Without"),
        ("fedavg", "0.5", False, 1, "level with FedAvg at α 0.5, {},"),
        ("fedavg", "0.1", False, 1, "and {short} ahead at 0.1."),
    ],
)
def test_paired_differences_are_told_as_they_were_measured(
    other: str, alpha: str, attacked: bool, sign: int, sentence: str
) -> None:
    rows = rows_of("held_out")
    chosen = [row for row in rows if row["heterogeneity"] == alpha and (row["malicious_fraction"] > 0) == attacked]
    ours, theirs = paired_scores(chosen, "optigradtrust", other, "test_accuracy", 100)
    found = estimate(sign * (ours - theirs))
    short = f"{shown(found.value)} [{shown(found.low)}, {shown(found.high)}]"
    expected = sentence.format(short.replace(" [", " points ["), short=short)
    assert expected in " ".join(README.split())


def test_near_relatives_of_train_attacks_make_no_difference_on_digits() -> None:
    near = ("on_off", "late_onset", "ipm", "ipm_small", "optimised_ipm", "dynamic_label_flip")
    largest = []
    for alpha in ("0.5", "0.1"):
        found = regrets("held_out", "optigradtrust", alpha, 0.3)
        means = {attack: mean(of.values()) for attack, of in found.items()}
        others = [value for attack, value in means.items() if attack not in near]
        assert len(others) == len(means) - len(near) == 21
        assert abs(mean(others) - mean(means.values())) < 0.1
        largest += [max(of.values()) for of in found.values()]
    assert is_told(README, f"in a single seed the policy loses {shown(max(largest))} points at most.")


def test_how_far_fitted_rules_are_behind_is_told_as_it_was_measured() -> None:
    ours = [row for row in rows_of("held_out") if row["rule"] == "optigradtrust"]
    fresh = rows_of("held_out_fitted_anew")
    told = {}
    for other in ("feature_weights", "logistic"):
        both = [*ours, *(row for row in fresh if row["rule"] == other)]
        for alpha in ("0.5", "0.1"):
            chosen = [row for row in both if row["heterogeneity"] == alpha and row["malicious_fraction"] > 0]
            scores, theirs = paired_scores(chosen, "optigradtrust", other, "test_accuracy", 100)
            assert scores.shape == (20, 27)
            found = estimate(scores - theirs)
            told[other, alpha] = (shown(found.value), f"[{shown(found.low)}, {shown(found.high)}]")
    (near, spread), (far, around) = told["feature_weights", "0.5"], told["feature_weights", "0.1"]
    (more, wide), (most, widest) = told["logistic", "0.5"], told["logistic", "0.1"]
    sentence = (
        f"ahead of `feature_weights` by {near} points {spread} at α 0.5 and {far} {around} at 0.1, and of `logistic`"
    )
    assert is_told(RESULTS, f"{sentence} by {more} {wide} and {most} {widest}.")
    assert is_told(README, f"is {near} {spread} behind at α 0.5 and {far} {around} at 0.1")
    fitted = circumstances("held_out_fitted_anew", "logistic")
    one, other = (shown(fitted[f"α {alpha}, 30 % malicious"]["regret"]) for alpha in ("0.5", "0.1"))
    assert is_told(README, f"(docs/results.md#fitted-anew-digits), {one} and {other}).")
    apart = []
    for alpha in ("0.5", "0.1"):
        first, second = (
            regrets(name, "oracle", alpha, 0.3, "test_accuracy") for name in ("held_out", "held_out_fitted_anew")
        )
        apart += [first[attack][seed] - second[attack][seed] for attack in first for seed in first[attack]]
    assert is_told(RESULTS, f"the same within {shown(max(map(abs, apart)))} points in every cell")


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
        assert bare(row["worst attack's"]) == shown(of["worst regret"])
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
    assert is_told(
        RESULTS,
        f"{first} points under `zero`, {second} under `optimised_alie`, {third} under `policy_aware`, {fourth} under "
        f"`optimised_ipm`, {fifth} at most under the others.",
    )


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
