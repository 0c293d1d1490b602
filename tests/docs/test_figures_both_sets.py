"""Tables and sentences of one form, for digits and for Fashion-MNIST, are told as they were measured."""

import csv

import pytest

from .figures import (
    FASHION,
    README,
    RESULTS,
    ROOT,
    ahead,
    circumstances,
    interval,
    is_told,
    parts,
    rows_of,
    shown,
    table,
    worst,
)


def seeds(name: str, alpha: str) -> set[str]:
    """Which have been run at an α."""
    with (ROOT / "results" / name / "results.csv").open() as file:
        return {row["seed"] for row in csv.DictReader(file) if row["heterogeneity"] == alpha}


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
    ("head", "names", "rules"),
    [
        ("rule", FASHION, 3),
        ("without", ("held_out_fashion_mnist_sybil_exponent_0",) * 2, 3),
        ("beside others", ("held_out_fashion_mnist_rules",) * 2, 8),
        ("before", ("held_out_fashion_mnist_clone_weight_0",) * 2, 2),
        ("fitted anew", ("held_out_fitted_anew",) * 2, 2),
    ],
)
def test_rules_in_both_heterogeneities_are_told_as_they_were_measured(
    head: str, names: tuple[str, str], rules: int
) -> None:
    told = list(table(RESULTS, f"| {head} | regret, α 0.5 |"))
    assert len({row[head] for row in told}) == len(told) == rules
    for row in told:
        rule = row[head].strip("`")
        for alpha, name in zip(("0.5", "0.1"), names, strict=True):
            measured = circumstances(name, rule)
            attacked = measured[f"α {alpha}, 30 % malicious"]
            assert row[f"regret, α {alpha}"] == interval(attacked, "regret")
            assert row[f"worst, α {alpha}"] == worst(name, rule, alpha, "30 %")
            assert row[f"no attack, α {alpha}"] == shown(measured[f"α {alpha}, no attack"]["regret"])


@pytest.mark.parametrize(
    ("text", "name", "other", "fraction", "signs", "sentence"),
    [
        (README, "held_out", "safeguarded_shapley", 0.3, (1, 1), "{} points {} behind at α 0.5 and {} {} at 0.1."),
        (README, "held_out", "anchored_oracle", 0.3, (-1, 1), "{} points {} behind at α 0.5 and {} {} ahead at 0.1."),
        (README, "held_out", "fedavg", 0, (1, 1), "level with FedAvg at α 0.5, {} points {}, and {} {} ahead at 0.1."),
        (RESULTS, "held_out", "shapley", 0.3, (1, 1), "(`shapley`) by {} points {} at α 0.5 and {} {} at 0.1;"),
        (RESULTS, "held_out", "safeguarded_shapley", 0.3, (1, 1), "(`safeguarded_shapley`) by {} {} and {} {}."),
        (RESULTS, "held_out", "anchored_oracle", 0.3, (-1, 1), "{} points {} behind at α 0.5, {} {} ahead at 0.1."),
        (RESULTS, "held_out", "fedavg", 0, (1, 1), "level with FedAvg at α 0.5, {} points {}, and gains {} {} at 0.1."),
        (RESULTS, "held_out_majority", "safeguarded_shapley", 0.45, (1, 1), "by {} points {} and {} {} with 45 %,"),
        (RESULTS, "held_out_majority", "safeguarded_shapley", 0.6, (1, 1), "by {} {} and {} {} with 60 % malicious."),
        (
            RESULTS,
            f"{FASHION[0]}_rules",
            "shapley",
            0.3,
            (1, 1),
            "`shapley`, by {} points {} at α 0.5 and {} {} at 0.1 (",
        ),
        (
            RESULTS,
            f"{FASHION[0]}_clone_weight_0",
            "shapley",
            0.3,
            (1, 1),
            "Paired with `shapley` it was {} points {} ahead at α 0.5 and {} {} at 0.1.",
        ),
    ],
)
def test_paired_differences_are_told_as_they_were_measured(
    text: str, name: str, other: str, fraction: float, signs: tuple[int, int], sentence: str
) -> None:
    one, two = (
        parts(ahead(rows_of(name), other, alpha, fraction, sign))
        for alpha, sign in zip(("0.5", "0.1"), signs, strict=True)
    )
    assert is_told(text, sentence.format(*one, *two))
