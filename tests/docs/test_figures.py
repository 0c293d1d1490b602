"""The figures of README and docs/results.md are those of the files under results/ that they name."""

import csv
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from agents.statistics import Row, estimate, paired_scores, read_results

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()
# At α 0.5, and at α 0.1, where more seeds have been run.
FASHION = ("held_out_fashion_mnist", "held_out_fashion_mnist_alpha_0.1")


def table(text: str, head: str) -> Iterator[dict[str, str]]:
    """Rows by column of the table whose first line begins so."""
    lines = text[text.index(f"\n{head}") + 1 :].splitlines()
    columns, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in _until_blank(lines))
    for row in rows:
        yield dict(zip(columns, row, strict=True))


def _until_blank(lines: list[str]) -> list[str]:
    return lines[: lines.index("")]


def circumstances(name: str, rule: str) -> dict[str, dict[str, float]]:
    """Columns of a rule in tables/circumstances.csv of a result, by circumstance."""
    with (ROOT / "results" / name / "tables" / "circumstances.csv").open() as file:
        return {
            row["in"]: {key: float(value) for key, value in row.items() if key not in ("rule", "in") and value}
            for row in csv.DictReader(file)
            if row["rule"] == rule
        }


def shown(value: float) -> str:
    text = f"{value:.1f}".replace("-", "−")
    return "0.0" if text == "−0.0" else text


def interval(row: dict[str, float], column: str) -> str:
    if f"{column}, low" not in row:  # of one seed there is none
        return shown(row[column])
    return f"{shown(row[column])} [{shown(row[f'{column}, low'])}, {shown(row[f'{column}, high'])}]"


def seeds(name: str, alpha: str) -> set[str]:
    """Which have been run at an α."""
    with (ROOT / "results" / name / "results.csv").open() as file:
        return {row["seed"] for row in csv.DictReader(file) if row["heterogeneity"] == alpha}


def bare(cell: str) -> str:
    """Without the name of an attack behind a figure."""
    return re.sub(r" \(`\w+`\)", "", cell)


def test_every_row_of_the_headline_is_a_row_of_the_summary() -> None:
    summary = {row["rule"]: row for row in table("\n" + summary_of("held_out") + "\n\n", "| rule |")}
    told = list(table(README, "| rule | accuracy, attacked |"))
    assert len(told) == len(summary) > 10
    for row in told:
        assert row == {column: summary[row["rule"]][column] for column in row}


def summary_of(name: str) -> str:
    return (ROOT / "results" / name / "summary.md").read_text()


@pytest.mark.parametrize(
    ("label", "names", "fraction"),
    [
        ("digits, 45 % malicious", ("held_out_majority", "held_out_majority"), 45),
        ("digits, 60 % malicious", ("held_out_majority", "held_out_majority"), 60),
        ("Fashion-MNIST, 30 %", FASHION, 30),
        ("Fashion-MNIST, 45 %", (f"{FASHION[0]}_majority", f"{FASHION[0]}_majority"), 45),
        ("Fashion-MNIST, 60 %", (f"{FASHION[0]}_majority", f"{FASHION[0]}_majority"), 60),
    ],
)
def test_the_readme_tells_the_other_circumstances_as_they_were_measured(
    label: str, names: tuple[str, str], fraction: int
) -> None:
    told = next(row for row in table(README, "| | seeds, ") if row[""] == label)
    counts = []
    for alpha, name in zip(("0.5", "0.1"), names, strict=True):
        row = circumstances(name, "optigradtrust")[f"α {alpha}, {fraction} % malicious"]
        assert told[f"α {alpha}"] == f"{shown(row['regret'])} ({shown(row['worst regret'])})"
        assert told[f"to `anchored_oracle`, α {alpha}"] == shown(row["regret to anchored oracle"])
        counts.append(str(len(seeds(name, alpha))))
    assert told["seeds, α 0.5 / 0.1"] == " / ".join(counts)


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


