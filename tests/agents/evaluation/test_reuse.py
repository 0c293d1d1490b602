"""Results of another directory: what another grid needs of them, and nothing that was measured otherwise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.evaluation import CellResult, Grid, ResultsDirectory, ResultsError, reuse, run_grid
from fl_core import files

RULES = ("fedavg", "median", "shapley")


def open_directory(path: Path, grid: Grid, **options: Any) -> ResultsDirectory:
    expected = {cell: [one.label for one in grid.contestants(cell.env_id)] for cell in grid.cells()}
    return ResultsDirectory(path, grid.to_json(), expected, **options)


@pytest.fixture(scope="module")
def two_seeds(results: list[CellResult], make_grid: Callable[..., Grid]) -> list[CellResult]:
    """The usual grid's results, and those of seed 1 beside them."""
    return [*results, *run_grid(make_grid(rules=RULES, features=True, seeds=(1,)))]


@pytest.fixture
def stopped(tmp_path: Path, make_grid: Callable[..., Grid], two_seeds: list[CellResult]) -> Path:
    """A run of three seeds that was stopped in the middle of the second."""
    with open_directory(tmp_path / "stopped", make_grid(rules=RULES, features=True, seeds=(0, 1, 2))) as directory:
        for result in two_seeds[:-1]:
            directory.add(result)
    return tmp_path / "stopped"


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_the_whole_seeds_of_a_run_that_was_stopped_are_a_grid_of_their_own(
    tmp_path: Path, stopped: Path, make_grid: Callable[..., Grid], results: list[CellResult]
) -> None:
    before, fewer = contents(stopped), make_grid(rules=RULES, features=True)
    with open_directory(tmp_path / "whole", fewer) as directory:
        for result in results:
            directory.add(result)
        directory.finish([])
    with open_directory(tmp_path / "new", fewer, reuse=[stopped]) as directory:
        assert not directory.missing()
        directory.finish([])
    assert contents(tmp_path / "new") == contents(tmp_path / "whole")
    assert contents(stopped) == before


def test_what_is_not_there_is_missing_and_rules_left_out_are_not_taken_over(
    tmp_path: Path, stopped: Path, make_grid: Callable[..., Grid], two_seeds: list[CellResult]
) -> None:
    other = make_grid(rules=("median", "krum"), features=True, seeds=(0, 1))
    with open_directory(tmp_path / "new", other, reuse=[stopped]) as directory:
        known = directory.known()
        assert directory.missing() == other.cells()
        assert two_seeds[-1].cell not in known
        assert all("median" in labels and "shapley" not in labels for labels in known.values())
        assert len(known) == len(two_seeds) - 1


def test_provenance_comes_along(tmp_path: Path, stopped: Path, make_grid: Callable[..., Grid]) -> None:
    path = stopped / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "provenance": {"revision": "abc"}}))
    grid = make_grid(rules=RULES, features=True)
    open_directory(tmp_path / "new", grid, reuse=[stopped]).__exit__(None, None, None)
    manifest = json.loads((tmp_path / "new" / "manifest.json").read_text())
    assert manifest["earlier"] == [{"revision": "abc"}]
    assert manifest["grid"] == json.loads(json.dumps(grid.to_json()))


def test_where_there_are_results_already_nothing_is_taken_over(
    tmp_path: Path, stopped: Path, make_grid: Callable[..., Grid], results: list[CellResult]
) -> None:
    grid = make_grid(rules=RULES, features=True)
    with open_directory(tmp_path / "new", grid) as directory:
        directory.add(results[0])
    with open_directory(tmp_path / "new", grid, reuse=[stopped]) as directory:
        assert directory.missing() == grid.cells()[1:]
        assert not directory.assembled


def test_a_run_that_was_stopped_before_its_first_cell_is_no_result_yet(
    tmp_path: Path, stopped: Path, make_grid: Callable[..., Grid]
) -> None:
    grid = make_grid(rules=RULES, features=True)
    open_directory(tmp_path / "new", grid).__exit__(None, None, None)
    with open_directory(tmp_path / "new", grid, reuse=[stopped]) as directory:
        assert directory.assembled
        assert directory.missing() == []


@pytest.mark.parametrize("damaged", [b"", b"PK\x03\x04 half a file"])
def test_curves_that_were_copied_in_part_are_left_behind(
    tmp_path: Path, stopped: Path, make_grid: Callable[..., Grid], damaged: bytes
) -> None:
    grid = make_grid(rules=RULES, features=True)
    torn, *whole = sorted((stopped / "curves").iterdir())
    torn.write_bytes(damaged)
    with open_directory(tmp_path / "new", grid, reuse=[stopped]):
        assert torn.name not in {path.name for path in (tmp_path / "new" / "curves").iterdir()}
    assert whole


