from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fl_core.aggregation import Rule, ServerView
from fl_core.attacks import AdversaryView
from fl_core.fingerprint import Fingerprint, geometry


class LinearUtility:
    """A fingerprinter without a network: four features of geometry, energy as the error, progress as the value.

    It is what attacks that know the fingerprint can be asked to beat in any dimension P, in closed form.
    """

    def __call__(self, updates, rejected, shared, reference, local, round_) -> Fingerprint:
        columns = [
            updates.double().square().sum(dim=1) / reference.double().square().sum(),
            geometry.root_cosine(updates, reference),
            geometry.peer_cosine(updates),
            geometry.norms(updates),
            geometry.sign_agreement(updates, reference),
            updates.double() @ reference.double(),
        ]
        raw = torch.stack(columns, dim=1)
        return Fingerprint(raw, raw.float())


@pytest.fixture
def reference() -> Callable[[int], Tensor]:
    """A server's reference update of a length P."""
    return lambda size: torch.randn(size, generator=torch.Generator().manual_seed(99)) + 0.3


@pytest.fixture
def white_box(reference) -> Callable[..., AdversaryView]:
    """What an adversary has who knows everything: ``white_box(P, rule, seed)``."""

    def make(size: int, rule: Rule, seed: int = 0) -> AdversaryView:
        def see(updates: Tensor) -> ServerView:
            return ServerView(updates, torch.zeros(size), reference(size), None, 0, LinearUtility())

        return AdversaryView(torch.Generator().manual_seed(seed), server=see, rule=rule)

    return make
