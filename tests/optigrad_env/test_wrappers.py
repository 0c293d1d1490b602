"""The recorder keeps what the environment does; what the others show of the clients, and what they leave alone."""

import warnings
from multiprocessing.reduction import ForkingPickler
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from optigrad_env import OptiGradEnv
from optigrad_env.masked import MaskedOptiGradEnv
from optigrad_env.wrappers import ClientHistory, FeatureDropout, FeatureShuffle, FeatureSubset, RoundRecorder

ATTACKED = {"attack": "gaussian_noise", "malicious_fraction": 0.4, "alpha": 0.5, "onset": 0}


@pytest.mark.parametrize("update_clip", ["median", "reference", "median_or_reference", "none"])
@pytest.mark.parametrize("kind", ["finite", "nan"])
def test_a_recorded_round_reproduces_the_environments_aggregation(
    update_clip: str, kind: str, broken_senders: dict[str, dict[str, Any]]
) -> None:
    env = RoundRecorder(OptiGradEnv(num_clients=5, rounds=4, update_clip=update_clip))
    env.reset(seed=1, options={**ATTACKED, **broken_senders.get(kind, {})})
    rng = np.random.default_rng(0)
    for _ in range(4):
        recorded = env.recorded_round()
        before = env.unwrapped.federation.shared
        torch.testing.assert_close(recorded.shared, before, rtol=0, atol=0)
        *_, info = env.step(rng.uniform(-1, 1, 5).astype(np.float32))
        aggregate = torch.from_numpy(info["weights"]) @ recorded.updates + info["root_weight"] * recorded.reference
        torch.testing.assert_close(env.unwrapped.federation.shared - before, aggregate, rtol=0, atol=2e-6)
        assert recorded.updates.isfinite().all()


@pytest.mark.parametrize("exponent", [0.0, 2.0])
def test_a_recorded_round_says_what_trust_is_multiplied_by(exponent: float) -> None:
    env = RoundRecorder(OptiGradEnv(num_clients=10, rounds=4, sybil_exponent=exponent))
    _, before = env.reset(seed=1, options={**ATTACKED, "attack": "sign_flip", "attack_options": {"colluding": True}})
    recorded = env.recorded_round()
    *_, info = env.step(np.ones(10, np.float32))
    trusted = info["weights"] / info["weights"].max()
    np.testing.assert_allclose(recorded.discount / recorded.discount.max(), trusted, rtol=1e-5)
    assert (recorded.discount[before["malicious"]] < 0.9).all() == (exponent > 0)


def test_a_round_whose_discount_is_of_earlier_trust_cannot_be_recorded() -> None:
    env = RoundRecorder(OptiGradEnv(num_clients=4, rounds=4, sybil_exponent=1, sybil_power=8))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"with sybil_power=8 .* record with sybil_power=0; a policy can be deployed"):
        env.recorded_round()


def test_a_recorded_round_gives_absent_and_rejected_clients_no_update_and_discounts_the_others(
    broken_senders: dict[str, dict[str, Any]],
) -> None:
    env = RoundRecorder(MaskedOptiGradEnv(num_clients=8, rounds=4, sybil_exponent=2.0))
    env.reset(seed=1, options={**ATTACKED, **broken_senders["nan"], "num_clients": 8, "participation": 0.75})
    kinds = set()
    for _ in range(3):
        recorded, weighting = env.recorded_round(), env.unwrapped.federation.config.weighting
        sends = recorded.present & ~recorded.rejected
        kinds |= {(bool(here), bool(sent)) for here, sent in zip(recorded.present, sends, strict=True)}
        assert not recorded.updates[~sends].any()
        torch.testing.assert_close(recorded.discount[sends], weighting.discount(recorded.updates[sends]))
        env.step(np.ones(8, np.float32))
    assert kinds == {(True, True), (True, False), (False, False)}


def test_a_recorded_round_holds_the_observation_the_truth_and_the_honest_mean() -> None:
    env = RoundRecorder(OptiGradEnv(num_clients=5, rounds=4))
    observation, info = env.reset(seed=1, options=ATTACKED)
    recorded = env.recorded_round()
    np.testing.assert_array_equal(recorded.observation.numpy(), observation)
    np.testing.assert_array_equal(recorded.corrupted.numpy(), info["malicious"])
    honest = env.unwrapped.current_round.view.updates.double().numpy()[~info["malicious"]].mean(axis=0)
    np.testing.assert_allclose(recorded.honest.numpy(), honest, atol=1e-6)
    lengths = recorded.updates.norm(dim=1)
    raw = env.unwrapped.current_round.view.updates.norm(dim=1)
    assert lengths.max() <= raw.median() * (1 + 1e-5)