@pytest.mark.parametrize("writes", range(5))
def test_killed_while_it_copies_the_same_command_copies_again(
    tmp_path: Path, stopped: Path, make_grid: Callable[..., Grid], monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    grid = make_grid(rules=RULES, features=True)
    with open_directory(tmp_path / "whole", grid, reuse=[stopped]):
        pass
    done = 0

    def until_killed(path: Path, *content: Any) -> None:
        nonlocal done
        if done == writes:
            raise KeyboardInterrupt
        done += 1
        files.write_atomically(path, *content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reuse, "write_atomically", until_killed)
        open_directory(tmp_path / "new", grid, reuse=[stopped])
    with open_directory(tmp_path / "new", grid, reuse=[stopped]) as directory:
        assert not directory.missing()
    assert contents(tmp_path / "new") == contents(tmp_path / "whole")


def test_half_a_row_is_not_taken_over(tmp_path: Path, stopped: Path, make_grid: Callable[..., Grid]) -> None:
    table = stopped / "results.csv"
    table.write_bytes(table.read_bytes()[:-3])
    with open_directory(
        tmp_path / "new", make_grid(rules=RULES, features=True, seeds=(0, 1)), reuse=[stopped]
    ) as there:
        assert len(there.missing()) == 2  # the one that had not been run, and the one of the damaged row


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 5}, "rounds was 4, is 5"),
        ({"settings": {"learning_rate": 0.5}}, "settings was"),
        ({"features": False}, "features was True, is False"),
    ],
)
def test_what_was_measured_otherwise_is_refused_with_the_setting(
    tmp_path: Path, stopped: Path, make_grid: Callable[..., Grid], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ResultsError, match=f"cannot be reused.*{message}"):
        open_directory(tmp_path / "new", make_grid(**{"rules": RULES, "features": True, **changes}), reuse=[stopped])
    assert not (tmp_path / "new" / "results.csv").exists()


def test_another_policy_of_the_same_name_is_refused(
    tmp_path: Path, stopped: Path, make_grid: Callable[..., Grid]
) -> None:
    path = stopped / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["grid"]["policies"] = {"mine on OptiGrad/Digits-v0": "0123"}
    path.write_text(json.dumps(manifest))
    grid = make_grid(rules=RULES, features=True)
    expected = {cell: [one.label for one in grid.contestants(cell.env_id)] for cell in grid.cells()}
    identity = {**grid.to_json(), "policies": {"mine on OptiGrad/Digits-v0": "4567"}}
    with pytest.raises(ResultsError, match=r"cannot be reused.*policies was"):
        ResultsDirectory(tmp_path / "new", identity, expected, reuse=[stopped])


@pytest.mark.parametrize("damage", ["nothing there", "no table", "no manifest"])
def test_a_directory_without_results_is_named(
    tmp_path: Path, stopped: Path, make_grid: Callable[..., Grid], damage: str
) -> None:
    if damage == "no table":
        (stopped / "timings.csv").unlink()
    if damage == "no manifest":
        (stopped / "manifest.json").write_text("{}")
    source = tmp_path / "nowhere" if damage == "nothing there" else stopped
    with pytest.raises(ResultsError, match=f"no results in .*{source.name} to reuse"):
        open_directory(tmp_path / "new", make_grid(rules=RULES, features=True), reuse=[source])


@pytest.mark.parametrize("source", ["itself", "nowhere", "other"])
def test_what_cannot_be_reused_costs_nothing_of_what_is_there(
    source: str, tmp_path: Path, stopped: Path, make_grid: Callable[..., Grid]
) -> None:
    grid, there = make_grid(rules=RULES, features=True, seeds=(0, 1, 2)), tmp_path / "other"
    open_directory(there, make_grid(rules=RULES, features=True, rounds=5)).__exit__(None, None, None)
    before = contents(stopped)
    with pytest.raises(ResultsError, match="reuse"):
        chosen = {"itself": stopped, "other": there}.get(source, Path("no"))
        open_directory(stopped, grid, overwrite=True, reuse=[chosen])
    assert contents(stopped) == before


def test_overwritten_results_leave_no_report_behind(stopped: Path, make_grid: Callable[..., Grid]) -> None:
    for name in ("plots", "tables"):
        (stopped / name).mkdir()
        (stopped / name / "one.csv").write_text("of before")
    for name in ("report.html", "summary.json", "summary.md", "notes.txt"):
        (stopped / name).write_text("of before")
    grid = make_grid(rules=RULES, features=True, seeds=(0, 1, 2))
    open_directory(stopped, grid, overwrite=True).__exit__(None, None, None)
    assert {path.name for path in stopped.iterdir()} == {
        *("results.csv", "timings.csv", "manifest.json", ".lock", "notes.txt"),
    }


