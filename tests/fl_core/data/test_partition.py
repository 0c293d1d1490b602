import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.data import (
    by_group,
    dirichlet,
    iid,
    label_skew,
    make_partition,
    partition_names,
    partition_options,
    quantity_skew,
    shards,
)
from fl_core.data.units import units_of

seeds = st.integers(0, 2**32 - 1)


def labels_of(samples: int, classes: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(classes, size=samples)


def assert_exact_cover(shards: list[np.ndarray], samples: int) -> None:
    assert sorted(i for shard in shards for i in shard.tolist()) == list(range(samples))


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(0, 200), seeds)
def test_iid_gives_every_sample_to_exactly_one_client_in_shards_of_equal_size(clients, more, seed):
    samples = clients + more
    shards = iid(labels_of(samples), clients, np.random.default_rng(seed))
    assert len(shards) == clients
    assert_exact_cover(shards, samples)
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=50)
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


# What holds for every partition, of single samples and of groups. Each with parameters that leave it room.
CUTS = {
    "iid": {},
    "dirichlet": {"alpha": 5.0},
    "label_skew": {"q": 0.7},
    "shards": {"k": 2},
    "quantity_skew": {"alpha": 5.0},
    "by_group": {},
}
samples_or_groups = pytest.mark.parametrize(
    ("name", "grouped"),
    [(name, grouped) for name in CUTS for grouped in (False, True) if grouped or name != "by_group"],
)


def groups_of(samples: int, groups: int, seed: int) -> np.ndarray:
    """Groups of unequal size, none empty; their numbers have gaps and no order."""
    generator = np.random.default_rng(seed)
    members = np.concatenate([np.arange(groups), generator.integers(groups, size=samples - groups)])
    return generator.permutation(10 * groups)[:groups][generator.permutation(members)]


def test_every_registered_partition_is_tested_here():
    assert set(CUTS) == set(partition_names())


@samples_or_groups
@settings(max_examples=25)
@given(clients=st.integers(1, 6), samples=st.integers(200, 400), classes=st.integers(2, 8), seed=seeds)
def test_every_partition_gives_each_sample_to_one_client_and_keeps_groups_whole(
    name, grouped, clients, samples, classes, seed
):
    labels = labels_of(samples, classes, seed)
    groups = groups_of(samples, 60, seed) if grouped else None
    shards = make_partition(name, **CUTS[name])(labels, clients, np.random.default_rng(seed), groups=groups)
    assert len(shards) == clients
    assert_exact_cover(shards, samples)
    assert all(shard.dtype == np.int64 and (np.diff(shard) > 0).all() for shard in shards)
    assert min(len(shard) for shard in shards) >= 2
    if grouped:
        owners = [set(groups[shard].tolist()) for shard in shards]
        assert sum(map(len, owners)) == len(set().union(*owners)) == 60


