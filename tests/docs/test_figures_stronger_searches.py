"""What searches cost that were made after the list of held-out attacks is told as it was measured."""

import pytest

from .figures import FASHION, QUESTIONS, README, RESULTS, is_told, mean, regrets, shown, table

APART = "policy_aware:apart=true"
# By column of the table: the runs, and those of the list on the same seeds.
RUNS = {
    "digits, α 0.5": ("held_out_apart", "held_out", "0.5"),
    "digits, α 0.1": ("held_out_apart", "held_out", "0.1"),
    "Fashion-MNIST, α 0.5": ("held_out_fashion_mnist_apart", FASHION[0], "0.5"),
    "Fashion-MNIST, α 0.1": ("held_out_fashion_mnist_apart", FASHION[1], "0.1"),
}
RULES = {
    "trained policy": "optigradtrust",
    "without its safeguard": "optigradtrust (safeguard=false)",
    "`safeguarded_shapley`": "safeguarded_shapley",
    "`fltrust`": "fltrust",
}


def found(column: str, rule: str) -> tuple[list[float], list[float]]:
    """Regret of the policy_aware of the list and of the one apart, seed by seed."""
    name, before, alpha = RUNS[column]
    apart, alike = regrets(name, rule, alpha, 0.3)[APART], regrets(before, rule, alpha, 0.3)["policy_aware"]
    return [alike[seed] for seed in apart], list(apart.values())


@pytest.mark.parametrize("column", RUNS)
def test_colluders_apart_cost_what_was_measured(column: str) -> None:
    told = {row["rule"]: row[column] for row in table(QUESTIONS, "| rule | digits, α 0.5 |", "### Stronger searches")}
    rules = {row: rule for row, rule in RULES.items() if column.startswith("digits") or rule == "optigradtrust"}
    assert {row for row, cell in told.items() if cell} == {*rules}
    for row, rule in rules.items():
        alike, apart = found(column, rule)
        assert told[row] == f"{shown(mean(alike))} → {shown(mean(apart))}"


def test_what_colluders_apart_cost_is_told_where_the_losses_are() -> None:
    (alike, apart), (tenth_alike, tenth_apart) = (found(column, "optigradtrust") for column in [*RUNS][:2])
    now, before = (
        f"{shown(mean(one))}{{}}{shown(mean(two))}" for one, two in ((apart, tenth_apart), (alike, tenth_alike))
    )
    first = f"a regret of {now.format(' at α 0.5 and ')} at 0.1 in place of {before.format(' and ')} and, on five seeds"
    fashion = [found(column, "optigradtrust") for column in [*RUNS][2:]]
    assert [len(apart) for _, apart in fashion] == [5, 5]
    before, now = (" and ".join(shown(mean(one[i])) for one in fashion) for i in (0, 1))
    assert is_told(README, f"{first} of Fashion-MNIST, of {now} in place of {before} ([")
    alike, apart = (mean(one) for one in fashion[0])
    assert is_told(RESULTS, f"the policy {shown(apart)} points behind the oracle at α 0.5, on five seeds where")
    assert is_told(RESULTS, f"the common vector leaves it {shown(-alike)} ahead ([table]")


def test_seeds_and_the_worst_single_runs_are_told() -> None:
    seeds = [len(found(column, "optigradtrust")[1]) for column in RUNS]
    assert is_told(QUESTIONS, f"{seeds[0]} seeds of digits, {seeds[2]} and {seeds[3]} of Fashion-MNIST")
    most = [shown(max(found(column, "optigradtrust")[1])) for column in RUNS]
    assert is_told(
        QUESTIONS,
        f"In a single run the policy loses {most[0]} and {most[1]} points on digits, {most[2]} and {most[3]} on",
    )


def test_a_larger_budget_in_the_box_costs_what_was_measured() -> None:
    attack, costs = "feature_box:evaluations=240", []
    for alpha in ("0.5", "0.1"):
        longer = regrets("held_out_feature_box", "optigradtrust", alpha, 0.3)[attack]
        usual = regrets("held_out", "optigradtrust", alpha, 0.3)["feature_box"]
        costs.append(f"{shown(mean(usual[seed] for seed in longer))} → {shown(mean(longer.values()))}")
        assert is_told(QUESTIONS, f"on {len(longer)} seeds")
    assert is_told(QUESTIONS, f"{costs[0]} points at α 0.5 and {costs[1]} at 0.1")