@pytest.fixture
def shared(tmp_path: Path, make_grid: Callable[..., Grid]) -> tuple[Path, Path]:
    """The usual grid's results in two directories, each with other rules; both have the references."""
    paths = []
    for rules in (("median", "fedavg"), ("shapley",)):
        grid = make_grid(rules=rules, features=True)
        with open_directory(tmp_path / rules[0], grid) as directory:
            for result in run_grid(grid):
                directory.add(result)
        path = tmp_path / rules[0] / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "provenance": {"revision": rules[0]}}))
        paths.append(tmp_path / rules[0])
    return paths[0], paths[1]


def test_runs_that_shared_the_rules_are_one_grid_again(
    tmp_path: Path, shared: tuple[Path, Path], make_grid: Callable[..., Grid], results: list[CellResult]
) -> None:
    grid = make_grid(rules=RULES, features=True)
    with open_directory(tmp_path / "whole", grid) as directory:
        for result in results:
            directory.add(result)
        directory.finish([])
    with open_directory(tmp_path / "new", grid, reuse=shared) as directory:
        assert not directory.missing()
        directory.finish([])
    new, whole = tmp_path / "new", tmp_path / "whole"
    assert (new / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    for path in sorted((whole / "curves").iterdir()):
        with np.load(path) as expected, np.load(new / "curves" / path.name) as found:
            assert {*expected} == {*found}
            assert all(np.array_equal(expected[name], found[name], equal_nan=True) for name in expected)
    manifest = json.loads((new / "manifest.json").read_text())
    assert manifest["earlier"] == [{"revision": "median"}, {"revision": "shapley"}]
    with open_directory(tmp_path / "again", grid, reuse=[shared[0], new, shared[1]]) as directory:
        assert not directory.missing()
    again = json.loads((tmp_path / "again" / "manifest.json").read_text())
    assert again == manifest  # and no run is told twice


def test_runs_with_other_oracles_are_not_put_together(
    tmp_path: Path, shared: tuple[Path, Path], make_grid: Callable[..., Grid]
) -> None:
    table = shared[1] / "results.csv"
    header, *lines = table.read_text().splitlines()
    accuracy = header.split(",").index("test_accuracy")
    changed = [line.split(",") for line in lines]
    for fields in changed:
        fields[accuracy] = "0.125"
    table.write_text("\n".join([header, *map(",".join, changed)]) + "\n")
    with pytest.raises(
        ResultsError, match=r"reused together: under .* oracle has test_accuracy .* and 0\.125 in the other"
    ):
        open_directory(tmp_path / "new", make_grid(rules=RULES, features=True), reuse=shared)
    assert not (tmp_path / "new" / "results.csv").exists()


@pytest.mark.parametrize("order", [1, -1])
def test_a_table_with_other_columns_is_refused_before_anything_is_deleted(
    order: int, tmp_path: Path, shared: tuple[Path, Path], make_grid: Callable[..., Grid]
) -> None:
    grid = make_grid(rules=RULES, features=True)
    open_directory(tmp_path / "new", grid).__exit__(None, None, None)
    before = contents(tmp_path / "new")
    table = shared[1] / "timings.csv"
    table.write_text(table.read_text().replace("server_seconds", "seconds"))
    with pytest.raises(ResultsError, match=r"timings\.csv has other columns than this version writes: rule, "):
        open_directory(tmp_path / "new", grid, overwrite=True, reuse=shared[::order])
    assert contents(tmp_path / "new") == before


def test_a_cell_with_a_row_that_stands_twice_is_run_again(
    tmp_path: Path, shared: tuple[Path, Path], make_grid: Callable[..., Grid]
) -> None:
    table = shared[0] / "results.csv"
    last = table.read_text().splitlines()[-1]
    table.write_text(f"{table.read_text()}{last}\n")
    grid = make_grid(rules=RULES, features=True)
    with open_directory(tmp_path / "new", grid, reuse=shared) as directory:
        assert directory.missing() == grid.cells()[-1:]
        assert "shapley" in directory.known()[grid.cells()[-1]]


@pytest.mark.parametrize("damage", ["left behind", "torn"])
def test_curves_of_a_part_of_the_rules_are_left_behind(
    damage: str, tmp_path: Path, shared: tuple[Path, Path], make_grid: Callable[..., Grid]
) -> None:
    path = next((shared[1] / "curves").iterdir())
    path.unlink() if damage == "left behind" else path.write_bytes(path.read_bytes()[:100])
    with open_directory(tmp_path / "new", make_grid(rules=RULES, features=True), reuse=shared) as directory:
        assert not directory.missing()
    found = {each.name for each in (tmp_path / "new" / "curves").iterdir()}
    assert found == {each.name for each in (shared[0] / "curves").iterdir()} - {path.name}
