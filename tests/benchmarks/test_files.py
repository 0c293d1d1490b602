"""Earlier results stay until there are others to put in their place."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

EARLIER = "earlier\nresults\n"
Program = Callable[[str], ModuleType]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "out.csv"
    path.write_text(EARLIER)
    return path


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("attacks", {"attacks": ("zero", "ipn")}, "unknown attack 'ipn'; there are: "),
        ("attacks", {"data_dir": Path("nowhere")}, "data set 'fashion_mnist': no file"),
        ("learning", {"datasets": ("mnist", "minst")}, "unknown data set 'minst'; there are: "),
        ("learning", {"data_dir": Path("nowhere")}, "data set 'mnist': no file"),
        ("round", {"data_dir": Path("nowhere")}, "data_dir must be a directory, and nowhere is none"),
    ],
)
def test_what_is_mistyped_is_refused_before_anything_is_measured(
    program: Program, out: Path, name: str, arguments: dict[str, Any], message: str
) -> None:
    module = program(name)
    with pytest.raises(ValueError, match=message):
        module.main(module.Arguments(**arguments, out=out))
    assert out.read_text() == EARLIER


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize(("name", "measure"), [("curriculum", "measure"), ("gpu", "measured"), ("learning", "learn")])
def test_who_is_interrupted_leaves_what_was_measured_or_else_what_was_there(
    program: Program, monkeypatch: pytest.MonkeyPatch, out: Path, name: str, measure: str, rows: int
) -> None:
    module = program(name)

    def measured(*_: object) -> Iterator[dict[str, int]]:
        yield from (dict.fromkeys(module.COLUMNS, number) for number in range(rows))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, measure, measured)
    monkeypatch.setattr(module, "check", lambda _: None, raising=False)  # that the files of data sets are there
    monkeypatch.setattr(module, "check_device", lambda _: torch.device("cuda"), raising=False)
    with pytest.raises(KeyboardInterrupt):
        module.main(module.Arguments(out=out))
    lines = [",".join(module.COLUMNS), *(",".join([str(number)] * len(module.COLUMNS)) for number in range(rows))]
    assert out.read_text() == ("\n".join([*lines, ""]) if rows else EARLIER)


def test_a_round_that_is_interrupted_leaves_what_was_there(
    program: Program, monkeypatch: pytest.MonkeyPatch, out: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    module = program("round")
    monkeypatch.setattr(module, "time_training", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.main(module.Arguments(out=out))
    assert out.read_text() == EARLIER


def test_a_comparison_that_was_stopped_at_once_can_be_started_again_and_go_on(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = program("fedbn_prox")
    allowed = iter((0, 1, 2))

    def run_all(cells: list[tuple[str, int, str]], _: object) -> Iterator[dict[str, Any]]:
        for setting, seed, objective in cells[: next(allowed)]:
            mu = 0.1 if objective.endswith("prox") else 0.0
            row = {"setting": setting, "objective": objective, "mu": mu, "seed": seed, "rounds_to_accuracy": None}
            yield row | dict.fromkeys(module.FIGURES, 0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_all", run_all)
    arguments = module.Arguments(out=tmp_path / "new" / "out.csv")
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            module.main(arguments)
    with arguments.out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["objective"] for row in rows] == module.objective_names()[:3]
