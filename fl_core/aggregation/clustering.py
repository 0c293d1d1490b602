"""Rules that cluster the clients of one round and keep one cluster."""

from dataclasses import dataclass

import torch
from sklearn.cluster import HDBSCAN
from torch import Tensor

from fl_core.aggregation.base import Aggregate, Rule, register_rule, round_generator
from fl_core.aggregation.clusters import distances, gap_clusters, k_means
from fl_core.aggregation.gram import cosines, squared_distances
from fl_core.aggregation.selection import mean_of
from fl_core.aggregation.view import ServerView
from fl_core.fingerprint.geometry import clip_factors, median, norms


@register_rule("flame")
@dataclass(frozen=True)
class FLAME(Rule):
    """Keeps the densest majority by the angles between the local models, clips to the median norm, and adds noise.

    Formula: HDBSCAN on ``1 − cos(w + Δᵢ, w + Δⱼ)`` with clusters of at least ``⌊n/2⌋ + 1``; mean of
        ``min(1, S/‖Δᵢ‖)·Δᵢ`` over the cluster, S the median norm of all, plus ``N(0, (noise·S)²)`` on each coordinate.
    Source: Nguyen et al. 2022, arXiv 2101.02281, algorithm 1.
    Checked against: single linkage by scipy, cut at the smallest component with a majority, which is what it comes to.

    Such a cluster can be split no further, so exactly one is found: not many more than half of the clients are kept,
    attackers or not. Without a global model in the view the angles are those of the updates. The authors' HDBSCAN does
    not count a point as its own neighbour and scikit-learn's does: their ``min_samples=1`` is 2 here.

    Attributes:
        noise: λ of the paper, 0.001 for images there.
        seed: Of the noise, drawn anew in each round.
    """

    noise: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"flame: noise must be 0 or more and finite, got {self.noise}")

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        lengths = norms(view.accepted).cpu()
        middle = median(lengths)
        result = mean_of(view, _densest_majority(view), clip_factors(lengths, middle))
        noise = torch.randn(len(result.update), generator=round_generator(self.seed, view))
        return Aggregate(
            result.update + self.noise * float(middle) * noise.to(result.update), result.weights, result.root_weight
        )


def _densest_majority(view: ServerView) -> Tensor:
    """(A,) bool."""
    n = len(view.accepted)
    if n < 3:  # one client, or two that are as far from each other either way
        return torch.ones(n, dtype=torch.bool)
    distances = (1 - cosines(view.accepted, view.global_model)).fill_diagonal_(0)
    clusters = HDBSCAN(
        metric="precomputed", min_cluster_size=n // 2 + 1, min_samples=2, allow_single_cluster=True, copy=True
    )
    majority: Tensor = torch.from_numpy(clusters.fit_predict(distances.numpy())) == 0
    return majority


@register_rule("rflbat")
@dataclass(frozen=True)
class RFLBAT(Rule):
    """Drops outliers in the plane of two principal components, then keeps the cluster with the most diverse updates.

    Formula: ``Eᵢ = Σⱼ ‖pᵢ − pⱼ‖`` in the plane, kept if ``Eᵢ < ε₁·median``; k-means with k by the gap statistic; the
        cluster with the smallest median of its members' mean cosines; once more ``Eᵢ < ε₂·median`` within it; mean.
    Source: Wang et al. 2022, arXiv 2201.03772, algorithm 1.
    Checked against: scikit-learn's PCA for the plane; the choice on hand-made clusters.

    Attackers with one aim are taken to resemble each other more than honest clients do: a cluster of one client, which
    has nobody to resemble, is chosen only if there is no other. k-means starts farthest-first, not at random.

    Attributes:
        first_bound: ε₁.
        second_bound: ε₂.
        most_clusters: Largest k.
        draws: Reference sets of the gap statistic.
        seed: Of these, drawn anew in each round.
    """

    first_bound: float = 10.0
    second_bound: float = 4.0
    most_clusters: int = 10
    draws: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("first_bound", "second_bound", "most_clusters", "draws"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"rflbat: {name} must be at least 1, got {getattr(self, name)}")

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        plane = principal_plane(squared_distances(view.accepted))
        kept = torch.arange(len(plane))
        kept = kept[_central(plane, self.first_bound)]
        kept = kept[self._most_diverse(view, plane[kept], kept)]
        kept = kept[_central(plane[kept], self.second_bound)]
        return mean_of(view, torch.zeros(len(plane), dtype=torch.bool).index_fill(0, kept, True))

    def _most_diverse(self, view: ServerView, points: Tensor, rows: Tensor) -> Tensor:
        """Which of the points (k, 2), standing for accepted rows (k,), are in the chosen cluster: (k,) bool."""
        k = gap_clusters(points, self.most_clusters, self.draws, round_generator(self.seed, view))
        labels = k_means(points[None], k)[0][0]
        alike = cosines(view.accepted[rows])
        likeness = []
        for label in range(k):
            members = labels == label
            size = int(members.sum())
            among = alike[members][:, members]  # of itself a client does not count, and a zero update is like nothing
            others = (among.sum(dim=1) - among.diagonal()) / max(size - 1, 1)
            likeness.append(float(median(others)) if size > 1 else float("inf"))
        if min(likeness) == float("inf"):
            return torch.ones(len(points), dtype=torch.bool)
        chosen: Tensor = labels == likeness.index(min(likeness))
        return chosen


def principal_plane(squared: Tensor) -> Tensor:
    """Coordinates (n, 2) float64 along the two principal components, from squared distances (n, n).

    Of the two directions that an axis may have, that with the heavier tail on the positive side.
    """
    centred = squared - squared.mean(dim=0) - squared.mean(dim=1, keepdim=True) + squared.mean()
    values, vectors = torch.linalg.eigh(-centred / 2)
    plane: Tensor = (vectors * values.clamp_min(0).sqrt())[:, -2:].flip(1)
    if plane.shape[1] < 2:
        plane = torch.cat([plane, torch.zeros_like(plane)], dim=1)
    return plane * torch.where(plane.pow(3).sum(dim=0) < 0, -1.0, 1.0)


def _central(points: Tensor, bound: float) -> Tensor:
    """(k,) bool: whose sum of distances to the others is below ``bound`` times the median; all where that is 0."""
    sums = distances(points, points).sum(dim=1)
    middle = median(sums)
    return (sums < bound * middle) | (middle <= 0)
