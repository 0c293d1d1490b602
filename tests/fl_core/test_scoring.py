import numpy as np
import pytest
import torch

from fl_core import Federation, Scenario


def play(federation: Federation, rounds: int) -> None:
    for _ in range(rounds):
        federation.apply(federation.local_round().view.updates.mean(dim=0))


def test_candidates_are_scored_as_the_models_they_would_become(federation):
    built = federation()
    play(built, 3)
    view = built.local_round().view
    candidates = torch.stack([torch.zeros_like(view.reference), view.reference, view.updates[0]])
    together = built.evaluate(candidates, "validation")
    model, round_ = built.shared.clone(), built.round
    for row, update in enumerate(candidates):
        alone = built.evaluate(update[None], "validation")
        assert together.loss[row].item() == pytest.approx(alone.loss.item(), rel=1e-4)
        assert together.accuracy[row] == alone.accuracy[0]
    assert torch.equal(built.shared, model)
    assert built.round == round_
    built.apply(view.reference)
    after = built.evaluate(torch.zeros(1, built.layout.num_shared), "validation")
    assert after.loss.item() == pytest.approx(together.loss[1].item(), rel=1e-4)


def test_a_part_of_a_split_is_spread_evenly_over_it(federation):
    built = federation()
    play(built, 2)
    built.local_round()
    nothing = torch.zeros(1, built.layout.num_shared)
    samples = built.splits.test
    assert torch.equal(built.evaluate(nothing, "test", at_most=len(samples)).loss, built.evaluate(nothing, "test").loss)
    part = samples[::3]
    local = built.engine.reestimate(built.shared[None], built.local[-1:], built.simulator.images)
    logits = built.engine.logits(built.shared[None], local, built.dataset.images(part))[0]
    right = (logits.argmax(dim=1) == built.dataset.labels[part]).double().mean()
    for at_most in (len(part), len(samples) // 2 - 1):  # the next whole step that keeps to the limit
        assert built.evaluate(nothing, "test", at_most=at_most).accuracy.item() == pytest.approx(right.item())


def test_no_sample_at_all_is_refused(federation):
    built = federation()
    built.local_round()
    with pytest.raises(ValueError, match=r"at_most must be at least 1 sample .*got 0"):
        built.evaluate(torch.zeros(1, built.layout.num_shared), "test", at_most=0)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_score_is_the_share_of_that_splits_samples_that_the_model_gets_right(federation, split):
    built = federation()
    play(built, 5)
    built.local_round()
    local = built.engine.reestimate(built.shared[None], built.local[-1:], built.simulator.images)
    samples = getattr(built.splits, split)
    answers = built.engine.logits(built.shared[None], local, built.dataset.images(samples))[0].argmax(dim=1)
    expected = np.mean(answers.numpy() == built.dataset.labels[samples].numpy())
    score = built.evaluate(torch.zeros(1, built.layout.num_shared), split)
    assert score.accuracy.item() == pytest.approx(expected)


def test_a_model_is_scored_on_validation_or_test_data_only(federation):
    built = federation()
    for split in ("utility", "clients", "tset"):
        with pytest.raises(ValueError, match=f"unknown split '{split}'; there are: validation, test"):
            built.evaluate(torch.zeros(1, built.layout.num_shared), split)
        with pytest.raises(ValueError, match=f"unknown split '{split}'"):
            built.evaluate_personalised(split)


def test_personalised_accuracy_is_each_clients_own_model_on_its_own_mixture_of_classes(federation):
    built = federation(Scenario(alpha=0.3), entropy=1)
    play(built, 5)
    result = built.evaluate_personalised("test")
    samples = built.splits.test
    labels = built.dataset.labels[samples].numpy()
    assert result.shape == (10,)
    for i in (0, 4, 9):
        logits = built.engine.logits(built.shared[None], built.local[i : i + 1], built.dataset.images(samples))[0]
        right = logits.argmax(dim=1).numpy() == labels
        mine = built.dataset.labels[built.shards[i]].numpy()
        assert result[i].item() == pytest.approx(np.mean([right[labels == y].mean() for y in mine]))


@pytest.mark.parametrize(
    "scenario", [Scenario(alpha=0.3), Scenario(alpha=0.3, feature_shift=1.0)], ids=["same", "shifted"]
)
def test_some_clients_personalised_accuracy_is_what_it_is_among_all(federation, scenario):
    built = federation(scenario, entropy=1)
    play(built, 3)
    chosen = torch.tensor([7, 0, 4])
    assert len(built.evaluate_personalised("test").unique()) > 1
    assert torch.equal(built.evaluate_personalised("test", chosen), built.evaluate_personalised("test")[chosen])