@samples_or_groups
def test_a_partition_is_a_function_of_the_generator_and_leaves_its_arguments_alone(name, grouped):
    labels, groups = labels_of(300), groups_of(300, 60, 0) if grouped else None
    given_before = [array.copy() for array in (labels, groups) if array is not None]
    cut = make_partition(name, **CUTS[name])
    first, again, other = (cut(labels, 5, np.random.default_rng(seed), groups=groups) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    for array, before in zip([a for a in (labels, groups) if a is not None], given_before, strict=True):
        assert np.array_equal(array, before)


@pytest.mark.parametrize("name", CUTS)
def test_groups_of_one_sample_are_cut_as_samples_are_and_more_clients_than_groups_are_refused(name):
    labels = labels_of(200)
    cut = make_partition(name, **CUTS[name])
    alone = cut(labels, 4, np.random.default_rng(3), groups=np.arange(200))
    if name != "by_group":
        plain = cut(labels, 4, np.random.default_rng(3))
        assert all(np.array_equal(a, b) for a, b in zip(alone, plain, strict=True))
    with pytest.raises(ValueError, match=r"9 clients are more than the 8 groups there are.*at most 8 clients"):
        cut(labels, 9, np.random.default_rng(0), groups=np.arange(200) % 8)


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("clients", [0, -3])
def test_no_partition_takes_a_number_of_clients_below_one(name, clients):
    with pytest.raises(ValueError, match=f"num_clients must be at least 1, got {clients}$"):
        make_partition(name, **CUTS[name])(
            labels_of(100), clients, np.random.default_rng(0), groups=np.arange(100) // 2
        )


@pytest.mark.parametrize("name", ["label_skew", "shards", "by_group"])
def test_a_client_with_a_single_sample_is_refused_with_the_numbers(name):
    groups = np.arange(6) if name == "by_group" else None
    options = CUTS[name] | ({"k": 1} if name == "shards" else {})
    with pytest.raises(ValueError, match=r"leaves a client with [01] of 6 samples, fewer than 2, for 5 clients"):
        make_partition(name, **options)(np.arange(6) % 2, 5, np.random.default_rng(0), groups=groups)


def test_iid_of_groups_differs_by_one_group_at_most():
    groups = groups_of(400, 62, 0)
    shards = iid(labels_of(400), 5, np.random.default_rng(0), groups=groups)
    assert sorted(len(np.unique(groups[shard])) for shard in shards) == [12, 12, 12, 13, 13]


@settings(max_examples=50)
@given(st.integers(1, 10), seeds)
def test_by_group_differs_by_the_largest_group_at_most(clients, seed):
    # Each group goes to the smallest client, so nobody is ever ahead of anybody by more than one group.
    groups = groups_of(300, 40, seed)
    shards = by_group(labels_of(300), clients, np.random.default_rng(seed), groups=groups)
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= np.unique(groups, return_counts=True)[1].max()


def test_by_group_needs_groups():
    with pytest.raises(ValueError, match=r"'by_group' needs a data set with groups .*this one has none"):
        by_group(labels_of(100), 5, np.random.default_rng(0))


def composition(labels: np.ndarray, shards: list[np.ndarray]) -> np.ndarray:
    """(N, C) samples of each class at each client."""
    return np.stack([np.bincount(labels[shard], minlength=labels.max() + 1) for shard in shards])


@pytest.mark.parametrize("q", [0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("clients", [2, 4, 10])
def test_label_skew_of_two_balanced_classes_gives_each_client_exactly_the_share_q(clients, q):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1], 200))
    table = composition(labels, label_skew(labels, clients, np.random.default_rng(1), q=q))
    assert (table.sum(axis=1) == 400 // clients).all()
    assert (table.max(axis=1) == round(q * 400 / clients)).all()
    assert (table.argmax(axis=1) == 0).sum() == clients // 2 or q == 0.5


@settings(max_examples=40)
@given(st.integers(2, 6), st.integers(1, 3), st.sampled_from([0.6, 0.8, 0.9]), seeds)
def test_label_skew_of_balanced_classes_gives_equal_shards_with_a_share_of_at_least_q(classes, times, q, seed):
    labels = np.repeat(np.arange(classes), 60 * times)
    table = composition(labels, label_skew(labels, classes * times, np.random.default_rng(seed), q=q))
    assert (table.sum(axis=1) == 60).all()
    assert (table.max(axis=1) >= 60 * q - 1e-9).all()
    assert (np.bincount(table.argmax(axis=1), minlength=classes) == times).all()


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_label_skew_of_q_1_gives_each_client_one_class_and_of_q_0_none_of_its_own(classes):
    labels = np.repeat(np.arange(classes), 60)
    whole = composition(labels, label_skew(labels, classes, np.random.default_rng(0), q=1))
    assert sorted(map(tuple, whole)) == sorted(map(tuple, 60 * np.eye(classes, dtype=int)))
    if classes == 2:
        none = composition(labels, label_skew(labels, 2, np.random.default_rng(0), q=0))
        assert sorted(map(tuple, none)) == [(0, 60), (60, 0)]


def test_label_skew_with_fewer_clients_than_classes_gives_a_client_several_main_classes():
    labels = np.repeat(np.arange(6), 50)
    table = composition(labels, label_skew(labels, 3, np.random.default_rng(0), q=1))
    assert (table.sum(axis=1) == 100).all()
    assert sorted(np.count_nonzero(table, axis=1)) == [2, 2, 2]
    assert (table.max(axis=0) == 50).all()


def test_the_rest_of_a_class_above_half_stays_with_its_own_clients():
    # 80 of class 0: with q = 0.5 40 must go elsewhere, but class 1's clients have room for their 10 foreigners only.
    labels = np.repeat([0, 1], [80, 20])
    table = composition(labels, label_skew(labels, 5, np.random.default_rng(0), q=0.5))
    assert table.sum() == 100
    assert (table.sum(axis=1) == 20).all()
    main = table[table[:, 0] < 15]
    assert main.tolist() == [[10, 10]]
    assert (np.delete(table, np.flatnonzero(table[:, 0] < 15), axis=0)[:, 0] > 10).all()


@pytest.mark.parametrize("q", [-0.1, 1.1, float("nan")])
def test_label_skew_refuses_what_is_no_share(q):
    with pytest.raises(ValueError, match=rf"q must be a share in \[0, 1\], got {q}"):
        label_skew(labels_of(100), 5, np.random.default_rng(0), q=q)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_shards_hold_k_consecutive_pieces_of_the_sorted_labels(k):
    # Pieces as large as half a class lie within one class, so a client sees k classes at most.
    clients = 10
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5 * k), 40))
    table = composition(labels, shards(labels, clients, np.random.default_rng(1), k=k))
    assert (table % 20 == 0).all()
    assert (table.sum(axis=1) == 20 * k).all()


