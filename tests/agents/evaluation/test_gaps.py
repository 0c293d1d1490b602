"""A rule that failed somewhere is not compared as if it had not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.evaluation import write_report
from agents.evaluation.files import MARKDOWN, PAGE

from .rows import write_rows

FACTS = {"command": "python evaluate.py", "seeds": [0, 1], "policies": {}, "revision": "abc"}


@pytest.mark.parametrize("failed", [0, 1, 3])
def test_page_and_summary_say_which_rule_lacks_how_many_runs(
    tmp_path: Path, make_rows: Callable[..., list[dict[str, Any]]], failed: int
) -> None:
    rows = make_rows()
    under_attack = [row for row in rows if row["rule"] == "mine" and row["malicious_fraction"]]
    lost = under_attack[:failed]
    write_rows(tmp_path, [row for row in rows if row not in lost])
    write_report(tmp_path, FACTS, ["mine"])
    told = f"mine lacks {failed} of {len(under_attack)} runs under attack."
    for name in (PAGE, MARKDOWN):
        text = (tmp_path / name).read_text()
        assert (told in text) == bool(failed)
        assert text.count("lacks") == bool(failed)
