"""(f, κ)-robustness: ``‖F(x) − x̄_S‖² ≤ κ · mean_{i ∈ S} ‖xᵢ − x̄_S‖²`` for *every* S of n − f clients.

Definition 2 of Allouah et al. 2023, arXiv 2302.01772, with the κ of its table 1 (appendix 8.1), of lemma 5 for NNM, and
of Allouah et al. 2025, arXiv 2405.14432, theorem 3.2, for ARC. Attackers are arbitrary, so any subset may be honest.
"""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.aggregation import ServerView, make_rule


def of_median(n: int, f: int) -> float:
    return 4 * (1 + f / (n - 2 * f)) ** 2


def of_trimmed_mean(n: int, f: int) -> float:
    return 6 * f / (n - 2 * f) * (1 + f / (n - 2 * f))


def of_krum(n: int, f: int) -> float:
    """The paper's 6(n − f)/(n − 2f) is for n − f − 1 neighbours.

    With n − f − 2, at least n − 2f − 1 of the chosen one and its neighbours are honest, and its proof goes through.
    """
    return 6 * (n - f) / (n - 2 * f - 1)


def mixed(kappa: Callable[[int, int], float]) -> Callable[[int, int], float]:
    return lambda n, f: 8 * f / (n - f) * (kappa(n, f) + 1)


def clipped(kappa: Callable[[int, int], float]) -> Callable[[int, int], float]:
    return lambda n, f: kappa(n, f) + 2 * f / (n - 2 * f)


KAPPA = {
    "krum": of_krum,
    "geometric_median": of_median,
    "median": of_median,
    "trimmed_mean": of_trimmed_mean,
    "nnm+krum": mixed(of_krum),
    "nnm+geometric_median": mixed(of_median),
    "nnm+median": mixed(of_median),
    "nnm+trimmed_mean": mixed(of_trimmed_mean),
    "arc+trimmed_mean": clipped(of_trimmed_mean),
    "arc+median": clipped(of_median),
}


def excess(name: str, updates: np.ndarray, f: int) -> float:
    """The largest ratio of the two sides, over all subsets, without κ."""
    told = {"num_byzantine": f} if name not in ("geometric_median", "median") else {}
    result = make_rule(name, **told)(ServerView(torch.from_numpy(updates.astype(np.float32)))).update.double().numpy()
    ratios = []
    for subset in combinations(range(len(updates)), len(updates) - f):
        honest = updates[list(subset)]
        spread = ((honest - honest.mean(axis=0)) ** 2).sum(axis=1).mean()
        ratios.append(((result - honest.mean(axis=0)) ** 2).sum() / spread)
    return max(ratios)


ATTACKS = {
    "none": lambda honest, f: honest[:f] + 0.1,
    "far": lambda honest, f: honest[:f] + 1e3,
    "opposite": lambda honest, f: np.repeat(-honest.mean(axis=0, keepdims=True), f, axis=0),
    "a little": lambda honest, f: np.repeat((honest.mean(axis=0) - 1.2 * honest.std(axis=0))[None], f, axis=0),
    "just outside": lambda honest, f: np.repeat(honest.max(axis=0, keepdims=True), f, axis=0),
    "zero": lambda honest, f: np.zeros_like(honest[:f]),
}


@pytest.mark.parametrize("name", KAPPA)
@settings(max_examples=60)
@given(
    n=st.integers(5, 10),
    size=st.integers(1, 6),
    attack=st.sampled_from(list(ATTACKS)),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_no_subset_of_n_minus_f_clients_is_farther_than_kappa_allows(name, n, size, attack, seed, data):
    f = data.draw(st.integers(1, (n - 3) // 2))
    honest = np.random.default_rng(seed).standard_normal((n - f, size)) + 0.5
    updates = np.concatenate([ATTACKS[attack](honest, f), honest])
    assert excess(name, updates, f) <= KAPPA[name](n, f) * (1 + 1e-3)


def test_the_plain_mean_has_no_such_bound():
    honest = np.random.default_rng(0).standard_normal((7, 4))
    updates = np.concatenate([honest[:2] + 1e3, honest])
    told = torch.from_numpy(updates.astype(np.float32))
    error = (make_rule("fedavg")(ServerView(told)).update.double().numpy() - honest.mean(axis=0)) ** 2
    spread = ((honest - honest.mean(axis=0)) ** 2).sum(axis=1).mean()
    assert error.sum() / spread > max(kappa(9, 2) for kappa in KAPPA.values())
