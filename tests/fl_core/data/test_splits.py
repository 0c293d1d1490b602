import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.data import Splits, load_dataset, make_splits

PARTS = ("clients", "reference", "utility", "validation", "test")


def splits(seed: int = 0, **sizes: int) -> Splits:
    return make_splits(load_dataset("digits"), np.random.default_rng(seed), **sizes)


@settings(deadline=None, max_examples=30)
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
