"""The table, the picture and the page."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from agents.report import headline, to_markdown, to_picture, to_rich, write_page
from agents.statistics import summarise


def rows(
    alphas: tuple[float | None, ...] = (0.5, 0.1),
    attacks: tuple[str, ...] = ("none", "alie"),
    rules: tuple[str, ...] = ("oracle", "mine", "fedavg"),
    seeds: int = 2,
) -> list[dict[str, Any]]:
    return [
        {
            "rule": rule,
            "attack": attack,
            "malicious_fraction": 0.0 if attack == "none" else 0.3,
            "alpha": alpha,
            "seed": seed,
            "test_accuracy": 0.9 - 0.1 * i,
            "regret": 0.1 * i,
            "regret_anchored": 0.1 * i + 0.05,
            "seconds_per_round": 0.0125,
        }
        for i, rule in enumerate(rules)
        for attack in attacks
        for alpha in alphas
        for seed in range(seeds)
    ]


def decoded(picture: bytes) -> np.ndarray:
    return np.asarray(matplotlib.image.imread(io.BytesIO(picture), format="png"))


def test_the_headline_shows_percent_with_errors() -> None:
    header, (oracle, mine, _) = headline(summarise(rows()))
    assert header[0] == "rule"
    assert sum("α" in name for name in header) == 2
    assert oracle[:3] == ["oracle", "90.0 ± 0.0", "0.0 ± 0.0"]
    assert mine[:3] == ["mine", "80.0 ± 0.0", "10.0 ± 0.0"]
    assert {len(row) for row in (oracle, mine, header)} == {len(header)}


@pytest.mark.parametrize("attacks", [("none",), ("alie",)])
def test_missing_figures_are_dashes(attacks: tuple[str, ...]) -> None:
    header, lines = headline(summarise(rows(attacks=attacks)))
    missing = {name for name, cell in zip(header, lines[0], strict=True) if cell == "–"}
    if attacks == ("alie",):
        assert missing == {"accuracy, no attack"}
    else:
        assert "regret" in missing
        assert "accuracy, no attack" not in missing


def test_the_markdown_table_has_a_line_a_rule_and_equal_columns() -> None:
    lines = to_markdown(summarise(rows())).splitlines()
    assert len(lines) == 2 + 3
    assert len({line.count("|") for line in lines}) == 1
    assert lines[3].startswith("| mine | 80.0 ± 0.0 |")


def test_the_terminal_table_shows_every_rule() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(to_rich(summarise(rows()), "attacks: alie", ["mine"]))
    text = console.export_text()
    assert "attacks: alie" in text
    for rule in ("oracle", "mine", "fedavg"):
        assert rule in text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"alphas": (0.5,)},
        {"alphas": (None,)},
        {"attacks": ("none",)},
        {"attacks": ("alie",)},
        {"seeds": 1},
        {"attacks": tuple("abcdefghijklm")},
        {"rules": ("oracle", "anchored_oracle")},
    ],
)
def test_the_picture_is_a_png_for_every_kind_of_grid(changes: dict[str, Any]) -> None:
    given = rows(**changes)
    picture = decoded(to_picture(given, summarise(given), ["mine"]))
    assert picture.ndim == 3
    assert picture.std() > 0.01


def test_a_panel_for_each_alpha_iid_included() -> None:
    def width(alphas: tuple[float | None, ...]) -> int:
        given = rows(alphas=alphas)
        entries = summarise([row for row in given if row["alpha"] is not None] or given)
        return decoded(to_picture(given, entries, ["mine"])).shape[1]

    assert width((0.5, 0.1)) > width((0.5,))
    assert width((None, 0.5)) == width((0.1, 0.5))


def test_the_page_needs_no_network_and_holds_the_picture_itself(tmp_path: Path) -> None:
    given = rows()
    entries = summarise(given)
    picture = to_picture(given, entries, ["mine"])
    write_page(tmp_path / "report.html", entries, picture, {"command": "python evaluate.py", "seeds": "2"})
    page = (tmp_path / "report.html").read_text()
    text = page.replace(base64.b64encode(picture).decode(), "")
    assert not re.search(r"https?://|//[a-z]|<script|<link|@import|url\(", text)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 1
    kind, _, content = sources[0].partition(",")
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(decoded(base64.b64decode(content)), decoded(picture))
    assert "python evaluate.py" in page
    for line in headline(entries)[1]:
        assert all(f"<td>{cell}</td>" in page for cell in line)


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    given = rows(rules=("oracle", "<script>alert(1)</script>"))
    write_page(tmp_path / "report.html", summarise(given), b"", {"a&b": "<i>", "quote": 'x"y'})
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<i>" not in page
