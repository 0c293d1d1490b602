"""Figures with other root data are told as they were measured."""

import csv

from .figures import README, RESULTS, ROOT, is_told, shown, table


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

    def found(root: str, bias: str, column: str, alpha: str = "0.5") -> str:
        return shown(float(measured[root, bias, "optigradtrust", alpha][column]))

    few, fewer, biased = (found(root, bias, "regret") for root, bias in (("50", "0.0"), ("20", "0.0"), ("100", "0.6")))
    assert is_told(README, f"With 50 the policy is {few} points behind the oracle on digits at α 0.5, with 20 {fewer},")
    assert is_told(README, f"where 60 % of the 100 are drawn from one class {biased} ([table]")
    half, fifth = ([found(root, "0.0", "worst_regret", alpha) for alpha in ("0.5", "0.1")] for root in ("50", "20"))
    costs = f"at α 0.5, under the worst attack {half[0]} and {fifth[0]}, at 0.1 under the worst attack"
    assert is_told(RESULTS, f"{few} and {fewer} points behind the oracle {costs} {half[1]} and {fifth[1]}.")
    some = (
        f"{found('100', '0.3', 'regret')} points at α 0.5, under the worst attack {found('100', '0.3', 'worst_regret')}"
    )
    many = f"{biased} and {found('100', '0.6', 'worst_regret')}, and {found('100', '0.6', 'no_attack_regret')} without"
    assert is_told(RESULTS, f"with 30 % {some}; with 60 % {many} any attack.")
