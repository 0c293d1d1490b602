import hashlib
import inspect
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core import Federation, Scenario
from fl_core import federation as federation_module
from fl_core.aggregation import make_rule
from fl_core.data import load_dataset
from fl_core.training.sampling import cyclic

NOISY = Scenario("gaussian_noise", 0.3, alpha=0.5, onset=1)


def digest(entropy: int) -> str:
    """What three rounds leave behind: models, features, scores. Its source also runs in another process."""
    import hashlib

    import torch

    from fl_core import Federation, Scenario, configure

    federation = Federation(configure())
    federation.reset(Scenario("gaussian_noise", 0.3, alpha=0.5, onset=1), entropy)
    trace = hashlib.sha256()
    for _ in range(3):
        view = federation.local_round().view
        federation.apply(view.updates.mean(dim=0))
        metrics = federation.evaluate(torch.zeros(1, federation.layout.num_shared), "validation")
        for tensor in (view.updates, view.fingerprint.raw, federation.shared, federation.local, metrics.loss):
            trace.update(tensor.numpy().tobytes())
    return trace.hexdigest()


class Spy:
    """Passes everything on to an engine, and keeps the images that clients were trained on."""

    def __init__(self, engine):
        self.engine, self.images = engine, []

    def train(self, shared, local, images, labels, **kwargs):
        self.images.append(images.clone())
        return self.engine.train(shared, local, images, labels, **kwargs)


def fingerprint_of(image: torch.Tensor) -> bytes:
    return hashlib.sha256(image.numpy().tobytes()).digest()


def play(federation: Federation, rounds: int) -> None:
    for _ in range(rounds):
        federation.apply(federation.local_round().view.updates.mean(dim=0))


def test_equal_entropy_gives_bit_equal_rounds_in_one_process_and_in_another():
    code = f"import torch\ntorch.set_num_threads(1)\n{inspect.getsource(digest)}\nprint(digest(7))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert digest(7) == digest(7) == child.stdout.strip()


def test_another_entropy_gives_another_episode():
    assert digest(7) != digest(8)


def test_a_second_episode_in_the_same_federation_equals_one_in_a_fresh_federation(federation):
    used = federation(NOISY, entropy=1)
    play(used, 3)
    used.reset(NOISY, 2)
    fresh = federation(NOISY, entropy=2)
    for _ in range(2):
        one, other = used.local_round().view, fresh.local_round().view
        assert torch.equal(one.updates, other.updates)
        assert torch.equal(one.fingerprint.raw, other.fingerprint.raw)
        used.apply(one.reference)
        fresh.apply(other.reference)


def test_fedavg_without_attack_learns_the_digits(federation):
    built = federation(Scenario(), entropy=0)
    nothing = torch.zeros(1, built.layout.num_shared)
    assert built.evaluate(nothing, "validation").accuracy < 0.4
    rule = make_rule("fedavg")
    for _ in range(20):
        built.apply(rule(built.local_round().view).update)
    metrics = built.evaluate(nothing, "validation")
    assert metrics.accuracy > 0.9
    assert metrics.loss < 0.5


def test_a_scaled_sign_flip_ruins_fedavg_and_not_the_oracle(federation):
    scores = {}
    for name in ("fedavg", "oracle"):
        built = federation(Scenario("sign_flip", 0.3, attack_options={"scale": 10.0}), entropy=0)
        rule = make_rule(name)
        if name == "oracle":
            rule = rule.told(built.malicious)
        for _ in range(10):
            built.apply(rule(built.local_round().view).update)
        scores[name] = built.evaluate(torch.zeros(1, built.layout.num_shared), "validation").accuracy.item()
    assert scores["oracle"] > 0.85
    assert scores["fedavg"] < 0.5


@pytest.mark.parametrize("objective", ["fedbn", "fedbn_prox"])
def test_batchnorm_stays_with_each_client_and_changes_from_round_to_round(federation, objective):
    built = federation(Scenario(), entropy=0, objective=objective)
    assert built.local.shape == (11, 96)
    assert (built.local == built.local[0]).all(), "everybody begins with the same BatchNorm"
    view = built.local_round().view
    assert view.updates.shape == (10, 1922 - 48), "BatchNorm was sent"
    first = built.local.clone()
    assert len(first.unique(dim=0)) == 11, "two participants hold the same BatchNorm"
    built.apply(view.updates.mean(dim=0))
    assert torch.equal(built.local, first), "aggregation touched a client's BatchNorm"
    seen = {}
    train = built.engine.train

    def spy(shared, local, *args, **kwargs):
        seen["local"] = local.clone()
        return train(shared, local, *args, **kwargs)

    built.engine.train = spy
    built.local_round()
    assert torch.equal(seen["local"], first), "a round does not begin with what the last one left"
    assert ((built.local - first).abs().amax(dim=1) > 0).all()


