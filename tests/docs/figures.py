"""Tables and sentences of README and docs/results.md, and figures of the files under results/ that they name."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from agents.statistics import Estimate, Row, estimate, paired_scores, read_results

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()
QUESTIONS = (ROOT / "docs" / "questions.md").read_text()
POLICIES = (ROOT / "docs" / "policies.md").read_text()
# At α 0.5, and at α 0.1, where more seeds have been run.
FASHION = ("held_out_fashion_mnist", "held_out_fashion_mnist_alpha_0.1")
# Beside other rules at α 0.5; at both, on fewer seeds, is the same name without α.
RULES = "held_out_fashion_mnist_rules_alpha_0.5"


def table(text: str, head: str, after: str = "") -> Iterator[dict[str, str]]:
    """Rows by column of the first table, after these words, whose first line begins so."""
    lines = text[text.index(f"\n{head}", text.index(after)) + 1 :].splitlines()
    columns, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in _until_blank(lines))
    for row in rows:
        yield dict(zip(columns, row, strict=True))


def _until_blank(lines: list[str]) -> list[str]:
    return lines[: lines.index("")]


def is_told(text: str, sentence: str) -> bool:
    return sentence in " ".join(text.split())


def shown(value: float) -> str:
    text = f"{value:.1f}".replace("-", "−")
    return "0.0" if text == "−0.0" else text


def interval(row: dict[str, float], column: str) -> str:
    if f"{column}, low" not in row:  # of one seed there is none
        return shown(row[column])
    return f"{shown(row[column])} [{shown(row[f'{column}, low'])}, {shown(row[f'{column}, high'])}]"


def parts(found: Estimate) -> tuple[str, str]:
    """Value and interval, between which a unit may stand."""
    return shown(found.value), f"[{shown(found.low)}, {shown(found.high)}]"


def mean(values: Iterable[float]) -> float:
    return float(np.mean([*values]))


def circumstances(name: str, rule: str) -> dict[str, dict[str, float]]:
    """Columns of a rule in tables/circumstances.csv of a result, by circumstance."""
    with (ROOT / "results" / name / "tables" / "circumstances.csv").open() as file:
        return {
            row["in"]: {key: float(value) for key, value in row.items() if key not in ("rule", "in") and value}
            for row in csv.DictReader(file)
            if row["rule"] == rule
        }


@cache
def attacks(name: str) -> dict[str, dict[str, float]]:
    """Regret by attack with its circumstances, and rule, of tables/attacks.csv of a result."""
    with (ROOT / "results" / name / "tables" / "attacks.csv").open() as file:
        return {
            row.pop("scenario"): {rule: float(value) for rule, value in row.items()} for row in csv.DictReader(file)
        }


def worst(name: str, rule: str, alpha: str, malicious: str) -> str:
    """A rule's largest regret, and the attack behind it, but for rules to which all attacks are one."""
    end = f", α {alpha}, {malicious}"
    found = {scenario.removesuffix(end): of[rule] for scenario, of in attacks(name).items() if scenario.endswith(end)}
    attack = max(found, key=lambda attack: found[attack])
    return shown(found[attack]) + ("" if rule in ("anchored_oracle", "root_only") else f" (`{attack}`)")


@cache
def rows_of(name: str) -> Sequence[Row]:
    return read_results(ROOT / "results" / name / "results.csv")


def regrets(name: str, rule: str, alpha: str, fraction: float, column: str = "regret") -> dict[str, dict[float, float]]:
    """By attack and seed, in points; without the attacks that have no such figure."""
    found: dict[str, dict[float, float]] = {}
    for row in rows_of(name):
        of = (row["rule"], row["heterogeneity"], row["malicious_fraction"])
        if of == (rule, alpha, fraction) and row[column] is not None:
            found.setdefault(row["attack"], {})[row["seed"]] = 100 * row[column]
    return found


def ahead(rows: Iterable[Row], other: str, alpha: str, fraction: float, sign: int = 1) -> Estimate:
    """By how many points the policy is ahead of another rule, or behind it with a sign of -1, paired."""
    chosen = [row for row in rows if (row["heterogeneity"], row["malicious_fraction"]) == (alpha, fraction)]
    ours, theirs = paired_scores(chosen, "optigradtrust", other, "test_accuracy", 100)
    return estimate(sign * (ours - theirs))
