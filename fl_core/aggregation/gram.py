"""Inner products, distances and weighted means of updates, one pass over the matrix each.

Rules that only need to know how updates lie to each other work on (n, n) numbers, and choose weights.
Sums run over chunks of columns in float64, as a float64 copy of 50 updates of a million parameters is 400 MB. They run
where the updates are; the few numbers that come out are on the CPU, where a rule decides by them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fl_core.training.native import library

# Updates above which torch is asked: the library adds up eight matrices (n, n), of more than 64 MB then.
_MOST_NATIVE = 1000
# Columns of a chunk: half and twice as many are slower at 50 clients.
_WIDTH = 2**12
# Of cosines: another width would change seeded results, in their last bit.
_COSINE_WIDTH = 2**15


def relative_gram(updates: Tensor) -> Tensor:
    """Inner products of the updates relative to the one of (upper) median norm: (n, P) to (n, n) float64.

    Relative to an update, not to the origin or to the mean: a common offset then costs no digits, and neither does an
    attacker who sends 1e30, as that only touches the entries in the attacker's own row and column.
    """
    n = len(updates)
    if n == 1:
        return torch.zeros(1, 1, dtype=torch.float64)
    centre = int(torch.linalg.vector_norm(updates, dim=1).sort(stable=True).indices[n // 2])
    if n <= _MOST_NATIVE and library.is_built() and updates.dtype == torch.float32 and updates.device.type == "cpu":
        return _mirrored(_native(updates.contiguous(), centre))
    return _mirrored(_plain(updates, centre))


def _native(updates: Tensor, centre: int) -> Tensor:
    """The lower triangle by the native library, which computes no product twice."""
    n, size = updates.shape
    gram = updates.new_zeros(n, n, dtype=torch.float64)
    row = updates[centre].data_ptr()
    library.call("optigrad_gram", updates.data_ptr(), n, size, row, torch.get_num_threads(), gram.data_ptr())
    return gram


def _plain(updates: Tensor, centre: int) -> Tensor:
    """The lower triangle by torch, where the library is not built, and for anything but float32 on the CPU."""
    n = len(updates)
    gram = updates.new_zeros(n, n, dtype=torch.float64)
    half = n // 2
    for _, exact in _chunks(updates):
        exact.sub_(exact[centre].clone())
        # Three quarters of the products: the upper right is the lower left.
        gram[:half, :half].addmm_(exact[:half], exact[:half].T)
        gram[half:].addmm_(exact[half:], exact.T)
    return gram.cpu()


def _mirrored(gram: Tensor) -> Tensor:
    """Symmetric to the last bit, so that ties are ties."""
    return gram.tril() + gram.tril(-1).T


def squared_distances_of(gram: Tensor) -> Tensor:
    """Squared distances (n, n) from inner products relative to any one point."""
    norms = gram.diagonal()
    return (norms[:, None] + norms[None, :] - 2 * gram).clamp_min(0).fill_diagonal_(0)


def squared_distances(updates: Tensor) -> Tensor:
    """Pairwise squared distances of updates from one Gram matrix: (n, P) to (n, n) float64, symmetric, 0 to itself."""
    return squared_distances_of(relative_gram(updates))


def distances_to(updates: Tensor, point: Tensor) -> Tensor:
    """Distance of every update to one point: (n, P), (P,) to (n,) float64."""
    total = updates.new_zeros(len(updates), dtype=torch.float64)
    for columns, exact in _chunks(updates):
        exact.sub_(point[columns].double())
        total += torch.linalg.vector_norm(exact, dim=1).square_()
    return total.sqrt().cpu()


def cosines(updates: Tensor, offset: Tensor | None = None) -> Tensor:
    """Pairwise cosines (n, n) float64 of ``updates + offset``, (n, P) and (P,); 0 for a zero vector.

    Not relative to one of them, unlike ``relative_gram``: a cosine is an angle at the origin.
    """
    gram = updates.new_zeros(len(updates), len(updates), dtype=torch.float64)
    for columns, exact in _chunks(updates, _COSINE_WIDTH):
        if offset is not None:
            exact.add_(offset[columns].double())
        gram.addmm_(exact, exact.T)
    lengths = gram.diagonal().sqrt()
    scale = lengths[:, None] * lengths
    return (gram / torch.where(scale > 0, scale, 1.0)).clamp(-1, 1).cpu()


def _chunks(updates: Tensor, width: int = _WIDTH) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of columns, and these (n, c) in float64, to be written to; the memory is the same for all."""
    n, size = updates.shape
    memory = updates.new_empty(n, min(width, size), dtype=torch.float64)
    for start in range(0, size, width):
        single = updates[:, start : start + width]
        exact = memory[:, : single.shape[1]]
        exact.copy_(single)
        yield slice(start, start + single.shape[1]), exact
