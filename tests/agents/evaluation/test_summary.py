"""What a report says of rules, attacks and circumstances, by hand."""

import csv
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from agents.evaluation.report.tables import circumstances, costs, to_csv
from agents.evaluation.summary import (
    by_circumstances,
    compare,
    costs_by_place,
    focus,
    kind_of,
    regret_by_attack,
    summarise,
    worst_scenario,
)

from .rows import entry

MakeRows = Callable[..., list[dict[str, Any]]]


def test_the_summary_by_hand(make_rows: MakeRows) -> None:
    rows = make_rows()
    noise = np.mean([row["test_accuracy"] for row in rows if row["rule"] == "mine" and row["seed"] < 5]) - 0.9
    fedavg = entry(summarise(rows), "fedavg")
    assert fedavg["accuracy"]["value"] == pytest.approx(100 * (0.9 - 0.05 - 0.1 + noise))
    assert fedavg["regret"]["value"] == pytest.approx(100 * (0.05 + 0.1 - 0.1))
    assert fedavg["regret"]["low"] == pytest.approx(fedavg["regret"]["high"])  # paired: the seed's luck cancels
    assert fedavg["worst_regret"]["value"] == pytest.approx(100 * (0.05 + 0.2 - 0.1))
    assert (fedavg["worst_regret"]["attack"], fedavg["worst_accuracy"]["attack"]) == ("alie", "alie")
    assert fedavg["attack_impact"]["value"] == pytest.approx(10)
    assert fedavg["loss_to_fedavg_no_attack"]["value"] == 0
    assert fedavg["accuracy"]["seeds"] == 5
    assert set(fedavg["regret_by_heterogeneity"]) == {"0.5", "0.1"}
    assert fedavg["rounds_to_oracle"] == {"median": 7, "share": 1}
    assert summarise(rows)[0]["rule"] == "mine"


def test_the_comparison_and_the_worst_scenario_by_hand(make_rows: MakeRows) -> None:
    rows = make_rows()
    against = {one["other"]: one for one in compare(rows, "mine")}
    assert against["fedavg"]["difference"]["value"] == pytest.approx(15)
    assert against["fedavg"]["improvement"]["value"] == 1
    worst = worst_scenario([row for row in rows if row["rule"] == "fedavg"], "test_accuracy", min)
    assert (worst["attack"], worst["malicious_fraction"]) == ("alie", 0.3)
    assert np.isnan(worst_scenario([], "regret", max)["value"])


def test_the_circumstances_and_the_regret_under_each_attack_by_hand(make_rows: MakeRows) -> None:
    rows = make_rows()
    entries = by_circumstances(rows)
    assert len(entries) == 5 * 2 * 2
    found = {(e["rule"], e["heterogeneity"], e["malicious_fraction"]): e for e in entries}
    fedavg, mine = found["fedavg", "0.1", 0.3], found["mine", "0.5", 0.3]
    # Accuracy 85 % and 65 under alie; the policy 90, root_only 70.
    assert fedavg["behind_fedavg"]["value"] == 0
    assert fedavg["worst_regret"]["value"] == pytest.approx(15)
    assert fedavg["worst_regret"]["attack"] == "alie"
    assert fedavg["regret"]["value"] == pytest.approx((15 - 5) / 2)
    assert fedavg["above_root_only"] == pytest.approx(-5)
    assert mine["behind_fedavg"]["value"] == pytest.approx(-(25 + 5) / 2)
    assert mine["above_root_only"] == pytest.approx(20)
    lines = list(csv.DictReader(io.StringIO(to_csv(circumstances(entries, ["mine"])))))
    assert [line["in"] for line in lines if line["rule"] == "mine"] == [
        "α 0.5, no attack",
        "α 0.5, 30 % malicious",
        "α 0.1, no attack",
        "α 0.1, 30 % malicious",
    ]
    regrets = regret_by_attack(rows)
    assert len(regrets) == 4
    assert regrets["OptiGrad/Digits-v0", 10.0, "0.5", "alie", 0.3]["fedavg"] == pytest.approx(15)


def test_the_focus_is_the_first_policy_that_was_named_whatever_the_test_data_say(make_rows: MakeRows) -> None:
    entries = summarise(make_rows(rules=("oracle", "krum", "fedavg", "mine")))
    assert focus(entries, ["mine"]) == "mine"
    assert [focus(entries, ["fedavg", "mine"]), focus(entries, ["mine", "fedavg"])] == ["fedavg", "mine"]


def test_without_policies_the_focus_is_the_best_rule_that_knows_no_truth(make_rows: MakeRows) -> None:
    entries = summarise(make_rows(rules=("oracle", "krum", "fedavg", "mine")))
    assert focus(entries, []) == "krum"
    assert kind_of("mine (features shuffled)", ["mine"]) == "control"
    assert [kind_of(rule, ["mine"]) for rule in ("mine", "oracle", "root_only", "krum")] == [
        "policy",
        "reference",
        "reference",
        "rule",
    ]


def test_costs_are_those_of_the_scenarios_that_are_shown_and_of_one_place_alone(make_rows: MakeRows) -> None:
    rows = [{**row, "env_id": "A", "num_clients": 10} for row in make_rows()]
    dear = [{**row, "num_clients": 100} for row in rows]
    times = [
        {**row, "seconds_per_round": seconds, "server_seconds": seconds, "feature_seconds": 0.0}
        for group, seconds in ((rows, 0.001), (dear, 0.5))
        for row in group
    ]
    assert entry(summarise(rows, times), "fedavg")["server_seconds"] == 0.001
    assert np.isnan(entry(summarise([*rows, *dear], times), "fedavg")["server_seconds"])
    by_place = costs_by_place(times)
    of_fedavg = [(one["num_clients"], one["server_seconds"]) for one in by_place if one["rule"] == "fedavg"]
    assert of_fedavg == [(10, 0.001), (100, 0.5)]
    shown = list(csv.reader(io.StringIO(to_csv(costs(by_place, [])))))
    assert shown[0][:2] == ["rule", "in"]
    assert ["fedavg", "100 clients"] in [line[:2] for line in shown]
    one_place = costs([each for each in by_place if each["num_clients"] == 10], [])
    assert list(one_place.header)[:2] == ["rule", "round ms"]
