"""Times a round, engine by engine and part by part, on 8x8 and on 28x28 images.

    python benchmarks/round.py                      # digits
    python benchmarks/round.py --data-dir DIR       # and Fashion-MNIST, 600 samples a client and round

Every figure is a median over rounds of one interleaved run on one thread: the machine may be shared and noisy, so
ratios within a run mean more than milliseconds across runs. Writes results/round.csv.
"""

import csv
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from fl_core import Federation, Round, Scenario, configure
from fl_core.aggregation import make_rule
from fl_core.attacks import AdversaryView
from fl_core.fingerprint import geometry
from optigrad_env import OptiGradEnv
from optigrad_env.registration import ENVIRONMENTS


@dataclass(frozen=True)
class Size:
    """A federation to time.

    Attributes:
        images: 8x8 or 28x28.
        clients: N.
        rounds: Rounds to take the median of.
        engines: Engines to compare; the slow ones are left out where a round would take minutes.
    """

    images: str
    clients: int
    rounds: int
    engines: tuple[str, ...] = ("sequential", "stacked", "native")


SIZES = (
    Size("8x8", 10, 60),
    Size("8x8", 50, 30),
    Size("8x8", 100, 20),
    Size("8x8", 1000, 5),
    Size("28x28", 10, 10),
    Size("28x28", 100, 3, ("native",)),
    Size("28x28", 1000, 2, ("native",)),
)
COLUMNS = ("images", "clients", "what", "part", "milliseconds", "relative", "peak_gib")


@dataclass(frozen=True)
class Arguments:
    """Times rounds."""

    data_dir: Path | None = None
    """Where Fashion-MNIST's files are; without it 8x8 images alone are timed."""
    out: Path = Path("results/round.csv")
    """Where the table goes."""


def main(arguments: Arguments) -> None:
    """Times everything, prints the tables, writes the file."""
    torch.set_num_threads(1)
    table = Table(title="one thread, medians")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("images", "what", "part") else "right")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for size in SIZES:
            if size.images == "28x28" and arguments.data_dir is None:
                continue
            settings = _settings(size, arguments.data_dir)
            for row in [*time_training(size, settings), *time_parts(size, settings), *time_steps(size, settings)]:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
                row |= {"images": size.images, "clients": size.clients, "peak_gib": round(peak, 2)}
                row["milliseconds"] = round(row["milliseconds"], 3)
                writer.writerow(row)
                file.flush()
                table.add_row(*(str(row[column]) for column in COLUMNS))
    Console(width=120).print(table)


def _settings(size: Size, data_dir: Path | None) -> dict[str, Any]:
    if size.images == "8x8":
        return {"num_clients": size.clients}
    fashion = {**ENVIRONMENTS["OptiGrad/FashionMNIST-v0"], "local_steps": 20, "batch_size": 30}
    return {"num_clients": size.clients, "data_dir": data_dir, **fashion}


def time_training(size: Size, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Local training alone, engines taking turns on the same batches."""
    federations = {engine: _federation(settings, engine) for engine in size.engines}
    times: dict[str, list[float]] = {engine: [] for engine in size.engines}
    for _ in range(size.rounds):
        for engine, federation in federations.items():
            times[engine].append(_seconds(federation.local_round))
    base = times.get("sequential")
    return [
        _row(
            "local round",
            engine,
            values,
            f"{statistics.median(a / b for a, b in zip(base, values, strict=True)):.1f}x sequential" if base else "",
        )
        for engine, values in times.items()
    ]


def time_parts(size: Size, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Shares of a round with the fastest engine: training, attack, each feature, aggregation, evaluation."""
    federation = _federation(settings, "auto")
    rule = make_rule("shapley")
    times: dict[str, list[float]] = defaultdict(list)
    federation.local_round().view.fingerprint  # noqa: B018  (the autoencoder is trained when first asked for)
    for _ in range(size.rounds):
        quiet = federation.attack
        started = time.perf_counter()
        round_ = federation.local_round()
        whole = time.perf_counter() - started
        adversary = AdversaryView(torch.Generator().manual_seed(0))
        attack = _seconds(lambda: quiet(round_.view.updates, round_.malicious, adversary))  # noqa: B023
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


def time_steps(size: Size, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Whole environment steps, resets left out."""
    env = OptiGradEnv(**settings, rounds=size.rounds + 1)
    env.reset(seed=0, options={"attack": "sign_flip", "malicious_fraction": 0.3, "alpha": None})
    action = np.zeros(size.clients, dtype=np.float32)
    values = [_seconds(lambda: env.step(action)) for _ in range(size.rounds)]
    engine = env.federation.engine.name
    return [_row("environment step", engine, values, f"{1 / statistics.median(values):.2f} steps/s")]


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


def _federation(settings: dict[str, Any], engine: str) -> Federation:
    federation = Federation(configure(**settings, engine=engine))
    federation.reset(Scenario("sign_flip", malicious_fraction=0.3), entropy=0)
    return federation


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _row(what: str, part: str, seconds: list[float], relative: str) -> dict[str, Any]:
    return {"what": what, "part": part, "milliseconds": 1e3 * statistics.median(seconds), "relative": relative}


if __name__ == "__main__":
    main(tyro.cli(Arguments))
