"""Small clusterings without a random start, so that what they find does not depend on the order of the clients.

A round has tens of clients: everything here is a handful of operations on small matrices.
"""

import torch
from torch import Tensor

_ITERATIONS = 300


def distances(points: Tensor, others: Tensor) -> Tensor:
    """Euclidean distances, (…, n, d) and (…, m, d) to (…, n, m); 0 between equal points.

    ``torch.cdist`` would go by inner products for more than 25 points, which makes equal ones differ by rounding.
    """
    return torch.cdist(points, others, compute_mode="donot_use_mm_for_euclid_dist")


def mean_shift(points: Tensor, quantile: float = 0.5) -> Tensor:
    """Flat-kernel mean shift (Comaniciu and Meer 2002) from every point, as scikit-learn's without bins.

    Args:
        points: (n, d) float64.
        quantile: The bandwidth is the mean distance to the nearest ``quantile`` of all points, oneself among them.

    Returns:
        (n,) int64, the cluster of each point, from 0 for the one with the fullest window; −1 for a point outside every
        window.
    """
    between = distances(points, points)
    nearest = max(int(quantile * len(points)), 1)
    # A bandwidth of 0 means that half of the points are equal; the hair keeps equal points in one window.
    bandwidth = between.sort(dim=1).values[:, nearest - 1].mean() * (1 + 1e-9) + 1e-12
    centres = points
    for _ in range(_ITERATIONS):
        inside = (distances(centres, points) <= bandwidth).double()
        moved = inside @ points / inside.sum(dim=1, keepdim=True)
        still = bool(((moved - centres).norm(dim=1) <= 1e-3 * bandwidth).all())
        centres = moved
        if still:
            break
    windows = _fullest_first(centres, points, bandwidth)
    nearest_window, labels = distances(points, windows).min(dim=1)
    return torch.where(nearest_window <= bandwidth, labels, -1)


def _fullest_first(centres: Tensor, points: Tensor, bandwidth: Tensor) -> Tensor:
    """The centres without those that lie in the window of a fuller one, fullest first; ties by their coordinates."""
    full = (distances(centres, points) <= bandwidth).sum(dim=1)
    order = sorted(range(len(centres)), key=lambda i: (int(full[i]), *centres[i].tolist()), reverse=True)
    kept: list[int] = []
    for i in order:
        if not kept or float(distances(centres[i : i + 1], centres[kept]).min()) > bandwidth:
            kept.append(i)
    return centres[kept]


def k_means(points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from a farthest-first start (Gonzalez 1985), for several sets of points at once.

    Args:
        points: (B, n, d) float64.
        k: Clusters, at most n.

    Returns:
        Labels (B, n) in [0, k), and the sum of squared distances to the centres (B,).
    """
    batch = torch.arange(len(points))
    first = (points - points.mean(dim=1, keepdim=True)).square().sum(dim=2).argmax(dim=1)
    centres = points[batch, first][:, None]
    while centres.shape[1] < k:
        farthest = distances(points, centres).amin(dim=2).argmax(dim=1)
        centres = torch.cat([centres, points[batch, farthest][:, None]], dim=1)
    labels = distances(points, centres).argmin(dim=2)
    for _ in range(_ITERATIONS):
        members = torch.nn.functional.one_hot(labels, k).to(points.dtype)
        count = members.sum(dim=1)[..., None]
        means = members.transpose(1, 2) @ points / count.clamp_min(1)
        centres = torch.where(count > 0, means, centres)
        before, labels = labels, distances(points, centres).argmin(dim=2)
        if torch.equal(before, labels):
            break
    within = (points - centres[batch[:, None], labels]).square().sum(dim=(1, 2))
    return labels, within


def gap_clusters(points: Tensor, most: int, draws: int, generator: torch.Generator) -> int:
    """Number of clusters by the gap statistic (Tibshirani et al. 2001): the first k with Gap(k) ≥ Gap(k+1) − s(k+1).

    Args:
        points: (n, d) float64.
        most: Largest number; fewer where there are fewer points.
        draws: Reference sets, uniform in the box around the points.
        generator: Draws them.
    """
    low, high = points.amin(dim=0), points.amax(dim=0)
    if bool((low == high).all()):
        return 1
    uniform = torch.rand(draws, *points.shape, generator=generator, dtype=points.dtype)
    sets = torch.cat([points[None], low + (high - low) * uniform])
    most = min(most, len(points))
    # Clusters of equal points leave nothing within; the logarithm of it only has to be low.
    tiny = torch.finfo(points.dtype).tiny
    within = torch.stack([k_means(sets, k)[1] for k in range(1, most + 1)]).clamp_min(tiny).log()
    gap = within[:, 1:].mean(dim=1) - within[:, 0]
    error = within[:, 1:].std(dim=1, correction=0) * (1 + 1 / draws) ** 0.5
    enough = gap[:-1] >= gap[1:] - error[1:]
    return int(enough.nonzero()[0]) + 1 if bool(enough.any()) else most
