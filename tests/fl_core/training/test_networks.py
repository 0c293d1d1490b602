"""The registered networks in both engines: stacked equals sequential in double precision."""

import importlib.util

import pytest
import torch
from torch import Tensor

from fl_core.models import ParameterLayout, make_network
from fl_core.training import Engine, make_engine, make_objective

CLASSES = 3
NETWORKS = {
    "mlp": ("mlp", (2, 6, 6), {"hidden": (9, 7)}),
    "mlp without norm": ("mlp", (2, 6, 6), {"hidden": (9, 7), "norm": "none"}),
    "linear": ("mlp", (2, 6, 6), {"hidden": ()}),
    "small_cnn with GroupNorm": ("small_cnn", (2, 8, 8), {"channels": (4, 6), "hidden": 5, "norm": "group"}),
    "small_cnn without norm": ("small_cnn", (2, 8, 8), {"channels": (4, 6), "norm": "none"}),
    "lenet": ("lenet", (1, 16, 16), {}),
    "lenet with GroupNorm": ("lenet", (3, 16, 17), {"norm": "group"}),
}
each_network = pytest.mark.parametrize("kind", NETWORKS)


class Case:
    """Models of one architecture, all different, with batches for each and images to score."""

    def __init__(self, kind: str, models: int = 3, local_batchnorm: bool = True) -> None:
        name, shape, options = NETWORKS[kind]
        self.network = make_network(name, shape, CLASSES, **options).double()
        self.layout = ParameterLayout(self.network, local_batchnorm=local_batchnorm)
        generator = torch.Generator().manual_seed(models)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator, dtype=torch.float64)

        self.shared, local = self.layout.initial(self.network)
        self.local = local + normal(models, self.layout.num_local).abs()
        self.rows = self.shared + 0.05 * normal(models, self.layout.num_shared).abs()
        self.images, self.held_out = normal(models, 4, 5, *shape), normal(11, *shape)
        self.labels = torch.randint(CLASSES, (models, 4, 5), generator=generator)
        self.mix = normal(models, 11, CLASSES)

    def engines(self) -> tuple[Engine, Engine]:
        stacked, sequential = (make_engine(name, self.network, self.layout) for name in ("stacked", "sequential"))
        return stacked, sequential


def assert_equal(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


@each_network
@pytest.mark.parametrize("objective", ["fedavg", "fedbn_prox"])
@pytest.mark.parametrize("models", [1, 13])
def test_training_is_the_same_in_both_engines(kind, objective, models):
    made = make_objective(objective, 0.3)
    case = Case(kind, models, made.local_batchnorm)
    given = (case.shared, case.local, case.images, case.labels)
    stacked, sequential = (e.train(*given, objective=made, learning_rate=0.1) for e in case.engines())
    assert_equal(stacked[0], sequential[0])
    assert_equal(stacked[1], sequential[1])
    assert (stacked[0].norm(dim=1) > 1e-3).all()


@each_network
@pytest.mark.parametrize("local_batchnorm", [True, False])
@pytest.mark.parametrize("models", [1, 13])
def test_logits_and_reestimated_statistics_are_the_same_in_both_engines(kind, local_batchnorm, models):
    case = Case(kind, models, local_batchnorm)
    for method in ("logits", "reestimate"):
        one, other = (getattr(engine, method)(case.rows, case.local, case.held_out) for engine in case.engines())
        assert_equal(one, other)


@each_network
@pytest.mark.parametrize("local_batchnorm", [True, False])
def test_the_gradient_through_reestimated_statistics_is_the_slope_and_the_same_in_both_engines(kind, local_batchnorm):
    case = Case(kind, 3, local_batchnorm)
    stacked, sequential = case.engines()

    def value(engine: Engine, rows: Tensor) -> Tensor:
        local = engine.reestimate(rows, case.local, case.held_out)
        return (engine.logits(rows, local, case.held_out) * case.mix).sum()

    def gradient_of(engine: Engine) -> Tensor:
        rows = case.rows.clone().requires_grad_()
        return torch.autograd.grad(value(engine, rows), rows)[0]

    gradient = gradient_of(stacked)
    # A short step: on a long one ReLU and pooling have kinks.
    noise = torch.randn(case.rows.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    direction = noise / noise.norm()
    with torch.no_grad():
        ends = [value(stacked, case.rows + step * direction) for step in (1e-6, -1e-6)]
    assert (gradient * direction).sum().item() == pytest.approx((ends[0] - ends[1]).item() / 2e-6, rel=1e-5, abs=1e-5)
    assert_equal(gradient_of(sequential), gradient)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_the_stacked_engine_refuses_resnet18_and_names_the_engine_that_runs_it():
    network = make_network("resnet18", (1, 8, 8), CLASSES)
    layout = ParameterLayout(network, local_batchnorm=True)
    with pytest.raises(ValueError, match=r"the stacked engine runs .*got ResNet\. Use engine='sequential'"):
        make_engine("stacked", network, layout)
    shared, local = layout.initial(network)
    assert make_engine("sequential", network, layout).logits(
        shared[None], local[None], torch.zeros(2, 1, 8, 8)
    ).shape == (1, 2, CLASSES)
