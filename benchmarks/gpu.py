"""Times rounds on a GPU beside the native engine on one core of the same machine: 10, 100 and 1000 clients.

    python benchmarks/gpu.py --data-dir DIR         # DIR holds Fashion-MNIST; --download fetches it

28x28 images, 20 local steps on batches of 30 for each client, as in benchmarks/round.py. Whole environment steps, and
of a round the training of all clients, the six features and the evaluation by themselves; medians, without the first
of each, which picks algorithms. The GPU is waited for before and after each. ``images at once`` is how many the stacked
engine works on together, for the largest federation: the federation's own limit, which hands over 142 of these clients
at a time, is lifted for it. Writes results/gpu.csv with the name of the GPU; where there is none it says so and writes
nothing.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from fl_core import Federation, Scenario, configure
from fl_core import federation as federation_module
from fl_core.device import check_device
from fl_core.files import write_csv
from fl_core.training import stacked
from optigrad_env import OptiGradEnv
from optigrad_env.registration import ENVIRONMENTS

COLUMNS = ("device", "torch", "engine", "clients", "what", "milliseconds", "peak_gib")
PIXELS = 28 * 28


@dataclass(frozen=True)
class Arguments:
    """Times rounds on a GPU."""

    data_dir: Path | None = None
    """Where Fashion-MNIST's files are."""
    download: bool = False
    """Fetch them if they are missing."""
    device: str = "cuda"
    """Which GPU."""
    clients: tuple[int, ...] = (10, 100, 1000)
    """Numbers of clients."""
    on_cpu: tuple[int, ...] = (10, 100)
    """Those that the processor is timed with too."""
    images_at_once: tuple[int, ...] = (1_000, 10_000, 40_000)
    """Sizes of a stack to compare."""
    seconds: float = 4.0
    """Time for each figure; at least three repetitions."""
    out: Path = Path("results/gpu.csv")
    """Where the table goes."""


def main(arguments: Arguments) -> None:
    """Times everything, prints the table, writes the file after each row."""
    torch.set_num_threads(1)
    try:
        device = check_device(arguments.device)
    except ValueError as error:
        sys.exit(f"nothing measured: {error}")
    if device.type == "cpu":
        sys.exit("nothing measured: this times a GPU; benchmarks/round.py times the CPU")
    table = Table(*COLUMNS, title="medians")
    rows: list[dict[str, Any]] = []
    for row in measured(arguments, device):
        rows.append(row)
        write_csv(arguments.out, rows)
        table.add_row(*(str(row[column]) for column in COLUMNS))
    Console(width=160).print(table)
    print(f"written to {arguments.out}")


def measured(arguments: Arguments, device: torch.device) -> Iterator[dict[str, Any]]:
    """All rows, the GPU's before the processor's."""
    for clients in arguments.clients:
        yield from time_round(arguments, device, clients)
    for images in arguments.images_at_once:
        with (
            mock.patch.object(stacked, "_PIXELS_ON_GPU", PIXELS * images),
            mock.patch.object(federation_module, "_PIXELS_AT_ONCE", sys.maxsize),
        ):
            federation = begun(arguments, device, max(arguments.clients))
            yield timed(arguments, federation, f"training, {images} images at once", federation.local_round)
    for clients in arguments.on_cpu:
        yield from time_round(arguments, torch.device("cpu"), clients)


def time_round(arguments: Arguments, device: torch.device, clients: int) -> Iterator[dict[str, Any]]:
    """A federation with a sign flip among 30 % of the clients: whole steps, then the parts of a round."""
    env = OptiGradEnv(**settings(arguments, device, clients), rounds=1000)
    env.reset(seed=0, options={"attack": "sign_flip", "malicious_fraction": 0.3, "alpha": None})
    action = np.zeros(clients, dtype=np.float32)
    yield timed(arguments, env.federation, "environment step", lambda: env.step(action))
    federation = begun(arguments, device, clients)
    yield timed(arguments, federation, "training", federation.local_round)
    view = federation.local_round().view
    # A fresh view each time: one keeps what it has computed.
    yield timed(arguments, federation, "six features", lambda: replace(view).fingerprint)
    nothing = torch.zeros(1, federation.layout.num_shared, device=device)
    yield timed(arguments, federation, "evaluation", lambda: federation.evaluate(nothing, "validation"))


def settings(arguments: Arguments, device: torch.device, clients: int) -> dict[str, Any]:
    """Those of the environment, with the work of benchmarks/round.py."""
    usual = {**ENVIRONMENTS["OptiGrad/FashionMNIST-v0"], "local_steps": 20, "batch_size": 30}
    own = {"num_clients": clients, "device": str(device)}
    return {**usual, **own, "data_dir": arguments.data_dir, "download": arguments.download}


def begun(arguments: Arguments, device: torch.device, clients: int) -> Federation:
    """A federation before its first round."""
    federation = Federation(configure(**settings(arguments, device, clients)))
    federation.reset(Scenario("sign_flip", malicious_fraction=0.3), entropy=0)
    return federation


def timed(arguments: Arguments, federation: Federation, what: str, work: Callable[[], Any]) -> dict[str, Any]:
    """One row: the median of as many repetitions as there is time for, after one that is not counted."""
    device = federation.device
    gpu = device.type == "cuda"

    def wait() -> None:
        if gpu:
            torch.cuda.synchronize(device)

    work()
    wait()
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    times: list[float] = []
    while len(times) < 3 or sum(times) < arguments.seconds:
        started = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - started)
    return {
        "device": torch.cuda.get_device_name(device) if gpu else f"{platform.machine()}, one core",
        "torch": torch.__version__,
        "engine": federation.engine.name,
        "clients": federation.config.num_clients,
        "what": what,
        "milliseconds": round(1e3 * statistics.median(times), 3),
        "peak_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if gpu else "",
    }


if __name__ == "__main__":
    main(tyro.cli(Arguments))