@pytest.mark.parametrize("k", [0, -1])
def test_shards_refuse_a_k_below_one(k):
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        shards(labels_of(100), 5, np.random.default_rng(0), k=k)


def test_shards_refuse_more_pieces_than_units():
    with pytest.raises(ValueError, match=r"k=3 for 4 clients are more pieces than the 10 there are"):
        shards(labels_of(10), 4, np.random.default_rng(0), k=3)
    with pytest.raises(ValueError, match=r"k=3 for 4 clients are more pieces than the 10 there are"):
        shards(labels_of(100), 4, np.random.default_rng(0), k=3, groups=np.arange(100) % 10)


def test_quantity_skew_skews_sizes_and_not_classes():
    labels = np.arange(20_000) % 4
    sizes, deviations = [], []
    for seed in range(20):
        table = composition(labels, quantity_skew(labels, 5, np.random.default_rng(seed), alpha=1.0))
        sizes.append(table.sum(axis=1) / 20_000)
        large = table[table.sum(axis=1) > 1000]
        deviations.append(np.abs(large / large.sum(axis=1, keepdims=True) - 0.25).max())
    # Var of one component of Dirichlet(1, ..., 1) over 5: (N − 1) / (N²(N + 1)).
    assert np.var(sizes) == pytest.approx(4 / (25 * 6), rel=0.3)
    assert max(deviations) < 0.07  # five standard errors of a share of a quarter among 1,000


@pytest.mark.parametrize("cut", [dirichlet, quantity_skew])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_hopeless_alpha_is_refused_by_its_value_and_a_wrong_one_at_once(cut, grouped):
    labels, groups = labels_of(500), np.arange(500) // 2 if grouped else None
    with pytest.raises(ValueError, match=r"alpha=0\.001 left a client with fewer than 2 of 500 samples.*larger alpha"):
        cut(labels, 20, np.random.default_rng(0), alpha=0.001, groups=groups)
    for alpha in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"alpha must be greater than 0 and finite, got {alpha}"):
            cut(labels, 5, np.random.default_rng(0), alpha=alpha, groups=groups)


@pytest.mark.parametrize("cut", [dirichlet, quantity_skew])
def test_the_minimum_counts_samples_not_groups(cut):
    # 12 groups of 10: a client with one group has 10 samples, and none can have 9.
    shards_ = cut(labels_of(120), 3, np.random.default_rng(0), alpha=1.0, minimum=11, groups=np.arange(120) // 10)
    assert min(map(len, shards_)) >= 20
    with pytest.raises(ValueError, match=r"3 clients of at least 41 samples need more than the 120 samples there are"):
        cut(labels_of(120), 3, np.random.default_rng(0), minimum=41)


def test_a_partition_is_made_by_name_with_its_own_options_only():
    assert {name: partition_options(name) for name in partition_names()} == {
        "by_group": [],
        "dirichlet": ["alpha", "minimum"],
        "iid": [],
        "label_skew": ["q"],
        "quantity_skew": ["alpha", "minimum"],
        "shards": ["k"],
    }
    with pytest.raises(ValueError, match=r"unknown partition 'even'; there are: by_group, dirichlet, iid"):
        make_partition("even")
    with pytest.raises(ValueError, match=r"unknown option of partition 'shards' 'alpha'; there are: k"):
        make_partition("shards", alpha=1.0)
    with pytest.raises(ValueError, match="partition 'label_skew' needs q"):
        make_partition("label_skew")


def test_a_unit_counts_as_its_most_frequent_class():
    units = units_of(np.array([1, 0, 1, 2, 2, 0]), np.array([7, 7, 7, 3, 3, 5]))
    assert units.labels.tolist() == [2, 0, 1]  # groups 3, 5, 7
    assert units.sizes.tolist() == [2, 1, 3]
    assert units.of_sample.tolist() == [2, 2, 2, 0, 0, 1]
