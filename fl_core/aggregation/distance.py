"""Rules that choose by distances between updates."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.aggregation.base import Aggregate, Rule, fall_back, register_rule
from fl_core.aggregation.byzantine import assumed_byzantine
from fl_core.aggregation.view import ServerView


@register_rule("krum")
@dataclass(frozen=True)
class Krum(Rule):
    """The update with the smallest sum of squared distances to its n − f − 2 nearest others; n ≥ 2f + 3.

    Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", section 4.

    Attributes:
        num_byzantine: f; ``None`` assumes 30 % of the clients.
    """

    num_byzantine: int | None = None

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``; raises ValueError for fewer than three clients."""
        n = len(view.accepted)
        if n < 3 <= len(view.updates):  # the rest has sent nonsense: no neighbours left to choose by
            fallen = fall_back(view)
            return Aggregate(fallen.update, view.updates.new_zeros(n), fallen.root_weight)
        if n < 3:
            raise ValueError(f"krum needs n >= 2f + 3, so at least 3 finite updates; got n={n}")
        clients = len(view.updates)
        f = assumed_byzantine(self.num_byzantine, clients, clients - n, lambda n: (n - 3) // 2, "krum", "n >= 2f + 3")
        others = squared_distances(view.accepted).fill_diagonal_(float("inf"))
        scores = others.sort(dim=1).values[:, : n - f - 2].sum(dim=1)
        chosen = scores.argmin()
        return Aggregate(view.accepted[chosen].clone(), F.one_hot(chosen, n).to(torch.float32))


def squared_distances(updates: Tensor) -> Tensor:
    """Pairwise squared distances (n, n) from one Gram matrix; centred first, which keeps the cancellation small."""
    centred = (updates - updates.mean(dim=0)).double()
    gram = centred @ centred.T
    norms = gram.diagonal()
    return (norms[:, None] + norms[None, :] - 2 * gram).clamp_min(0)
