"""Cells in this process, in workers and on Ray: the same rows, and a worker that dies costs its own cell only."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.evaluation import CellResult, Grid, read_plugin, run_grid
from agents.evaluation.estimate import estimate_seconds, show_seconds

ROOT = Path(__file__).parents[3]

DEADLY = """
import os
from fl_core.aggregation import Rule, make_rule, register_rule

@register_rule("deadly")
class Deadly(Rule):
    def aggregate(self, view):
        if view.round == 1 and len(view.updates) == 6:
            os._exit(9)
        return make_rule("fedavg").aggregate(view)
"""


def rows_by_cell(results: list[CellResult]) -> dict[Any, Any]:
    return {result.cell: result.rows for result in results}


def test_worker_processes_give_the_same_rows(make_grid: Callable[..., Grid]) -> None:
    grid = make_grid(seeds=(0, 1))
    here, there = (list(run_grid(grid, workers=n)) for n in (1, 2))
    assert rows_by_cell(here) == rows_by_cell(there)
    assert [result.cell for result in here] == grid.cells()


def test_a_worker_that_dies_costs_its_own_cell_and_no_other(make_grid: Callable[..., Grid], tmp_path: Path) -> None:
    path = tmp_path / "deadly.py"
    path.write_text(DEADLY)
    grid = make_grid(rules=("deadly",), num_clients=(5, 6, 7), malicious_fractions=(0.0,), plugins=(read_plugin(path),))
    results = list(run_grid(grid, workers=2))
    assert {result.cell for result in results} == set(grid.cells())
    for result in results:
        if result.cell.num_clients == 6:
            (failure,) = result.failures
            assert failure.rule is None
            assert "worker process died" in failure.error
            assert not result.rows
        else:
            assert not result.failures
            assert {row["rule"] for row in result.rows} == {"deadly", "oracle", "anchored_oracle", "root_only"}


@pytest.mark.parametrize("workers", [0, -2])
def test_at_least_one_worker_is_needed(make_grid: Callable[..., Grid], workers: int) -> None:
    with pytest.raises(ValueError, match=f"workers.*{workers}"):
        run_grid(make_grid(), workers=workers)


def test_without_ray_the_error_says_how_to_get_it(
    make_grid: Callable[..., Grid], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'optigradtrust\[ray\]'"):
        next(run_grid(make_grid(), ray="auto"))


@pytest.mark.slow
def test_the_same_cells_on_a_local_ray_cluster(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    plugin = tmp_path / "plugin.py"
    plugin.write_text(DEADLY)
    # In a process of its own: Ray starts threads and leaves sockets, which are its own business.
    code = f"""
        from ray.cluster_utils import Cluster
        from agents.evaluation import Grid, read_plugin, run_grid

        grid = Grid(rules=("deadly",), attacks=("alie",), env_ids=("OptiGrad/Softmax-v0",), num_clients=(5, 6),
                    malicious_fractions=(0.0, 0.4), rounds=3, features=False, plugins=(read_plugin({str(plugin)!r}),))
        cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 2}})
        try:
            there = {{result.cell: result for result in run_grid(grid, ray=cluster.address)}}
        finally:
            cluster.shutdown()
        assert set(there) == set(grid.cells())
        for cell in grid.cells():
            if cell.num_clients == 6:
                assert not there[cell].rows and there[cell].failures
            else:
                (here,) = run_grid(grid, [cell])
                assert there[cell].rows == here.rows, cell
        print("equal")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert done.stdout.strip().endswith("equal"), done.stderr


