"""Rounds of a federation, recorded with everything needed to ask what another trust would have led to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents.playing import greedy
from agents.trust_net import TrustNet
from fl_core import Federation
from optigrad_env.wrappers import RecordedRound

Progress = Callable[[int], object]
# Observation, action, next observation, reward, whether the episode ended, infos: of all environments.
Keep = Callable[[Any, NDArray[np.float32], Any, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]], object]
Behaviour = Callable[[Any, list[RecordedRound]], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Recording:
    """Recorded rounds of one federation's data, stacked.

    Attributes:
        federation: Owner of the data that the rounds were recorded with: reference half and validation data.
        rounds: Fields of ``RecordedRound`` with a leading axis of rounds.
        present: (R, N) bool, which clients took part, where the observation has a mask; ``None`` elsewhere.
    """

    federation: Federation
    rounds: RecordedRound
    present: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rounds.corrupted)


def record(
    envs: VecEnv,
    federations: Sequence[Federation],
    rounds: int,
    behaviour: Behaviour,
    progress: Progress,
    keep: Keep | None = None,
) -> list[Recording]:
    """Plays ``rounds`` rounds in all environments together and keeps them; ``keep`` is given every transition."""
    steps = -(-rounds // envs.num_envs)
    kept: list[RecordedRound] = []
    observations = envs.reset()
    for step in range(steps):
        waiting = envs.env_method("recorded_round")
        # Recorded rounds are gigabytes on images: they go where they stay, and are never there twice.
        kept = kept or [_room(steps, round_) for round_ in waiting]
        for rows, round_ in zip(kept, waiting, strict=True):
            for name, column in vars(rows).items():
                column[step] = getattr(round_, name)
        actions = behaviour(observations, waiting)
        before, (observations, rewards, dones, infos) = observations, envs.step(actions)
        if keep is not None:
            keep(before, actions, observations, rewards, dones, infos)
        progress(envs.num_envs)
    masked = isinstance(envs.observation_space, spaces.Dict)
    return [Recording(f, rows, rows.present if masked else None) for f, rows in zip(federations, kept, strict=True)]


def mixed_behaviour(envs: VecEnv, rng: np.random.Generator) -> Behaviour:
    """Trust that ranges, from round to round, over random, uniform, and more or less informed by the truth."""
    shape = (envs.num_envs, *envs.action_space.shape)  # type: ignore[misc]

    def act(_: Any, waiting: list[RecordedRound]) -> NDArray[np.float32]:
        truth = np.stack([1.0 - 2.0 * round_.corrupted.numpy() for round_ in waiting])
        informed = rng.uniform(0, 1, size=(envs.num_envs, 1))
        noise = rng.uniform(-1, 1, size=shape)
        return (informed * truth + (1 - informed) * noise).astype(np.float32)

    return act


def policy_behaviour(policy: TrustNet, rng: np.random.Generator) -> Behaviour:
    """The policy's own trust with a little noise."""

    own = greedy(policy)

    def act(observations: Any, _: list[RecordedRound]) -> NDArray[np.float32]:
        action = own(observations)
        return (action + 0.2 * rng.standard_normal(action.shape)).clip(-1, 1).astype(np.float32)

    return act


def _room(steps: int, like: RecordedRound) -> RecordedRound:
    """Fields with a leading axis of ``steps`` rounds, not filled yet."""
    return RecordedRound(*(value.new_empty(steps, *value.shape) for value in vars(like).values()))
