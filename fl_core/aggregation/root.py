"""Rules that lean on the server's root data."""

from typing import ClassVar

import torch

from fl_core.aggregation.base import Aggregate, Rule, register_rule, require_reference, weighted_mean
from fl_core.aggregation.view import ServerView
from fl_core.fingerprint.geometry import norms, root_cosine


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
        trust = root_cosine(view.accepted, reference).clamp_min(0)
        if trust.sum() <= 0:
            return Aggregate(reference, reference.new_zeros(len(view.accepted)), root_weight=1.0)
        weights = trust / trust.sum()
        lengths = norms(view.accepted)
        scale = norms(reference[None])[0] / torch.where(lengths > 0, lengths, 1.0)
        update = weighted_mean(view.accepted.double(), weights * scale)
        return Aggregate(update.to(reference.dtype), weights.to(reference.dtype))


@register_rule("root_only")
class RootOnly(Rule):
    """Trains on root data alone and ignores the clients: the floor that any defence with root data must beat."""

    needs_root: ClassVar[bool] = True

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        reference = require_reference(view, "root_only")
        return Aggregate(reference, reference.new_zeros(len(view.accepted)), root_weight=1.0)
