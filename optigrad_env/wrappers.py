"""Wrappers around the environment."""

from dataclasses import dataclass

import gymnasium as gym
import torch
from torch import Tensor

from optigrad_env.env import Action, Observation, OptiGradEnv


@dataclass(frozen=True, eq=False)
class RecordedRound:
    """One round with everything needed to ask, later, what another trust would have led to.

    Attributes:
        observation: (N, 6) float32.
        malicious: (N,) bool.
        rejected: (N,) bool.
        updates: (N, P) float32, clipped as the environment clips; zero for a rejected client.
        reference: (P,) float32.
        shared: (P,) float32, the global model.
        server_local: (L,) float32, the server's BatchNorm.
        honest: (P,) float32, plain mean of the honest clients' updates.
    """

    observation: Tensor
    malicious: Tensor
    rejected: Tensor
    updates: Tensor
    reference: Tensor
    shared: Tensor
    server_local: Tensor
    honest: Tensor


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
        return RecordedRound(
            view.fingerprint.observation,
            round_.malicious,
            view.rejected,
            updates,
            view.reference,
            view.global_model,
            view.server_local,
            env.honest_mean(),
        )


class FeatureShuffle(gym.ObservationWrapper[Observation, Action, Observation]):
    """Negative control: permutes each feature among the clients before the policy sees it.

    What is left is the distribution of each feature in the round, but no longer whose it is. The permutations come
    from the environment's own ``np_random``.
    """

    def observation(self, observation: Observation) -> Observation:
        """Permutes every column by itself."""
        return self.np_random.permuted(observation, axis=0)
