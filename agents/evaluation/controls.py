"""Negative controls: what is left of a defence when what it stands on is taken away.

A rule that gains as much with its features shuffled between the clients does not gain by telling clients apart; one
that gains as much with wrong labels on the root data does not gain by the root data.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from fl_core import Federation, FederationConfig
from fl_core.aggregation import Aggregate, Rule, ServerView, TrustRule
from fl_core.data.splits import Root
from fl_core.fingerprint import Fingerprint
from fl_core.randomness import Purpose

FEATURES_SHUFFLED = "features shuffled"
ROOT_LABELS_SHUFFLED = "root labels shuffled"


@dataclass(frozen=True)
class ShuffledFeatures(Rule):
    """A rule whose trust is from features that are permuted, each by itself, among the accepted clients.

    What is left is the distribution of each feature in the round, but no longer whose it is. What weighs the trust, a
    safeguard included, sees as well as before.

    Attributes:
        rule: The rule.
        seed: Seed of the permutations.
    """

    needs_root: ClassVar[bool] = True
    rule: TrustRule
    seed: int = 0

    @property
    def by_client(self) -> bool:  # type: ignore[override]  # as in ``TrustRule``
        """See ``Rule``."""
        return self.rule.by_client

    def reset(self) -> None:
        """See ``Rule.reset``."""
        self.rule.reset()

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        seen = replace(view)
        generator = np.random.default_rng([self.seed, view.round])
        # The cached property's own place: the view computes its fingerprint only if nobody has put one there.
        seen.__dict__["fingerprint"] = _permuted(view.fingerprint, ~view.rejected, generator)
        return self.rule.weighting(view, self.rule.trust(seen), self.rule.similarity)


def _permuted(fingerprint: Fingerprint, accepted: torch.Tensor, generator: np.random.Generator) -> Fingerprint:
    raw, observation = fingerprint.raw.clone(), fingerprint.observation.clone()
    rows = accepted.nonzero()[:, 0]
    for column in range(raw.shape[1]):
        order = rows[torch.from_numpy(generator.permutation(len(rows)))]
        raw[rows, column] = fingerprint.raw[order, column]
        observation[rows, column] = fingerprint.observation[order, column]
    return Fingerprint(raw, observation)


class ShuffledRootFederation(Federation):
    """A federation whose server has its root images under permuted labels; clients, attack and test stay as they are.

    The autoencoder too learns from what this server has.
    """

    def __init__(self, config: FederationConfig) -> None:
        super().__init__(config)
        root = torch.cat([self.splits.reference, self.splits.utility])
        labels = self.dataset.labels.clone()
        order = np.random.default_rng([config.split_seed, Purpose.SPLIT]).permutation(len(root))
        labels[root] = self.dataset.labels[root[torch.from_numpy(order)]]
        self.dataset = replace(self.dataset, labels=labels)
        self.use_root(Root())
