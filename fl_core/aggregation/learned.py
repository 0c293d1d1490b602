"""Trust that was learned without reinforcement learning: the controls that reinforcement learning has to beat.

Both are a few numbers, fitted on recorded rounds of the train attacks by ``python -m agents.controls`` and kept, with
the command and the seeds, as JSON in ``fitted/``. Both read the six features as the policy observes them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from fl_core.aggregation.base import register_rule
from fl_core.aggregation.trust import TrustRule, TrustWeighting
from fl_core.aggregation.view import ServerView
from fl_core.fingerprint import FEATURES
from fl_core.registry import check_known

# Rules whose numbers were fitted to recorded rounds of train attacks.
FITTED = ("logistic", "feature_weights")

# Weight by feature, as pairs: hashable.
Weights = tuple[tuple[str, float], ...]


@cache
def fitted(name: str) -> dict[str, Any]:
    """What was fitted for a rule: its numbers, and how they came about (command, seeds, federations, figures).

    Raises:
        ValueError: The file was made for another layout of features.
    """
    content: dict[str, Any] = json.loads((files("fl_core.aggregation") / "fitted" / f"{name}.json").read_text("utf-8"))
    check_known("feature", content["weights"], FEATURES)
    return content


@register_rule("logistic")
@dataclass(frozen=True)
class Logistic(TrustRule):
    """Trust is a logistic regression's probability that the client is honest.

    Formula: ``τᵢ = 1/(1 + exp(−(b + Σₖ cₖ·φᵢₖ)))`` over all six observed features, clipped and anchored as
        ``TrustWeighting`` says.
    Source: ours; fitted on the labels of the train attacks (``python -m agents.controls``).
    Checked against: scikit-learn's ``predict_proba``; that the committed numbers come from the committed command.

    Attributes:
        weights: c by feature, a mapping or pairs; by default the fitted ones.
        intercept: b; likewise.
        weighting: How trust becomes an update.
    """

    weights: Weights = field(default_factory=lambda: fitted("logistic")["weights"])
    intercept: float = field(default_factory=lambda: float(fitted("logistic")["intercept"]))
    weighting: TrustWeighting = field(default_factory=TrustWeighting)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", _as_pairs(self.weights))
        if not isfinite(self.intercept):
            raise ValueError(f"intercept must be a finite number, got {self.intercept}")

    def trust(self, view: ServerView) -> Tensor:
        """See ``TrustRule.trust``."""
        return self.trust_of(view.fingerprint.observation[~view.rejected])

    def trust_of(self, observation: Tensor) -> Tensor:
        """Trust (...) float32 of clients that are observed so, (..., 6)."""
        return torch.sigmoid(_score(observation, self.weights) + self.intercept).to(torch.float32)


@register_rule("feature_weights")
@dataclass(frozen=True)
class FeatureWeights(TrustRule):
    """Trust is a weighted sum of four features above a cut-off: five numbers.

    Formula: ``τᵢ = min(max(Σₖ wₖ·φᵢₖ − cut-off, 0), 1)``, clipped and anchored as ``TrustWeighting`` says.
    Source: ours; fitted on the oracle gap of the train attacks by the cross-entropy method
        (``python -m agents.controls``).
    Checked against: the formula; that the committed numbers come from the committed command.

    Which four is fitted too, on the same rounds: of the fifteen choices, the one with the largest gap.

    Attributes:
        weights: w by feature, a mapping or pairs, of four features at most; by default the fitted ones.
        cut_off: Score that a client must exceed to be trusted at all; likewise.
        weighting: How trust becomes an update.
    """

    weights: Weights = field(default_factory=lambda: fitted("feature_weights")["weights"])
    cut_off: float = field(default_factory=lambda: float(fitted("feature_weights")["cut_off"]))
    weighting: TrustWeighting = field(default_factory=TrustWeighting)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", _as_pairs(self.weights))
        if not 1 <= len(self.weights) <= 4:
            raise ValueError(f"feature_weights: weights must name one to four features, got {len(self.weights)}")
        if not isfinite(self.cut_off):
            raise ValueError(f"feature_weights: cut_off must be a finite number, got {self.cut_off}")

    def trust(self, view: ServerView) -> Tensor:
        """See ``TrustRule.trust``."""
        return self.trust_of(view.fingerprint.observation[~view.rejected])

    def trust_of(self, observation: Tensor) -> Tensor:
        """Trust (...) float32 of clients that are observed so, (..., 6)."""
        return (_score(observation, self.weights) - self.cut_off).clamp(0, 1).to(torch.float32)


def _score(observation: Tensor, weights: Weights) -> Tensor:
    """Σ weight·feature: (..., 6) float32 to (...) float64; a feature without a weight does not count."""
    columns = torch.tensor([dict(weights).get(name, 0.0) for name in FEATURES], dtype=torch.float64)
    return observation.double() @ columns.to(observation.device)


def _as_pairs(weights: Weights | Mapping[str, float]) -> Weights:
    """Weights by feature as something that is hashable and in the order of the features."""
    named = dict(weights)
    check_known("feature", named, FEATURES)
    if not all(isfinite(value) for value in named.values()):
        raise ValueError(f"weights must be finite numbers, got {named}")
    return tuple((name, float(named[name])) for name in FEATURES if name in named)
