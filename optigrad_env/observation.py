"""What the agent sees and does, as spaces and as tensors."""

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from fl_core.fingerprint import OBSERVATION_HIGH, OBSERVATION_LOW

# τ = σ(5a): the action box [-1, 1] covers trust from 0.007 to 0.993.
SCORE_SCALE = 5.0


def observation_space(num_clients: int) -> spaces.Box:
    """``Box((N, 6), float32)`` with each feature's bounds."""
    low, high = np.tile(OBSERVATION_LOW, (num_clients, 1)), np.tile(OBSERVATION_HIGH, (num_clients, 1))
    return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


def masked_observation_space(num_clients: int) -> spaces.Dict:
    """``Dict(clients=Box((N, 6), float32), mask=MultiBinary(N))`` for up to N clients."""
    return spaces.Dict({"clients": observation_space(num_clients), "mask": spaces.MultiBinary(num_clients)})


def action_space(num_clients: int) -> spaces.Box:
    """``Box(-1, 1, (N,), float32)``."""
    return spaces.Box(-1.0, 1.0, (num_clients,), dtype=np.float32)


def trust_of_action(action: NDArray[np.float32], num_clients: int) -> Tensor:
    """Trust ``σ(5a)`` of an action, (N,) float32.

    Raises:
        ValueError: Wrong shape, or a value that is not finite.
    """
    action = np.asarray(action, dtype=np.float32)
    if action.shape != (num_clients,):
        raise ValueError(f"action must have shape ({num_clients},), one value a client; got {action.shape}")
    if not np.isfinite(action).all():
        raise ValueError(f"action must be finite, got {action}")
    return torch.sigmoid(SCORE_SCALE * torch.from_numpy(action.clip(-1, 1)))
