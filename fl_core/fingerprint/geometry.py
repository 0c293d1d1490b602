"""Features 1 to 4: where an update points and how long it is; and clipping.

Every figure here is a sum over coordinates. The sums run over chunks of columns that fit the cache, each turned into
float64 there: at 11 million parameters float32 sums are off by up to 2e-3, and a float64 copy of all updates would be
twice as large as they are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_core.fingerprint import native

# Buckets of the random projection that ``measure`` takes along; chunks are whole multiples of it.
SKETCH = 256
# Elements of a chunk, 5 MiB with its buffers: half as many are 10 % slower, a sixteenth as many twice as slow.
_CHUNK = 2**18


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Some columns of all updates.

    Attributes:
        columns: Which.
        single: (N, c) float32, a view of the updates.
        exact: (N, c), the same in float64.
        spare32: (N, c) float32, for a term to write to.
        spare64: (N, c) float64, likewise.
    """

    columns: slice
    single: Tensor
    exact: Tensor
    spare32: Tensor
    spare64: Tensor


# A chunk to its part (N, ...) of a sum over all columns.
_Term = Callable[[_Chunk], Tensor]


@dataclass(frozen=True, eq=False)
class Geometry:
    """What two passes over the updates of N clients tell, all float64.

    Attributes:
        norms: (N,), feature 3.
        root_cosine: (N,), feature 1.
        peer_cosine: (N,), feature 2.
        sign_agreement: (N,), feature 4.
        folded: (N, 256), signed fold, see ``fold``.
        reference_norm: (1,), the reference's own length.
    """

    norms: Tensor
    root_cosine: Tensor
    peer_cosine: Tensor
    sign_agreement: Tensor
    folded: Tensor
    reference_norm: Tensor


def measure(updates: Tensor, reference: Tensor, signs: Tensor) -> Geometry:
    """All of this module at once: one pass for the sums, one for the peers, whose unit vectors need the norms first.

    Args:
        updates: (N, P) float32.
        reference: (P,) float32.
        signs: (P,) or longer, of ±1.
    """
    if native.serves(updates, reference, signs):
        return Geometry(*native.measure(updates, reference, signs))
    energy, product, agreeing, folded = _sums(
        updates, [_energy, _product_with(reference), _agreeing_with(reference), _fold_by(signs)]
    )
    lengths, reference_norm = energy.sqrt(), norms(reference[None])
    return Geometry(
        norms=lengths,
        root_cosine=_cosine(product, lengths, reference_norm),
        peer_cosine=_peer_cosine(updates, lengths),
        sign_agreement=_share(agreeing, reference),
        folded=folded,
        reference_norm=reference_norm,
    )


def norms(updates: Tensor) -> Tensor:
    """Feature 3, ``‖Δᵢ‖₂``: (N, P) to (N,) float64."""
    if native.serves(updates):
        return native.norms(updates)
    return _sums(updates, [_energy])[0].sqrt()


def root_cosine(updates: Tensor, reference: Tensor) -> Tensor:
    """Feature 1, cosine of each update to the reference: (N, P), (P,) to (N,) float64; 0 for a zero vector."""
    energy, product = _sums(updates, [_energy, _product_with(reference)])
    return _cosine(product, energy.sqrt(), norms(reference[None]))


def peer_cosine(updates: Tensor) -> Tensor:
    """Feature 2, mean cosine to the other updates: (N, P) to (N,) float64; 0 for a single client."""
    return _peer_cosine(updates, norms(updates))


def sign_agreement(updates: Tensor, reference: Tensor) -> Tensor:
    """Feature 4, share of the coordinates with reference ≠ 0 whose sign is the reference's: to (N,) float64.

    A reference of zeros agrees with nobody and disagrees with nobody: ½.
    """
    return _share(_sums(updates, [_agreeing_with(reference)])[0], reference)


def fold(updates: Tensor, signs: Tensor) -> Tensor:
    """Random signs, then the sum of every 256th coordinate: (N, P), (≥ P,) to (N, 256) float64.

    A count sketch (Charikar et al. 2002) with strided buckets. It preserves norms and cosines in expectation, in one
    pass and without a dense matrix.
    """
    return _sums(updates, [_fold_by(signs)])[0]