@pytest.mark.parametrize(
    ("head", "names", "other"),
    [
        ("rule", FASHION, "anchored_oracle"),
        ("without", ("held_out_fashion_mnist_sybil_exponent_0",) * 2, "anchored_oracle"),
        ("beside others", ("held_out_fashion_mnist_rules",) * 2, "flguard"),
        ("before", ("held_out_fashion_mnist_clone_weight_0",) * 2, "shapley"),
        ("fitted anew", ("held_out_fitted_anew",) * 2, "logistic"),
    ],
)
def test_rules_in_both_heterogeneities_are_told_as_they_were_measured(
    head: str, names: tuple[str, str], other: str
) -> None:
    told = list(table(RESULTS, f"| {head} | regret, α 0.5 |"))
    first = "feature_weights" if head == "fitted anew" else "optigradtrust"
    assert {row[head].strip("`") for row in told} >= {first, other}
    for row in told:
        for alpha, name in zip(("0.5", "0.1"), names, strict=True):
            measured = circumstances(name, row[head].strip("`"))
            attacked = measured[f"α {alpha}, 30 % malicious"]
            assert row[f"regret, α {alpha}"] == interval(attacked, "regret")
            assert bare(row[f"worst, α {alpha}"]) == shown(attacked["worst regret"])
            assert row[f"no attack, α {alpha}"] == shown(measured[f"α {alpha}, no attack"]["regret"])


def test_what_shared_voices_are_worth_is_told_as_it_was_measured() -> None:
    with (ROOT / "results" / "held_out_fashion_mnist_jitter" / "tables" / "attacks.csv").open() as file:
        measured = {row["scenario"].split(",")[0]: row for row in csv.DictReader(file)}
    told = list(table(RESULTS, "| regret, α 0.5 | `optimised_ipm`"))
    for row, rule in zip(told, ("optigradtrust", "optigradtrust (sybil_exponent=0)"), strict=True):
        for attack in ("optimised_ipm", "policy_aware"):
            assert row[f"`{attack}`"] == shown(float(measured[attack][rule]))
            assert row[f"`{attack}`, noisy"] == shown(float(measured[f"{attack}:jitter=1"][rule]))


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


def test_how_far_fitted_rules_are_behind_is_told_as_it_was_measured() -> None:
    ours = [row for row in rows_of("held_out") if row["rule"] == "optigradtrust"]
    fresh = rows_of("held_out_fitted_anew")
    told = {}
    for other in ("feature_weights", "logistic"):
        both = [*ours, *(row for row in fresh if row["rule"] == other)]
        for alpha in ("0.5", "0.1"):
            chosen = [row for row in both if row["heterogeneity"] == alpha and row["malicious_fraction"] > 0]
            one, theirs = paired_scores(chosen, "optigradtrust", other, "test_accuracy", 100)
            assert one.shape == (20, 27)
            found = estimate(one - theirs)
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
        one, other = (
            regrets(name, "oracle", alpha, 0.3, "test_accuracy") for name in ("held_out", "held_out_fitted_anew")
        )
        apart += [one[attack][seed] - other[attack][seed] for attack in one for seed in one[attack]]
    assert is_told(RESULTS, f"the same within {shown(max(map(abs, apart)))} points in every cell")


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


@cache
def rows_of(name: str) -> list[Row]:
    return read_results(ROOT / "results" / name / "results.csv")


def regrets(name: str, rule: str, alpha: str, fraction: float, column: str = "regret") -> dict[str, dict[float, float]]:
    """By attack and seed, in points; without the attacks that have no such figure."""
    found: dict[str, dict[float, float]] = {}
    for row in rows_of(name):
        of = (row["rule"], row["heterogeneity"], row["malicious_fraction"])
        if of == (rule, alpha, fraction) and row[column] is not None:
            found.setdefault(row["attack"], {})[row["seed"]] = 100 * row[column]
    return found


def is_told(text: str, sentence: str) -> bool:
    return sentence in " ".join(text.split())


def mean(values: Iterable[float]) -> float:
    return float(np.mean([*values]))


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


def test_other_root_data_is_told_as_it_was_measured() -> None:
    with (ROOT / "results" / "root_data.csv").open() as file:
        measured = {(row["root"], row["root_bias"], row["rule"], row["alpha"]): row for row in csv.DictReader(file)}
    told = list(table(RESULTS, "| samples | extra of one class |"))
    assert len(told) == 20
    for row in told:
        bias = str(float(row["extra of one class"].removesuffix(" %")) / 100)
        for alpha in ("0.5", "0.1"):
            of = {
                name: float(value)
                for name, value in measured[row["samples"], bias, row["rule"].strip("`"), alpha].items()
                if name not in ("rule", "alpha")
            }
            regret = f"{shown(of['regret'])} [{shown(of['regret_low'])}, {shown(of['regret_high'])}]"
            assert row[f"regret, α {alpha}"] == regret
            assert row[f"worst, α {alpha}"] == shown(of["worst_regret"])
            assert row[f"no attack, α {alpha}"] == shown(of["no_attack_regret"])
    ours = [row for row in measured.values() if row["rule"] == "optigradtrust"]
    assert all(float(row["above_root_only_worst"]) > 0 for row in ours)
    for row in ours:
        for other in ("safeguarded_shapley", "fltrust"):
            theirs = measured[row["root"], row["root_bias"], other, row["alpha"]]
            assert float(theirs["regret"]) > float(row["regret"])
    few, fewer, biased = (
        shown(float(measured[root, bias, "optigradtrust", "0.5"]["regret"]))
        for root, bias in (("50", "0.0"), ("20", "0.0"), ("100", "0.6"))
    )
    assert is_told(README, f"With 50 the policy is {few} points behind the oracle on digits at α 0.5, with 20 {fewer},")
    assert is_told(README, f"where one class has 60 % too many {biased} ([table]")


