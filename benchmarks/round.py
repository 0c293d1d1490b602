"""Times a round, engine by engine and part by part, on 8x8 and on 28x28 images.

    python benchmarks/round.py                      # digits
    python benchmarks/round.py --data-dir DIR       # and Fashion-MNIST, 600 samples a client and round

Every figure is a median over rounds of one interleaved run on one thread: the machine may be shared and noisy, so
ratios within a run mean more than milliseconds across runs. ``peak_gib`` is the most that the process held in a call,
with all that stays in memory between calls; empty where the system does not tell. Writes results/round.csv.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from agents.evaluation.stopwatch import reset_peak, resident
from fl_core import Federation, Round, Scenario, configure
from fl_core.aggregation import make_rule
from fl_core.attacks import AdversaryView
from fl_core.files import write_csv
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
T = TypeVar("T")


class Cost(NamedTuple):
    """Of one call: seconds, and the most bytes that the process held; ``None`` where the system does not tell."""

    seconds: float
    peak: int | None


@dataclass(frozen=True)
class Arguments:
    """Times rounds."""

    data_dir: Path | None = None
    """Where Fashion-MNIST's files are; without it 8x8 images alone are timed."""
    out: Path = Path("results/round.csv")
    """Where the table goes."""


def main(arguments: Arguments) -> None:
    """Times everything, writes the file after each size, prints the table."""
    # Its files are read later: in memory they would count in the peaks of the small images.
    if arguments.data_dir is not None and not arguments.data_dir.is_dir():
        raise ValueError(f"data_dir must be a directory, and {arguments.data_dir} is none")
    torch.set_num_threads(1)
    table = Table(title="one thread, medians")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("images", "what", "part") else "right")
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        if size.images == "28x28" and arguments.data_dir is None:
            continue
        settings = _settings(size, arguments.data_dir)
        for row in [*time_training(size, settings), *time_parts(size, settings), *time_steps(size, settings)]:
            rows.append({"images": size.images, "clients": size.clients, **row})
            table.add_row(*(str(rows[-1][column]) for column in COLUMNS))
        write_csv(arguments.out, rows)
    Console(width=120).print(table)


def _settings(size: Size, data_dir: Path | None) -> dict[str, Any]:
    if size.images == "8x8":
        return {"num_clients": size.clients}
    fashion = {**ENVIRONMENTS["OptiGrad/FashionMNIST-v0"], "local_steps": 20, "batch_size": 30}
    return {"num_clients": size.clients, "data_dir": data_dir, **fashion}


def time_training(size: Size, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Local training alone, engines taking turns on the same batches."""
    federations = {engine: _federation(settings, engine) for engine in size.engines}
    costs: dict[str, list[Cost]] = {engine: [] for engine in size.engines}
    for _ in range(size.rounds):
        for engine, federation in federations.items():
            costs[engine].append(_cost(federation.local_round))
    base = costs.get("sequential")

    def relative(own: list[Cost]) -> str:
        if base is None:
            return ""
        ratio = statistics.median(a.seconds / b.seconds for a, b in zip(base, own, strict=True))
        return f"{ratio:.1f}x sequential"

    return [_row("local round", engine, own, relative(own)) for engine, own in costs.items()]


def time_parts(size: Size, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Shares of a round with the fastest engine: training, attack, each feature, aggregation, evaluation."""
    federation = _federation(settings, "auto")
    rule = make_rule("shapley")
    costs: dict[str, list[Cost]] = defaultdict(list)
    federation.local_round().view.fingerprint  # noqa: B018  (the autoencoder is trained when first asked for)
    for _ in range(size.rounds):
        quiet = federation.attack
        round_, whole = _measured(federation.local_round)
        adversary = AdversaryView(torch.Generator().manual_seed(0))
        attack = _cost(lambda: quiet(round_.view.updates, round_.malicious, adversary))  # noqa: B023
        costs["training"].append(whole._replace(seconds=whole.seconds - attack.seconds))
        costs["attack"].append(attack)
        for feature, compute in _features(federation, round_).items():
            costs[f"feature {feature}"].append(_cost(compute))
        # A fresh view, whose fingerprint is not computed yet: what a round really pays for the six features.
        costs["all six features"].append(_cost(lambda: round_.view.fingerprint))  # noqa: B023
        aggregate = rule(round_.view)
        costs["aggregation"].append(_cost(lambda: rule(round_.view)))  # noqa: B023
        candidates = torch.stack([aggregate.update, aggregate.update])
        costs["evaluation"].append(_cost(lambda: federation.evaluate(candidates, "validation")))  # noqa: B023
        federation.apply(aggregate.update)
    parts = ("training", "attack", "all six features", "aggregation", "evaluation")
    total = sum(_seconds(costs[part]) for part in parts)
    return [_row("share of a round", part, own, f"{100 * _seconds(own) / total:.1f} %") for part, own in costs.items()]


def time_steps(size: Size, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Whole environment steps, resets left out."""
    env = OptiGradEnv(**settings, rounds=size.rounds + 1)
    env.reset(seed=0, options={"attack": "sign_flip", "malicious_fraction": 0.3, "alpha": None})
    action = np.zeros(size.clients, dtype=np.float32)
    costs = [_cost(lambda: env.step(action)) for _ in range(size.rounds)]
    engine = env.federation.engine.name
    return [_row("environment step", engine, costs, f"{1 / _seconds(costs):.2f} steps/s")]


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


def _measured(work: Callable[[], T]) -> tuple[T, Cost]:
    before, started = reset_peak(), time.perf_counter()
    done = work()
    seconds = time.perf_counter() - started
    return done, Cost(seconds, None if before is None else resident("VmHWM"))


def _cost(work: Callable[[], Any]) -> Cost:
    return _measured(work)[1]


def _seconds(costs: list[Cost]) -> float:
    return statistics.median(cost.seconds for cost in costs)


def _row(what: str, part: str, costs: list[Cost], relative: str) -> dict[str, Any]:
    peaks = [cost.peak for cost in costs if cost.peak is not None]
    return {
        "what": what,
        "part": part,
        "milliseconds": round(1e3 * _seconds(costs), 3),
        "relative": relative,
        "peak_gib": round(max(peaks) / 2**30, 2) if peaks else "",
    }


if __name__ == "__main__":
    main(tyro.cli(Arguments))
