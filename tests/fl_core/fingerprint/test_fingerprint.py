import copy
from math import inf, nan

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_core import Federation, Scenario, configure
from fl_core.aggregation import ServerView
from fl_core.fingerprint import FEATURES, OBSERVATION_HIGH, OBSERVATION_LOW, Fingerprint
from fl_core.fingerprint.geometry import clip_to_median

WORST = [3.0, -1.0, -1.0, 3.0, -1.0, -1.0]


@pytest.fixture
def played(federation):
    """A federation in its third round, and the view of it; exact Shapley values, whose sum is known."""
    built = federation(Scenario("sign_flip", 0.3, alpha=0.5), entropy=2, shapley="exact")
    for _ in range(2):
        built.apply(built.local_round().view.updates.mean(dim=0))
    return built, built.local_round().view


def received(view: ServerView, updates: torch.Tensor) -> ServerView:
    """The same round, had the clients sent these updates."""
    return ServerView(updates, view.global_model, view.reference, view.server_local, view.round, view.fingerprinter)


def assert_bounded(fingerprint: Fingerprint) -> None:
    observation = fingerprint.observation
    assert observation.dtype == torch.float32
    assert observation.isfinite().all()
    assert (observation >= torch.tensor(OBSERVATION_LOW)).all()
    assert (observation <= torch.tensor(OBSERVATION_HIGH)).all()


def test_the_columns_are_the_six_features_in_their_fixed_order():
    assert FEATURES == ("reconstruction_error", "root_cosine", "peer_cosine", "norm", "sign_agreement", "shapley")


def test_raw_features_are_their_definitions(played):
    built, view = played
    raw = view.fingerprint.raw.numpy()
    updates, reference = view.updates.double().numpy(), view.reference.double().numpy()
    lengths = np.sqrt((updates**2).sum(axis=1))
    cosines = (updates @ updates.T) / np.outer(lengths, lengths)
    np.testing.assert_allclose(raw[:, 1], updates @ reference / lengths / np.sqrt(reference @ reference), atol=1e-6)
    np.testing.assert_allclose(raw[:, 2], (cosines.sum(axis=1) - 1) / 9, atol=1e-6)
    np.testing.assert_allclose(raw[:, 3], lengths, rtol=1e-6)
    counted = reference != 0
    agree = np.sign(updates[:, counted]) == np.sign(reference[counted])
    np.testing.assert_allclose(raw[:, 4], agree.mean(axis=1), atol=1e-9)
    assert raw.shape == (10, 6)
    assert (raw[:, 0] > 0).all()
    # Efficiency: the Shapley values share out what the mean of the clipped updates gains on the utility half.
    mean = clip_to_median(view.updates).mean(dim=0)
    rows = torch.stack([view.global_model + mean, view.global_model])
    utility = built.splits.utility
    images, labels = built.dataset.images(utility), built.dataset.labels[utility]
    local = built.engine.reestimate(rows[:1], view.server_local[None], built.simulator.images).expand(2, -1)
    losses = [
        np.mean([-np.log(np.exp(z) / np.exp(z).sum())[y] for z, y in zip(model, labels.tolist(), strict=True)])
        for model in built.engine.logits(rows, local, images).double().numpy()
    ]
    assert raw[:, 5].sum() == pytest.approx(losses[1] - losses[0], abs=1e-5)


def test_the_observation_is_the_bounded_transform_of_the_raw_features(played):
    _, view = played
    raw, observation = view.fingerprint.raw.numpy(), view.fingerprint.observation.numpy()
    np.testing.assert_allclose(observation[:, 1:3], raw[:, 1:3], atol=1e-6)
    np.testing.assert_allclose(observation[:, 3], np.clip(np.log(raw[:, 3] / np.median(raw[:, 3])), -3, 3), atol=1e-6)
    np.testing.assert_allclose(observation[:, 4], 2 * raw[:, 4] - 1, atol=1e-6)
    np.testing.assert_allclose(observation[:, 5], raw[:, 5] / np.abs(raw[:, 5]).max(), atol=1e-6)
    # Column 0 is a log-ratio to one typical error: differences of it are log-ratios of the errors.
    expected = np.log(raw[:, 0]) - np.log(raw[0, 0])
    np.testing.assert_allclose(observation[:, 0] - observation[0, 0], expected, atol=1e-5)


