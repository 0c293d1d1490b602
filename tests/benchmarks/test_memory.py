"""Memory that a benchmark states is that of the call it stands beside."""

import csv
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from agents.evaluation import stopwatch

ROOT = Path(__file__).parents[2]
Program = Callable[[str], ModuleType]
told = pytest.mark.skipif(stopwatch.reset_peak() is None, reason="this system does not tell a call's peak memory")


@told
def test_a_small_call_after_a_large_one_is_not_said_to_be_large(program: Program) -> None:
    module = program("round")
    large, small = module._cost(lambda: torch.ones(50_000_000)), module._cost(lambda: None)
    assert large.peak - small.peak > 150_000_000


@pytest.mark.parametrize("known", [pytest.param(True, marks=told), False])
def test_rows_of_a_round_have_peaks_where_the_system_tells_them(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, known: bool
) -> None:
    module, out = program("round"), tmp_path / "new" / "round.csv"
    monkeypatch.setattr(module, "SIZES", (module.Size("8x8", 4, 2, ("sequential", "stacked")),))
    if not known:
        monkeypatch.setattr(module, "reset_peak", lambda: None)
    module.main(module.Arguments(out=out))
    with out.open() as file, (ROOT / "results" / "round.csv").open() as kept:
        rows = list(csv.DictReader(file))
        assert [*rows[0]] == next(csv.reader(kept))
    assert [row["part"] for row in rows[:2]] == ["sequential", "stacked"]
    assert all(0.1 < float(row["peak_gib"]) < 16 if known else row["peak_gib"] == "" for row in rows)


@told
def test_a_rule_that_copies_its_updates_takes_one_matrix(program: Program) -> None:
    updates = torch.ones(10, 2_000_000)
    held = program("rules").peak_memory(Tensor.clone, updates)
    assert held / updates.nbytes == pytest.approx(1, abs=0.1)


def test_memory_of_a_rule_is_left_out_where_the_system_does_not_tell_it(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = program("rules")
    monkeypatch.setattr(module, "reset_peak", lambda: None)
    rows = module.compare("fedavg", Tensor.clone, Tensor.clone, torch.ones(2, 3), 1)
    assert [(row["who"], row["matrices"]) for row in rows] == [("ByzFL", ""), ("ours", "")]
