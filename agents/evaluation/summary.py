"""From rows to the figures of a report: one entry a rule, with intervals."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from math import isnan, nan
from statistics import fmean, median
from typing import Any

from agents.evaluation.contestants import FLOOR, REFERENCES
from agents.evaluation.controls import FEATURES_SHUFFLED, ROOT_LABELS_SHUFFLED
from agents.evaluation.figures_of_merit import with_attack_impact
from agents.statistics import (
    TASK,
    Row,
    estimate,
    estimate_improvement,
    heterogeneities_of,
    interquartile_mean,
    paired_scores,
    score_matrix,
    task_of,
)

Entry = Mapping[str, Any]

# Figures under attack that are means with intervals, and what they are multiplied with.
_ATTACKED = {
    "accuracy": ("test_accuracy", 100),
    "regret": ("regret", 100),
    "regret_anchored": ("regret_anchored", 100),
    "attack_impact": ("attack_impact", 100),
    "attack_success": ("attack_success", 100),
    "worst_class": ("worst_class_accuracy", 100),
    "personalised": ("personalised_accuracy", 100),
    "worst_client": ("worst_client_accuracy", 100),
    "detection_auroc": ("detection_auroc", 1),
    "detection_precision": ("detection_precision", 1),
    "detection_recall": ("detection_recall", 1),
    "honest_weight_share": ("honest_weight_share", 1),
}
_QUIET = {"accuracy_no_attack": ("test_accuracy", 100), "false_positive_rate": ("false_positive_rate", 1)}
_TIMINGS = ("seconds_per_round", "server_seconds", "feature_seconds", "peak_memory_mib")


def summarise(rows: Sequence[Row], timings: Sequence[Row] = ()) -> list[dict[str, Any]]:
    """One entry a rule, best mean regret under attack first; accuracies and regrets in percentage points.

    Args:
        rows: Rows of ``results.csv``.
        timings: Rows of ``timings.csv``, if any.

    Returns:
        For each rule an ``Estimate`` as a mapping (``value``, ``low``, ``high``, ``seeds``) of every figure of merit,
        the inter-quartile means ``accuracy_iqm``, ``regret_iqm`` and ``normalised_score``, ``regret_by_heterogeneity``,
        the worst scenario beside the mean (``worst_regret``, ``worst_accuracy``, and of attacks with a target
        ``worst_backdoor``), and medians of the timings in the same scenarios, NaN where these are of several
        environments or numbers of clients: see ``costs_by_place``.
    """
    rows = with_attack_impact(rows)
    kinds = heterogeneities_of(rows)
    entries = []
    for rule in dict.fromkeys(row["rule"] for row in rows):
        mine = [row for row in rows if row["rule"] == rule]
        attacked, quiet = [r for r in mine if r["malicious_fraction"]], [r for r in mine if not r["malicious_fraction"]]
        tasks = {task_of(row) for row in mine}
        costs = [row for row in timings if row["rule"] == rule and task_of(row) in tasks]
        if len({_place(row) for row in costs}) > 1:
            costs = []
        entries.append(
            {
                "rule": rule,
                **{name: _estimate(attacked, *column) for name, column in _ATTACKED.items()},
                **{name: _estimate(quiet, *column) for name, column in _QUIET.items()},
                "accuracy_iqm": _estimate(attacked, "test_accuracy", 100, interquartile_mean),
                "regret_iqm": _estimate(attacked, "regret", 100, interquartile_mean),
                "normalised_score": _estimate(attacked, "normalised_score", 1, interquartile_mean),
                "regret_by_heterogeneity": {
                    kind: _estimate([row for row in attacked if row["heterogeneity"] == kind], "regret", 100)
                    for kind in kinds
                },
                "worst_regret": worst_scenario(attacked, "regret", max, 100),
                "worst_accuracy": worst_scenario(attacked, "test_accuracy", min, 100),
                "worst_backdoor": worst_scenario(attacked, "attack_success", max, 100),
                "loss_to_fedavg_no_attack": asdict(_loss_to_fedavg(quiet, rows)),
                "rounds_to_oracle": _rounds_to_oracle(attacked),
                **{name: _median(costs, name) for name in _TIMINGS},
            }
        )
    return sorted(entries, key=_regret_or_last)


def costs_by_place(timings: Sequence[Row]) -> list[dict[str, Any]]:
    """Medians of the timings, one entry a rule, environment and number of clients."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in timings:
        groups.setdefault((row["rule"], *_place(row)), []).append(row)
    return [
        {
            **dict(zip(("rule", "env_id", "num_clients"), key, strict=True)),
            **{name: _median(group, name) for name in _TIMINGS},
        }
        for key, group in groups.items()
    ]


def _place(row: Row) -> tuple[Any, Any]:
    return row.get("env_id"), row.get("num_clients")


def worst_scenario(rows: Iterable[Row], column: str, worst: Callable[..., Any], scale: float = 1.0) -> dict[str, Any]:
    """The worst mean over seeds of any scenario, and which it is: ``value``, and the names in ``TASK``."""
    by_task: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.get(column) is not None:
            by_task.setdefault(task_of(row), []).append(row)
    if not by_task:
        return {"value": nan, **dict.fromkeys(TASK)}
    means = {task: scale * fmean(row[column] for row in group) for task, group in by_task.items()}
    task = worst(means, key=lambda task: means[task])
    return {"value": means[task], **dict(zip(TASK, task, strict=True))}


