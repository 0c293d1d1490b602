"""Tables of a report in every form."""

import csv
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from agents.evaluation.report.tables import (
    Value,
    headline,
    to_csv,
    to_html,
    to_latex,
    to_markdown,
    to_rich,
)
from agents.evaluation.summary import summarise

MakeRows = Callable[..., list[dict[str, Any]]]


def test_the_headline_tells_the_worst_backdoor_where_an_attack_has_a_target(make_rows: MakeRows) -> None:
    rows = make_rows()
    column = "worst backdoor success"
    for row in rows:
        row["attack_success"] = None
    assert column not in headline(summarise(rows), ["mine"], "headline", "").header
    attacked = [row for row in rows if row["rule"] == "mine" and row["malicious_fraction"]]
    worst = attacked[-1]["attack"]
    for row in attacked:
        row["attack_success"] = 0.5 if row["attack"] == worst else 0.25
    table = headline(summarise(rows), ["mine"], "headline", "")
    field = dict(zip(table.header, table.rows[0], strict=True))[column]
    assert (field.text, field.number) == ("50.0", 50)
    assert worst in field.note
    assert column in [one.header for one in to_rich(table).columns]


def test_tables_in_every_form(make_rows: MakeRows) -> None:
    table = headline(summarise(make_rows()), ["mine"], "headline", "Caption & more")
    markdown = to_markdown(table).splitlines()
    assert len(markdown) == 2 + 5
    assert len({line.count("|") for line in markdown}) == 1
    first, *_ = csv.DictReader(to_csv(table).splitlines())
    assert first["rule"] == "mine"
    assert float(first["regret"]) == pytest.approx(-10)
    assert float(first["accuracy, attacked, low"]) <= float(first["accuracy, attacked"])
    latex = to_latex(table)
    assert latex.count(r"\\") == 6
    assert r"root\_only" in latex
    assert "$-$10.0" in latex
    assert "−" not in latex.replace("% Caption & more", "")
    console = Console(width=200, record=True)
    console.print(to_rich(table))
    printed = console.export_text()
    assert all(rule in printed for rule in ("mine", "fedavg", "oracle", "anchored_oracle", "root_only"))
    page = to_html(table)
    assert "Caption &amp; more" in page
    assert page.count("<tr") == 6


def test_values_show_intervals_and_no_minus_zero() -> None:
    assert str(Value("1.0", 1.0, 0.5, 1.5)) == "1.0 [0.5, 1.5]"
    assert str(Value("1.0", 1.0, -0.04, 1.5)) == "1.0 [0.0, 1.5]"
    assert str(Value("1.0", 1.0, -0.5, 1.5)) == "1.0 [−0.5, 1.5]"
    assert str(Value("3.0", 3.0, note="alie")) == "3.0 (alie)"
