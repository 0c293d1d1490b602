"""Rows that are added to a file of earlier runs stand under their names and say where they come from."""

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from agents.evaluation.policies import policy_facts

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture
def appended(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("appended")


def test_rows_are_added_under_one_header(appended: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "new" / "rows.csv"
    for value in (1, 2):
        appended.append(out, [{"a": value, "b": ""}], ("a", "b"))
    assert out.read_bytes() == b"a,b\n1,\n2,\n"


def test_rows_are_not_added_under_other_names(appended: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    out.write_text("a\n1\n")
    with pytest.raises(ValueError, match=re.escape("has the columns a, and the rows would have a, b")):
        appended.append(out, [{"a": 1, "b": 2}], ("a", "b"))
    assert out.read_text() == "a\n1\n"


@pytest.mark.parametrize("name", ["levers", "backdoors"])
def test_another_header_is_refused_before_anything_is_measured(
    program: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    module = program(name)
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda *_, **__: pytest.fail("something was measured"))
    arguments = module.Arguments(("fedavg",), out=tmp_path / "rows.csv")
    arguments.out.write_text("policy,accuracy\n")
    with pytest.raises(ValueError, match="has the columns policy, accuracy, and the rows would have policy, "):
        module.main(arguments)
    module.check(replace(arguments, out=RESULTS / f"{name}.csv"))


@pytest.mark.parametrize("name", ["levers", "backdoors"])
def test_rows_from_before_say_nothing_of_where_they_come_from(program: Callable[[str], ModuleType], name: str) -> None:
    with (RESULTS / f"{name}.csv").open() as file:
        first = next(csv.DictReader(file))
    assert tuple(first) == program(name).COLUMNS
    assert [first[column] for column in ("num_clients", "checksum", "revision")] == ["", "", ""]


def test_a_policy_is_known_by_its_weights_and_weighting_and_a_rule_by_its_name(
    appended: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appended, "git_revision", lambda: "0badcafe")
    assert appended.origin("nnm+krum") == ("", "0badcafe")
    assert appended.origin("digits") == (policy_facts("digits").checksum[:12], "0badcafe")
    weighed = policy_facts("digits", safeguard=False).checksum[:12]
    assert appended.origin("digits:safeguard=false") == (weighed, "0badcafe")
    assert weighed != policy_facts("digits").checksum[:12]
    monkeypatch.setattr(appended, "git_revision", lambda: None)  # outside of a working copy
    assert appended.origin("krum") == ("", "")
