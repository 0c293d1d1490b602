"""Use a trained policy as the aggregation rule of a federation of your own.

    python examples/deploy_policy.py digits            # or a run directory

The clients here are plain PyTorch: a module and an optimiser each, as anybody would write them. Three of the twelve
send the reverse of what they have learned, three times as long, and one sends NaN. The server knows none of that.
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F

from agents import PolicyFileError, TrustAggregator, load_policy
from fl_core.data import load_dataset
from fl_core.models import make_network
from fl_core.server import RootServer

CLIENTS, REVERSED, BROKEN, ROUNDS = 12, (2, 5, 8), 11, 20


def train_locally(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """A client's round: a few steps of SGD on its own data."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.15)
    for batch in torch.randperm(len(labels))[:48].split(16):
        optimizer.zero_grad()
        F.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()


def main(run_directory: str) -> None:
    """Twenty rounds; prints what became of the clients and of the model."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dataset = load_dataset("digits")
    shuffled = dataset.train[torch.randperm(len(dataset.train))]
    root, *shards = shuffled.split([100, *[100] * CLIENTS, len(shuffled) - 100 * (CLIENTS + 1)])

    rule = TrustAggregator(load_policy(run_directory))
    network = make_network("small_cnn", dataset.image_shape, dataset.num_classes)
    server = RootServer(network, dataset.images(root), dataset.labels[root], dataset.num_classes)
    clients = [make_network("small_cnn", dataset.image_shape, dataset.num_classes) for _ in range(CLIENTS)]

    for _ in range(ROUNDS):
        messages = []
        for i, (client, shard) in enumerate(zip(clients, shards, strict=False)):
            server.broadcast(client)
            train_locally(client, dataset.images(shard), dataset.labels[shard])
            update = server.update_of(client)
            messages.append(-3 * update if i in REVERSED else update * float("nan") if i == BROKEN else update)
        aggregate = rule(server.view(messages))
        server.apply(aggregate)

    server.write_to(network)
    correct = network.eval()(dataset.images(dataset.test)).argmax(dim=1) == dataset.labels[dataset.test]
    print(f"test accuracy after {ROUNDS} rounds: {correct.double().mean():.3f}")
    assert aggregate.weights is not None
    for i, weight in enumerate(aggregate.weights.tolist()):
        print(f"client {i:2d} {weight:.3f} {'reversed' if i in REVERSED else 'NaN' if i == BROKEN else ''}")
    print(f"root data {aggregate.root_weight:.3f}")


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "digits")
    except PolicyFileError as error:
        sys.exit(f"deploy_policy: {error}")
