"""The same round of local training and averaging by others: a plain PyTorch loop, and ByzFL.

    pip install -c constraints.txt -e '.[peers]'
    python benchmarks/peers.py

Every client takes K steps of SGD from the global model on its own samples, the server takes the mean of the updates.
Network, number of clients, batches and steps are the same for all; made-up 28x28 images, so that no files are needed
(the time does not depend on what is in the pictures). One thread, engines and peers taking turns in one process,
medians. ByzFL is timed with its own clients and its own ``Average``. Writes results/peers.csv.
"""

import importlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fl_core.data.vision import import_torchvision
from fl_core.files import write_csv
from fl_core.models import ParameterLayout, make_network
from fl_core.training import make_engine, make_objective

CLASSES, RATE = 10, 0.05
NETWORK: dict[str, Any] = {"channels": (16, 32), "hidden": 64}
ENGINES = ("sequential", "stacked", "native")


@dataclass(frozen=True)
class Arguments:
    """Times one federated round by different hands."""

    clients: int = 10
    """Number of clients."""
    steps: int = 20
    """Local steps."""
    batch: int = 30
    """Samples of a step."""
    rounds: int = 9
    """Rounds to take the median of."""
    out: Path = Path("results/peers.csv")
    """Where the table goes."""


def main(arguments: Arguments) -> None:
    """Times everybody in turn."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(arguments.clients, arguments.steps, arguments.batch, 1, 28, 28, generator=generator)
    labels = torch.randint(CLASSES, images.shape[:3], generator=generator)
    rounds = {
        "plain PyTorch loop": plain_round(images, labels),
        "ByzFL": byzfl_round(images, labels),
        **{f"ours, {engine}": our_round(engine, images, labels) for engine in ENGINES},
    }
    times: dict[str, list[float]] = {name: [] for name in rounds}
    for play in rounds.values():
        play()
    for _ in range(arguments.rounds):
        for name, play in rounds.items():
            started = time.perf_counter()
            play()
            times[name].append(time.perf_counter() - started)
    rows = [
        {
            "who": name,
            "clients": arguments.clients,
            "milliseconds": round(1e3 * statistics.median(values), 2),
            "times_as_fast": round(
                statistics.median(a / b for a, b in zip(times["plain PyTorch loop"], values, strict=True)), 2
            ),
        }
        for name, values in times.items()
    ]
    write_csv(arguments.out, rows)
    table = Table("who", "ms a round", "times as fast as the loop")
    for row in rows:
        table.add_row(str(row["who"]), str(row["milliseconds"]), str(row["times_as_fast"]))
    Console(width=80).print(table)


def plain_round(images: Tensor, labels: Tensor) -> Callable[[], Any]:
    """What one would write down: a loop over clients, one network, torch.optim.SGD."""
    network = _network()
    start = {name: value.clone() for name, value in network.state_dict().items()}

    def play() -> Tensor:
        updates = []
        for x, y in zip(images, labels, strict=True):
            network.load_state_dict(start)
            optimizer = torch.optim.SGD(network.parameters(), lr=RATE)
            for batch, target in zip(x, y, strict=True):
                optimizer.zero_grad()
                F.cross_entropy(network(batch), target).backward()
                optimizer.step()
            updates.append(torch.cat([(p.detach() - start[n]).flatten() for n, p in network.named_parameters()]))
        return torch.stack(updates).mean(dim=0)

    return play


def our_round(engine_name: str, images: Tensor, labels: Tensor) -> Callable[[], Any]:
    """The round of this project: one call of an engine for all clients."""
    network = _network()
    objective = make_objective("fedavg")
    layout = ParameterLayout(network, local_batchnorm=objective.local_batchnorm)
    engine = make_engine(engine_name, network, layout)
    shared, local = layout.initial(network)
    rows = local.expand(len(images), -1)

    def play() -> Tensor:
        updates, _ = engine.train(shared, rows, images, labels, objective=objective, learning_rate=RATE)
        return updates.mean(dim=0)

    return play


def byzfl_round(images: Tensor, labels: Tensor) -> Callable[[], Any]:
    """ByzFL's clients (``compute_model_update``) and its ``Average``, with our network in its list of models."""
    if importlib.util.find_spec("byzfl") is None:
        sys.exit("peers: ByzFL is not installed: pip install -c constraints.txt -e '.[peers]'")
    import_torchvision()  # ByzFL imports it, and a CPU build of torch needs our tolerant import
    byzfl: Any = importlib.import_module("byzfl")
    byzfl.fed_framework.models.our_small_cnn = _network
    clients = [
        byzfl.Client(
            {
                "model_name": "our_small_cnn",
                "device": "cpu",
                "loss_name": "CrossEntropyLoss",
                "optimizer_name": "SGD",
                "learning_rate": RATE,
                "weight_decay": 0.0,
                "milestones": [],
                "learning_rate_decay": 1.0,
                "LabelFlipping": False,
                "nb_labels": CLASSES,
                "momentum": 0.0,
                "training_dataloader": DataLoader(
                    TensorDataset(x.flatten(0, 1), y.flatten()), batch_size=images.shape[2], shuffle=True
                ),
                "store_per_client_metrics": False,
            }
        )
        for x, y in zip(images, labels, strict=True)
    ]
    average, start = byzfl.Average(), _network().state_dict()

    def play() -> Any:
        for client in clients:
            client.set_model_state(start)
            client.compute_model_update(images.shape[1])
        return average(torch.stack([client.get_flat_parameters() for client in clients]))

    return play


def _network() -> nn.Module:
    return make_network("small_cnn", (1, 28, 28), CLASSES, **NETWORK)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
