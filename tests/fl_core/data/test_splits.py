import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.data import Dataset, Splits, load_dataset, make_splits
from fl_core.data.splits import interleave_classes, split_in_halves

PARTS = ("clients", "reference", "utility", "validation", "test")


def splits(seed: int = 0, **sizes: int) -> Splits:
    return make_splits(load_dataset("digits"), np.random.default_rng(seed), **sizes)


@settings(max_examples=30)
@given(st.integers(4, 400), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_the_five_parts_are_disjoint_and_cover_the_data_set(root, validation, seed):
    drawn = splits(seed, root=root, validation=validation)
    samples = torch.cat([getattr(drawn, part) for part in PARTS]).tolist()
    assert sorted(samples) == list(range(len(load_dataset("digits").labels)))
    assert len(drawn.reference) + len(drawn.utility) == root
    assert len(drawn.validation) == validation
    assert abs(len(drawn.reference) - len(drawn.utility)) <= 1


def test_the_test_side_never_moves_with_the_seed_and_the_rest_does():
    one, other = splits(0), splits(1)
    assert torch.equal(one.test, other.test)
    assert torch.equal(one.test, load_dataset("digits").test)
    for part in PARTS[:-1]:
        assert not torch.equal(getattr(one, part), getattr(other, part))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("part", ["reference", "utility", "validation"])
def test_what_the_server_and_the_selection_see_is_balanced_over_the_classes(part, seed):
    counts = torch.bincount(load_dataset("digits").labels[getattr(splits(seed), part)], minlength=10)
    assert counts.max() - counts.min() <= 1


def test_root_data_smaller_than_the_number_of_classes_still_has_no_class_twice():
    labels = load_dataset("digits").labels
    drawn = splits(root=10, validation=10)
    assert len(labels[torch.cat([drawn.reference, drawn.utility])].unique()) == 10


def test_too_small_root_or_validation_data_is_refused_with_the_number():
    with pytest.raises(ValueError, match=r"root must be at least 4.*got 3"):
        splits(root=3)
    with pytest.raises(ValueError, match="validation must be at least 1, got 0"):
        splits(validation=0)


def test_splits_that_leave_nothing_for_the_clients_are_refused():
    train = len(load_dataset("digits").train)
    with pytest.raises(
        ValueError, match=f"root=100 and validation={train - 100} leave no sample.*'digits' has {train}"
    ):
        splits(root=100, validation=train - 100)
    assert len(splits(root=100, validation=train - 101).clients) == 1


def test_overlapping_splits_cannot_be_built():
    with pytest.raises(ValueError, match="overlap"):
        Splits(*(torch.tensor([i, i + 1]) for i in range(5)))


def test_of_single_samples_the_parts_are_consecutive_pieces_of_the_interleaved_classes():
    digits = load_dataset("digits")
    order = interleave_classes(digits.labels[digits.train].numpy(), np.random.default_rng(5))
    drawn = splits(5, root=101, validation=200)
    pieces = np.split(digits.train.numpy()[order], [50, 101, 301])
    for part, piece in zip(("reference", "utility", "validation", "clients"), pieces, strict=True):
        assert getattr(drawn, part).tolist() == sorted(piece)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 2**32 - 1))
def test_interleaved_classes_are_balanced_in_every_prefix_and_end_with_one_of_each(labels, seed):
    labels = np.array(labels)
    order = interleave_classes(labels, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(labels)))
    present = len(np.unique(labels))
    assert len(np.unique(labels[order[-present:]])) == present
    counts = np.bincount(labels)
    for length in range(len(labels) - present):
        prefix = np.bincount(labels[order[:length]], minlength=len(counts))
        open_ = prefix < counts - 1  # classes with members left other than the last
        if open_.any():
            assert prefix.max() - prefix[open_].min() <= 1


def grouped(people: int = 60, seed: int = 0, test: int = 10, classes: int = 3) -> Dataset:
    """People of one class each, with 1 to 12 images; the last ``test`` of them are the test side."""
    sizes = np.random.default_rng(seed).integers(1, 13, size=people)
    groups = torch.from_numpy(np.repeat(np.arange(people), sizes))
    side = groups >= people - test
    return Dataset(
        "people",
        torch.zeros(len(groups), 1, 2, 2, dtype=torch.uint8),
        groups % classes,
        tuple("abcdefgh"[:classes]),
        (~side).nonzero()[:, 0],
        side.nonzero()[:, 0],
        groups,
    )


@settings(max_examples=50)
@given(st.integers(30, 90), st.integers(4, 60), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_no_group_stands_in_two_parts_and_sizes_are_as_asked(people, root, validation, seed):
    dataset = grouped(people, seed)
    try:
        drawn = make_splits(dataset, np.random.default_rng(seed), root=root, validation=validation)
    except ValueError as error:
        # 20 people or more on the train side: what they have may not be enough for so much.
        assert f"root={root} and validation={validation} leave no sample for the clients" in str(error)
        assert f"in {people - 10} groups" in str(error)
        assert root + validation > 20
        return
    owners = [set(dataset.groups[getattr(drawn, part)].tolist()) for part in PARTS]
    assert sum(map(len, owners)) == len(set().union(*owners))
    assert len(drawn.reference) == root // 2
    assert len(drawn.utility) == root - root // 2
    assert len(drawn.validation) == validation
    assert torch.equal(drawn.test, dataset.test)
    # A client's groups are whole.
    mine = torch.isin(dataset.groups, dataset.groups[drawn.clients])
    assert drawn.clients.tolist() == mine.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_classs_last_group_stays_with_the_clients(seed):
    # Class 3 has one person on the train side, number 3.
    dataset = grouped(60, seed)
    labels = dataset.labels.clone()
    labels[(dataset.groups == 3) | (dataset.groups >= 58)] = 3
    lonely = Dataset("people", dataset.pixels, labels, (*"abcd",), dataset.train, dataset.test, dataset.groups)
    drawn = make_splits(lonely, np.random.default_rng(seed), root=40, validation=30)
    assert 3 in lonely.groups[drawn.clients]
    assert set(lonely.labels[drawn.clients].tolist()) == {0, 1, 2, 3}


def test_root_and_validation_data_come_from_a_tenth_of_the_groups_each_where_that_is_enough():
    # 1,000 groups of 10: a tenth for the server holds 1,000 samples, of which it takes 100, one a group.
    groups = torch.arange(11_000) // 10
    pixels = torch.zeros(11_000, 1, 1, 1, dtype=torch.uint8)
    sides = torch.arange(10_000), torch.arange(10_000, 11_000)
    dataset = Dataset("people", pixels, groups % 2, ("a", "b"), *sides, groups)
    drawn = make_splits(dataset, np.random.default_rng(0), root=100, validation=400)
    counts = [len(dataset.groups[part].unique()) for part in (drawn.reference, drawn.utility, drawn.validation)]
    assert counts == [50, 50, 100]
    assert torch.bincount(dataset.groups[drawn.validation]).max() == 4
    assert len(drawn.clients) == 10 * (1000 - 200)


@settings(max_examples=60)
@given(counts=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any), seed=st.integers(0, 2**31))
def test_halves_share_every_class_and_hold_everybody_once(counts, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    halves = split_in_halves(labels, np.random.default_rng(seed))
    assert sorted(np.concatenate(halves)) == list(range(len(labels)))
    one, other = (np.bincount(labels[half], minlength=len(counts)) for half in halves)
    assert abs(one - other).max() <= 1
    assert 0 <= one.sum() - other.sum() <= 1