def test_a_recorded_round_stays_as_it_was_when_the_episode_goes_on() -> None:
    env = RoundRecorder(OptiGradEnv(num_clients=3, rounds=3))
    env.reset(seed=1, options=ATTACKED)
    recorded = env.recorded_round()
    copies = {name: value.clone() for name, value in vars(recorded).items()}
    env.step(np.ones(3, np.float32))
    env.reset()
    for name, value in copies.items():
        assert torch.equal(getattr(recorded, name), value), name


def test_recording_does_not_change_the_episode() -> None:
    plain, recorded = OptiGradEnv(num_clients=3, rounds=3), RoundRecorder(OptiGradEnv(num_clients=3, rounds=3))
    for env in (plain, recorded):
        env.reset(seed=1, options=ATTACKED)
    for _ in range(3):
        recorded.recorded_round()
        left, right = plain.step(np.ones(3, np.float32)), recorded.step(np.ones(3, np.float32))
        np.testing.assert_array_equal(left[0], right[0])
        assert left[1] == right[1]


def test_recording_before_the_first_reset_asks_for_one() -> None:
    with pytest.raises(gym.error.ResetNeeded):
        RoundRecorder(OptiGradEnv(num_clients=3)).recorded_round()


def test_shuffling_keeps_each_features_values_and_loses_whose_they_are() -> None:
    env, shuffled = (OptiGradEnv(num_clients=8, rounds=4) for _ in range(2))
    wrapped = FeatureShuffle(shuffled)
    observation, _ = env.reset(seed=1, options=ATTACKED)
    mixed, _ = wrapped.reset(seed=1, options=ATTACKED)
    orders = []
    for _ in range(4):
        np.testing.assert_array_equal(np.sort(mixed, axis=0), np.sort(observation, axis=0))
        assert mixed.dtype == np.float32
        orders += [tuple(np.argsort(np.argsort(column))) for column in (mixed.T - 0)]
        assert not any(np.array_equal(row, seen) for row, seen in zip(mixed, observation, strict=True))
        observation, mixed = env.step(np.zeros(8, np.float32))[0], wrapped.step(np.zeros(8, np.float32))[0]
    assert len(set(orders)) > len(orders) / 2  # columns move independently, and differently every round


def test_shuffling_the_observation_leaves_reward_and_truth_alone() -> None:
    env, wrapped = OptiGradEnv(num_clients=4, rounds=3), FeatureShuffle(OptiGradEnv(num_clients=4, rounds=3))
    for one in (env, wrapped):
        one.reset(seed=1, options=ATTACKED)
    for _ in range(3):
        left, right = env.step(np.ones(4, np.float32)), wrapped.step(np.ones(4, np.float32))
        assert left[1:4] == right[1:4]
        np.testing.assert_equal(left[4], right[4])


def test_shuffles_follow_the_environments_seed() -> None:
    def played(seed: int) -> np.ndarray:
        env = FeatureShuffle(OptiGradEnv(num_clients=6, rounds=3))
        first, _ = env.reset(seed=seed, options=ATTACKED)
        return np.stack([first, env.step(np.zeros(6, np.float32))[0]])

    np.testing.assert_array_equal(played(3), played(3))
    assert not np.array_equal(played(3), played(4))


def test_what_two_environments_draw_that_nobody_has_seeded_differs_and_goes_on_from_episode_to_episode() -> None:
    def hidden(env: FeatureDropout) -> list[list[bool]]:
        observations = [env.reset()[0], env.step(np.zeros(3, np.float32))[0], env.reset()[0]]
        return [(rows == 0).all(axis=0).tolist() for rows in observations]

    made = [FeatureDropout(OptiGradEnv(num_clients=3, rounds=4, local_steps=1), 0.5) for _ in range(3)]
    drawn = [hidden(env) for env in made]
    assert any(one != drawn[0] for one in drawn[1:])
    assert any(one[0] != one[2] for one in drawn)


def test_a_record_crosses_processes_without_an_open_file_for_every_tensor() -> None:
    # A desktop allows 1024 open files; a warm start records thousands of tensors.
    env = RoundRecorder(OptiGradEnv(num_clients=3, rounds=2))
    env.reset(seed=0)
    recorded = env.recorded_round()
    sent = bytes(ForkingPickler.dumps(recorded))
    assert b"rebuild_storage" not in sent
    received = ForkingPickler.loads(sent)
    assert all(torch.equal(value, vars(received)[name]) for name, value in vars(recorded).items())


