"""The strategy for Flower's server: the rule that it is given, on the updates that its clients have sent."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from fl_core.aggregation import Aggregate, Rule, ServerView, make_rule
from fl_core.data import load_dataset
from fl_core.models import make_network
from fl_core.server import RootServer

from .test_examples import ROOT, run

pytest.importorskip("flwr", reason="`make setup-dev` installs Flower")
DIGITS = load_dataset("digits")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flower_strategy", Path(ROOT) / "examples" / "flower_strategy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def a_server() -> RootServer:
    network = make_network("small_cnn", DIGITS.image_shape, DIGITS.num_classes)
    root = DIGITS.train[:60]
    return RootServer(network, DIGITS.images(root), DIGITS.labels[root], DIGITS.num_classes)


def sent(example: ModuleType, cid: str, arrays: list[np.ndarray]) -> tuple[Any, Any]:
    """A client and its result, as Flower's server has them."""
    client = example.Client(0, make_network("small_cnn", DIGITS.image_shape, DIGITS.num_classes), None, None)
    client.cid = cid
    parameters = example.ndarrays_to_parameters(arrays)
    return client, example.FitRes(example.Status(example.Code.OK, ""), parameters, 1, {})


class Watched(Rule):
    """FedAvg that keeps the views."""

    def __init__(self) -> None:
        self.views: list[ServerView] = []

    def aggregate(self, view: ServerView) -> Aggregate:
        self.views.append(view)
        return make_rule("fedavg").aggregate(view)


@pytest.mark.parametrize("name", ["fedavg", "fltrust", "shapley"])
def test_a_round_is_the_rules_on_the_same_updates_whatever_order_they_come_in(example: ModuleType, name: str) -> None:
    server, other = a_server(), a_server()
    strategy = example.TrustStrategy(server, make_rule(name))
    received = example.parameters_to_ndarrays(strategy.initialize_parameters(example.SimpleClientManager()))
    assert [array.shape for array in received] == [tuple(entry.shape) for entry in server.layout.shared]
    draw = np.random.default_rng(0)
    changes = [[0.01 * draw.standard_normal(a.shape, dtype=np.float32) for a in received] for _ in range(4)]
    results = [
        sent(example, str(i), [a + c for a, c in zip(received, of, strict=True)]) for i, of in enumerate(changes)
    ]
    parameters, told = strategy.aggregate_fit(1, [results[i] for i in (2, 0, 3, 1)], [])

    flat = [
        torch.from_numpy(np.concatenate([(a + c).ravel() for a, c in zip(received, of, strict=True)])) for of in changes
    ]
    aggregate = make_rule(name)(other.view([vector - other.global_model for vector in flat]))
    other.apply(aggregate)
    now = np.concatenate([array.ravel() for array in example.parameters_to_ndarrays(parameters)])
    np.testing.assert_array_equal(now, other.global_model.numpy())
    assert aggregate.weights is not None
    assert [told[f"weight/{i}"] for i in range(4)] == aggregate.weights.tolist()
    assert told["root_weight"] == aggregate.root_weight


def test_a_client_keeps_its_number_and_what_is_no_model_costs_its_weight(example: ModuleType) -> None:
    rule = Watched()
    strategy = example.TrustStrategy(a_server(), rule)
    received = example.parameters_to_ndarrays(strategy.initialize_parameters(example.SimpleClientManager()))
    whole = [array + 0.01 for array in received]
    strategy.aggregate_fit(1, [sent(example, cid, whole) for cid in ("a", "b", "c")], [])
    broken = {"b": whole[:-1], "d": [array.T for array in whole], "e": [np.full_like(a, np.nan) for a in whole]}
    results = [sent(example, cid, arrays) for cid, arrays in {"c": whole, **broken}.items()]
    results.append(sent(example, "f", whole))
    results[-1][1].parameters.tensors[0] = b"no array"
    _, told = strategy.aggregate_fit(2, results, [])
    clients = rule.views[1].clients
    assert clients is not None
    assert clients.tolist() == [1, 2, 3, 4, 5]
    assert rule.views[1].rejected.tolist() == [True, False, True, True, True]
    assert {name: weight for name, weight in told.items() if weight} == {"weight/c": 1.0}
    assert strategy.aggregate_fit(3, [], [])[0] is None


def test_flowers_server_runs_it_and_attackers_end_with_little_weight() -> None:
    printed = run("flower_strategy.py")
    accuracy = float(re.search(r"test accuracy after 20 rounds: ([\d.]+)", printed)[1])  # type: ignore[index]
    assert accuracy > 0.9
    weights = {int(i): float(w) for i, w in re.findall(r"weight/(\d+) +mean ([\d.]+)", printed)}
    assert len(weights) == 12
    honest = [weight for i, weight in weights.items() if i not in (2, 5, 8, 11)]
    assert max(weights[i] for i in (2, 5, 8, 11)) < min(honest) / 4
    assert weights[11] == 0
