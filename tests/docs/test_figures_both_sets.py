"""Tables and sentences of one form, for digits and for Fashion-MNIST, are told as they were measured."""

import csv

import pytest

from fl_core import Federation, configure
from optigrad_env.registration import ENVIRONMENTS

from .figures import (
    FASHION,
    README,
    RESULTS,
    ROOT,
    RULES,
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
        ("digits, 30 % malicious", ("held_out", "held_out"), 30),
        ("digits, 45 % malicious", ("held_out_majority", "held_out_majority"), 45),
        ("digits, 60 % malicious", ("held_out_majority", "held_out_majority"), 60),
        ("Fashion-MNIST, 30 %", FASHION, 30),
        ("Fashion-MNIST, 45 %", (f"{FASHION[0]}_majority", f"{FASHION[0]}_majority"), 45),
        ("Fashion-MNIST, 60 %", (f"{FASHION[0]}_majority", f"{FASHION[0]}_majority"), 60),
    ],
)
def test_the_circumstances_are_told_as_they_were_measured(label: str, names: tuple[str, str], fraction: int) -> None:
    told = next(row for row in table(RESULTS, "| | seeds, ") if row[""] == label)
    if label != "digits, 30 % malicious":  # of which README has a table by itself
        assert told == next(row for row in table(README, "| | seeds, ") if row[""] == label)
    counts = []
    for alpha, name in zip(("0.5", "0.1"), names, strict=True):
        row = circumstances(name, "optigradtrust")[f"α {alpha}, {fraction} % malicious"]
        assert told[f"α {alpha}"] == f"{shown(row['regret'])} ({shown(row['worst regret'])})"
        assert told[f"to `anchored_oracle`, α {alpha}"] == shown(row["regret to anchored oracle"])
        counts.append(str(len(seeds(name, alpha))))
    assert told["seeds, α 0.5 / 0.1"] == " / ".join(counts)


@pytest.mark.parametrize(
    ("section", "names", "rules"),
    [
        ("## Fashion-MNIST", FASHION, 3),
        ("### Without sybil discounting", ("held_out_fashion_mnist_sybil_exponent_0",) * 2, 3),
        ("**Beside other rules**", (RULES, "held_out_fashion_mnist_rules"), 8),
        ("### The previous policy", ("held_out_fashion_mnist_clone_weight_0",) * 2, 2),
        ("### Refitted baselines, digits", ("held_out_fitted_anew",) * 2, 2),
    ],
)
def test_rules_in_both_heterogeneities_are_told_as_they_were_measured(
    section: str, names: tuple[str, str], rules: int
) -> None:
    told = list(table(RESULTS, "| rule | regret, α 0.5 |", section))
    assert len({row["rule"] for row in told}) == len(told) == rules
    for row in told:
        rule = row["rule"].strip("`")
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


def test_how_clients_train_is_told_as_the_environments_have_it() -> None:
    steps, found = {3: "three", 5: "five"}, {}
    for name in ("Digits", "FashionMNIST"):
        config = configure(**{**ENVIRONMENTS[f"OptiGrad/{name}-v0"], "num_clients": 20})
        training = config.training
        found[name] = (steps[training.steps], training.batch_size, f"{training.learning_rate:g}")
    few, small, rate = found["Digits"]
    size = f"{Federation(configure(num_clients=20)).layout.num_shared:,}"
    prox = f"FedBN-Prox (µ {configure().mu:g})"
    sentence = f"{few} local SGD steps a round on batches of {small},"
    assert is_told(README, f"`small_cnn` ({size} parameters) with {prox}: {sentence} at a learning rate of {rate}.")
    assert is_told(RESULTS, f"`small_cnn` with {size} parameters, {prox}, {sentence} learning rate {rate};")
    more, large, rate = found["FashionMNIST"]
    assert is_told(RESULTS, f"16-32-fc64, {prox}, {more} steps on batches of {large}, learning rate {rate}.")


def test_how_early_in_training_fashion_mnist_is_told_as_it_was_measured() -> None:
    half, tenth = (
        [
            circumstances(name, rule)[f"α {alpha}, 30 % malicious"]["accuracy"]
            for rule in ("optigradtrust", "oracle", "root_only")
        ]
        for alpha, name in zip(("0.5", "0.1"), FASHION, strict=True)
    )
    ours, best, floor = (f"{shown(one)} / {shown(other)} %" for one, other in zip(half, tenth, strict=True))
    assert is_told(RESULTS, f"the policy has {ours}, the oracle {best} and root data alone {floor},")