def test_the_server_has_a_batchnorm_of_its_own_and_scores_with_its_affine(federation):
    built = federation(Scenario(), entropy=0)
    view = built.local_round().view
    assert torch.equal(view.server_local, built.local[-1])
    assert not any(torch.equal(view.server_local, row) for row in built.local[:-1])
    nothing = torch.zeros(1, built.layout.num_shared)
    before = built.evaluate(nothing, "validation").loss
    built.local[:-1] += 1
    assert torch.equal(built.evaluate(nothing, "validation").loss, before)
    built.local[-1, :8] += 1  # the first BatchNorm's weights
    assert not torch.equal(built.evaluate(nothing, "validation").loss, before)


def test_running_statistics_of_the_server_do_not_matter_for_the_score_because_they_are_re_estimated(federation):
    built = federation(Scenario(), entropy=0)
    built.local_round()
    statistics = torch.cat([torch.full((e.size,), "running" in e.name) for e in built.layout.local])
    nothing = torch.zeros(1, built.layout.num_shared)
    before = built.evaluate(nothing, "validation").loss
    built.local[-1, statistics] = 123.0
    assert torch.equal(built.evaluate(nothing, "validation").loss, before)


def test_with_fedavg_batchnorm_is_part_of_the_update(federation):
    built = federation(Scenario(), entropy=0, objective="fedavg")
    assert built.local_round().view.updates.shape == (10, 1922 + 48)
    assert built.local.shape == (11, 0)


def test_clients_train_on_their_own_shards_and_the_server_on_its_reference_half(federation):
    built = federation(Scenario(alpha=0.5), entropy=3)
    built.engine = spy = Spy(built.engine)
    rounds = 4
    play(built, rounds)
    images = built.dataset.images
    for who, shard in enumerate([*built.shards, built.splits.reference]):
        own = {fingerprint_of(image) for image in images(shard)}
        used = {fingerprint_of(image) for round_ in spy.images for image in round_[who].flatten(0, 1)}
        assert used <= own
        # 48 samples a round, drawn anew: after four rounds no small part of a shard is left out by construction.
        assert len(used) > 0.5 * min(len(own), 48 * rounds)
    assert sorted(torch.cat(built.shards).tolist()) == built.splits.clients.tolist()


def test_no_training_touches_utility_validation_or_test_samples(federation):
    built = federation(Scenario(), entropy=3)
    built.engine = spy = Spy(built.engine)
    play(built, 3)
    used = {fingerprint_of(image) for round_ in spy.images for image in round_.flatten(0, 2)}
    train_side = {fingerprint_of(image) for image in built.dataset.images(built.splits.clients)}
    train_side |= {fingerprint_of(image) for image in built.dataset.images(built.splits.reference)}
    forbidden = torch.cat([built.splits.utility, built.splits.validation, built.splits.test])
    held = {fingerprint_of(image) for image in built.dataset.images(forbidden)} - train_side
    assert len(held) > 600
    assert not used & held


def test_an_update_is_what_is_added_to_the_global_model(federation, normal):
    built = federation()
    before, update = built.shared.clone(), normal(built.layout.num_shared)
    built.apply(update)
    assert torch.equal(built.shared, before + update)
    assert built.round == 1


def test_an_update_in_float64_leaves_the_model_in_float32_and_one_of_another_shape_is_refused(federation, normal):
    built = federation()
    built.apply(normal(built.layout.num_shared).double())
    assert built.shared.dtype == built._last_change.dtype == torch.float32
    with pytest.raises(ValueError, match=r"an update has the shape \(1874,\), got \(1,\)"):
        built.apply(torch.zeros(1))
    assert built.round == 1


def test_a_round_shows_the_server_the_model_the_reference_and_the_round_number(federation):
    built = federation()
    play(built, 2)
    model = built.shared.clone()
    view = built.local_round().view
    assert view.round == 2
    assert torch.equal(view.global_model, model)
    assert view.reference.shape == (built.layout.num_shared,)
    assert view.fingerprinter is built.fingerprinter


def test_the_reference_update_is_an_honest_one_even_when_all_but_one_client_attack(federation):
    calm = federation(Scenario(), entropy=1).local_round().view.reference
    attacked = federation(Scenario("label_flip", 0.9), entropy=1).local_round().view.reference
    assert torch.equal(calm, attacked)


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.3, 3), (0.35, 3), (0.9, 9)])
def test_the_scenarios_share_of_the_clients_is_malicious_and_who_it_is_depends_on_the_entropy(
    federation, fraction, count
):
    built = federation(Scenario("sign_flip", fraction))
    drawn = set()
    for entropy in range(5):
        built.reset(Scenario("sign_flip", fraction), entropy)
        assert built.malicious.sum() == count
        drawn.add(tuple(built.malicious.tolist()))
    assert len(drawn) > 1 or count == 0


