"""Figures of Fashion-MNIST are told as they were measured."""

import json

import numpy as np
import pytest

from agents.statistics import estimate

from .figures import (
    FASHION,
    README,
    RESULTS,
    ROOT,
    RULES,
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

WITHOUT = f"{FASHION[0]}_sybil_exponent_0"
# The previous policy.
BEFORE = f"{FASHION[0]}_clone_weight_0"
MAJORITY = f"{FASHION[0]}_majority"


def test_what_the_attacks_that_search_do_on_fashion_mnist_is_told_as_it_was_measured() -> None:
    searching = ("optimised_ipm", "policy_aware")
    plain, anchored = (
        regrets("held_out_fashion_mnist", "optigradtrust", "0.5", 0.3, column)
        for column in ("regret", "regret_anchored")
    )

    def told(of: dict[str, dict[float, float]]) -> list[tuple[str, str]]:
        return [parts(estimate(np.array([[value] for value in of[attack].values()]))) for attack in searching]

    (ipm, near), (aware, around) = told(plain)
    assert [sum(value > 0 for value in plain[attack].values()) for attack in searching] == [8, 9]
    assert is_told(
        RESULTS, f"by {ipm} points {near} and {aware} {around} on average, in eight and nine of the ten seeds"
    )
    assert is_told(
        README, f"{ipm} points {near} and {aware} {around} behind the oracle, in eight and nine of ten seeds"
    )
    most = [shown(max(plain[attack].values())) for attack in searching]
    assert is_told(RESULTS, f"in seed 44 by {most[0]} and {most[1]}.")
    assert is_told(README, f"in one by {most[0]} and {most[1]}.")
    (ipm, near), (aware, around) = told(anchored)
    of_all = interval(circumstances(FASHION[0], "optigradtrust")["α 0.5, 30 % malicious"], "regret to anchored oracle")
    assert is_told(RESULTS, f"is {of_all} at α 0.5, behind by {ipm} {near} and {aware} {around} under those two")
    level, *rest = sorted((mean(of.values()) for attack, of in plain.items() if attack not in searching), reverse=True)
    assert level == mean(plain["late_onset"].values()) and shown(level) == "0.0"
    assert is_told(RESULTS, f"level with the oracle, every other attack {shown(-rest[0])} points ahead or more.")
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
        RESULTS,
        f"In two of the 540 federations under attack the policy is behind that oracle, by {shown(max(runs))} at most.",
    )
    averages = [mean(of[seed] for of in plain.values()) for seed in plain["zero"]]
    assert is_told(RESULTS, f"regret to the plain oracle goes from {shown(min(averages))} to {shown(max(averages))}.")
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


def test_what_sybil_discounting_is_worth_is_told_as_it_was_measured() -> None:
    name, searching = f"{FASHION[0]}_jitter", ("optimised_ipm", "policy_aware")
    told = list(table(RESULTS, "| regret, α 0.5 | `optimised_ipm`"))
    ours, without = (regrets(name, rule, "0.5", 0.3) for rule in ("optigradtrust", "optigradtrust (sybil_exponent=0)"))
    for row, of in zip(told, (ours, without), strict=True):
        for attack in searching:
            assert row[f"`{attack}`"] == shown(mean(of[attack].values()))
            assert row[f"`{attack}`, noisy"] == shown(mean(of[f"{attack}:jitter=1"].values()))
    worth = [[without[attack][seed] - value for seed, value in ours[attack].items()] for attack in searching]
    (each,) = {shown(mean(of)) for of in worth}
    spread = f"(from {shown(min(map(min, worth)))} to {shown(max(map(max, worth)))} in one seed)"
    assert is_told(RESULTS, f"On the same seeds it is worth {each} points under each {spread}.")
    (rounded,) = {f"{mean(of):.0f}" for of in worth}
    assert is_told(README, f"worth {rounded} points under either of the two attacks above")
    back = [mean(ours[f"{attack}:jitter=1"].values()) - mean(ours[attack].values()) for attack in searching]
    assert is_told(RESULTS, f"some of their weight back, {shown(back[0])} and {shown(back[1])} points;")