def test_a_ray_cluster_that_is_not_there_is_one_line(make_grid: Callable[..., Grid]) -> None:
    pytest.importorskip("ray")
    code = """
        from agents.evaluation import Grid, run_grid
        grid = Grid(rules=("fedavg",), attacks=("alie",), env_ids=("OptiGrad/Softmax-v0",), rounds=3, features=False)
        try:
            next(run_grid(grid, ray="127.0.0.1:1"))
        except ValueError as error:
            print("refused", error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert "refused no Ray cluster at '127.0.0.1:1'" in done.stdout


TIMING = {"rule": "fedavg", "seconds_per_round": 0.1, "first_round_seconds": 0.1}


def test_the_estimate_counts_references_once_for_all_attacks_in_every_worker(
    make_grid: Callable[..., Grid], monkeypatch: pytest.MonkeyPatch
) -> None:
    from agents.evaluation import estimate as module

    def measured(grid: Grid, cell: Any, known: Any) -> CellResult:
        return CellResult(cell, [], [TIMING, {**TIMING, "rule": "oracle"}], {}, [])

    monkeypatch.setattr(module, "run_cell", measured)
    monkeypatch.setattr(module.time, "perf_counter", lambda: 0.0)
    grid = make_grid(attacks=("alie", "ipm", "zero"), malicious_fractions=(0.0, 0.4), seeds=(0, 1), rounds=10)
    assert estimate_seconds(grid, grid.cells(), 1) == pytest.approx((8 + 4) * 10 * 0.1)
    assert estimate_seconds(grid, grid.cells(), 2) == pytest.approx((8 + 8) * 10 * 0.1 / 2)


def test_the_estimate_counts_what_attacks_that_search_add_to_a_round_and_is_not_stopped_by_one_that_fails(
    make_grid: Callable[..., Grid], monkeypatch: pytest.MonkeyPatch
) -> None:
    from agents.evaluation import estimate as module

    def measured(grid: Grid, cell: Any, known: Any) -> CellResult:
        assert cell.attack == "alie"  # not what one that searches costs
        return CellResult(cell, [], [TIMING], {}, [])

    monkeypatch.setattr(module, "run_cell", measured)
    monkeypatch.setattr(module.time, "perf_counter", lambda: 0.0)
    grid = make_grid(attacks=("feature_box", "alie"), malicious_fractions=(0.4,), seeds=(0, 1), rounds=10)
    assert estimate_seconds(grid, grid.cells(), 1) == pytest.approx(4 * 10 * 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_round_seconds", lambda _, cell, __: 2.0 if cell.attack == "feature_box" else 0.5)
        assert estimate_seconds(grid, grid.cells(), 1) == pytest.approx(4 * 10 * 0.1 + 2 * 2 * 10 * 1.5)  # two rules

    def fails(*_: Any) -> None:
        raise RuntimeError("by an attack")

    monkeypatch.setattr(module.Federation, "local_round", fails)
    assert estimate_seconds(grid, grid.cells(), 1) == pytest.approx(4 * 10 * 0.1)


def test_the_estimate_of_a_run_that_goes_on_counts_and_probes_only_what_is_missing(
    make_grid: Callable[..., Grid], monkeypatch: pytest.MonkeyPatch
) -> None:
    from agents.evaluation import estimate as module

    def measured(grid: Grid, cell: Any, known: Any) -> CellResult:
        labels = [label for label in grid.labels() if label not in known]
        seconds = {"fedavg": 100.0}  # the dear one is known
        timings = [{**TIMING, "rule": label, "seconds_per_round": seconds.get(label, 0.1)} for label in labels]
        return CellResult(cell, [], timings, {}, [])

    probed: list[str] = []

    def round_seconds(_: Grid, cell: Any, contestant: Any) -> float:
        probed.append(contestant.label)
        return 1.5 if cell.attack == "feature_box" else 0.5

    monkeypatch.setattr(module, "run_cell", measured)
    monkeypatch.setattr(module, "_round_seconds", round_seconds)
    monkeypatch.setattr(module.time, "perf_counter", lambda: 0.0)
    grid = make_grid(
        rules=("fedavg", "median"), attacks=("feature_box", "alie"), malicious_fractions=(0.4,), seeds=(0, 1), rounds=10
    )
    cells = grid.cells()
    known = {cell: dict.fromkeys(set(grid.labels()) - {"median"}, 0.5) for cell in cells}
    assert estimate_seconds(grid, cells, 1, known) == pytest.approx(4 * 10 * 0.1 + 2 * 10 * 1.0)
    assert set(probed) == {"median"}
    one_known = {cells[0]: known[cells[0]]}
    assert estimate_seconds(grid, cells, 1, one_known) > 3 * 10 * 100.0


def test_what_an_attack_costs_is_taken_from_the_first_contestants_when_timing_it_takes_long(
    make_grid: Callable[..., Grid], monkeypatch: pytest.MonkeyPatch
) -> None:
    from agents.evaluation import estimate as module

    clock, probed = iter(range(0, 100_000, 100)), []

    def measured(grid: Grid, cell: Any, known: Any) -> CellResult:
        return CellResult(cell, [], [], {}, [])

    def round_seconds(_: Grid, cell: Any, contestant: Any) -> float:
        probed.append((contestant.label, cell.attack))
        return 1.5 if cell.attack == "feature_box" else 0.5

    monkeypatch.setattr(module, "run_cell", measured)
    monkeypatch.setattr(module, "_round_seconds", round_seconds)
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    grid = make_grid(
        rules=("fedavg", "median"), attacks=("feature_box", "alie"), malicious_fractions=(0.4,), seeds=(0,), rounds=10
    )
    assert estimate_seconds(grid, grid.cells(), 1) == pytest.approx(2 * 10 * 1.0)
    assert probed == [("fedavg", "alie"), ("fedavg", "feature_box")]


def test_the_estimate_grows_with_the_cells_and_the_rounds_and_is_shared_by_workers(
    make_grid: Callable[..., Grid], monkeypatch: pytest.MonkeyPatch
) -> None:
    from agents.evaluation import estimate as module

    clock = iter(range(1000))

    def measured(grid: Grid, cell: Any, known: Any) -> CellResult:
        return CellResult(cell, [], [TIMING], {}, [])

    monkeypatch.setattr(module, "run_cell", measured)
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))  # every probe takes a second
    monkeypatch.setattr(module, "_curve_seconds", lambda *_: 0.05)
    grid = make_grid(seeds=(0, 1, 2, 3), rounds=10)
    cells = grid.cells()
    # A probe of three rounds takes 1 s: 0.3 s of rounds, 0.7 s of scoring. Of the other seven only a curve is scored.
    run = 10 * 0.1 + 0.7 + 7 * 0.05
    assert estimate_seconds(grid, cells, 1) == pytest.approx(12 * run)
    assert estimate_seconds(grid, cells[:6], 1) == pytest.approx(6 * run)
    assert estimate_seconds(grid, cells, 4) == pytest.approx(12 * run / 4)
    assert estimate_seconds(grid, [], 4) == 0
    assert [show_seconds(seconds) for seconds in (44.6, 700, 12000)] == ["45 s", "12 min", "3.3 h"]
