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
    few, fewer, biased = (
        shown(float(measured[root, bias, "optigradtrust", "0.5"]["regret"]))
        for root, bias in (("50", "0.0"), ("20", "0.0"), ("100", "0.6"))
    )
    assert is_told(README, f"With 50 the policy is {few} points behind the oracle on digits at α 0.5, with 20 {fewer},")
    assert is_told(README, f"where one class has 60 % too many {biased} ([table]")