def test_before_the_onset_nobody_is_recorded_as_an_attacker() -> None:
    env = RoundRecorder(OptiGradEnv(num_clients=4, rounds=3))
    env.reset(seed=0, options={"attack": "sign_flip", "malicious_fraction": 0.5, "alpha": 1.0, "onset": 1})
    before = env.recorded_round()
    _, _, _, _, info = env.step(np.ones(4, np.float32))
    assert info["malicious"].sum() == 2
    assert not before.corrupted.any()
    assert env.recorded_round().corrupted.tolist() == info["malicious"].tolist()


def test_history_shows_the_last_rounds_and_the_trust_they_were_given_latest_first() -> None:
    env = ClientHistory(OptiGradEnv(num_clients=4, rounds=5), k=2)
    seen = [env.reset(seed=1, options=ATTACKED)[0]]
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (3, 4)).astype(np.float32)
    seen += [env.step(action)[0] for action in actions]
    assert seen[0].shape == (4, 6 + 2 * 7)
    assert (seen[0][:, 6:] == 0).all()
    trust = 1 / (1 + np.exp(-5 * actions.astype(np.float64)))
    for now in (1, 2, 3):
        for lag in (1, 2):
            block = seen[now][:, 6 + 7 * (lag - 1) : 6 + 7 * lag]
            if now >= lag:
                np.testing.assert_array_equal(block[:, :6], seen[now - lag][:, :6])
                np.testing.assert_allclose(block[:, 6], trust[now - lag], rtol=1e-5)
            else:
                assert (block == 0).all()
    assert all(observation in env.observation_space for observation in seen)
    assert (env.reset()[0][:, 6:] == 0).all()


def test_history_is_by_client_and_waits_for_those_who_are_absent() -> None:
    env = ClientHistory(MaskedOptiGradEnv(num_clients=6, rounds=12), k=1)
    options = {**ATTACKED, "num_clients": 6, "participation": 0.5}
    observation, _ = env.reset(seed=3, options=options)
    last: dict[int, np.ndarray] = {}
    for _ in range(12):
        for client in np.flatnonzero(observation["mask"]):
            expected = last.get(int(client), np.zeros(6))
            np.testing.assert_array_equal(observation["clients"][client, 6:12], expected)
            last[int(client)] = observation["clients"][client, :6].copy()
        assert (observation["clients"][observation["mask"] == 0] == 0).all()
        observation, *_ = env.step(np.zeros(6, np.float32))
    assert len(last) == 6


def test_a_refused_action_leaves_the_history_as_it_was() -> None:
    env, undisturbed = (ClientHistory(OptiGradEnv(num_clients=3, rounds=3), k=2) for _ in range(2))
    for one in (env, undisturbed):
        one.reset(seed=0)
    for wrong in (np.zeros(4, np.float32), np.full(3, np.nan, np.float32)):
        with pytest.raises(ValueError, match="action"):
            env.step(wrong)
    np.testing.assert_equal(env.step(np.zeros(3, np.float32)), undisturbed.step(np.zeros(3, np.float32)))


def test_a_subset_shows_its_columns_in_the_usual_order_and_with_their_bounds() -> None:
    env = OptiGradEnv(num_clients=4, rounds=3)
    wrapped = FeatureSubset(OptiGradEnv(num_clients=4, rounds=3), ["shapley", "norm"])
    full, _ = env.reset(seed=1, options=ATTACKED)
    seen, _ = wrapped.reset(seed=1, options=ATTACKED)
    np.testing.assert_array_equal(seen, full[:, [3, 5]])
    np.testing.assert_array_equal(wrapped.observation_space.high, env.observation_space.high[:, [3, 5]])
    assert seen in wrapped.observation_space


