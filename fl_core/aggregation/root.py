"""Rules that lean on the server's root data."""

from typing import ClassVar

import torch
from torch.nn import functional as F

from fl_core.aggregation.base import Aggregate, Rule, fall_back, register_rule, require_reference, weighted_mean
from fl_core.aggregation.view import ServerView


@register_rule("fltrust")
class FLTrust(Rule):
    """Updates scaled to the reference's norm, weighted by the ReLU of their cosine to it.

    Cao et al. 2021, arXiv 2012.13995, equations 2-4. Where no client points the reference's way at all, the paper's
    mean is 0/0; the reference is used.
    """

    needs_root: ClassVar[bool] = True

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        reference = require_reference(view, "fltrust")
        trust = F.cosine_similarity(view.accepted, reference[None], dim=1).clamp_min(0)
        if trust.sum() <= 0:
            return fall_back(view)
        weights = trust / trust.sum()
        scale = reference.norm() / view.accepted.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        return Aggregate(weighted_mean(view.accepted, weights * scale), weights)


@register_rule("root_only")
class RootOnly(Rule):
    """Trains on root data alone and ignores the clients: the floor that any defence with root data must beat."""

    needs_root: ClassVar[bool] = True

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        reference = require_reference(view, "root_only")
        return Aggregate(reference, torch.zeros(len(view.accepted)), root_weight=1.0)
