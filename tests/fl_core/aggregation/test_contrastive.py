"""FLGuard: whom it keeps in rounds made by hand, and the parts that it is made of."""

import copy
import gc
import math
import weakref

import pytest
import torch

from fl_core.aggregation import ServerView, make_rule
from fl_core.aggregation.contrastive import FLGuard, nt_xent


def round_of(honest: int, malicious: int, seed: int, size: int = 120) -> torch.Tensor:
    """Honest updates around a common one; malicious ones, the last rows, around its reverse."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.linspace(0.5, 1.5, size)
    updates = common + 0.3 * torch.randn(honest + malicious, size, generator=generator)
    updates[honest:] -= 2 * common
    return updates


@pytest.mark.parametrize("malicious", [1, 3, 4])
def test_flguard_keeps_the_larger_cluster_in_every_round(malicious):
    rule = make_rule("flguard")
    for number in range(12):
        updates = round_of(10 - malicious, malicious, seed=number)
        result = rule(ServerView(updates, round=number))
        assert (result.weights[10 - malicious :] == 0).all()
        assert (result.weights > 0).sum() >= 3
        torch.testing.assert_close(result.update, updates[result.weights > 0].mean(dim=0))


def test_flguard_keeps_the_attackers_when_they_are_the_larger_cluster():
    """A server is not told that more than half of the clients attack; the authors' script is."""
    weights = make_rule("flguard")(ServerView(round_of(3, 8, seed=0))).weights
    assert (weights[:3] == 0).all()


def test_flguard_is_the_mean_of_a_single_client():
    updates = round_of(1, 0, seed=0)
    torch.testing.assert_close(make_rule("flguard")(ServerView(updates)).update, updates[0])


def test_flguard_trains_on_the_last_five_rounds_and_anew_after_five(monkeypatch):
    trained, now = [], 0
    train = FLGuard.train
    monkeypatch.setattr(
        FLGuard, "train", lambda rule, rows, source: trained.append((now, len(rows))) or train(rule, rows, source)
    )
    rule = make_rule("flguard")
    for now in range(11):
        rule(ServerView(round_of(7, 3, seed=now), round=now))
    assert trained == [(0, 10), (5, 50), (10, 50)]
    assert [len(rows) for rows in rule._past.rows] == [10] * 5


def test_what_an_adversary_tries_out_trains_nothing_anew_and_changes_nothing(monkeypatch):
    """It asks copies; in a round whose encoders are due they are trained once for all of them."""
    alone, asked = make_rule("flguard"), make_rule("flguard")
    for number in range(5):
        for rule in (alone, asked):
            rule(ServerView(round_of(7, 3, seed=number), round=number))
    trainings = []
    train = FLGuard.train
    monkeypatch.setattr(FLGuard, "train", lambda *given: trainings.append(given) or train(*given))
    for seed in range(3):
        copy.deepcopy(asked)(ServerView(round_of(7, 3, seed=100 + seed), round=5))
    assert len(trainings) == 1
    now = ServerView(round_of(7, 3, seed=5), round=5)
    assert torch.equal(asked(now).update, alone(now).update)


def test_copies_that_an_adversary_asked_are_freed_at_once_and_copy_no_update():
    """Left to the garbage collector, which does not know how large a tensor is, a search filled gigabytes."""
    rule = make_rule("flguard")
    for number in range(4):
        rule(ServerView(round_of(7, 3, seed=number), round=number))
    gc.disable()
    try:
        asked = copy.deepcopy(rule)
        asked(ServerView(round_of(7, 3, seed=100), round=4))  # after which its encoders are due
        assert all(one is other for one, other in zip(rule._past.rows, asked._past.rows, strict=False))
        past = weakref.ref(asked._past)
        del asked
        assert past() is None
    finally:
        gc.enable()


def test_one_encoder_sees_the_coordinates_of_least_variance_that_move_at_all():
    updates = round_of(7, 3, seed=0, size=60)
    updates[:, :10] = 0.7
    updates[:, 10:20] = 0.01 * torch.randn(10, 10, generator=torch.Generator().manual_seed(1))
    rule = make_rule("flguard", coordinates=10)
    rule(ServerView(updates))
    random, low = (encoder.coordinates for encoder in rule._past.training.encoders)
    assert sorted(low.tolist()) == list(range(10, 20))
    assert sorted(random.tolist()) != list(range(10, 20))
    assert len(random.unique()) == 10


def test_of_a_large_model_a_fixed_pool_of_coordinates_is_remembered():
    rule = make_rule("flguard", steps=1)
    for number in range(2):
        rule(ServerView(round_of(4, 1, seed=number, size=70_000), round=number))
    assert {tuple(rows.shape) for rows in rule._past.rows} == {(5, 65_536)}


def test_training_works_where_gradients_are_switched_off():
    with torch.no_grad():
        weights = make_rule("flguard")(ServerView(round_of(7, 3, seed=0))).weights
    assert torch.equal(weights, make_rule("flguard")(ServerView(round_of(7, 3, seed=0))).weights)


def test_the_contrastive_loss_is_its_formula():
    one, other = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.cat([one, other])
    rows = rows / rows.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(10):
        others = sum(math.exp(float(rows[i] @ rows[k]) / 0.5) for k in range(10) if k != i)
        total -= math.log(math.exp(float(rows[i] @ rows[(i + 5) % 10]) / 0.5) / others)
    assert float(nt_xent(one, other, 0.5)) == pytest.approx(total / 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be greater than 0"),
        ({"hide": 1.0}, r"hide must be a probability in \[0, 1\)"),
    ],
)
def test_impossible_settings_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=f"flguard: {message}"):
        make_rule("flguard", **options)