def test_dropout_hides_whole_features_about_as_often_as_asked_and_changes_no_other() -> None:
    env = OptiGradEnv(num_clients=4, rounds=20, local_steps=1)
    wrapped = FeatureDropout(OptiGradEnv(num_clients=4, rounds=20, local_steps=1), probability=0.4)
    full, seen = env.reset(seed=1, options=ATTACKED)[0], wrapped.reset(seed=1, options=ATTACKED)[0]
    hidden = []
    for _ in range(20):
        gone = (seen == 0).all(axis=0)
        np.testing.assert_array_equal(seen[:, ~gone], full[:, ~gone])
        hidden.append(gone)
        full, seen = env.step(np.zeros(4, np.float32))[0], wrapped.step(np.zeros(4, np.float32))[0]
    assert 0.25 < np.mean(hidden) < 0.55
    assert len({tuple(gone) for gone in hidden}) > 10


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: ClientHistory(env, 2),
        lambda env: FeatureSubset(env, ["norm", "shapley"]),
        lambda env: FeatureDropout(env, 0.5),
        lambda env: ClientHistory(FeatureSubset(env, ["norm"]), 1),
        FeatureShuffle,
    ],
)
@pytest.mark.parametrize("inner", [OptiGradEnv, MaskedOptiGradEnv])
def test_wrapped_environments_pass_gymnasiums_checker(inner: type[OptiGradEnv], wrap: Any) -> None:
    env = wrap(inner(num_clients=3, rounds=2, local_steps=1, batch_size=8, render_mode="ansi"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env, skip_render_check=True)
    said = [str(warning.message) for warning in caught]
    assert all("is different from the unwrapped version" in message for message in said), said


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda env: ClientHistory(env, 0), "k must be at least 1.*0"),
        (lambda env: FeatureSubset(env, ["nrom"]), "'nrom'.*reconstruction_error.*norm"),
        (lambda env: FeatureSubset(env, []), "features is empty.*norm"),
        (lambda env: FeatureSubset(ClientHistory(env), ["norm"]), "six features.*27"),
        (lambda env: FeatureDropout(env, 1.5), r"probability.*1\.5"),
        (lambda env: ClientHistory(env, 1.5), r"k must be a whole number, got 1\.5"),
        (lambda env: ClientHistory(env, "a"), "k must be a whole number, got 'a'"),
        (lambda env: ClientHistory(env, None), "k must be a whole number, got None"),
        (lambda env: FeatureSubset(env, "norm"), r"expected a list of names \(feature\), got 'norm'"),
        (lambda env: FeatureSubset(env, None), r"expected a list of names \(feature\), got None"),
        (lambda env: FeatureDropout(env, "a"), "probability must be a number, got 'a'"),
        (lambda env: FeatureDropout(env, seed="a"), "seed must be a whole number, got 'a'"),
        (lambda env: FeatureShuffle(env, seed=-1), "seed must be 0 or more, got -1"),
    ],
)
def test_bad_wrapper_arguments_are_refused(wrap: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrap(OptiGradEnv(num_clients=3, rounds=2))


@pytest.mark.parametrize("wrapper", [ClientHistory, FeatureDropout, FeatureShuffle])
def test_a_wrapper_around_something_else_is_refused(wrapper: Any) -> None:
    with pytest.raises(ValueError, match="clients and features"):
        wrapper(gym.make("CartPole-v1"))


def test_a_recorder_around_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match=r"environment of federations.*CartPole"):
        RoundRecorder(gym.make("CartPole-v1"))


@pytest.mark.parametrize(
    "wrap",
    [
        RoundRecorder,
        FeatureShuffle,
        lambda env: ClientHistory(env, 2),
        lambda env: FeatureSubset(env, ("norm", "shapley")),
        lambda env: FeatureDropout(env, 0.5, seed=3),
        lambda env: ClientHistory(FeatureDropout(env, 0.5), 1),
    ],
)
def test_the_spec_of_a_wrapped_environment_survives_json(wrap: Any) -> None:
    env = wrap(gym.make("OptiGrad/Digits-v0", num_clients=3, rounds=2))
    copy = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert str(copy) == str(env)
    np.testing.assert_equal(copy.reset(seed=1), env.reset(seed=1))


def test_a_masked_round_is_recorded_row_by_row_of_the_clients() -> None:
    env = RoundRecorder(MaskedOptiGradEnv(num_clients=6, rounds=3))
    observation, info = env.reset(seed=1, options={**ATTACKED, "num_clients": 6, "participation": 0.5})
    recorded = env.recorded_round()
    present = observation["mask"] == 1
    np.testing.assert_array_equal(recorded.observation.numpy(), observation["clients"])
    np.testing.assert_array_equal(recorded.present.numpy(), present)
    np.testing.assert_array_equal(recorded.rejected.numpy(), ~present)
    np.testing.assert_array_equal(recorded.corrupted.numpy(), info["malicious"] & present)
    assert (recorded.updates.norm(dim=1).numpy() > 0).tolist() == present.tolist()


@pytest.mark.parametrize("wrap", [FeatureDropout, FeatureShuffle, lambda env: ClientHistory(env, 2)])
def test_rounds_are_not_recorded_of_something_else_than_what_is_seen(wrap) -> None:
    env = OptiGradEnv(num_clients=5, rounds=4)
    with pytest.raises(ValueError, match="a recorded round holds what the server sees, not what"):
        RoundRecorder(wrap(env))
    RoundRecorder(env)
