"""Times a round of the digits federation, engine by engine and part by part.

    python benchmarks/round.py

Every figure is a median over rounds of one interleaved run on one thread: the machine may be shared and noisy, so
ratios within a run mean more than milliseconds across runs. Writes results/round.csv.
"""

import csv
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

import optigrad_env  # noqa: F401  (registers the ids)
from fl_core import Federation, Round, Scenario, configure
from fl_core.aggregation import make_rule
from fl_core.fingerprint import geometry

ENGINES = ("sequential", "stacked")


@dataclass(frozen=True)
class Arguments:
    """Times a round of the digits federation."""

    clients: tuple[int, ...] = (10, 50)
    """Numbers of clients."""
    rounds: int = 40
    """Rounds to take the median of."""
    out: Path = Path("results/round.csv")
    """Where the table goes."""


def main(arguments: Arguments) -> None:
    """Times everything, prints the tables, writes the file."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for clients in arguments.clients:
        rows += [{"clients": clients, **row} for row in time_training(clients, arguments.rounds)]
        rows += [{"clients": clients, **row} for row in time_parts(clients, arguments.rounds)]
        rows += [{"clients": clients, **row} for row in time_steps(clients, arguments.rounds)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["clients", "what", "part", "milliseconds", "relative"])
        writer.writeheader()
        writer.writerows(rows)
    table = Table(title="digits, one thread, medians")
    for column in ("clients", "what", "part", "ms", "relative"):
        table.add_column(column, justify="right" if column in ("clients", "ms") else "left")
    for row in rows:
        table.add_row(str(row["clients"]), row["what"], row["part"], f"{row['milliseconds']:.2f}", row["relative"])
    Console(width=110).print(table)
    print(f"written to {arguments.out}")


def time_training(clients: int, rounds: int) -> list[dict[str, Any]]:
    """Local training alone, engines taking turns on the same batches."""
    federations = {engine: _federation(clients, engine) for engine in ENGINES}
    times: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for _ in range(rounds):
        for engine, federation in federations.items():
            times[engine].append(_seconds(federation.local_round))
    base = times["sequential"]
    return [
        _row(
            "local round",
            engine,
            values,
            f"{statistics.median(a / b for a, b in zip(base, values, strict=True)):.1f}x sequential",
        )
        for engine, values in times.items()
    ]


def time_parts(clients: int, rounds: int) -> list[dict[str, Any]]:
    """Shares of a round with the stacked engine: training, attack, each feature, aggregation, evaluation."""
    federation = _federation(clients, "stacked")
    rule = make_rule("shapley")
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        quiet = federation.attack
        started = time.perf_counter()
        round_ = federation.local_round()
        whole = time.perf_counter() - started
        generator = torch.Generator().manual_seed(0)
        attack = _seconds(lambda: quiet(round_.view.updates, round_.malicious, generator))  # noqa: B023
        times["training"].append(whole - attack)
        times["attack"].append(attack)
        for feature, compute in _features(federation, round_).items():
            times[f"feature {feature}"].append(_seconds(compute))
        # A fresh view, whose fingerprint is not computed yet: what a round really pays for the six features.
        times["all six features"].append(_seconds(lambda: round_.view.fingerprint))  # noqa: B023
        aggregate = rule(round_.view)
        times["aggregation"].append(_seconds(lambda: rule(round_.view)))  # noqa: B023
        candidates = torch.stack([aggregate.update, aggregate.update])
        times["evaluation"].append(_seconds(lambda: federation.evaluate(candidates, "validation")))  # noqa: B023
        federation.apply(aggregate.update)
    parts = ("training", "attack", "all six features", "aggregation", "evaluation")
    total = sum(statistics.median(times[part]) for part in parts)
    return [
        _row("share of a round", part, values, f"{100 * statistics.median(values) / total:.1f} %")
        for part, values in times.items()
    ]


def time_steps(clients: int, rounds: int) -> list[dict[str, Any]]:
    """Whole environment steps, resets left out."""
    env = gym.make("OptiGrad/Digits-v0", num_clients=clients, rounds=rounds + 1, disable_env_checker=True)
    env.reset(seed=0, options={"attack": "sign_flip", "malicious_fraction": 0.3, "alpha": 0.5})
    action = np.zeros(clients, dtype=np.float32)
    values = [_seconds(lambda: env.step(action)) for _ in range(rounds)]
    return [_row("environment step", "stacked", values, f"{1 / statistics.median(values):.0f} steps/s")]


def _features(federation: Federation, round_: Round) -> dict[str, Callable[[], Any]]:
    view, fingerprinter = round_.view, federation.fingerprinter
    assert view.reference is not None
    assert view.global_model is not None
    assert view.server_local is not None
    reference, shared, local = view.reference, view.global_model, view.server_local
    return {
        "reconstruction_error": lambda: fingerprinter.reconstruction_error(
            view.updates, shared, reference, local, view.round
        ),
        "root_cosine": lambda: geometry.root_cosine(view.updates, reference),
        "peer_cosine": lambda: geometry.peer_cosine(view.updates),
        "norm": lambda: geometry.norms(view.updates),
        "sign_agreement": lambda: geometry.sign_agreement(view.updates, reference),
        "shapley": lambda: fingerprinter.shapley(view.updates, shared, local, view.round),
    }


def _federation(clients: int, engine: str) -> Federation:
    federation = Federation(configure(num_clients=clients, engine=engine))
    federation.reset(Scenario("sign_flip", malicious_fraction=0.3, alpha=0.5), entropy=0)
    return federation


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _row(what: str, part: str, seconds: list[float], relative: str) -> dict[str, Any]:
    return {"what": what, "part": part, "milliseconds": 1e3 * statistics.median(seconds), "relative": relative}


if __name__ == "__main__":
    main(tyro.cli(Arguments))
