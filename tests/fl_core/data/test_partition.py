import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.data import dirichlet, iid

seeds = st.integers(0, 2**32 - 1)


def labels_of(samples: int, classes: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(classes, size=samples)


def assert_exact_cover(shards: list[np.ndarray], samples: int) -> None:
    assert sorted(i for shard in shards for i in shard.tolist()) == list(range(samples))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(0, 200), seeds)
def test_iid_gives_every_sample_to_exactly_one_client_in_shards_of_equal_size(clients, more, seed):
    samples = clients + more
    shards = iid(labels_of(samples), clients, np.random.default_rng(seed))
    assert len(shards) == clients
    assert_exact_cover(shards, samples)
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(120, 400), st.integers(2, 10), st.floats(0.5, 1e4), st.integers(1, 5), seeds)
def test_dirichlet_gives_every_sample_to_exactly_one_client_and_honours_the_minimum(
    clients, samples, classes, alpha, minimum, seed
):
    labels = labels_of(samples, classes, seed)
    shards = dirichlet(labels, clients, np.random.default_rng(seed), alpha=alpha, minimum=minimum)
    assert len(shards) == clients
    assert_exact_cover(shards, samples)
    assert min(len(shard) for shard in shards) >= minimum


def mean_entropy_of_classes(alpha: float) -> float:
    labels = labels_of(2000)
    shards = dirichlet(labels, 5, np.random.default_rng(0), alpha=alpha)
    shares = np.stack([np.bincount(labels[shard], minlength=10) / len(shard) for shard in shards])
    return float(-(shares * np.log(shares + 1e-12)).sum(axis=1).mean())


def test_a_small_alpha_is_heterogeneous_and_a_large_one_is_nearly_iid():
    assert mean_entropy_of_classes(0.1) < mean_entropy_of_classes(1.0) < mean_entropy_of_classes(1000.0)
    assert mean_entropy_of_classes(1000.0) > 0.98 * np.log(10)


def test_dirichlet_shares_have_the_variance_of_the_distribution():
    # Var of one component of Dirichlet(α, ..., α) over N clients is (N − 1) / (N²(Nα + 1)).
    clients, alpha = 4, 1.0
    labels = np.repeat(np.arange(10), 1000)
    shares = [
        np.bincount(labels[shard], minlength=10) / 1000
        for seed in range(40)
        for shard in dirichlet(labels, clients, np.random.default_rng(seed), alpha=alpha)
    ]
    expected = (clients - 1) / (clients**2 * (clients * alpha + 1))
    assert np.var(shares) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_dirichlet_refuses_an_alpha_that_is_not_positive(alpha):
    with pytest.raises(ValueError, match=f"alpha must be greater than 0.*got {alpha}"):
        dirichlet(labels_of(100), 5, np.random.default_rng(0), alpha=alpha)


def test_more_clients_than_samples_is_refused_with_both_numbers():
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"11 clients.*10 samples"):
        iid(labels_of(10), 11, generator)
    with pytest.raises(ValueError, match=r"6 clients of at least 2 samples.*10 samples"):
        dirichlet(labels_of(10), 6, generator, alpha=1.0)


@pytest.mark.parametrize("clients", [0, -3])
def test_a_number_of_clients_below_one_is_refused_with_that_number(clients):
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match=f"num_clients must be at least 1, got {clients}$"):
        iid(labels_of(10), clients, generator)
    with pytest.raises(ValueError, match=f"num_clients must be at least 1, got {clients}$"):
        dirichlet(labels_of(10), clients, generator, alpha=1.0)


def test_an_impossible_draw_names_alpha():
    with pytest.raises(ValueError, match=r"alpha=0\.001 left a client with fewer than 2 of 500 samples"):
        dirichlet(labels_of(500), 20, np.random.default_rng(0), alpha=0.001)


@pytest.mark.parametrize("alpha", [1e-300, 1e300, float("inf")])
def test_an_extreme_alpha_gives_a_partition_or_an_error_that_names_it(alpha):
    try:
        shards = dirichlet(labels_of(500), 3, np.random.default_rng(0), alpha=alpha)
    except ValueError as error:
        assert "alpha" in str(error)
    else:
        assert_exact_cover(shards, 500)


@pytest.mark.parametrize("cut", [iid, lambda *args: dirichlet(*args, alpha=0.5)])
def test_equal_generators_give_equal_partitions_and_others_do_not(cut):
    labels = labels_of(300)
    first, again, other = (cut(labels, 5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
