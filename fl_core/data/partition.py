"""How the clients' share of a data set is cut: pure functions of labels, number of clients and generator.

Every function returns one int64 index array per client into ``labels``: each sample goes to exactly one client.
"""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Shards = list[NDArray[np.int64]]

MAX_DRAWS = 1000


def iid(labels: Labels, num_clients: int, generator: np.random.Generator) -> Shards:
    """Uniform partition into shards whose sizes differ by at most one.

    Args:
        labels: (S,) int64.
        num_clients: N, at most S.
        generator: Source of the permutation.

    Raises:
        ValueError: More clients than samples.
    """
    _check_clients(labels, num_clients, 1)
    return [np.sort(shard) for shard in np.array_split(generator.permutation(len(labels)), num_clients)]


def dirichlet(
    labels: Labels, num_clients: int, generator: np.random.Generator, *, alpha: float, minimum: int = 2
) -> Shards:
    """Label-skewed partition: each class is divided among the clients by a Dirichlet(α) draw.

    The scheme of Yurochkin et al. 2019 (arXiv 1905.12022) and Li et al. 2022 (arXiv 2102.02079): for every class a
    vector of proportions is drawn over the clients. The whole draw is repeated until every client has ``minimum``
    samples.

    Args:
        labels: (S,) int64.
        num_clients: N.
        generator: Source of the proportions and permutations.
        alpha: Concentration, greater than 0; small is heterogeneous.
        minimum: Smallest shard accepted.

    Raises:
        ValueError: α ≤ 0, more clients than samples, or no acceptable draw in ``MAX_DRAWS``.
    """
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha must be greater than 0 and finite, got {alpha}")
    _check_clients(labels, num_clients, minimum)
    classes = np.unique(labels)
    counts = np.array([np.sum(labels == c) for c in classes])
    for _ in range(MAX_DRAWS):
        proportions = generator.dirichlet(np.full(num_clients, alpha), size=len(classes))
        cuts = np.rint(np.cumsum(proportions, axis=1) * counts[:, None]).astype(np.int64)
        sizes = np.diff(cuts, axis=1, prepend=0)
        if sizes.sum(axis=0).min() >= minimum:
            break
    else:
        raise ValueError(
            f"alpha={alpha} left a client with fewer than {minimum} of {len(labels)} samples in each of {MAX_DRAWS} "
            f"draws for {num_clients} clients; take a larger alpha, fewer clients or more data"
        )
    pieces = [
        np.split(generator.permutation(np.flatnonzero(labels == c)), cut[:-1])
        for c, cut in zip(classes, cuts, strict=True)
    ]
    return [np.sort(np.concatenate(shard)) for shard in zip(*pieces, strict=True)]


def _check_clients(labels: Labels, num_clients: int, minimum: int) -> None:
    if num_clients < 1:
        raise ValueError(f"num_clients must be at least 1, got {num_clients}")
    if num_clients * minimum > len(labels):
        raise ValueError(
            f"{num_clients} clients of at least {minimum} samples need more than the {len(labels)} samples there are"
        )
