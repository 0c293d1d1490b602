"""The results directory: nothing is lost, nothing is there twice, and nothing of another grid is touched."""

import csv
import json
import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.evaluation import CellResult, Grid, ResultsDirectory, ResultsError, provenance, run_grid, write_report
from agents.evaluation import results as results_module
from agents.evaluation.cells import failure
from agents.evaluation.figures_of_merit import COLUMNS
from agents.evaluation.files import Table
from agents.evaluation.grid import Cell

ROOT = Path(__file__).parents[3]


@pytest.fixture
def grid(make_grid: Callable[..., Grid]) -> Grid:
    return make_grid(rules=("fedavg", "median", "shapley"), features=True)


def open_directory(path: Path, grid: Grid, **options: Any) -> ResultsDirectory:
    expected = {cell: [one.label for one in grid.contestants(cell.env_id)] for cell in grid.cells()}
    return ResultsDirectory(path, grid.to_json(), expected, **options)


def filled(path: Path, grid: Grid, results: list[CellResult]) -> bytes:
    with open_directory(path, grid) as directory:
        for result in results:
            directory.add(result)
        directory.finish([])
    return (path / "results.csv").read_bytes()


def test_rows_are_on_disk_in_full_precision_as_soon_as_a_cell_is_added(
    tmp_path: Path, grid: Grid, results: list[CellResult]
) -> None:
    with open_directory(tmp_path, grid) as directory:
        directory.add(results[0])
        with (tmp_path / "results.csv").open(newline="") as file:
            read = list(csv.DictReader(file))
        assert [float(row["test_accuracy"]) for row in read] == [row["test_accuracy"] for row in results[0].rows]
        assert read[0]["detection_auroc"] == ""
        assert directory.curves_of(results[0].cell).exists()


def test_a_results_directory_that_cannot_be_made_is_named(tmp_path: Path, grid: Grid) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"cannot make the results directory .*file/out: Not a directory"):
        open_directory(tmp_path / "file" / "out", grid)


def test_a_results_directory_that_cannot_be_written_to_is_not_said_to_be_in_use(tmp_path: Path, grid: Grid) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ResultsError, match=f"cannot write to the results directory {tmp_path}: Is a directory"):
        open_directory(tmp_path, grid)


def test_the_revision_is_that_of_this_codes_repository_and_of_none_that_lies_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a virtual environment, which git ignores, in somebody's working copy."""
    installed = tmp_path / ".venv" / "evaluation"
    installed.mkdir(parents=True)
    (installed / "provenance.py").write_text("")
    (tmp_path / "code.py").write_text("")
    (tmp_path / ".gitignore").write_text(".venv")
    mail = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "."], [*mail, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "__file__", str(installed / "provenance.py"))
    assert provenance.git_revision() is None
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "code.py"))
    revision = provenance.git_revision()
    assert revision is not None
    assert len(revision) == 40
    (tmp_path / "code.py").write_text("changed")
    assert provenance.git_revision() == f"{revision} with local changes"


def test_whatever_the_order_in_which_cells_end_the_table_is_in_the_grids(
    tmp_path: Path, grid: Grid, results: list[CellResult]
) -> None:
    forwards = filled(tmp_path / "a", grid, results)
    assert filled(tmp_path / "b", grid, results[::-1]) == forwards
    with (tmp_path / "b" / "results.csv").open(newline="") as file:
        attacks = [row["attack"] for row in csv.DictReader(file)]
    assert list(dict.fromkeys(attacks)) == ["none", "sign_flip", "alie"]


def test_seconds_are_in_a_file_of_their_own(tmp_path: Path, grid: Grid, results: list[CellResult]) -> None:
    filled(tmp_path, grid, results)
    assert not [name for name in COLUMNS if "seconds" in name]
    with (tmp_path / "timings.csv").open(newline="") as file:
        assert all(float(row["seconds_per_round"]) > 0 for row in csv.DictReader(file))


