"""Tables of one form, for digits and for Fashion-MNIST, are told as they were measured."""

import csv

import pytest

from .figures import FASHION, README, RESULTS, ROOT, bare, circumstances, interval, shown, table


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
