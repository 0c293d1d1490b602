"""What the policy gains, it gains by telling the clients apart: shuffle whose feature is whose, and it is gone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from agents.trust_net import TrustNet
from agents.warm_start import WarmStart, warm_start
from optigrad_env import OptiGradEnv
from optigrad_env.wrappers import FeatureShuffle

SIZES = {"num_clients": 6, "rounds": 8}
STRONG = {
    "attacks": ("sign_flip",),
    "malicious_fraction": (0.34, 0.5),
    "alpha": (0.3, 1.0),
    "onset": (0, 0),
    "collusion": 0.0,
}


def mean_reward(env: Any, act: Callable[[np.ndarray], np.ndarray]) -> float:
    """Over two whole episodes with strong attackers, on seeds that no training has seen."""
    rewards = []
    for seed in (900, 901):
        options = {"attack": "sign_flip", "malicious_fraction": 0.5, "alpha": 0.5, "onset": 0}
        observation, _ = env.reset(seed=seed, options={**options, "attack_options": {"scale": 5.0}})
        for _ in range(SIZES["rounds"]):
            observation, reward, *_ = env.step(act(observation))
            rewards.append(reward)
    return float(np.mean(rewards))


@pytest.fixture
def trained(recording_envs: Callable[..., Any], make_policy: Callable[..., TrustNet]) -> TrustNet:
    envs, federations = recording_envs(0, **SIZES, scenarios=STRONG, split_seed=10_000)
    settings = WarmStart(rounds=120, clone_steps=150, gradient_steps=120, batch=12, samples=64)
    policy = make_policy(0)
    warm_start(policy, envs, federations, settings, 0, lambda _: None)
    return policy


def test_the_gain_over_uniform_trust_is_there_and_shuffled_features_destroy_it(trained: TrustNet) -> None:
    @torch.no_grad()
    def learned(observation: np.ndarray) -> np.ndarray:
        return trained.score_and_value(torch.from_numpy(observation))[0].numpy() / 5

    uniform = mean_reward(OptiGradEnv(**SIZES), lambda observation: np.ones(len(observation), np.float32))
    gain = mean_reward(OptiGradEnv(**SIZES), learned) - uniform
    control = mean_reward(FeatureShuffle(OptiGradEnv(**SIZES)), learned) - uniform
    assert gain > 0.3
    assert control < gain / 3
