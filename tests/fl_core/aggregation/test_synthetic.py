"""FoundationFL against its definition, written out in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean

from fl_core.aggregation import ServerView, make_rule

quick = settings(max_examples=40)


@quick
@given(n=st.integers(3, 14), size=st.integers(1, 30), seed=st.integers(0, 2**31))
def test_foundationfl_is_its_formula_with_both_bases(n, size, seed):
    updates = np.random.default_rng(seed).standard_normal((n, size)).astype(np.float32)
    low, high = updates.min(axis=0), updates.max(axis=0)
    scores = [min(np.linalg.norm(row - high), np.linalg.norm(row - low)) for row in updates.astype(np.float64)]
    together = np.concatenate([updates, np.repeat(updates[[int(np.argmax(scores))]], max(n // 2, 1), axis=0)])
    view = ServerView(torch.from_numpy(updates))
    f = (n - 1) // 3
    trimmed = trim_mean(together.astype(np.float64), (f + 0.5) / len(together), axis=0)
    np.testing.assert_allclose(make_rule("foundationfl", num_byzantine=f)(view).update, trimmed, atol=1e-5)
    median = make_rule("foundationfl", base="median")(view).update
    np.testing.assert_allclose(median, np.median(together, axis=0), atol=1e-6)


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
