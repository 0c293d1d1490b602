"""Rows that are added to a file of earlier runs, and what they say of where they come from."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from agents.deployed import TrustAggregator
from agents.evaluation.policies import parse_policy, policy_facts, rule_or_policy
from agents.evaluation.provenance import git_revision

ORIGIN = ("checksum", "revision")


def origin(spec: str) -> tuple[str, str]:
    """The first characters of a policy's checksum, see ``PolicyFacts`` (empty for a rule), and this code's revision."""
    checksum = ""
    if isinstance(rule_or_policy(spec), TrustAggregator):
        source, options = parse_policy(spec)
        checksum = policy_facts(source, **options).checksum[:12]
    return checksum, git_revision() or ""


def check_header(path: Path, columns: Sequence[str]) -> None:
    """Raises a ValueError where a file has other columns: rows would stand under wrong names."""
    header = _header(path)
    if header and header != [*columns]:
        raise ValueError(
            f"{path} has the columns {', '.join(header)}, and the rows would have {', '.join(columns)}; "
            "give another --out"
        )


def append(path: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Prints rows and adds them to a file; raises as ``check_header`` does."""
    check_header(path, columns)
    fresh = not _header(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row, flush=True)


def _header(path: Path) -> list[str]:
    """Columns of a file; none, if it is not there or empty."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return next(csv.reader(file), [])
