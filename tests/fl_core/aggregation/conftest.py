import pytest
import torch

from fl_core.aggregation import ReferenceRule, Rule, ServerView, make_rule, rule_names
from fl_core.fingerprint import FEATURES, Fingerprint


class RowFingerprinter:
    """Stands in for the server's fingerprinter: a "Shapley value" of a row is a function of that row alone."""

    def __call__(self, updates, rejected, shared, reference, local, round_):
        observation = torch.full((len(updates), len(FEATURES)), -1.0)
        observation[~rejected, FEATURES.index("shapley")] = torch.tanh(updates[~rejected] @ reference)
        return Fingerprint(observation.double(), observation)


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


@pytest.fixture(params=BLIND)
def rule(request) -> Rule:
    """Every rule that can run without the truth, with its defaults."""
    return make_rule(request.param)
