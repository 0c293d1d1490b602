"""Small federations, and whole episodes of them."""

from typing import Any

import gymnasium as gym
import numpy as np

SMALL = {"num_clients": 4, "rounds": 3}
TINY = {**SMALL, "local_steps": 1, "batch_size": 8}
ATTACKED = {"attack": "sign_flip", "malicious_fraction": 0.5, "alpha": 0.5, "onset": 0}


def episode(env: gym.Env[Any, Any], **reset: Any) -> list[Any]:
    """Observations, rewards and infos of one episode under random actions that are the same every time."""
    rng = np.random.default_rng(7)
    kept: list[Any] = [env.reset(**reset)]
    while len(kept) == 1 or not kept[-1][3]:
        kept.append(env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)))
    return kept


def assert_same(left: Any, right: Any) -> None:
    np.testing.assert_equal(left, right)  # recurses into lists and dicts, and is exact


def uniform(clients: int = 4) -> np.ndarray:
    return np.zeros(clients, np.float32)
