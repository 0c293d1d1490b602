"""Rules that try candidates on root data, and the losses that they go by."""

from math import log

import numpy as np
import pytest
import torch

from fl_core import Scenario
from fl_core.aggregation import ServerView, make_rule
from fl_core.evaluation import capped_cross_entropy

ATTACKED = Scenario("sign_flip", 0.3, 0.5, attack_options={"scale": 5.0})


def later_view(federation, rounds: int = 3, **settings):
    """A federation and what its server sees after some rounds of plain averaging."""
    built = federation(ATTACKED, **settings)
    for _ in range(rounds):
        built.apply(built.local_round().view.updates[~built.malicious].mean(dim=0))
    return built, built.local_round().view


@pytest.mark.parametrize("settings", [{}, {"objective": "fedprox"}, {"engine": "stacked"}])
def test_root_losses_are_those_of_the_federations_own_forward_passes_one_model_at_a_time(settings, federation):
    built, view = later_view(federation, **settings)
    candidates = torch.cat([torch.zeros(1, view.updates.shape[1]), view.updates, view.updates.mean(dim=0)[None]])
    losses = view.root_losses(candidates)
    utility = built.splits.utility
    for candidate, loss in zip(candidates, losses, strict=True):
        model = (built.shared + candidate)[None]
        local = built.engine.reestimate(model, built.local[-1:], built.simulator.images)
        logits = built.engine.logits(model, local, built.dataset.images(utility))
        expected = capped_cross_entropy(logits, built.dataset.labels[utility]).mean()
        assert float(loss) == pytest.approx(float(expected), abs=1e-5)
    assert losses.dtype == torch.float64
    assert len(losses.unique()) == len(losses)
    each = view.root_sample_losses(candidates)
    assert each.shape == (len(candidates), len(utility))
    torch.testing.assert_close(each.mean(dim=1), losses)


def test_a_candidate_does_not_change_the_loss_of_another(federation):
    _, view = later_view(federation)
    alone = view.root_losses(view.updates[:3])
    together = view.root_losses(torch.cat([view.updates[:3], 1e30 * view.updates[3:4]]))
    torch.testing.assert_close(together[:3], alone, atol=1e-6, rtol=0)
    assert float(alone.max()) < float(together[3]) <= 2 * log(10)


def test_root_losses_need_root_data():
    with pytest.raises(ValueError, match="the loss on root data needs root data"):
        ServerView(torch.zeros(3, 4)).root_losses(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="the loss on root data needs root data"):
        ServerView(torch.zeros(3, 4)).root_sample_losses(torch.zeros(1, 4))


def test_root_losses_carry_no_gradient_and_are_ordinary_tensors(federation):
    _, view = later_view(federation, rounds=0)
    losses = view.root_losses(view.updates)
    assert not losses.requires_grad
    assert not losses.is_inference()


def test_best_of_k_is_never_worse_on_root_data_than_any_of_its_rules(federation):
    _, view = later_view(federation)
    names = ("fedavg", "median", "krum", "fltrust", "root_only")
    own = torch.stack([make_rule(name)(view).update for name in names])
    chosen = make_rule("best_of_k", rules=names)(view)
    losses = view.root_losses(torch.cat([chosen.update[None], own]))
    assert float(losses[0]) == pytest.approx(float(losses[1:].min()), abs=1e-6)
    assert len(losses[1:].unique()) > 1


def test_best_of_k_hands_on_the_weights_of_the_rule_that_was_best(federation):
    _, view = later_view(federation)
    chosen, only = make_rule("best_of_k", rules=("root_only",))(view), make_rule("root_only")(view)
    assert torch.equal(chosen.update, only.update)
    assert chosen.root_weight == 1


def test_best_of_k_tells_its_rules_the_number_and_resets_them():
    rule = make_rule("best_of_k", rules=("trimmed_mean", "foolsgold", "fedavg"), num_byzantine=2)
    trimmed, remembering, _ = rule._made
    assert trimmed.num_byzantine == 2
    remembering(ServerView(torch.ones(3, 4)))
    assert remembering._sums.of
    rule.reset()
    assert not remembering._sums.of


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((), "rules must be a tuple of names"),
        ("fedavg", "rules must be a tuple of names"),
        (("best_of_k",), "cannot contain best_of_k itself"),
        (("oracle",), "oracle needs the truth"),
        (("fedavg", "clipping+nnm+oracle"), "Oracle needs the truth"),
        (("nonsense",), "unknown aggregation rule 'nonsense'"),
    ],
)
def test_best_of_k_refuses_rules_that_it_cannot_try(rules, message):
    with pytest.raises(ValueError, match=message):
        make_rule("best_of_k", rules=rules)


def fedgreed_one_at_a_time(view) -> list[int]:
    """The clients that the paper's algorithm takes, with a loss for each step."""
    loss_of = lambda update: float(view.root_losses(update[None])[0])  # noqa: E731
    order = sorted(range(len(view.updates)), key=lambda i: loss_of(view.updates[i]))
    taken, before = order[:1], loss_of(view.updates[order[0]])
    for i in order[1:]:
        after = loss_of(view.updates[[*taken, i]].mean(dim=0))
        if after > before:
            break
        taken, before = [*taken, i], after
    return sorted(taken)


@pytest.mark.parametrize("rounds", [0, 2, 5])
def test_fedgreed_takes_whom_the_algorithm_takes_one_loss_at_a_time(rounds, federation):
    _, view = later_view(federation, rounds)
    weights = make_rule("fedgreed")(view).weights
    assert (weights > 0).nonzero()[:, 0].tolist() == fedgreed_one_at_a_time(view)


@pytest.mark.parametrize("seed", range(4))
def test_fedgreed_never_ends_worse_on_root_data_than_the_best_single_client(seed, federation):
    _, view = later_view(federation, rounds=seed, entropy=seed)
    result = make_rule("fedgreed")(view)
    losses = view.root_losses(torch.cat([result.update[None], view.updates]))
    assert float(losses[0]) <= float(losses[1:].min()) + 1e-6


def test_fedgreed_keeps_attackers_out(federation):
    built, view = later_view(federation)
    assert (make_rule("fedgreed")(view).weights[built.malicious] == 0).all()


def test_fltrust_is_its_formula(normal):
    updates, reference = normal(7, 20, seed=3), normal(20, seed=4)
    result = make_rule("fltrust")(ServerView(updates, reference=reference))
    x, r = updates.double().numpy(), reference.double().numpy()
    lengths = np.linalg.norm(x, axis=1)
    trust = np.maximum(x @ r / lengths / np.linalg.norm(r), 0)
    expected = (trust * np.linalg.norm(r) / lengths) @ x / trust.sum()
    np.testing.assert_allclose(result.update, expected, atol=1e-5)


def test_root_cosine_trusts_by_the_positive_part_of_the_cosine(view, normal):
    seen = view(normal(6, 9))
    cosines = torch.nn.functional.cosine_similarity(seen.updates.double(), seen.reference.double()[None])
    trust = cosines.clamp_min(0)
    assert 0 < (trust > 0).sum() < 6
    result = make_rule("root_cosine")(seen)
    torch.testing.assert_close(result.weights.double(), trust / (trust.sum() + 1), atol=1e-6, rtol=1e-5)
    assert result.root_weight == pytest.approx(1 / (1 + float(trust.sum())))
