"""Times steps of several digits federations: how many in a process, and in how many processes. And what it would save
to evaluate the models of all federations of a process in one call of the engine.

    python benchmarks/vector.py

All settings take turns within one run, episodes end and begin as they do in training, and every figure is a median over
the turns: the machine may be shared and noisy, so ratios within a run mean more than steps a second across runs.
Writes results/vector.csv.
"""

import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.vec_env import VecEnv

from agents.environments import make_training_envs
from fl_core import Federation, configure
from fl_core.files import write_csv


@dataclass(frozen=True)
class Arguments:
    """Times steps of several digits federations."""

    envs: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of federations."""
    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes; 1 is the benchmark's own."""
    clients: int = 10
    """Clients of a federation."""
    turns: int = 15
    """Turns to take the median of."""
    steps: int = 80
    """Steps of a turn, over all federations together, rounded up to one of each."""
    out: Path = Path("results/vector.csv")
    """Where the table goes."""


def main(arguments: Arguments) -> None:
    """Times everything, prints the table, writes the file."""
    torch.set_num_threads(1)
    settings = [(e, p) for p in arguments.processes for e in arguments.envs if p <= e]
    opened: dict[tuple[int, int], VecEnv] = {}
    try:
        for envs, processes in settings:
            opened[envs, processes] = make_training_envs(
                "OptiGrad/Digits-v0", envs, 0, processes=processes, num_clients=arguments.clients
            )
        rates = time_turns(opened, arguments.turns, arguments.steps)
    finally:
        for made in opened.values():
            made.close()
    base = rates[settings[0]]
    rows = [
        _row("steps a second", envs, processes, rates[envs, processes], base, arguments) for envs, processes in settings
    ]
    each, together = time_evaluation(max(arguments.envs), arguments)
    rows.append(_row("ms a step: evaluation, a call each", max(arguments.envs), 1, each, each, arguments))
    rows.append(_row("ms a step: evaluation, one call", max(arguments.envs), 1, together, each, arguments))
    write(rows, arguments.out)


def _row(
    what: str, envs: int, processes: int, values: list[float], base: list[float], arguments: Arguments
) -> dict[str, Any]:
    relative = statistics.median(a / b for a, b in zip(values, base, strict=True))
    return {
        "what": what,
        "envs": envs,
        "processes": processes,
        "clients": arguments.clients,
        "median": round(statistics.median(values), 3),
        "relative": round(relative, 2),
    }


def time_evaluation(envs: int, arguments: Arguments) -> tuple[list[float], list[float]]:
    """Milliseconds a step that the engine takes to score two models of each federation: a call each, or one call.

    An upper bound of what batching could save: here all federations have the same images, which in truth they have not.
    """
    federation = Federation(configure(num_clients=arguments.clients))
    images = federation.dataset.images(federation.splits.validation)
    shared, local = (tensor.repeat(2 * envs, 1) for tensor in federation.initial_model())

    def score(models: int) -> float:
        started = time.perf_counter()
        for some, theirs in zip(shared.split(models), local.split(models), strict=True):
            statistics_ = federation.engine.reestimate(some, theirs, federation.simulator.images)
            federation.engine.logits(some, statistics_, images)
        return 1e3 * (time.perf_counter() - started) / envs

    pairs = [(score(2), score(2 * envs)) for _ in range(10 * arguments.turns)]
    return [each for each, _ in pairs], [together for _, together in pairs]


def time_turns(opened: dict[tuple[int, int], VecEnv], turns: int, steps: int) -> dict[tuple[int, int], list[float]]:
    """Steps a second of every setting in each turn; the autoencoders are trained before the first one."""
    rng = np.random.default_rng(0)
    rates: dict[tuple[int, int], list[float]] = defaultdict(list)
    for made in opened.values():
        made.reset()
    for _ in range(turns):
        for setting, made in opened.items():
            shape = (made.num_envs, *made.action_space.shape)  # type: ignore[misc]
            actions = rng.uniform(-1, 1, (-(-steps // made.num_envs), *shape)).astype(np.float32)
            started = time.perf_counter()
            for action in actions:
                made.step(action)
            rates[setting].append(len(actions) * made.num_envs / (time.perf_counter() - started))
    return rates


def write(rows: list[dict[str, Any]], out: Path) -> None:
    """The table, as a file and on the screen."""
    write_csv(out, rows)
    table = Table(title="digits, medians")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=110).print(table)
    print(f"written to {out}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