def test_what_the_quickstart_ends_with_is_told_as_it_was_measured() -> None:
    regret = {row["rule"]: row["regret"] for row in table("\n" + summary_of("quickstart") + "\n\n", "| rule |")}
    others = [regret[rule].split(" [")[0] for rule in ("shapley", "fltrust", "fedavg")]
    told = "regret {} for it, {} for `shapley`, {} for FLTrust, {} for FedAvg."
    assert is_told(RESULTS, told.format(regret["optigradtrust"], *others))


BACKDOORS = ("dba", "neurotoxin", "model_replacement", "edge_case", "targeted_label_flip")


def successes(name: str, rule: str, alpha: str, fraction: float) -> dict[str, list[float]]:
    """By backdoor, in percent, one value a seed."""
    found = regrets(name, rule, alpha, fraction, "attack_success")
    return {attack: [*found[attack].values()] for attack in BACKDOORS}


@pytest.mark.parametrize(
    ("head", "names", "rules"),
    [
        ("digits, success", ("held_out", "held_out"), 12),
        ("Fashion-MNIST, success", FASHION, 3),
        ("three seeds, success", ("held_out_fashion_mnist_rules",) * 2, 9),
    ],
)
def test_whether_backdoors_succeed_is_told_as_it_was_measured(head: str, names: tuple[str, str], rules: int) -> None:
    told = list(table(RESULTS, f"| {head} |"))
    assert len(told) == rules
    for row in told:
        one, other = (
            successes(name, row[head].strip("`"), alpha, 0.3) for alpha, name in zip(("0.5", "0.1"), names, strict=True)
        )
        for attack in BACKDOORS:
            assert row[f"`{attack}`"] == f"{mean(one[attack]):.0f} / {mean(other[attack]):.0f}"


def test_how_far_single_runs_and_majorities_take_backdoors_is_told_as_it_was_measured() -> None:
    def most(names: tuple[str, str], attack: str) -> str:
        each = [
            successes(name, "optigradtrust", alpha, 0.3)[attack]
            for alpha, name in zip(("0.5", "0.1"), names, strict=True)
        ]
        return f"{max(map(max, each)):.0f}"

    digits = most(("held_out", "held_out"), "neurotoxin"), most(("held_out", "held_out"), "model_replacement")
    assert is_told(RESULTS, f"`neurotoxin` reaches {digits[0]} % and `model_replacement` {digits[1]} %.")
    assert is_told(RESULTS, f"in single runs by up to {most(FASHION, 'dba')} and {most(FASHION, 'neurotoxin')} %.")
    majority = [successes(f"{FASHION[0]}_majority", "optigradtrust", alpha, 0.6) for alpha in ("0.5", "0.1")]
    dba, neurotoxin, replaced = (" / ".join(f"{mean(of[attack]):.0f}" for of in majority) for attack in BACKDOORS[:3])
    sentence = f"`dba` succeeds in {dba} %, `neurotoxin` in {neurotoxin} % and `model_replacement` in {replaced} %"
    assert is_told(RESULTS, sentence)
    told = [
        " and ".join(f"{mean(successes(name, 'optigradtrust', alpha, 0.3)[attack]):.0f}" for attack in BACKDOORS[:2])
        for alpha, name in zip(("0.5", "0.1"), FASHION, strict=True)
    ]
    assert is_told(README, f"`dba` and `neurotoxin` succeed in {told[0]} % at α 0.5 and {told[1]} at 0.1")


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


def test_root_data_alone_ends_the_same_in_both_runs_on_digits() -> None:
    for alpha in ("0.5", "0.1"):
        one, other = (
            regrets(name, "root_only", alpha, fraction, "test_accuracy")["alie"]
            for name, fraction in (("held_out", 0.3), ("held_out_majority", 0.45))
        )
        assert len(other) == 10
        assert other == {seed: one[seed] for seed in other}