def median(values: Tensor) -> Tensor:
    """Median of (n,) values, the mean of the two middle ones for even n (``torch.median`` takes the lower)."""
    middle = values.sort().values[(len(values) - 1) // 2 : len(values) // 2 + 1]
    return middle.mean()


def unit_vector(vector: Tensor) -> Tensor:
    """The vector (P,) at length 1; zeros stay zeros."""
    length = vector.norm()
    return vector / torch.where(length > 0, length, 1.0)


def clip_factors(lengths: Tensor, norm: Tensor) -> Tensor:
    """What to multiply each row by that none of them is longer than ``norm``: (A,) lengths to (A,), at most 1."""
    return (norm / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)).clamp_max(1.0)


def norm_factors(updates: Tensor, bound: float | None) -> Tensor:
    """What cuts each update to a norm, by default to the median one: (n, P) to (n,) float64, at most 1."""
    lengths = norms(updates).cpu()
    return clip_factors(lengths, median(lengths) if bound is None else torch.tensor(bound, dtype=torch.float64))


def clip_to(updates: Tensor, norm: Tensor) -> Tensor:
    """Scales down each row (A, P) that is longer than ``norm``."""
    return updates * clip_factors(norms(updates), norm).to(updates.dtype)[:, None]


def clip_to_median(updates: Tensor) -> Tensor:
    """Scales down each row (A, P) that is longer than the median norm of the rows."""
    lengths = norms(updates)
    return updates * clip_factors(lengths, median(lengths)).to(updates.dtype)[:, None]


def _sums(updates: Tensor, terms: Sequence[_Term]) -> list[Tensor]:
    """Sums of the terms over all chunks, in one pass over memory."""
    totals: list[Tensor] = []
    for chunk in _chunks(updates):
        parts = [term(chunk) for term in terms]
        totals = [total.add_(part) for total, part in zip(totals, parts, strict=True)] if totals else parts
    return totals


def _chunks(updates: Tensor) -> Iterator[_Chunk]:
    clients, size = updates.shape
    width = min(max(_CHUNK // clients // SKETCH, 1) * SKETCH, size)
    # The buffers are made once: fresh ones of this size would be fetched from the operating system for every chunk.
    exact, spare64 = updates.new_empty(2, clients, width, dtype=torch.float64)
    spare32 = updates.new_empty(clients, width, dtype=torch.float32)
    for start in range(0, size, width):
        single = updates[:, start : start + width]
        c = single.shape[1]
        exact[:, :c] = single
        yield _Chunk(slice(start, start + c), single, exact[:, :c], spare32[:, :c], spare64[:, :c])


def _energy(chunk: _Chunk) -> Tensor:
    energy: Tensor = torch.linalg.vector_norm(chunk.exact, dim=1).square_()
    return energy


def _product_with(vector: Tensor) -> _Term:
    return lambda chunk: chunk.exact @ vector[chunk.columns].double()


def _agreeing_with(reference: Tensor) -> _Term:
    def term(chunk: _Chunk) -> Tensor:
        # Float arithmetic on ±1 and 0 is several times faster here than counting booleans, and as exact.
        same = torch.mul(chunk.single, reference[chunk.columns].sign(), out=chunk.spare32)
        return same.sign_().clamp_min_(0).sum(dim=1).double()

    return term


def _fold_by(signs: Tensor) -> _Term:
    def term(chunk: _Chunk) -> Tensor:
        signed = torch.mul(chunk.exact, signs[chunk.columns], out=chunk.spare64)
        whole = signed.shape[1] // SKETCH * SKETCH
        folded: Tensor = signed[:, :whole].unflatten(1, (-1, SKETCH)).sum(dim=1)
        folded[:, : signed.shape[1] - whole] += signed[:, whole:]
        return folded

    return term


def _cosine(product: Tensor, lengths: Tensor, length: Tensor) -> Tensor:
    scale = lengths * length
    return product / torch.where(scale > 0, scale, 1.0)


def _peer_cosine(updates: Tensor, lengths: Tensor) -> Tensor:
    """Mean over j ≠ i of cos(Δᵢ, Δⱼ), which is (ûᵢ·s − ûᵢ·ûᵢ)/(N − 1) for unit vectors ûᵢ and their sum s.

    One pass instead of N²/2 products.
    """
    if len(updates) == 1:
        return torch.zeros_like(lengths)
    nonzero = lengths > 0
    inverse = nonzero / torch.where(nonzero, lengths, 1.0)
    (with_all,) = _sums(updates, [lambda chunk: chunk.exact @ (inverse @ chunk.exact)])
    return (with_all * inverse - nonzero.double()) / (len(updates) - 1)


def _share(agreeing: Tensor, reference: Tensor) -> Tensor:
    total = reference.count_nonzero()
    return torch.where(total > 0, agreeing / total.clamp_min(1), 0.5)
