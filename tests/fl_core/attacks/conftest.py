from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fl_core.aggregation import Rule, ServerView, make_rule
from fl_core.attacks import AdversaryView
from fl_core.fingerprint import FEATURES, Fingerprint, geometry


class GeometryFingerprinter:
    """Stands in for the server's: real geometry; the two learned features are functions of a row and the reference."""

    def __call__(self, updates, rejected, shared, reference, local, round_):
        signs = torch.ones(max(updates.shape[1], 256))
        seen = geometry.measure(torch.where(rejected[:, None], 0.0, updates), reference, signs)
        columns = {
            "reconstruction_error": 1 - seen.root_cosine.square(),
            "root_cosine": seen.root_cosine,
            "peer_cosine": seen.peer_cosine,
            "norm": seen.norms,
            "sign_agreement": seen.sign_agreement,
            "shapley": torch.tanh(seen.root_cosine * seen.norms),
        }
        features = torch.stack([columns[name] for name in FEATURES], dim=1)
        return Fingerprint(features, torch.tanh(features).float())

    def losses(self, candidates, model, local):
        """A bowl around the origin."""
        return (model + candidates).double().square()


@pytest.fixture(scope="session")
def knows_all() -> Callable[..., AdversaryView]:
    """Builds an adversary that knows everything: ``knows_all(size, seed, round, device, **replacing)``."""

    def build(size: int, seed: int = 0, round: int = 0, device: str = "cpu", **replacing: Any) -> AdversaryView:
        numbers = torch.Generator().manual_seed(1000 + round)
        model, change, reference = torch.randn(3, size, generator=numbers).to(device)

        def server(updates: Tensor) -> ServerView:
            return ServerView(updates, model, reference, model[:0], round, GeometryFingerprinter())

        known = {
            "round": round,
            "global_model": model,
            "last_change": change,
            "server": server,
            "rule": make_rule("median"),
        }
        return AdversaryView(torch.Generator().manual_seed(seed), **{**known, **replacing})

    return build


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
