"""Whether backdoors succeed is told as it was measured."""

import csv

import pytest

from .figures import FASHION, POLICIES, README, RESULTS, ROOT, ahead, is_told, mean, regrets, rows_of, shown, table

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
    untouched = [
        mean(successes(name, rule, alpha, 0.3)[attack])
        for alpha, name in zip(("0.5", "0.1"), FASHION, strict=True)
        for rule in ("oracle", "root_only")
        for attack in BACKDOORS[:2]
    ]
    assert is_told(README, f"`dba` and `neurotoxin` succeed in {told[0]} % at α 0.5 and {told[1]} at 0.1")
    assert is_told(README, f"where an untouched model has {min(untouched):.0f} to {max(untouched):.0f}.")


WEIGHTINGS = {"as it ships": "", "6": ":sybil_exponent=1,sybil_power=6", "12": ":sybil_exponent=1,sybil_power=12"}


def measured(file: str, **wanted: str) -> dict[str, str]:
    """The last row of a file under results/ that has these values: rows are appended."""
    with (ROOT / "results" / file).open() as rows:
        return [row for row in csv.DictReader(rows) if wanted.items() <= row.items()][-1]


@pytest.mark.parametrize("trigger", ["cross", "chessboard", "wave"])
def test_what_the_memory_of_similarity_was_chosen_by_is_told_as_it_was_measured(trigger: str) -> None:
    told = list(table(POLICIES, "| | cross |"))
    assert len(told) == len(WEIGHTINGS)
    for row, (name, options) in zip(told, WEIGHTINGS.items(), strict=True):
        assert name in row[""]
        found = [
            {
                seen: measured("backdoors.csv", policy=f"fashion_mnist{options}", alpha=alpha, trigger=seen)
                for seen in ("none", "cross", "chessboard", "wave")
            }
            for alpha in ("0.5", "0.1")
        ]
        assert row[trigger] == " / ".join(f"{float(of[trigger]['success']):.0f}" for of in found)
        assert row["without an attack"] == " / ".join(of["none"]["accuracy"] for of in found)
        under = [mean(float(one["accuracy"]) for seen, one in of.items() if seen != "none") for of in found]
        assert row["accuracy under the three"] == " / ".join(map(shown, under))


@pytest.mark.parametrize(("column", "fraction"), [("no attack", "0.0"), ("45 %", "0.45"), ("60 %", "0.6")])
def test_what_it_costs_where_no_backdoor_gets_through_is_told_as_it_was_measured(column: str, fraction: str) -> None:
    told = list(table(POLICIES, "| digits | no attack |"))
    assert len(told) == len(WEIGHTINGS)
    for row, (name, options) in zip(told, WEIGHTINGS.items(), strict=True):
        same = {"policy": f"digits{options}", "malicious_fraction": fraction, "seeds": "3"}
        both = (float(measured("levers.csv", alpha=alpha, **same)["mean_regret"]) for alpha in ("0.5", "0.1"))
        assert name in row["digits"]
        assert row[column] == " / ".join(map(shown, both))


MEMORY, REMEMBERS = f"{FASHION[0]}_sybil_power_backdoors", "optigradtrust (sybil_exponent=1,sybil_power=6)"


def test_what_the_memory_of_similarity_keeps_out_is_told_as_it_was_measured() -> None:
    told = list(table(RESULTS, "| ten seeds, success |"))
    rules = {"as it ships": (FASHION[0], "optigradtrust"), "with the setting": (MEMORY, REMEMBERS)}
    assert [row["ten seeds, success"] for row in told] == [*rules, "`oracle`"]
    for row, (name, rule) in zip(told, [*rules.values(), (MEMORY, "oracle")], strict=True):
        one, other = (successes(name, rule, alpha, 0.3) for alpha in ("0.5", "0.1"))
        for attack in BACKDOORS:
            assert len(one[attack]) == len(other[attack]) == 10
            assert row[f"`{attack}`"] == f"{mean(one[attack]):.0f} / {mean(other[attack]):.0f}"
    most = {
        attack: max(max(successes(MEMORY, REMEMBERS, alpha, 0.3)[attack]) for alpha in ("0.5", "0.1"))
        for attack in ("dba", "neurotoxin")
    }
    assert is_told(
        RESULTS, f"in single runs `dba` still reaches {most['dba']:.0f} % and `neurotoxin` {most['neurotoxin']:.0f}"
    )
    sentence = (
        "Accuracy, paired with the policy as it ships, changes by {} points at α 0.5 and {} at 0.1 under these five "
        "attacks, and by {} and {} without an attack"
    )
    gained = [gain(alpha, fraction) for fraction in (0.3, 0.0) for alpha in ("0.5", "0.1")]
    assert is_told(RESULTS, sentence.format(*gained))
    brought = [
        " and ".join(f"{mean(successes(MEMORY, REMEMBERS, alpha, 0.3)[attack]):.0f}" for attack in BACKDOORS[:2])
        for alpha in ("0.5", "0.1")
    ]
    assert is_told(README, f"brings them down to {brought[0]} % and {brought[1]} %")


def gain(alpha: str, fraction: float) -> str:
    """Points of accuracy that the memory gains over the policy as it ships, with its interval."""
    attacks = (*BACKDOORS, "none")
    rows = [row for row in rows_of(FASHION[0]) if row["rule"] == "optigradtrust" and row["attack"] in attacks]
    rows += [row for row in rows_of(MEMORY) if row["rule"] == REMEMBERS]
    found = ahead(rows, REMEMBERS, alpha, fraction, -1)
    return f"{shown(found.value)} [{shown(found.low)}, {shown(found.high)}]"
