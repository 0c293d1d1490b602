"""Peak memory of a full round of a large network: ResNet-18 on CIFAR-10.

    python benchmarks/memory.py --data-dir DIR

A full round is local training of all clients and the server, the attack, the six features, aggregation and an
evaluation on validation data. Prints its time and the peak memory of the process, data and libraries included; writes
results/memory.csv.
"""

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from fl_core import Federation, Scenario, configure
from fl_core.aggregation import make_rule
from fl_core.files import write_csv

# What the system counts ``ru_maxrss`` in.
_UNITS_PER_GIB = 2**30 if sys.platform == "darwin" else 2**20


@dataclass(frozen=True)
class Arguments:
    """Runs one round of ResNet-18 federations."""

    data_dir: Path | None = None
    """Where CIFAR-10's files are; by default $OPTIGRAD_DATA, else the user's cache directory."""
    clients: int = 4
    """Number of clients."""
    steps: int = 5
    """Local steps of 32 samples."""
    simulated_rounds: int = 1
    """Rounds of nine simulated clients for the autoencoder: what most of the time goes into."""
    out: Path = Path("results/memory.csv")
    """Where the figures go."""


def main(arguments: Arguments) -> None:
    """Runs the round and prints what it took."""
    torch.set_num_threads(1)
    federation = Federation(
        configure(
            dataset="cifar10",
            data_dir=arguments.data_dir,
            network="resnet18",
            num_clients=arguments.clients,
            local_steps=arguments.steps,
            batch_size=32,
            learning_rate=0.05,
            simulated_rounds=arguments.simulated_rounds,
        )
    )
    federation.reset(Scenario("sign_flip", malicious_fraction=0.25, alpha=0.5), entropy=0)
    started = time.perf_counter()
    round_ = federation.local_round()
    aggregate = make_rule("shapley")(round_.view)
    federation.apply(aggregate.update)
    federation.evaluate(torch.zeros(1, federation.layout.num_shared), "validation")
    row = {
        "network": "resnet18",
        "parameters": federation.layout.num_shared,
        "clients": arguments.clients,
        "local_steps": arguments.steps,
        "engine": federation.engine.name,
        "seconds": round(time.perf_counter() - started, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _UNITS_PER_GIB, 2),
    }
    write_csv(arguments.out, [row])
    print(row)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
