"""Rounds of a federation, recorded with everything needed to ask what another trust would have led to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents.observations import clients_and_mask
from agents.trust_net import TrustNet
from fl_core import Federation
from optigrad_env.observation import SCORE_SCALE
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
        present: (R, N) bool, which clients took part, where not all do; the others are rejected, with zeros.
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
    kept: list[list[RecordedRound]] = [[] for _ in federations]
    there: list[Tensor] = []
    observations = envs.reset()
    for _ in range(-(-rounds // envs.num_envs)):
        present = envs.env_method("recorded_round")
        if isinstance(observations, dict):
            there.append(torch.from_numpy(observations["mask"]).bool())
            present = [spread(round_, mask) for round_, mask in zip(present, there[-1], strict=True)]
        for rows, round_ in zip(kept, present, strict=True):
            rows.append(round_)
        actions = behaviour(observations, present)
        before, (observations, rewards, dones, infos) = observations, envs.step(actions)
        if keep is not None:
            keep(before, actions, observations, rewards, dones, infos)
        progress(envs.num_envs)
    masks = torch.stack(there, dim=1) if there else [None] * len(kept)
    return [Recording(f, _stack(rows), mask) for f, rows, mask in zip(federations, kept, masks, strict=True)]


def spread(round_: RecordedRound, mask: Tensor) -> RecordedRound:
    """A round of those who took part as one of N clients, in which the others are rejected and zero.

    Args:
        round_: Rows are the clients that took part, in order, or all N.
        mask: (N,) bool, who took part.
    """
    fields: dict[str, Tensor] = {}
    for name in ("observation", "corrupted", "rejected", "updates"):
        rows = getattr(round_, name)
        own = rows[mask] if len(rows) == len(mask) else rows
        fields[name] = rows.new_zeros(len(mask), *rows.shape[1:])
        fields[name][mask] = own
    fields["rejected"] |= ~mask
    return replace(round_, **fields)


def mixed_behaviour(envs: VecEnv, rng: np.random.Generator) -> Behaviour:
    """Trust that ranges, from round to round, over random, uniform, and more or less informed by the truth."""
    shape = (envs.num_envs, *envs.action_space.shape)  # type: ignore[misc]

    def act(_: Any, present: list[RecordedRound]) -> NDArray[np.float32]:
        truth = np.stack([1.0 - 2.0 * round_.corrupted.numpy() for round_ in present])
        informed = rng.uniform(0, 1, size=(envs.num_envs, 1))
        noise = rng.uniform(-1, 1, size=shape)
        return (informed * truth + (1 - informed) * noise).astype(np.float32)

    return act


def policy_behaviour(policy: TrustNet, rng: np.random.Generator) -> Behaviour:
    """The policy's own trust with a little noise."""

    @torch.no_grad()
    def act(observations: Any, _: list[RecordedRound]) -> NDArray[np.float32]:
        seen = (
            {key: torch.from_numpy(value) for key, value in observations.items()}
            if isinstance(observations, dict)
            else torch.from_numpy(observations)
        )
        score, _value = policy.score_and_value(*clients_and_mask(seen))
        action = score.numpy() / SCORE_SCALE + 0.2 * rng.standard_normal(score.shape)
        return action.clip(-1, 1).astype(np.float32)

    return act


def _stack(rounds: list[RecordedRound]) -> RecordedRound:
    return RecordedRound(*(torch.stack(column) for column in zip(*(vars(r).values() for r in rounds), strict=True)))
