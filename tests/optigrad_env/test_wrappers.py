"""The recorder keeps what the environment does, and the shuffle destroys who is who and nothing else."""

from multiprocessing.reduction import ForkingPickler
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from optigrad_env import OptiGradEnv
from optigrad_env.wrappers import FeatureShuffle, RoundRecorder

ATTACKED = {"attack": "gaussian_noise", "malicious_fraction": 0.4, "alpha": 0.5, "onset": 0}


@pytest.mark.parametrize("update_clip", ["median", "reference", "none"])
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
