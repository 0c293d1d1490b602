"""Use a trained policy as the strategy of a Flower server.

    pip install flwr                                   # 1.42 was tried
    python examples/flower_strategy.py digits          # or a run directory

``TrustStrategy`` is Flower's FedAvg, which samples clients and asks them, with another aggregation. Clients send what a
Flower client sends, arrays of their parameters: those that are shared, in the order of the network's state dict. Under
FedBN, the default here, BatchNorm layers stay with the clients and are none of them.

Run as a program it is Flower's own server loop around twelve clients in this process: three of them send the reverse of
what they have learned, three times as long, and one sends bytes that are no arrays.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from flwr.common import (
    Code,
    DisconnectRes,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetParametersIns,
    GetParametersRes,
    GetPropertiesIns,
    GetPropertiesRes,
    NDArrays,
    Parameters,
    ReconnectIns,
    Scalar,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server import Server, SimpleClientManager
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from agents import PolicyFileError, TrustAggregator, load_policy
from fl_core.aggregation import Rule
from fl_core.data import load_dataset
from fl_core.models import make_network
from fl_core.server import RootServer

CLIENTS, REVERSED, BROKEN, ROUNDS = 12, (2, 5, 8), 11, 20


class TrustStrategy(FedAvg):
    """FedAvg with a rule of this package in place of the weighted mean.

    Args:
        server: Owns the global model and the root data; its ``objective`` and ``training`` are the clients'.
        rule: A deployed policy, or any other rule.
        **fedavg: Of Flower's FedAvg: whom to sample, what to tell clients.
    """

    def __init__(self, server: RootServer, rule: Rule, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self._server, self._rule = server, rule
        self._numbers: dict[str, int] = {}
        rule.reset()

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters:
        """The server's model: no client is asked for one."""
        return self._parameters()

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """The rule's model; as metrics each client's weight, by its id, and the root data's."""
        if not results or (failures and not self.accept_failures):
            return None, {}
        results = sorted(results, key=lambda result: result[0].cid)  # they come in the order of arrival
        clients = [self._numbers.setdefault(proxy.cid, len(self._numbers)) for proxy, _ in results]
        messages = [self._update(sent.parameters) for _, sent in results]
        aggregate = self._rule(self._server.view(messages, clients=clients))
        self._server.apply(aggregate)
        told: dict[str, Scalar] = {"root_weight": float(aggregate.root_weight)}
        if aggregate.weights is not None:
            told |= {f"weight/{proxy.cid}": float(w) for (proxy, _), w in zip(results, aggregate.weights, strict=True)}
        return self._parameters(), told

    def _update(self, sent: Parameters) -> Tensor:
        """What a client has learned, (P,); nothing where it sent something else, which costs it its weight."""
        try:
            arrays = parameters_to_ndarrays(sent)
            if [array.shape for array in arrays] != [tuple(entry.shape) for entry in self._server.layout.shared]:
                return torch.zeros(0)
            vector = np.concatenate([array.astype(np.float32).ravel() for array in arrays])
        except Exception:  # bytes from somebody else
            return torch.zeros(0)
        return torch.from_numpy(vector) - self._server.global_model

    def _parameters(self) -> Parameters:
        entries = self._server.layout.shared
        pieces = self._server.global_model.split([entry.size for entry in entries])
        arrays = [piece.view(entry.shape).numpy() for entry, piece in zip(entries, pieces, strict=True)]
        return ndarrays_to_parameters(arrays)


def shared_names(network: nn.Module) -> list[str]:
    """What a client sends under FedBN: all of its state but BatchNorm's."""
    own = {name for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
    return [name for name in network.state_dict() if name.rpartition(".")[0] not in own]


class Client(ClientProxy):
    """A client in this process, behind Flower's interface to one that is elsewhere."""

    def __init__(self, number: int, network: nn.Module, images: Tensor, labels: Tensor) -> None:
        super().__init__(f"{number:02d}")
        self.number, self.network, self.images, self.labels = number, network, images, labels
        self._draw = torch.Generator().manual_seed(number)

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        """A few steps of SGD on its own data."""
        received = parameters_to_ndarrays(ins.parameters)
        names = shared_names(self.network)
        tensors = {name: torch.tensor(array) for name, array in zip(names, received, strict=True)}
        self.network.load_state_dict(tensors, strict=False)
        optimizer = torch.optim.SGD(self.network.parameters(), lr=0.15)
        for batch in torch.randperm(len(self.labels), generator=self._draw)[:48].split(16):
            optimizer.zero_grad()
            F.cross_entropy(self.network(self.images[batch]), self.labels[batch]).backward()
            optimizer.step()
        learned = [self.network.state_dict()[name].numpy() for name in names]
        return FitRes(Status(Code.OK, ""), self._sent(received, learned), len(self.labels), {})

    def _sent(self, received: NDArrays, learned: NDArrays) -> Parameters:
        if self.number == BROKEN:
            return Parameters([b"no array"], "numpy.ndarray")
        if self.number in REVERSED:
            learned = [before - 3 * (after - before) for before, after in zip(received, learned, strict=True)]
        return ndarrays_to_parameters(learned)

    def get_properties(self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None) -> GetPropertiesRes:
        """Not asked for."""
        raise NotImplementedError

    def get_parameters(self, ins: GetParametersIns, timeout: float | None, group_id: int | None) -> GetParametersRes:
        """Not asked for: the strategy has the first model."""
        raise NotImplementedError

    def evaluate(self, ins: EvaluateIns, timeout: float | None, group_id: int | None) -> EvaluateRes:
        """Not asked for: ``fraction_evaluate=0``."""
        raise NotImplementedError

    def reconnect(self, ins: ReconnectIns, timeout: float | None, group_id: int | None) -> DisconnectRes:
        """It is here."""
        return DisconnectRes("")


def main(arguments: Sequence[str]) -> None:
    """Twenty rounds of Flower's server; prints what became of the model and of the clients."""
    torch.set_num_threads(1)
    dataset = load_dataset("digits")
    order = dataset.train[torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(0))]
    root, *shards = order[: 100 * (CLIENTS + 1)].split(100)

    def a_network() -> nn.Module:
        return make_network("small_cnn", dataset.image_shape, dataset.num_classes)

    rule = TrustAggregator(load_policy(arguments[0] if arguments else "digits"))
    server = RootServer(a_network(), dataset.images(root), dataset.labels[root], dataset.num_classes)
    strategy = TrustStrategy(server, rule, fraction_evaluate=0.0, min_available_clients=CLIENTS)
    manager = SimpleClientManager()
    for i, shard in enumerate(shards):
        manager.register(Client(i, a_network(), dataset.images(shard), dataset.labels[shard]))
    history, _ = Server(client_manager=manager, strategy=strategy).fit(num_rounds=ROUNDS, timeout=None)

    network = a_network()
    server.write_to(network)
    correct = network.eval()(dataset.images(dataset.test)).argmax(dim=1) == dataset.labels[dataset.test]
    print(f"test accuracy after {ROUNDS} rounds: {correct.double().mean():.3f}")
    for name, values in sorted(history.metrics_distributed_fit.items()):
        number = int(name.rpartition("/")[2]) if "/" in name else None
        kind = "reversed" if number in REVERSED else "no arrays" if number == BROKEN else ""
        mean = sum(float(weight) for _, weight in values) / ROUNDS
        print(f"{name:12s} mean {mean:.3f} {kind}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except PolicyFileError as error:
        sys.exit(f"flower_strategy: {error}")