def test_a_column_is_found_by_name(played):
    _, view = played
    for place, name in enumerate(FEATURES):
        assert torch.equal(view.fingerprint.column(name), view.fingerprint.observation[:, place])


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(exponents=st.lists(st.one_of(st.none(), st.integers(-38, 37)), min_size=10, max_size=10))
def test_the_observation_is_bounded_whatever_the_lengths_of_the_updates(played, exponents):
    _, view = played
    factors = torch.tensor([0.0 if e is None else 10.0**e for e in exponents], dtype=torch.float64)
    updates = (view.updates.double() * factors[:, None]).float()
    assert_bounded(received(view, updates).fingerprint)


def test_the_observation_of_clients_that_all_send_nothing_is_bounded(played):
    _, view = played
    fingerprint = received(view, torch.zeros_like(view.updates)).fingerprint
    assert_bounded(fingerprint)
    assert fingerprint.column("norm").tolist() == [0] * 10
    assert fingerprint.column("shapley").abs().max() <= 1


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_a_rejected_client_shows_the_worst_value_in_every_feature_and_the_others_do_not_notice(played, value):
    _, view = played
    updates = view.updates.clone()
    updates[[2, 7], 5] = value
    fingerprint = received(view, updates).fingerprint
    others = torch.tensor([i for i in range(10) if i not in (2, 7)])
    alone = received(view, view.updates[others]).fingerprint
    assert fingerprint.observation[2].tolist() == fingerprint.observation[7].tolist() == WORST
    assert fingerprint.raw[2].tolist() == [inf, -1, -1, inf, 0, -inf]
    torch.testing.assert_close(fingerprint.observation[others], alone.observation)
    torch.testing.assert_close(fingerprint.raw[others], alone.raw)
    assert_bounded(fingerprint)


def test_the_worst_values_are_ends_of_the_bounds():
    for worst, low, high in zip(WORST, OBSERVATION_LOW, OBSERVATION_HIGH, strict=True):
        assert worst in (low, high)


def test_when_all_are_rejected_everybody_shows_the_worst_values(played):
    _, view = played
    fingerprint = received(view, torch.full_like(view.updates, nan)).fingerprint
    assert fingerprint.observation.tolist() == [WORST] * 10


def test_a_fingerprint_does_not_depend_on_the_order_of_the_clients(played):
    _, view = played
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        received(view, view.updates[order]).fingerprint.observation,
        view.fingerprint.observation[order],
        atol=1e-4,
        rtol=1e-4,
    )


def test_a_single_client_has_a_fingerprint(played):
    _, view = played
    assert_bounded(received(view, view.updates[:1]).fingerprint)


def test_fingerprinting_edits_nothing_that_the_view_holds(played):
    _, view = played
    held = [view.updates, view.global_model, view.reference, view.server_local]
    before = [tensor.clone() for tensor in held]
    assert view.fingerprint.raw.shape == (10, 6)
    assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True))


def test_the_typical_error_is_measured_every_20_rounds_and_the_federations_autoencoder_never_changes(federation):
    built = federation(entropy=4)
    base = built.autoencoder(*built.initial_model())()
    before = copy.deepcopy(base.state_dict())
    view = built.local_round().view

    def typical(round_: int) -> torch.Tensor:
        built.fingerprinter.reconstruction_error(
            view.updates, view.global_model, view.reference, view.server_local, round_
        )
        return built.fingerprinter.typical_error

    start = typical(0)
    assert start == base.typical_error
    assert typical(19) == start
    first = typical(20)
    assert first != start
    assert typical(39) == first
    second = typical(40)
    assert second != first
    assert 0.5 < second / start < 2, "updates of one and the same round"

    assert built.autoencoder(*built.initial_model())() is base
    for name, value in base.state_dict().items():
        assert torch.equal(value, before[name])
    built.reset(Scenario(), 4)
    assert typical(0) == start, "an episode inherits from the one before it"


def test_federations_that_differ_in_what_an_autoencoder_does_not_see_share_one(federation):
    def of(**settings):
        built = federation(**settings)
        return built.autoencoder(*built.initial_model())()

    assert of(num_clients=3, update_clip="none", shapley="permutation") is of()
    assert of(learning_rate=0.1) is not of()


@pytest.mark.parametrize("entropy", range(4))
def test_where_nobodys_update_changes_the_loss_nobody_is_worth_more_than_another(entropy):
    federation = Federation(configure(num_clients=10))
    federation.reset(Scenario("zero", 0.6, 0.5), entropy)
    column = federation.local_round().view.fingerprint.column("shapley")  # the median norm, and so the clipping, is 0
    assert float(column.abs().max()) < 1e-3