@pytest.mark.parametrize("table", ["results.csv", "timings.csv"])
@pytest.mark.parametrize("cut", [1, 30, 400])
def test_half_a_row_at_the_tail_is_dropped_with_a_warning_and_its_cell_run_again(
    tmp_path: Path, grid: Grid, results: list[CellResult], table: str, cut: int
) -> None:
    complete = filled(tmp_path, grid, results)
    path = tmp_path / table
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.warns(UserWarning, match=rf"{table}: 1 damaged row"), open_directory(tmp_path, grid) as directory:
        assert directory.missing() == [results[-1].cell]
        directory.add(results[-1])
        directory.finish([])
    assert (tmp_path / "results.csv").read_bytes() == complete


@pytest.mark.parametrize("table", ["results.csv", "timings.csv"])
def test_half_of_a_cells_first_row_is_cut_off_before_the_next_is_written(
    tmp_path: Path, grid: Grid, results: list[CellResult], table: str
) -> None:
    complete = filled(tmp_path, grid, results)
    path, own = tmp_path / table, len(results[-1].rows)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-own]) + lines[-own][:20])
    with pytest.warns(UserWarning, match=rf"{table}: 1 damaged row"), open_directory(tmp_path, grid) as directory:
        assert directory.missing() == [results[-1].cell]
        directory.add(results[-1])
        directory.finish([])
    assert (tmp_path / "results.csv").read_bytes() == complete


def test_a_tail_that_ends_with_a_whole_row_costs_its_cell_too(
    tmp_path: Path, grid: Grid, results: list[CellResult]
) -> None:
    complete = filled(tmp_path, grid, results)
    (tmp_path / "results.csv").write_bytes(b"".join(complete.splitlines(keepends=True)[:-2]))
    with open_directory(tmp_path, grid) as directory:
        assert directory.missing() == [results[-1].cell]


def test_tables_that_were_copied_without_their_curves_are_kept(
    tmp_path: Path, grid: Grid, results: list[CellResult]
) -> None:
    before = filled(tmp_path, grid, results)
    shutil.rmtree(tmp_path / "curves")
    with open_directory(tmp_path, grid) as directory:
        assert directory.missing() == []
    assert (tmp_path / "results.csv").read_bytes() == before


def test_a_cell_of_which_a_rule_failed_is_run_again_and_the_failure_recorded(
    tmp_path: Path, grid: Grid, results: list[CellResult]
) -> None:
    broken = results[0]
    partial = CellResult(broken.cell, broken.rows[1:], broken.timings[1:], broken.curves, [])
    with open_directory(tmp_path, grid) as directory:
        directory.add(partial)
        directory.finish([failure(broken.cell, "fedavg", ZeroDivisionError("by zero"))])
    (recorded,) = json.loads((tmp_path / "failures.json").read_text())["failures"]
    assert (recorded["rule"], recorded["error"]) == ("fedavg", "ZeroDivisionError: by zero")
    with open_directory(tmp_path, grid) as directory:
        assert broken.cell in directory.missing()
        for result in results:
            directory.add(result)
        directory.finish([])
    assert not (tmp_path / "failures.json").exists()
    assert (tmp_path / "results.csv").read_bytes() == filled(tmp_path / "whole", grid, results)


def test_more_seeds_are_run_beside_those_that_are_there_and_fewer_are_another_grid(
    tmp_path: Path, grid: Grid, results: list[CellResult], make_grid: Callable[..., Grid]
) -> None:
    filled(tmp_path, grid, results)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "provenance": {"revision": "before"}}))
    more = make_grid(rules=("fedavg", "median", "shapley"), features=True, seeds=(1, 0))
    expected = {cell: [one.label for one in more.contestants(cell.env_id)] for cell in more.cells()}
    with ResultsDirectory(tmp_path, more.to_json(), expected) as directory:
        assert {cell.seed for cell in directory.missing()} == {1}
    assert json.loads((tmp_path / "manifest.json").read_text())["provenance"] == {"revision": "before"}
    with pytest.raises(ResultsError, match=r"seeds was \[1, 0\], is \[0\]"):
        ResultsDirectory(tmp_path, grid.to_json(), {})


