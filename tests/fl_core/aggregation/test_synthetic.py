"""FoundationFL against its definition, written out in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean

from fl_core.aggregation import ServerView, make_rule

quick = settings(max_examples=40)


@quick
@given(n=st.integers(3, 14), size=st.integers(1, 30), seed=st.integers(0, 2**31))
@example(n=3, size=3, seed=6)  # two updates of equal score: one is as far from the largest as the other from the least
def test_foundationfl_is_its_formula_with_both_bases(n, size, seed):
    updates = np.random.default_rng(seed).standard_normal((n, size)).astype(np.float32)
    view, f = ServerView(torch.from_numpy(updates)), (n - 1) // 3
    doubles = updates.astype(np.float64)
    low, high = doubles.min(axis=0), doubles.max(axis=0)
    scores = np.array([min(np.linalg.norm(row - high), np.linalg.norm(row - low)) for row in doubles])
    # Scores that are equal by the formula may differ in the last digit, one way here and the other way there.
    farthest = scores >= scores.max() * (1 - 1e-12)
    together = [np.concatenate([doubles, np.repeat(row[None], max(n // 2, 1), axis=0)]) for row in doubles[farthest]]
    trimmed = [trim_mean(rows, (f + 0.5) / len(rows), axis=0) for rows in together]
    medians = [np.median(rows, axis=0) for rows in together]
    _assert_is_one_of(make_rule("foundationfl", num_byzantine=f)(view).update, trimmed, atol=1e-5)
    _assert_is_one_of(make_rule("foundationfl", base="median")(view).update, medians, atol=1e-6)


def _assert_is_one_of(update, expected, atol):
    nearest = min(expected, key=lambda each: np.abs(update.numpy() - each).max())
    np.testing.assert_allclose(update, nearest, atol=atol)


def test_more_copies_draw_the_median_to_the_least_extreme_update():
    updates = torch.randn(9, 20, generator=torch.Generator().manual_seed(0))
    copied = make_rule("foundationfl", base="median", copies=3.0)(ServerView(updates)).update
    assert any(torch.equal(copied, row) for row in updates)


def test_foundationfl_quotes_its_bound():
    with pytest.raises(ValueError, match=r"foundationfl needs n >= 2f \+ 1; got n=4, f=num_byzantine=2"):
        make_rule("foundationfl", num_byzantine=2)(ServerView(torch.ones(4, 3)))


def test_an_unknown_base_lists_the_names():
    with pytest.raises(ValueError, match="unknown base of foundationfl 'krum'; there are: trimmed_mean, median"):
        make_rule("foundationfl", base="krum")