def by_circumstances(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry a rule and environment, number of clients, heterogeneity and malicious fraction, in points.

    Returns:
        ``accuracy``, ``regret``, ``regret_anchored``; ``worst_regret`` over the attacks; ``behind_fedavg`` in the same
        scenarios (paired; negative is ahead); and ``above_root_only``, the lowest lead over it under any attack.
    """
    axes = ("env_id", "num_clients", "heterogeneity", "malicious_fraction")
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(axis) for axis in axes), []).append(row)
    entries = []
    for key, group in groups.items():
        for rule in dict.fromkeys(row["rule"] for row in group):
            mine = [row for row in group if row["rule"] == rule]
            ours, theirs = paired_scores(group, rule, "fedavg", "test_accuracy", 100)
            lead, floor = paired_scores(group, rule, FLOOR, "test_accuracy", 100)
            entries.append(
                {
                    **dict(zip(axes, key, strict=True)),
                    "rule": rule,
                    "accuracy": _estimate(mine, "test_accuracy", 100),
                    "regret": _estimate(mine, "regret", 100),
                    "regret_anchored": _estimate(mine, "regret_anchored", 100),
                    "worst_regret": worst_scenario(mine, "regret", max, 100),
                    "behind_fedavg": asdict(estimate(theirs - ours)),
                    "above_root_only": float((lead - floor).mean(axis=0).min()) if lead.size else nan,
                }
            )
    return entries


def regret_by_attack(rows: Sequence[Row]) -> dict[tuple[Any, ...], dict[str, float]]:
    """Scenario (as ``task_of``) under attack to each rule's mean regret over seeds, in points."""
    found: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for row in rows:
        if row["malicious_fraction"] and row.get("regret") is not None:
            found.setdefault(task_of(row), {}).setdefault(row["rule"], []).append(100 * row["regret"])
    return {task: {rule: fmean(values) for rule, values in rules.items()} for task, rules in found.items()}


def compare(rows: Sequence[Row], rule: str) -> list[dict[str, Any]]:
    """A rule against every other on the same seeds and scenarios under attack, in points.

    Returns:
        For each other rule: ``difference`` of accuracy with its interval, and ``improvement``, the probability that a
        run of the rule is better.
    """
    attacked = [row for row in rows if row["malicious_fraction"]]
    comparisons = []
    for other in dict.fromkeys(row["rule"] for row in attacked):
        if other != rule:
            ours, theirs = paired_scores(attacked, rule, other, "test_accuracy", 100)
            comparisons.append(
                {
                    "other": other,
                    "difference": asdict(estimate(ours - theirs)),
                    "improvement": asdict(estimate_improvement(ours, theirs)),
                }
            )
    return comparisons


def kind_of(rule: str, learned: Iterable[str]) -> str:
    """``policy``, ``reference``, ``control`` or ``rule``."""
    if rule in learned:
        return "policy"
    if rule in REFERENCES:
        return "reference"
    return "control" if rule.endswith((f"({FEATURES_SHUFFLED})", f"({ROOT_LABELS_SHUFFLED})")) else "rule"


def focus(entries: Sequence[Entry], learned: Sequence[str]) -> str:
    """The rule that a report compares with all others.

    The first policy that was named: to take the best one would be a choice by test data. Without policies the best rule
    that knows no truth, which the report's tables begin with anyway.
    """
    rules = [str(entry["rule"]) for entry in entries]
    named = [label for label in learned if label in rules]
    unknowing = [rule for rule in rules if kind_of(rule, learned) == "rule"]
    for found in (named, unknowing, rules):
        if found:
            return found[0]
    raise ValueError("there are no results to report on")


def _estimate(rows: Sequence[Row], column: str, scale: float, statistic: Any = None) -> dict[str, Any]:
    scores, _, _ = score_matrix(rows, column, scale)
    return asdict(estimate(scores) if statistic is None else estimate(scores, statistic))


def _loss_to_fedavg(quiet: Sequence[Row], rows: Sequence[Row]) -> Any:
    """Paired difference of test accuracy to FedAvg without attack, in points; positive is worse than FedAvg."""
    rule = quiet[0]["rule"] if quiet else ""
    calm = [row for row in rows if not row["malicious_fraction"]]
    ours, theirs = paired_scores(calm, rule, "fedavg", "test_accuracy", 100)
    return estimate(theirs - ours)


def _rounds_to_oracle(rows: Sequence[Row]) -> dict[str, Any]:
    """Median over the runs that came within 90 % of the oracle, and the share of runs that did."""
    reached = [row["rounds_to_oracle"] for row in rows if row.get("rounds_to_oracle") is not None]
    return {"median": median(reached) if reached else nan, "share": len(reached) / len(rows) if rows else nan}


def _median(rows: Sequence[Row], column: str) -> float:
    known = [row[column] for row in rows if row.get(column) is not None]
    return median(known) if known else nan


def _regret_or_last(entry: Entry) -> tuple[bool, float]:
    value = entry["regret"]["value"]
    return isnan(value), value