def test_rules_that_are_there_stay_as_they_are_and_what_is_missing_is_told(
    tmp_path: Path, grid: Grid, results: list[CellResult], make_grid: Callable[..., Grid]
) -> None:
    whole = filled(tmp_path / "whole", grid, results)
    fewer = make_grid(rules=("fedavg", "median"), features=True)
    parts = [
        CellResult(
            result.cell, *([row for row in rows if row["rule"] != "shapley"] for rows in (result.rows, result.timings)),
            {name: value for name, value in result.curves.items() if not name.startswith("shapley/")}, []
        )
        for result in results
    ]  # fmt: skip
    filled(tmp_path / "part", fewer, parts)
    with open_directory(tmp_path / "part", grid) as directory:
        assert directory.missing() == grid.cells()
        for result in results:
            before = {row["rule"]: row["test_accuracy"] for row in result.rows if row["rule"] != "shapley"}
            assert directory.known()[result.cell] == before
            directory.add(result)
        assert not directory.known()
        directory.finish([])
    assert (tmp_path / "part" / "results.csv").read_bytes() == whole
    with open_directory(tmp_path / "part", grid) as directory:
        assert not directory.missing()


def test_where_curves_were_left_behind_those_of_a_part_of_the_rules_are_not_written(
    tmp_path: Path, grid: Grid, results: list[CellResult]
) -> None:
    filled(tmp_path, grid, results)
    shutil.rmtree(tmp_path / "curves")
    lines = (tmp_path / "results.csv").read_text().splitlines(keepends=True)
    (tmp_path / "results.csv").write_text("".join(line for line in lines if not line.startswith("shapley,")))
    with open_directory(tmp_path, grid) as directory:
        for result in results:
            directory.add(result)
        directory.finish([])
    assert (tmp_path / "results.csv").read_text() == "".join(lines)
    assert not (tmp_path / "curves").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rules": ("fedavg", "krum")}, "rules was"),
        ({"rounds": 5}, "rounds was 4, is 5"),
        ({"seeds": (1, 2)}, r"seeds was \[0\], is \[1, 2\]"),
        ({"attacks": ("alie",)}, "attacks was"),
        ({"settings": {"learning_rate": 0.5}}, "settings was"),
        ({"num_clients": (6,)}, "num_clients was"),
    ],
)
def test_results_of_another_grid_are_refused_and_the_setting_named(
    tmp_path: Path,
    grid: Grid,
    results: list[CellResult],
    make_grid: Callable[..., Grid],
    changes: dict[str, Any],
    message: str,
) -> None:
    before = filled(tmp_path, grid, results)
    other = make_grid(**{"rules": ("fedavg", "median", "shapley"), "features": True, **changes})
    with pytest.raises(ResultsError, match=f"another grid .*{message}.*--overwrite"):
        open_directory(tmp_path, other)
    assert (tmp_path / "results.csv").read_bytes() == before
    with open_directory(tmp_path, other, overwrite=True) as directory:
        assert directory.missing() == other.cells()


def test_results_of_nobody_knows_which_grid_are_refused(tmp_path: Path, grid: Grid) -> None:
    (tmp_path / "results.csv").write_text("a month of computing")
    with pytest.raises(ResultsError, match=r"no manifest\.json.*--overwrite"):
        open_directory(tmp_path, grid)
    assert (tmp_path / "results.csv").read_text() == "a month of computing"


def test_a_run_that_was_killed_as_it_began_is_begun_again(
    tmp_path: Path, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, columns: Any) -> Table:
        Table(path, columns)
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(results_module, "Table", killed)
        open_directory(tmp_path, grid)
    assert (tmp_path / "results.csv").exists()
    with open_directory(tmp_path, grid) as directory:
        assert directory.missing() == grid.cells()


def test_a_directory_that_somebody_is_writing_to_is_refused_and_free_afterwards(tmp_path: Path, grid: Grid) -> None:
    with open_directory(tmp_path, grid), pytest.raises(ResultsError, match="being written to"):
        open_directory(tmp_path, grid)
    with open_directory(tmp_path, grid) as directory:
        assert directory.missing()


