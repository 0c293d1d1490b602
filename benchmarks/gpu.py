"""Times whole environment steps on a GPU: 10, 100 and 1000 clients on 28x28 images.

    python benchmarks/gpu.py --data-dir DIR         # DIR holds Fashion-MNIST; --download fetches it

Each client does 20 steps on batches of 30, as in benchmarks/round.py, which times the CPU. Medians over steps, resets
and the first step left out; every step ends with numbers that the host reads, so nothing is still running when the
clock stops. Writes results/gpu.csv with the name of the GPU. Where there is no GPU it says so and writes nothing.
"""

import csv
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from fl_core.device import check_device
from optigrad_env import OptiGradEnv
from optigrad_env.registration import ENVIRONMENTS

COLUMNS = ("device", "torch", "engine", "images", "clients", "steps_per_second", "milliseconds", "peak_gib")


@dataclass(frozen=True)
class Arguments:
    """Times environment steps on a GPU."""

    data_dir: Path | None = None
    """Where Fashion-MNIST's files are."""
    download: bool = False
    """Fetch them if they are missing."""
    device: str = "cuda"
    """Which GPU."""
    clients: tuple[int, ...] = (10, 100, 1000)
    """Numbers of clients."""
    steps: int = 20
    """Steps to take the median of."""
    out: Path = Path("results/gpu.csv")
    """Where the table goes."""


def main(arguments: Arguments) -> None:
    """Times everything, prints the table, writes the file."""
    try:
        device = check_device(arguments.device)
    except ValueError as error:
        sys.exit(f"nothing measured: {error}")
    if device.type == "cpu":
        sys.exit("nothing measured: this times a GPU; benchmarks/round.py times the CPU")
    rows = [time_steps(arguments, device, clients) for clients in arguments.clients]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    table = Table(*COLUMNS, title="whole environment steps, medians")
    for row in rows:
        table.add_row(*(str(row[column]) for column in COLUMNS))
    Console(width=140).print(table)
    print(f"written to {arguments.out}")


def time_steps(arguments: Arguments, device: torch.device, clients: int) -> dict[str, Any]:
    """One row: an episode with a sign flip among 30 % of the clients."""
    settings = {**ENVIRONMENTS["OptiGrad/FashionMNIST-v0"], "local_steps": 20, "batch_size": 30}
    env = OptiGradEnv(
        num_clients=clients,
        rounds=arguments.steps + 2,
        device=str(device),
        data_dir=arguments.data_dir,
        download=arguments.download,
        **settings,
    )
    env.reset(seed=0, options={"attack": "sign_flip", "malicious_fraction": 0.3, "alpha": None})
    action = np.zeros(clients, dtype=np.float32)
    env.step(action)  # picks algorithms, fills the allocator
    torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(arguments.steps):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        env.step(action)
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    return {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "engine": env.federation.engine.name,
        "images": "28x28",
        "clients": clients,
        "steps_per_second": round(1 / median, 3),
        "milliseconds": round(1e3 * median, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2),
    }


if __name__ == "__main__":
    main(tyro.cli(Arguments))