def test_before_the_onset_malicious_clients_behave_honestly(federation):
    calm = federation(Scenario("none", 0.3), entropy=1)
    late = federation(Scenario("sign_flip", 0.3, onset=2), entropy=1)
    for round_ in range(4):
        honest, attacked = calm.local_round(), late.local_round()
        assert attacked.attacking == (round_ >= 2)
        assert torch.equal(honest.view.updates, attacked.view.updates) == (round_ < 2)
        calm.apply(honest.view.reference)
        late.apply(honest.view.reference)


def test_an_attack_that_overflows_costs_its_senders_the_weight_and_not_the_round(federation):
    built = federation(Scenario("scaling", 0.3, attack_options={"factor": 1e300}))
    round_ = built.local_round()
    assert torch.equal(round_.view.rejected, round_.malicious)
    result = make_rule("fedavg")(round_.view)
    assert result.weights[round_.malicious].tolist() == [0, 0, 0]
    assert round_.view.fingerprint.observation.isfinite().all()
    built.apply(result.update)
    assert built.evaluate(torch.zeros(1, built.layout.num_shared), "validation").accuracy > 0.05


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 120), st.integers(0, 2**31))
def test_samples_are_taken_cyclically_so_that_none_counts_twice_before_all_have_counted_once(length, size, seed):
    shard = torch.arange(100, 100 + length)
    taken = cyclic(shard, size, torch.Generator().manual_seed(seed))
    assert taken.shape == (size,)
    counts = torch.bincount(taken - 100, minlength=length)
    assert counts.max() - counts.min() <= 1
    assert len(taken[:length].unique()) == min(length, size)


def test_a_round_is_the_same_with_either_engine(federation):
    one, other = (federation(NOISY, entropy=1, engine=name).local_round().view for name in ("sequential", "stacked"))
    torch.testing.assert_close(one.updates, other.updates, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.reference, other.reference, atol=1e-5, rtol=1e-4)


def test_there_may_be_as_many_clients_as_samples(federation):
    built = federation(num_clients=1047)
    assert [len(shard) for shard in built.shards] == [1] * 1047
    assert built.local_round().view.updates.isfinite().all()


def test_a_partition_that_cannot_be_drawn_is_refused_at_reset(federation):
    with pytest.raises(ValueError, match=r"alpha=0\.001 left a client with fewer than 2"):
        federation(Scenario(alpha=0.001), num_clients=30)


def test_federations_in_one_process_share_the_pixels(federation):
    assert federation().dataset.pixels is federation(num_clients=3).dataset.pixels is load_dataset("digits").pixels


def test_the_test_side_is_the_same_for_every_split_seed(federation):
    one, other = (federation(split_seed=seed).splits for seed in (0, 1))
    assert torch.equal(one.test, other.test)
    assert not torch.equal(one.validation, other.validation)


def test_neither_the_truth_nor_the_episodes_streams_can_be_reached_from_the_view(federation):
    built = federation(NOISY, entropy=12345)
    view = built.local_round().view
    streams = view.fingerprinter._streams
    assert streams.entropy != 12345
    reachable, stack = [], [view]
    while stack:
        thing = stack.pop()
        if any(thing is known for known in reachable):
            continue
        reachable.append(thing)
        if type(thing).__module__.startswith("fl_core"):
            stack.extend(vars(thing).values())
    assert len(reachable) > 10
    assert not any(thing is built.malicious for thing in reachable)
    assert not any(isinstance(thing, Scenario | Federation) for thing in reachable)


@pytest.mark.parametrize("attack", ["none", "sign_flip", "label_flip"])
def test_how_often_updates_have_been_written_to_tells_nobody_whether_there_is_an_attack(federation, attack):
    view = federation(Scenario(attack, 0.3, alpha=0.5)).local_round().view
    assert view.updates._version == 0


@pytest.mark.parametrize("attack", ["edge_case", "dynamic_label_flip", "label_flip"])
def test_what_attackers_train_on_does_not_depend_on_how_many_are_trained_at_a_time(federation, monkeypatch, attack):
    """They pool what they have, so they must be asked together."""
    whole = federation(Scenario(attack, 0.5, alpha=1.0), 3)
    parts = federation(Scenario(attack, 0.5, alpha=1.0), 3)
    for _ in range(2):
        together = whole.local_round().view.updates
        with monkeypatch.context() as patch:
            patch.setattr(federation_module, "_PIXELS_AT_ONCE", 1)
            one_by_one = parts.local_round().view.updates
        torch.testing.assert_close(one_by_one, together, atol=1e-5, rtol=1e-4)
        for built in (whole, parts):
            built.apply(together.mean(dim=0))


def test_a_network_is_drawn_without_seeding_the_callers_gpus(federation, monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    state = torch.get_rng_state()
    federation(Scenario(), 0)
    assert seeded == []
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_answers_nothing_finite_is_no_backdoor(federation):
    built = federation(Scenario("model_replacement", 0.3, alpha=1.0), 0)
    built.apply(torch.full((built.layout.num_shared,), float("nan")))
    assert built.attack_success("validation") == 0
    assert float(built.evaluate(torch.zeros(1, built.layout.num_shared), "validation").accuracy[0]) == 0
