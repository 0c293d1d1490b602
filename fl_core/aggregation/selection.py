"""What rules that keep some clients and drop the others end with: the mean of those that are kept."""

import torch
from torch import Tensor

from fl_core.aggregation.base import Aggregate, fall_back, weighted_mean
from fl_core.aggregation.view import ServerView


def mean_of(view: ServerView, kept: Tensor, factors: Tensor | None = None) -> Aggregate:
    """Mean of the kept updates; the server's fallback where nobody is kept.

    Args:
        view: Where the updates are.
        kept: (A,) bool, over the accepted updates.
        factors: (A,) float64, what to multiply each update by first (``geometry.clip_factors``); no copy is made.
    """
    if not kept.any():
        return fall_back(view)
    weights = kept.double() / kept.sum()
    shares = weights if factors is None else weights * factors
    return Aggregate(weighted_mean(view.accepted, shares), weights.to(torch.float32))


def larger_of(labels: Tensor, lengths: Tensor) -> Tensor:
    """Who is in the larger of the clusters, (n,) bool; of equally large ones, in that of the shorter updates.

    Labels (n,) below 0 are of no cluster. A tie has no right answer; the shorter updates do the smaller damage, and
    the choice does not depend on the order of the clients.
    """
    names = labels[labels >= 0].unique().tolist()
    if not names:
        return torch.zeros(len(labels), dtype=torch.bool)
    best = max(names, key=lambda name: (int((labels == name).sum()), -float(lengths[labels == name].mean())))
    chosen: Tensor = labels == best
    return chosen
