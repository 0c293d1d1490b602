from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fl_core import Federation, Scenario, configure
from fl_core.aggregation import ServerView
from fl_core.fingerprint import FEATURES, Fingerprint


class RowFingerprinter:
    """Stands in for the server's fingerprinter: "Shapley value" and "loss" of a row are functions of that row alone."""

    def __call__(self, updates, rejected, shared, reference, local, round_):
        observation = torch.full((len(updates), len(FEATURES)), -1.0)
        observation[~rejected, FEATURES.index("shapley")] = torch.tanh(updates[~rejected] @ reference)
        return Fingerprint(observation.double(), observation)

    def losses(self, candidates, shared, local):
        return (candidates.double() - 0.3).square().clamp_max(9.0)  # a parameter stands for a sample


@pytest.fixture
def view():
    """Builds what a server with root data sees: ``view(updates)``."""

    def build(updates: torch.Tensor, reference: torch.Tensor | None = None) -> ServerView:
        size = updates.shape[1]
        generator = torch.Generator().manual_seed(99)
        if reference is None:
            reference = torch.randn(size, generator=generator) + 0.5
        return ServerView(updates, torch.zeros(size), reference, torch.zeros(0), fingerprinter=RowFingerprinter())

    return build


@pytest.fixture(scope="session")
def digits_view() -> ServerView:
    """What the server of a small federation sees in its first round: root data, a real fingerprint, eight clients."""
    federation = Federation(configure(num_clients=8))
    federation.reset(Scenario(), entropy=0)
    return federation.local_round().view


@pytest.fixture
def seen(digits_view) -> Callable[..., ServerView]:
    """That server's view of other updates, as long as its model: ``seen(updates, reference=..., round=...)``."""

    def build(updates: torch.Tensor, **changes) -> ServerView:
        return replace(digits_view, updates=updates, **changes)

    return build
