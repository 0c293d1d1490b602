"""Runs cells: in this process, in worker processes, or on a Ray cluster. What comes out is the same."""

import multiprocessing
import os
import re
import signal
import socket
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any

import torch

from agents.evaluation.cells import CellResult, failure, run_cell
from agents.evaluation.grid import Cell, Grid

# By cell the accuracy by label of what was run before, see ``run_cell``.
Known = Mapping[Cell, Mapping[str, float]]

# Cells that wait ready for a worker that has become free.
_AHEAD = 1


def run_grid(
    grid: Grid,
    cells: Sequence[Cell] | None = None,
    *,
    workers: int = 1,
    ray: str | None = None,
    known: Known | None = None,
) -> Iterator[CellResult]:
    """Runs cells of a grid; yields each as soon as it is done.

    Args:
        grid: What to run.
        cells: Which of its cells, by default all.
        workers: Processes, each with one thread; 1 is this process.
        ray: Address of a Ray cluster to run on instead (``"auto"`` finds one on this machine).
        known: By cell what is not run again, see ``run_cell``.

    Raises:
        ValueError: ``workers`` below 1, or Ray is not there.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    cells, known = grid.cells() if cells is None else cells, known or {}
    if ray is not None:
        return _on_ray(grid, cells, known, ray)
    if workers > 1:
        return _in_processes(grid, cells, known, workers)
    return (run_cell(grid, cell, known.get(cell)) for cell in cells)


def _in_processes(grid: Grid, cells: Sequence[Cell], known: Known, workers: int) -> Iterator[CellResult]:
    """A worker that dies (out of memory, a crash in native code) costs the cell that it was at, and nothing else."""
    waiting = deque(cells)
    suspects: list[Cell] = []
    while True:
        lost = yield from _until_broken(grid, waiting, known, workers)
        if not lost:
            break
        suspects += lost
    for cell in suspects:  # each by itself: one of them has killed its worker, the others were only near
        lost = yield from _until_broken(grid, deque([cell]), known, 1)
        if lost:
            died = RuntimeError("the worker process died: out of memory, or a crash in native code")
            yield CellResult(cell, [], [], {}, [failure(cell, None, died)])


def _until_broken(
    grid: Grid, waiting: deque[Cell], known: Known, workers: int
) -> Generator[CellResult, None, list[Cell]]:
    """Runs cells until none waits or the pool has broken; returns the cells that were lost with it."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(grid,))
    running: dict[Future[CellResult], Cell] = {}
    try:
        while True:
            while waiting and len(running) < workers + _AHEAD:
                cell = waiting[0]
                future = pool.submit(run_cell, grid, cell, known.get(cell))  # a broken pool refuses: the cell stays
                running[future] = waiting.popleft()
            if not running:
                return []
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
                del running[future]
    except BrokenProcessPool:
        return list(running.values())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        if running:  # nobody is going to read what they are at
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()


def _start_worker(grid: Grid) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl-C reaches the whole group: end, and leave the words to the parent
    torch.set_num_threads(1)
    for plugin in grid.plugins:
        plugin.load()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this a worker of a process that was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _on_ray(grid: Grid, cells: Sequence[Cell], known: Known, address: str) -> Iterator[CellResult]:
    """One task a cell, one core each. Data sets and policies are read where the task runs, by the same paths."""
    ray = _connected(address)
    try:
        task = ray.remote(num_cpus=1, max_retries=0)(_run_on_ray)
        shared = ray.put(grid)
        running = {task.remote(shared, cell, known.get(cell)): cell for cell in cells}
        while running:
            (reference, *_), _ = ray.wait(list(running))
            cell = running.pop(reference)
            try:
                yield ray.get(reference)
            except ray.exceptions.RayError as error:
                yield CellResult(cell, [], [], {}, [failure(cell, None, error)])
    finally:
        ray.shutdown()


def _run_on_ray(grid: Grid, cell: Cell, known: Mapping[str, float] | None) -> CellResult:
    torch.set_num_threads(1)
    for plugin in grid.plugins:
        plugin.load()
    return run_cell(grid, cell, known)


def check_ray(address: str) -> None:
    """Connects to a Ray cluster and leaves it again.

    Raises:
        ValueError: Ray is not installed, or no cluster answers.
    """
    _connected(address).shutdown()


def _connected(address: str) -> Any:
    try:
        import ray  # noqa: PLC0415  (an optional extra)
    except ImportError as error:
        raise ValueError("--ray needs Ray, which is not installed: pip install 'optigradtrust[ray]'") from error
    found = re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address)
    try:
        if found:  # Ray itself waits for minutes for a cluster that is not there
            socket.create_connection((found[1], int(found[2])), timeout=10).close()
        ray.init(address=address, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"no Ray cluster at {address!r}: {error}") from error
    return ray
