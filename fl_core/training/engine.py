"""The interface of a training engine: train every client, run many models on one set of images.

Engines differ in speed only. ``sequential`` is the reference, one client after the other in plain PyTorch; the others
are tested to equal it. ``auto`` picks any of them but ``compiled``, whose compilation few runs are long enough for.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import inf
from typing import Protocol

import torch
from torch import Tensor, nn

from fl_core.models.parameters import ParameterLayout
from fl_core.registry import check_fields, check_known
from fl_core.training.compiled import CompiledEngine
from fl_core.training.linear import LinearEngine
from fl_core.training.native import NativeEngine, why_not
from fl_core.training.objective import Objective
from fl_core.training.sequential import SequentialEngine
from fl_core.training.stacked import StackedEngine


@dataclass(frozen=True)
class LocalTraining:
    """One client's work in one round: ``steps`` of plain SGD on batches of ``batch_size``.

    Every client does the same number of steps, whatever the size of its shard: its permuted samples are taken
    cyclically. So unequal shards stack without masks, and a small client counts no less than a large one.
    """

    steps: int = 3
    batch_size: int = 16
    learning_rate: float = 0.15

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 (BatchNorm needs two samples), got {self.batch_size}")
        if not 0 < self.learning_rate < inf:
            raise ValueError(f"learning_rate must be greater than 0 and finite, got {self.learning_rate}")


class Engine(Protocol):
    """Trains and evaluates M models of one architecture, given as rows of matrices. The dtype follows ``shared``."""

    @property
    def name(self) -> str:
        """Which engine this is; where "auto" was asked for, which one it picked."""
        ...

    def train(
        self,
        shared: Tensor,
        local: Tensor,
        images: Tensor,
        labels: Tensor,
        *,
        objective: Objective,
        learning_rate: float,
    ) -> tuple[Tensor, Tensor]:
        """Local training of M clients from one global model.

        Args:
            shared: (P,) global model.
            local: (M, L) local state of each client (BatchNorm under FedBN); not modified.
            images: (M, K, B, C, H, W), K batches for each client.
            labels: (M, K, B) int64.
            objective: What is minimised.
            learning_rate: Step size of plain SGD.

        Returns:
            updates: (M, P), trained minus global, the direction that adds to the global model.
            local: (M, L), the new local state.
        """
        ...

    def logits(self, shared: Tensor, local: Tensor, images: Tensor) -> Tensor:
        """Outputs of M models on the same images, BatchNorm with running statistics; differentiable in ``shared``.

        Args:
            shared: (M, P).
            local: (M, L).
            images: (V, C, H, W).

        Returns:
            (M, V, classes).
        """
        ...

    def reestimate(self, shared: Tensor, local: Tensor, images: Tensor) -> Tensor:
        """Replaces the running statistics in ``local`` by those of ``images`` (no labels needed).

        Args:
            shared: (M, P).
            local: (M, L); not modified.
            images: (R, C, H, W), R at least 2.

        Returns:
            (M, L); differentiable in ``shared``.
        """
        ...


@cache
def _say_if_not_built() -> None:
    """One line a process: everything works without the native engine, but several times slower."""
    if reason := why_not():
        logging.getLogger(__name__).warning("there is no native engine (%s); using stacked", reason)


_CPU = torch.device("cpu")


def _make_auto(network: nn.Module, layout: ParameterLayout, device: torch.device = _CPU) -> Engine:
    """The fastest engine that can run the network: linear, native (if built, on the CPU), stacked, sequential."""
    try:
        return LinearEngine(network, layout)
    except ValueError:
        if device.type == "cpu":
            _say_if_not_built()
    engines: tuple[type[NativeEngine] | type[StackedEngine], ...] = (NativeEngine, StackedEngine)
    for engine in engines if device.type == "cpu" else engines[1:]:
        try:
            return engine(network, layout)
        except ValueError:
            continue
    return SequentialEngine(network, layout)


_ENGINES: dict[str, Callable[[nn.Module, ParameterLayout], Engine]] = {
    "sequential": SequentialEngine,
    "stacked": StackedEngine,
    "native": NativeEngine,
    "linear": LinearEngine,
    "compiled": CompiledEngine,
}


def engine_names() -> list[str]:
    """Names that ``make_engine`` accepts."""
    return [*_ENGINES, "auto"]


def make_engine(name: str, network: nn.Module, layout: ParameterLayout, device: torch.device = _CPU) -> Engine:
    """Builds an engine for a network.

    Args:
        name: An engine, or "auto" for the fastest one that is built and can run the network; its ``name`` says which.
        network: The architecture; its values are not used.
        layout: Which of its tensors are shared.
        device: Where the tensors will be that it is given.

    Raises:
        ValueError: Unknown name, a network or a device that this engine cannot run, or an engine that is not built.
    """
    check_known("engine", [name], engine_names())
    if name == "auto":
        return _make_auto(network, layout, device)
    if name == "native" and device.type != "cpu":
        raise ValueError(
            f"the native engine runs on the CPU, not on {device}: use engine='auto' or 'stacked', or device='cpu'"
        )
    return _ENGINES[name](network, layout)
