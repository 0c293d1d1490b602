"""Features 1 to 4: where an update points and how long it is; and clipping. Sums are taken in float64."""

import torch
from torch import Tensor


def norms(updates: Tensor) -> Tensor:
    """Feature 3, ``‖Δᵢ‖₂``: (N, P) to (N,) float64."""
    lengths: Tensor = torch.linalg.vector_norm(updates, dim=1, dtype=torch.float64)
    return lengths


def root_cosine(updates: Tensor, reference: Tensor) -> Tensor:
    """Feature 1, cosine of each update to the reference: (N, P), (P,) to (N,) float64; 0 for a zero vector."""
    directions = _directions(updates)
    return directions @ _directions(reference[None])[0]


def peer_cosine(updates: Tensor) -> Tensor:
    """Feature 2, mean cosine to the other updates: (N, P) to (N,) float64; 0 for a single client.

    With unit vectors ûᵢ and their sum s, the mean over j ≠ i of cos(Δᵢ, Δⱼ) is (ûᵢ·s − ûᵢ·ûᵢ)/(N − 1): one pass
    instead of N²/2 products.
    """
    directions = _directions(updates)
    others = directions @ directions.sum(dim=0) - directions.square().sum(dim=1)
    return others / max(len(updates) - 1, 1)


def sign_agreement(updates: Tensor, reference: Tensor) -> Tensor:
    """Feature 4, share of the coordinates with reference ≠ 0 whose sign is the reference's: to (N,) float64.

    A reference of zeros agrees with nobody and disagrees with nobody: ½.
    """
    counted = reference != 0
    total = int(counted.sum())
    if total == 0:
        return torch.full((len(updates),), 0.5, dtype=torch.float64)
    agree = (updates * reference.sign()) > 0
    return agree.sum(dim=1).double() / total


def median(values: Tensor) -> Tensor:
    """Median of (n,) values, the mean of the two middle ones for even n (``torch.median`` takes the lower)."""
    middle = values.sort().values[(len(values) - 1) // 2 : len(values) // 2 + 1]
    return middle.mean()


def clip_to(updates: Tensor, norm: Tensor) -> Tensor:
    """Scales down each row (A, P) that is longer than ``norm``."""
    lengths = norms(updates)
    factors = (norm / torch.where(lengths > 0, lengths, 1.0)).clamp_max(1.0)
    return updates * factors.to(updates.dtype)[:, None]


def clip_to_median(updates: Tensor) -> Tensor:
    """Scales down each row (A, P) that is longer than the median norm of the rows."""
    return clip_to(updates, median(norms(updates)))


def _directions(rows: Tensor) -> Tensor:
    lengths = norms(rows)[:, None]
    return rows.double() / torch.where(lengths > 0, lengths, 1.0)