def test_every_rule_is_behind_on_fashion_mnist() -> None:
    closest = []
    for name, alpha in ((RULES, "0.5"), (f"{FASHION[0]}_rules", "0.1")):
        rows = rows_of(name)
        others = {str(row["rule"]) for row in rows} - {"optigradtrust", "oracle", "anchored_oracle", "root_only"}
        assert len(others) == 7
        found = {other: ahead(rows, other, alpha, 0.3) for other in others}
        assert all(each.low > 0 for each in found.values())
        worst_of = {rule: circumstances(name, rule)[f"α {alpha}, 30 % malicious"]["worst regret"] for rule in others}
        ours = circumstances(name, "optigradtrust")[f"α {alpha}, 30 % malicious"]["worst regret"]
        assert ours < min(worst_of.values())
        first = min(found, key=lambda other: found[other].value)
        assert first == "shapley"
        closest.append(parts(found[first]))
    (half, spread), (tenth, around) = closest
    assert is_told(
        RESULTS, f"the closest is `shapley`, by {half} points {spread} at α 0.5 and {tenth} {around} at 0.1 ("
    )
    numbers = {6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten"}
    count = numbers[len({row["seed"] for row in rows_of(RULES)})]
    assert is_told(RESULTS, f"on the first {count} of these seeds, 36 to")
    assert is_told(README, f"on {count} seeds, at α 0.1 on three: ahead of all in the mean and in the worst case;")


def test_under_which_attacks_a_rule_is_ahead_on_fashion_mnist_is_told_as_it_was_measured() -> None:
    ahead_of = {
        (rule, scenario): of["optigradtrust"] - value
        for name, alpha in ((RULES, "0.5"), (f"{FASHION[0]}_rules", "0.1"))
        for scenario, of in attacks(name).items()
        for rule, value in of.items()
        if f"α {alpha}" in scenario and rule not in ("optigradtrust", "oracle", "anchored_oracle", "root_only")
    }
    trailing = sorted(((value, *key) for key, value in ahead_of.items() if value > 1e-9), reverse=True)
    assert all("α 0.5" in scenario for _, _, scenario in trailing)
    told = [f"`{rule}` by {value:.2f} points under `{scenario.split(',')[0]}`" for value, rule, scenario in trailing]
    sentence = f"Per attack it trails one of them, at α 0.5 alone: {', '.join(told)}."
    assert is_told(RESULTS, sentence if told else "it is ahead of each under each of the 27 attacks.")


@pytest.mark.parametrize(
    ("section", "name", "intervals"),
    [("## Fashion-MNIST", MAJORITY, True), ("### Without sybil", f"{MAJORITY}_sybil_exponent_0", False)],
)
def test_more_attackers_on_fashion_mnist_are_told_as_they_were_measured(
    section: str, name: str, intervals: bool
) -> None:
    measured = circumstances(name, "optigradtrust")
    told = list(table(RESULTS, "| malicious | α | regret |", section))
    assert [(row["malicious"], row["α"]) for row in told] == [
        ("45 %", "0.5"),
        ("", "0.1"),
        ("60 %", "0.5"),
        ("", "0.1"),
    ]
    malicious = ""
    for row in told:
        malicious = row["malicious"] or malicious
        of = measured[f"α {row['α']}, {malicious} malicious"]
        assert row["regret"] == (interval(of, "regret") if intervals else shown(of["regret"]))
        if intervals:
            assert row["to `anchored_oracle`"] == interval(of, "regret to anchored oracle")
        assert row["worst attack's"] == worst(name, "optigradtrust", row["α"], malicious)
        assert row["below `root_only`, worst attack"] == shown(-of["above root only, worst attack"])
    ours, root, best = (
        circumstances(name, rule)["α 0.5, 60 % malicious"]["accuracy"]
        for rule in ("optigradtrust", "root_only", "oracle")
    )
    assert is_told(RESULTS, f"recovers {100 * (ours - root) / (best - root):.0f} % of the way")
    assert is_told(RESULTS, f"({shown(ours)} − {shown(root)}) / ({shown(best)} − {shown(root)})")


def test_under_which_attacks_a_majority_wins_on_fashion_mnist_is_told_as_it_was_measured() -> None:
    lost = {scenario: of["optigradtrust"] for scenario, of in attacks(MAJORITY).items() if of["optigradtrust"] > 0}
    assert all("α 0.5" in scenario for scenario in lost)
    many, few = (
        [
            f"{shown(value)} under `{scenario.split(',')[0]}`"
            for scenario, value in sorted(lost.items(), key=lambda item: -item[1])
            if scenario.endswith(malicious) and value >= 0.05
        ]
        for malicious in ("60 %", "45 %")
    )
    sentence = f"with 60 % {', '.join(many[:-1])} and {many[-1]}, with 45 % {', '.join(few[:-1])} and {few[-1]}"
    little = [f"`{scenario.split(',')[0]}`" for scenario, value in sorted(lost.items()) if value < 0.05]
    sentence += f", and by less than 0.05 under {' and '.join(little)}."
    assert is_told(RESULTS, sentence.replace(" under", " points under", 1))
    before = circumstances(f"{MAJORITY}_clone_weight_0", "optigradtrust")
    below = [shown(-before[f"α {alpha}, 60 % malicious"]["above root only, worst attack"]) for alpha in ("0.5", "0.1")]
    assert is_told(RESULTS, f"(the previous policy: {below[0]} and {below[1]} points, on other seeds)")


def test_how_far_apart_winograds_convolution_and_the_direct_one_end_is_told_as_it_was_measured() -> None:
    apart = {}
    for rule in ("optigradtrust", "root_only"):
        one, other = (
            [regrets(name, rule, "0.5", fraction, "test_accuracy") for fraction in (0.45, 0.6)]
            for name in (MAJORITY, f"{FASHION[0]}_seed_41")
        )
        apart[rule] = [
            now[attack][seed] - value
            for now, before in zip(one, other, strict=True)
            for attack, of in before.items()
            for seed, value in of.items()
        ]
    ours = apart["optigradtrust"]
    assert len(ours) == 54 and not any(apart["root_only"])
    average, most, both = (shown(value) for value in (mean(map(abs, ours)), max(map(abs, ours)), abs(mean(ours))))
    assert is_told(RESULTS, f"is {average} points apart on average over the 54 cells, {most} at most and {both} in the")


def test_what_the_policy_does_without_sybil_discounting_is_told_as_it_was_measured() -> None:
    weak, searching = ("zero", "ipm_small", "free_rider"), ("optimised_ipm", "policy_aware")
    now, before = (
        {attack: shown(attacks(name)[f"{attack}, α 0.5, 30 %"]["optigradtrust"]) for attack in (*weak, *searching)}
        for name in (WITHOUT, BEFORE)
    )
    gains = "regret {} under `zero`, {} under `ipm_small`, {} under `free_rider`".format(*(now[each] for each in weak))
    losses = "lost {}, {} and {} points".format(*(before[each] for each in weak))
    assert is_told(RESULTS, f"{gains}, where the previous policy {losses} on other seeds.")
    each = [value for of in searching for value in regrets(WITHOUT, "optigradtrust", "0.5", 0.3)[of].values()]
    spread = f"in every one of the six seeds from {shown(min(each))} to {shown(max(each))}"
    ours, theirs = ([of[attack] for attack in searching] for of in (now, before))
    sentence = f"`optimised_ipm` {ours[0]} points and `policy_aware` {ours[1]}, {spread}; the one before lost"
    assert is_told(RESULTS, f"{sentence} {theirs[0]} and {theirs[1]}, and")
    rows = [circumstances(WITHOUT, "optigradtrust")[f"α {alpha}, 30 % malicious"] for alpha in ("0.5", "0.1")]
    half, tenth = (interval(row, "regret to anchored oracle") for row in rows)
    assert is_told(RESULTS, f"the oracle that uses the root data too is {half} at α 0.5 and {tenth} at 0.1.")


def test_what_the_policy_and_its_safeguard_do_is_told_as_it_was_measured() -> None:
    name, rules = f"{FASHION[0]}_control", ("optigradtrust", "safeguarded_shapley")
    measured = [[circumstances(name, rule)[f"α {alpha}, 30 % malicious"] for rule in rules] for alpha in ("0.5", "0.1")]
    half, tenth = (" and ".join(shown(of["accuracy"]) for of in both) for both in measured)
    largest = ", ".join(" and ".join(shown(of["worst regret"]) for of in both) for both in measured)
    assert is_told(RESULTS, f"{half} % under attack at α 0.5, {tenth} % at 0.1, worst regret {largest}.")
    ipm, aware = (
        " and ".join(shown(attacks(name)[f"{attack}, α 0.5, 30 %"][rule]) for rule in rules)
        for attack in ("optimised_ipm", "policy_aware")
    )
    assert is_told(
        RESULTS, f"costs both alike, {ipm} at α 0.5; `policy_aware` costs the policy twice as much, {aware} ("
    )


def test_what_ran_on_other_machines_and_how_far_they_lie_apart_is_told_as_it_was_measured() -> None:
    apart = {}
    for rule in ("optigradtrust", "oracle", "anchored_oracle", "root_only"):
        one, other = (
            regrets(name, rule, "0.1", 0.3, "test_accuracy") for name in (FASHION[1], f"{FASHION[0]}_seed_46")
        )
        apart[rule] = [abs(one[attack][seed] - of[seed]) for attack, of in other.items() for seed in of]
    assert max(apart["root_only"]) == 0 and len(apart["root_only"]) == 3
    own = f"{shown(mean(apart['optigradtrust']))} points apart on average, {shown(max(apart['optigradtrust']))} at most"
    oracles = " and ".join(shown(mean(apart[rule])) for rule in ("oracle", "anchored_oracle"))
    assert is_told(RESULTS, f"{own}, the oracles' {oracles}, and root data alone")

    def cells(name: str) -> list[int]:
        """There before the later runs that a directory is of."""
        manifest = json.loads((ROOT / "results" / name / "manifest.json").read_text())
        return [of["rows_before"] // len(apart) for of in (*manifest["earlier"], manifest["provenance"])]

    first = {row["seed"] for row in rows_of(FASHION[0])}
    late = [row for row in rows_of(FASHION[1]) if row["rule"] == "oracle" and row["seed"] not in first]
    assert is_told(RESULTS, f"{cells(FASHION[1])[-2]} of {len(late)} cells were run on a third")
    there, all_of_four = cells(WITHOUT)[-2:]
    assert is_told(RESULTS, f"{there} of the first {all_of_four} cells ran on another machine")
    again = [row for row in rows_of(f"{FASHION[0]}_one_standard_error") if "least" in str(row["rule"])]
    assert all({**row, "rule": "optigradtrust"} in rows_of(WITHOUT) for row in again)
    assert is_told(RESULTS, f"the fifth seed's {len(again)} runs [came out the same](")
