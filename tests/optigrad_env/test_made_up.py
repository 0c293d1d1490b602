"""The two made-up federations behave as federations do: they learn, and the features tell attackers from honest."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fl_core.fingerprint import FEATURES
from optigrad_env import OptiGradEnv

made_up = pytest.mark.parametrize("env_id", ["OptiGrad/Softmax-v0", "OptiGrad/Quadratic-v0"])


def make(env_id: str, **kwargs: Any) -> OptiGradEnv:
    env = gym.make(env_id, disable_env_checker=True, **kwargs).unwrapped
    assert isinstance(env, OptiGradEnv)
    return env


def aurocs(env_id: str, attack: str, **attack_options: Any) -> dict[str, float]:
    """Mean AUROC of each feature, malicious above honest, over rounds of several episodes."""
    env = make(env_id, rounds=5)
    options = {"malicious_fraction": 0.3, "alpha": 0.5, "onset": 0, "attack": attack, "attack_options": attack_options}
    scores = []
    for seed in range(6):
        env.reset(seed=seed, options=options)
        for _ in range(5):
            round_ = env.current_round
            observation = round_.view.fingerprint.observation.numpy()
            scores.append([roc_auc_score(round_.corrupted.numpy(), column) for column in observation.T])
            env.step(np.where(round_.corrupted.numpy(), -1, 1).astype(np.float32))
    return dict(zip(FEATURES, np.mean(scores, axis=0), strict=True))


@made_up
def test_the_fast_engine_is_picked(env_id: str) -> None:
    _, info = make(env_id).reset(seed=0)
    assert info["engine"] == "linear"


@made_up
def test_episodes_are_those_of_the_sequential_engine(env_id: str) -> None:
    fast, plain = make(env_id, rounds=3), make(env_id, rounds=3, engine="sequential")
    options = {"attack": "sign_flip", "malicious_fraction": 0.3, "alpha": 0.5, "onset": 0}
    observations = [(fast.reset(seed=4, options=options)[0], plain.reset(seed=4, options=options)[0])]
    action = np.linspace(-1, 1, 10, dtype=np.float32)
    for _ in range(2):
        one, other = fast.step(action), plain.step(action)
        observations.append((one[0], other[0]))
        assert one[1] == pytest.approx(other[1], abs=1e-5)
    for left, right in observations:
        np.testing.assert_allclose(left[:, 1:], right[:, 1:], atol=1e-4)
        # Each engine trains an autoencoder of its own, and training one magnifies the last bit of its data.
        np.testing.assert_allclose(left[:, 0], right[:, 0], atol=0.1)


@made_up
@pytest.mark.parametrize("alpha", [None, 0.1])
def test_honest_rounds_lower_the_loss_and_raise_the_accuracy(env_id: str, alpha: float | None) -> None:
    env = make(env_id)
    _, before = env.reset(seed=0, options={"attack": "none", "alpha": alpha})
    losses = [before["validation_loss"]]
    for _ in range(20):
        *_, info = env.step(np.ones(10, np.float32))
        losses.append(info["validation_loss"])
    assert losses[20] < losses[10] < losses[5] < losses[0]
    assert info["validation_accuracy"] > before["validation_accuracy"] + 0.4


@made_up
def test_each_attack_shows_in_the_features_that_are_meant_for_it(env_id: str) -> None:
    flipped = aurocs(env_id, "sign_flip", scale=1.0)
    for feature in ("root_cosine", "peer_cosine", "sign_agreement", "shapley"):
        assert flipped[feature] < 0.05, feature
    assert flipped["norm"] == pytest.approx(0.5, abs=0.35)
    scaled = aurocs(env_id, "scaling", factor=10.0)
    assert scaled["norm"] > 0.99
    assert scaled["root_cosine"] == pytest.approx(0.5, abs=0.35)
    noisy = aurocs(env_id, "gaussian_noise", factor=5.0)
    assert noisy["norm"] > 0.99
    assert noisy["reconstruction_error"] > 0.9
    assert noisy["root_cosine"] < 0.2


@made_up
def test_trusting_attackers_costs_reward(env_id: str) -> None:
    totals = []
    for sign in (1, -1):
        env = make(env_id, rounds=5)
        env.reset(seed=1, options={"attack": "sign_flip", "malicious_fraction": 0.3, "alpha": 0.5, "onset": 0})
        action = sign * np.where(env.current_round.malicious.numpy(), -1.0, 1.0).astype(np.float32)
        totals.append(sum(env.step(action)[1] for _ in range(5)))
    assert totals[0] > -0.02
    assert totals[1] < totals[0] - 0.2
