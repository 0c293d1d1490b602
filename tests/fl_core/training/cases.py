"""A few clients with data of their own, for any network and any engine."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_core.models import ParameterLayout
from fl_core.models.networks import small_cnn
from fl_core.training import Engine, make_engine, make_objective

CLASSES = 4


@dataclass
class Case:
    """A network, its clients' batches and some images to score, all random."""

    network: nn.Module
    layout: ParameterLayout
    shared: Tensor
    local: Tensor
    images: Tensor
    labels: Tensor
    held_out: Tensor

    def engine(self, name: str) -> Engine:
        return make_engine(name, self.network, self.layout)

    def train(self, name: str, objective: str = "fedbn_prox", mu: float = 0.3) -> tuple[Tensor, Tensor]:
        return self.engine(name).train(
            self.shared,
            self.local,
            self.images,
            self.labels,
            objective=make_objective(objective, mu),
            learning_rate=0.1,
        )

    def models(self) -> tuple[Tensor, Tensor]:
        """A different model in each row."""
        offsets = torch.randn(len(self.local), self.layout.num_shared, generator=torch.Generator().manual_seed(9))
        return self.shared + 0.05 * offsets.to(self.shared).abs(), self.local


def make_case(
    clients: int = 3,
    *,
    steps: int = 5,
    batch: int = 6,
    channels: int = 1,
    hidden: int | None = None,
    local_batchnorm: bool = True,
    dtype: torch.dtype = torch.float64,
    network: nn.Module | None = None,
) -> Case:
    generator = torch.Generator().manual_seed(clients + 10 * batch + channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = network or small_cnn((channels, 8, 8), CLASSES, channels=(3, 4), hidden=hidden)
    network.to(dtype)
    layout = ParameterLayout(network, local_batchnorm=local_batchnorm)
    shared, local = layout.initial(network)
    # Every client begins with a BatchNorm of its own; positive, because some of it are variances.
    spread = torch.rand(clients, layout.num_local, generator=generator, dtype=dtype)
    return Case(
        network,
        layout,
        shared,
        local + spread,
        torch.randn(clients, steps, batch, channels, 8, 8, generator=generator, dtype=dtype),
        torch.randint(CLASSES, (clients, steps, batch), generator=generator),
        torch.randn(11, channels, 8, 8, generator=generator, dtype=dtype),
    )


def assert_close(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], atol: float) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0)
