"""A policy plays an episode: for evaluations, in training and outside of it."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from agents.observations import clients_and_mask
from agents.trust_net import TrustNet
from optigrad_env.observation import SCORE_SCALE

# An observation to actions: of one environment (N,), or of several together.
Act = Callable[[Any], NDArray[np.float32]]


def play(env: gym.Env[Any, Any], act: Act, seed: int) -> tuple[float, dict[str, Any]]:
    """Plays one episode.

    Returns:
        Mean reward of a round, and the ``info`` of the last one.
    """
    observation, info = env.reset(seed=seed)
    rewards, over = [], False
    while not over:
        observation, reward, terminated, truncated, info = env.step(act(observation))
        rewards.append(float(reward))
        over = terminated or truncated
    return float(np.mean(rewards)), info


def greedy(network: TrustNet) -> Act:
    """What a network does without exploring."""

    @torch.no_grad()
    def act(observation: Any) -> NDArray[np.float32]:
        seen = (
            {key: torch.from_numpy(value) for key, value in observation.items()}
            if isinstance(observation, dict)
            else torch.from_numpy(observation)
        )
        score, _ = network.score_and_value(*clients_and_mask(seen))
        action: NDArray[np.float32] = (score / SCORE_SCALE).numpy()
        return action

    return act
