from dataclasses import dataclass

import pytest
import torch

from fl_core.aggregation import Aggregate, ReferenceRule, Rule, ServerView, make_rule, rule_names
from fl_core.fingerprint import FEATURES, Fingerprint


class RowFingerprinter:
    """Stands in for the server's fingerprinter: "Shapley value" and "loss" of a row are functions of that row alone."""

    def __call__(self, updates, rejected, shared, reference, local, round_):
        observation = torch.full((len(updates), len(FEATURES)), -1.0)
        observation[~rejected, FEATURES.index("shapley")] = torch.tanh(updates[~rejected] @ reference)
        return Fingerprint(observation.double(), observation)

    def losses(self, candidates, shared, local):
        return torch.tanh((candidates.double() - 0.3).square().mean(dim=1))


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


BLIND = [name for name in rule_names() if not isinstance(make_rule(name), ReferenceRule)]

# What these rules do even to updates that all agree: noise, and the smallest entries cut away.
UNCHANGED = {"flame": {"noise": 0.0}, "lasa": {"sparsity": 0.0}}


@dataclass(frozen=True)
class FirstRound:
    """A rule that has not seen anything yet, whenever it is called."""

    rule: Rule

    def __call__(self, view: ServerView) -> Aggregate:
        self.rule.reset()
        return self.rule(view)


@pytest.fixture(params=BLIND)
def rule(request) -> FirstRound:
    """Every rule that can run without the truth, with its defaults but for what ``UNCHANGED`` says."""
    return FirstRound(make_rule(request.param, **UNCHANGED.get(request.param, {})))
