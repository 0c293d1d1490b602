from math import inf, isnan, log, nan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from fl_core.evaluation import capped_cross_entropy, personalised_accuracy, score


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 30), st.integers(2, 6), st.floats(0.1, 30), st.integers(0, 2**31))
def test_accuracy_loss_and_class_accuracy_equal_their_definitions(models, samples, classes, spread, seed):
    rng = np.random.default_rng(seed)
    logits, labels = spread * rng.standard_normal((models, samples, classes)), rng.integers(classes, size=samples)
    metrics = score(torch.from_numpy(logits), torch.from_numpy(labels))
    for m in range(models):
        losses = [min(-log_softmax(row)[y], 2 * log(classes)) for row, y in zip(logits[m], labels, strict=True)]
        right = np.array(
            [max(range(classes), key=row.__getitem__) == y for row, y in zip(logits[m], labels, strict=True)]
        )
        assert metrics.loss[m].item() == pytest.approx(np.mean(losses))
        assert metrics.accuracy[m].item() == pytest.approx(right.mean())
        for c in range(classes):
            expected = right[labels == c].mean() if (labels == c).any() else nan
            assert metrics.class_accuracy[m, c].item() == pytest.approx(expected, nan_ok=True)


def test_a_uniform_guess_costs_half_the_cap_and_a_hopeless_sample_the_cap():
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [1e6, 0.0, 0.0, 0.0]]])
    losses = capped_cross_entropy(logits, torch.tensor([1, 1]))
    assert losses[0].tolist() == pytest.approx([log(4), 2 * log(4)])


@pytest.mark.parametrize("where", [0, 1], ids=["at the label", "at another class"])
@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_a_non_finite_output_counts_as_wrong_and_as_the_cap(value, where):
    logits = torch.tensor([[[5.0, 0.0, 0.0], [5.0, 0.0, 0.0]]])
    labels = torch.tensor([0, 0])
    clean = score(logits, labels)
    assert clean.accuracy.item() == 1
    logits[0, 1, where] = value
    metrics = score(logits, labels)
    assert metrics.accuracy.item() == 0.5
    assert metrics.loss.item() == pytest.approx((clean.loss.item() + 2 * log(3)) / 2)


def test_one_blown_up_model_does_not_change_the_figures_of_another(normal):
    logits, labels = normal(2, 20, 5), torch.arange(20) % 5
    alone = score(logits[:1], labels)
    logits[1] = nan
    both = score(logits, labels)
    assert both.loss[0] == alone.loss[0]
    assert both.accuracy[0] == alone.accuracy[0]
    assert both.accuracy[1] == 0
    assert both.loss[1].item() == pytest.approx(2 * log(5))


def test_the_capped_loss_has_the_gradient_of_the_cross_entropy_below_the_cap_and_none_above():
    logits = torch.tensor([[[1.0, 0.0, 0.0], [50.0, 0.0, 0.0]]], requires_grad=True)
    capped_cross_entropy(logits, torch.tensor([1, 1])).sum().backward()
    below = torch.softmax(torch.tensor([1.0, 0.0, 0.0]), dim=0) - torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(logits.grad, torch.stack([below, torch.zeros(3)])[None])


@pytest.mark.parametrize("broken", [inf, -inf, nan])
def test_a_sample_whose_logits_are_not_finite_costs_the_cap_and_sends_no_gradient_back(broken):
    logits = torch.tensor([[[broken, 0.0, 0.0], [1.0, 0.0, 0.0]]], requires_grad=True)
    losses = capped_cross_entropy(logits, torch.tensor([1, 1]))
    losses.sum().backward()
    assert losses[0, 0].item() == pytest.approx(2 * log(3))
    below = torch.softmax(torch.tensor([1.0, 0.0, 0.0]), dim=0) - torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(logits.grad, torch.stack([torch.zeros(3), below])[None])


def test_personalised_accuracy_weights_classes_as_the_client_has_them():
    per_class = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.5, 0.0]], dtype=torch.float64)
    counts = torch.tensor([[30, 10, 0], [0, 10, 10]])
    assert personalised_accuracy(per_class, counts).tolist() == pytest.approx([0.875, 0.25])


def test_classes_without_test_samples_are_left_out_of_personalised_accuracy():
    per_class = torch.tensor([[0.8, nan, 0.4]], dtype=torch.float64)
    assert personalised_accuracy(per_class, torch.tensor([[1, 98, 1]])).item() == pytest.approx(0.6)
    assert isnan(personalised_accuracy(per_class, torch.tensor([[0, 5, 0]])).item())
