"""The linear engine equals the sequential one in double precision, and least squares equals its closed form."""

import pytest
import torch
from torch import Tensor, nn

from fl_core import configure
from fl_core.models import ParameterLayout, make_network
from fl_core.training import LinearEngine, Objective, make_engine, make_objective, objective_names
from fl_core.training.objective import LOSSES, TARGET

CLASSES, SHAPE = 4, (2, 3, 3)


class Case:
    """A linear network with random batches of its clients and random images to score."""

    def __init__(self, clients: int = 5, steps: int = 4, bias: bool = True) -> None:
        self.network = make_network("mlp", SHAPE, CLASSES, hidden=()).double()
        if not bias:
            self.network = nn.Sequential(nn.Flatten(), nn.Linear(18, CLASSES, bias=False)).double()
        self.layout = ParameterLayout(self.network, local_batchnorm=True)
        self.generator = torch.Generator().manual_seed(clients + 10 * steps)
        self.shared = self.normal(self.layout.num_shared)
        self.local = torch.zeros(clients, 0, dtype=torch.float64)
        self.images, self.held_out = self.normal(clients, steps, 6, *SHAPE), self.normal(11, *SHAPE)
        self.labels = torch.randint(CLASSES, (clients, steps, 6), generator=self.generator)

    def normal(self, *sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=self.generator, dtype=torch.float64)

    def train(self, engine: str, objective: Objective, learning_rate: float = 0.1) -> Tensor:
        made = make_engine(engine, self.network, self.layout)
        given = (self.shared, self.local, self.images, self.labels)
        updates, local = made.train(*given, objective=objective, learning_rate=learning_rate)
        assert local.shape == self.local.shape
        return updates

    def second_moments(self, client: int, step: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Features with a constant (B, D + 1), their second moments A and the global model (C, D + 1)."""
        x = torch.cat([self.images[client, step].flatten(1), torch.ones(6, 1, dtype=torch.float64)], dim=1)
        return x, x.T @ x / len(x), self.joined(self.shared)

    def joined(self, row: Tensor) -> Tensor:
        """A row (P,) as weight beside bias, (C, D + 1)."""
        weight, bias = row[: CLASSES * 18].view(CLASSES, 18), row[CLASSES * 18 :]
        return torch.cat([weight, bias[:, None]], dim=1)


def assert_equal(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", objective_names())
@pytest.mark.parametrize(("clients", "steps", "bias"), [(1, 1, True), (5, 4, True), (13, 7, False)])
def test_training_equals_the_sequential_and_the_stacked_engine(loss, name, clients, steps, bias):
    case, objective = Case(clients, steps, bias), make_objective(name, 0.7, loss)
    updates = case.train("linear", objective)
    assert_equal(updates, case.train("sequential", objective))
    assert_equal(updates, case.train("stacked", objective))
    assert (updates.norm(dim=1) > 1e-3).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_without_batchnorm_fedbn_is_fedavg_and_fedbn_prox_is_fedprox(loss):
    case = Case()
    for fedbn, plain in (("fedbn", "fedavg"), ("fedbn_prox", "fedprox")):
        updates = [case.train("linear", make_objective(name, 0.7, loss)) for name in (fedbn, plain)]
        assert torch.equal(*updates)
    assert not torch.equal(case.train("linear", make_objective("fedprox", 0.7, loss)), updates[0] * 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_larger_mu_keeps_the_clients_nearer_to_the_global_model(loss):
    case = Case(steps=10)
    lengths = [case.train("linear", make_objective("fedprox", mu, loss)).norm(dim=1) for mu in (0.0, 0.5, 2.0)]
    assert (torch.stack(lengths).diff(dim=0) < 0).all()


@pytest.mark.parametrize("bias", [True, False])
def test_logits_equal_the_sequential_engine_and_are_differentiable(bias):
    case = Case(bias=bias)
    rows = (case.shared + 0.1 * case.normal(5, case.layout.num_shared)).requires_grad_()
    mix = case.normal(5, 11, CLASSES)
    results = []
    for name in ("linear", "sequential"):
        engine = make_engine(name, case.network, case.layout)
        logits = engine.logits(rows, engine.reestimate(rows, case.local, case.held_out), case.held_out)
        results.append((logits.detach(), torch.autograd.grad((logits * mix).sum(), rows)[0]))
    for one, other in zip(*results, strict=True):
        assert_equal(one, other)


def test_the_squared_objective_is_a_quadratic_around_each_clients_own_minimum():
    case = Case(clients=3, steps=1)
    case.images = case.normal(3, 1, 6, *SHAPE)
    objective = make_objective("fedavg", loss="squared")
    for client in range(3):
        x, A, w = case.second_moments(client)
        targets = TARGET * torch.eye(CLASSES, dtype=torch.float64)[case.labels[client, 0]]
        minimum = torch.linalg.lstsq(x, targets, driver="gelsd").solution.T

        def loss(w: Tensor, x: Tensor = x, y: Tensor = case.labels[client, 0]) -> float:
            return float(objective.total_loss(x @ w.T, y)) / 6

        away = w - minimum
        assert loss(w) - loss(minimum) == pytest.approx(0.5 * float((away @ A * away).sum()), rel=1e-9)


@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_gradient_steps_on_one_batch_have_the_closed_form_of_a_quadratic(mu):
    """w_K − w° = (I − η(A + μI))ᴷ (w₀ − w°), w° the minimum of ½(w − w*)ᵀA(w − w*) + μ/2‖w − w₀‖²."""
    case, steps, rate = Case(clients=3, steps=9), 9, 0.05
    case.images, case.labels = case.images[:, :1].repeat(1, steps, 1, 1, 1, 1), case.labels[:, :1].repeat(1, steps, 1)
    updates = case.train("linear", make_objective("fedprox", mu, "squared"), rate)
    for client in range(3):
        x, A, w = case.second_moments(client)
        identity = torch.eye(len(A), dtype=torch.float64)
        targets = TARGET * torch.eye(CLASSES, dtype=torch.float64)[case.labels[client, 0]]
        minimum = (targets.T @ x / 6 + mu * w) @ torch.linalg.pinv(A + mu * identity)
        if mu == 0.0:  # in the null space of A nothing moves
            minimum = minimum + w @ (identity - torch.linalg.pinv(A) @ A)
        shrink = torch.linalg.matrix_power(identity - rate * (A + mu * identity), steps)
        torch.testing.assert_close(case.joined(updates[client]), minimum + (w - minimum) @ shrink - w)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_slope_is_the_derivative_of_the_total_loss(loss):
    case, objective = Case(), make_objective("fedavg", loss=loss)
    outputs, labels = case.normal(7, CLASSES).requires_grad_(), torch.arange(7) % CLASSES
    (expected,) = torch.autograd.grad(objective.total_loss(outputs, labels), outputs)
    assert_equal(objective.slope(outputs.detach(), labels), expected)


def test_the_engine_does_not_modify_what_it_is_given():
    case = Case()
    given = [case.shared, case.local, case.images, case.labels]
    before = [tensor.clone() for tensor in given]
    for loss in LOSSES:
        case.train("linear", make_objective("fedprox", 0.3, loss)).zero_()
    assert all(map(torch.equal, given, before))


def test_auto_takes_the_linear_engine_for_a_linear_network_and_no_other():
    case = Case()
    assert make_engine("auto", case.network, case.layout).name == "linear"
    deep = make_network("mlp", SHAPE, CLASSES, hidden=(5,))
    assert make_engine("auto", deep, ParameterLayout(deep, local_batchnorm=True)).name == "stacked"
    convolutional = make_network("small_cnn", (1, 8, 8), CLASSES)
    layout = ParameterLayout(convolutional, local_batchnorm=True)
    assert make_engine("auto", convolutional, layout).name != "linear"


@pytest.mark.parametrize(
    "network",
    [
        nn.Linear(18, 4),
        nn.Sequential(nn.Linear(18, 4)),
        nn.Sequential(nn.Flatten(2), nn.Linear(9, 4)),
        nn.Sequential(nn.Flatten(), nn.Linear(18, 4), nn.ReLU()),
    ],
    ids=["no sequence", "no flatten", "flatten from axis 2", "more layers"],
)
def test_other_networks_are_refused(network):
    with pytest.raises(ValueError, match="the linear engine"):
        LinearEngine(network, ParameterLayout(network, local_batchnorm=True))


def test_an_unknown_loss_lists_the_names():
    with pytest.raises(ValueError, match="unknown loss 'hinge'; there are: cross_entropy, squared"):
        configure(loss="hinge")


def test_the_native_engine_leaves_other_losses_to_the_stacked_one():
    network = make_network("small_cnn", (1, 8, 8), CLASSES)
    layout = ParameterLayout(network, local_batchnorm=True)
    shared, local = layout.initial(network)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(2, 3, 5, 1, 8, 8, generator=generator), torch.arange(30).view(2, 3, 5) % CLASSES
    results = [
        make_engine(name, network, layout).train(
            shared,
            local.expand(2, -1),
            images,
            labels,
            objective=make_objective("fedbn_prox", 0.1, "squared"),
            learning_rate=0.01,
        )
        for name in ("auto", "stacked")
    ]
    assert all(map(torch.equal, *results))
