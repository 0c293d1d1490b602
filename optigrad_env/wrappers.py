"""Wrappers around the environment."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optigrad_env.env import Action, Observation, OptiGradEnv


@dataclass(frozen=True, eq=False)
class RecordedRound:
    """One round with everything needed to ask, later, what another trust would have led to. All of it on the CPU.

    Attributes:
        observation: (N, 6) float32.
        corrupted: (N,) bool, whose update is an attack in this round.
        rejected: (N,) bool.
        updates: (N, P) float32, clipped as the environment clips; zero for a rejected client.
        reference: (P,) float32.
        shared: (P,) float32, the global model.
        server_local: (L,) float32, the server's BatchNorm.
        honest: (P,) float32, plain mean of the honest clients' updates.
    """

    observation: Tensor
    corrupted: Tensor
    rejected: Tensor
    updates: Tensor
    reference: Tensor
    shared: Tensor
    server_local: Tensor
    honest: Tensor

    def __reduce__(self) -> tuple[Any, ...]:
        # As arrays: between processes torch sends every tensor as an open file, and a recording is thousands of them.
        return _from_arrays, tuple(value.numpy() for value in vars(self).values())


def _from_arrays(*arrays: NDArray[Any]) -> RecordedRound:
    return RecordedRound(*map(torch.from_numpy, arrays))


class RoundRecorder(gym.Wrapper[Observation, Action, Observation, Action]):
    """Gives the round that waits for an action as data: for offline stages of training. Holds truth."""

    def recorded_round(self) -> RecordedRound:
        """The present round; call it between ``reset`` or ``step`` and the next ``step``."""
        env = self.unwrapped
        assert isinstance(env, OptiGradEnv)
        round_ = env.current_round
        view = round_.view
        assert view.reference is not None
        assert view.global_model is not None
        assert view.server_local is not None
        updates = torch.zeros_like(view.updates)
        if len(view.accepted):
            updates[~view.rejected] = env.federation.config.weighting.clip(view.accepted, view.reference)
        recorded = (
            view.fingerprint.observation,
            round_.corrupted,
            view.rejected,
            updates,
            view.reference,
            view.global_model,
            view.server_local,
            env.honest_mean(),
        )
        return RecordedRound(*(tensor.cpu() for tensor in recorded))


class FeatureShuffle(gym.ObservationWrapper[Observation, Action, Observation]):
    """Negative control: permutes each feature among the clients before the policy sees it.

    What is left is the distribution of each feature in the round, but no longer whose it is.

    Args:
        env: The environment; its own random numbers stay as they are, so it plays the same scenarios as without.
        seed: Seed of the permutations.
    """

    def __init__(self, env: gym.Env[Observation, Action], seed: int = 0) -> None:
        super().__init__(env)
        self._generator = np.random.default_rng(seed)

    def observation(self, observation: Observation) -> Observation:
        """Permutes every column by itself."""
        return self._generator.permuted(observation, axis=0)