def test_where_the_data_lies_makes_no_other_grid(
    tmp_path: Path, grid: Grid, results: list[CellResult], make_grid: Callable[..., Grid]
) -> None:
    filled(tmp_path, grid, results)
    moved = make_grid(rules=("fedavg", "median", "shapley"), features=True, settings={"data_dir": str(tmp_path)})
    with open_directory(tmp_path, moved) as directory:
        assert not directory.missing()


def test_a_table_that_cannot_take_a_batch_is_as_it_was_before(tmp_path: Path) -> None:
    code = """
        import resource, sys
        from pathlib import Path
        from agents.evaluation.files import ResultsError, Table
        table = Table(Path(sys.argv[1]), ["a", "b"])
        table.append([{"a": 1, "b": 2}])
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))
        try:
            table.append([{"a": "x" * 20, "b": i} for i in range(10)])
        except ResultsError as error:
            print(error)
    """
    path = tmp_path / "table.csv"
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "table.csv cannot be written: File too large" in done.stdout
    assert path.read_text() == "a,b\n1,2\n"
    assert Table(path, ["a", "b"]).rows == [{"a": "1", "b": "2"}]


def test_a_full_disk_stops_the_run_with_the_cells_so_far_intact(tmp_path: Path, make_grid: Callable[..., Grid]) -> None:
    command = [sys.executable, "evaluate.py", "--env-id", "OptiGrad/Softmax-v0", "--num-clients", "5", "--rounds", "3"]
    command += ["--rules", "fedavg", "--attacks", "alie", "ipm", "--alpha", "0.5", "--seeds", "6", "--no-features"]
    command += ["--workers", "1", "--no-progress", "--out", str(tmp_path / "out")]
    limit = 6000

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    stopped = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, preexec_fn=small_disk)
    assert stopped.returncode == 1
    assert "cannot be written" in stopped.stderr.splitlines()[-1]
    assert "Traceback" not in stopped.stderr
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        kept = list(csv.reader(file))[1:]
    assert kept
    assert len(kept) % 4 == 0
    assert {len(line) for line in kept} == {len(COLUMNS)}
    continued = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert continued.returncode == 0, continued.stderr
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert len(rows) == 6 * 3 * 4
    assert all(line in rows for line in kept)


def test_cells_of_equal_words_are_equal_keys() -> None:
    one = Cell("OptiGrad/Digits-v0", 10, "0.5", "alie", 0.3, 0)
    assert one == Cell("OptiGrad/Digits-v0", 10, "0.5", "alie", 0.3, 0)
    assert one.name == "OptiGrad-Digits-v0_10_0.5_alie_0.3_0"


@pytest.mark.parametrize("damaged", [b"", b"PK\x03\x04 half a file"])
def test_damaged_curves_cost_themselves_and_not_the_rule_that_is_added(
    tmp_path: Path, make_grid: Callable[..., Grid], grid: Grid, results: list[CellResult], damaged: bytes
) -> None:
    filled(tmp_path, grid, results)
    curves = tmp_path / "curves" / f"{grid.cells()[0].name}.npz"
    curves.write_bytes(damaged)
    more = make_grid(rules=("fedavg", "median", "shapley", "krum"), features=True)
    with open_directory(tmp_path, more) as directory:
        (added,) = run_grid(more, directory.missing()[:1], known=dict(directory.known()))
        directory.add(added)
    assert not curves.exists()
    assert (tmp_path / "results.csv").read_text().count("\nkrum,") == 1
    write_report(tmp_path, {"command": "", "seeds": [0], "policies": {}, "revision": None}, [])
    curves.write_bytes(damaged)
    write_report(tmp_path, {"command": "", "seeds": [0], "policies": {}, "revision": None}, [])


def test_a_table_of_no_bytes_is_named(tmp_path: Path, grid: Grid, results: list[CellResult]) -> None:
    filled(tmp_path, grid, results)
    (tmp_path / "results.csv").write_bytes(b"")
    with pytest.raises(ResultsError, match=r"results\.csv is empty, not even a header is left; remove it"):
        open_directory(tmp_path, grid)
