"""Everything that a training run needs to go on, in one file that is there in full or not at all.

The file is pickled code, as SB3's own ``model.zip`` is: it is for this machine's own runs, never for others'.
"""

import io
import pickle
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.algorithms import load_algorithm
from agents.vec_env import FederationVecEnv
from agents.worker_vec_env import WorkerVecEnv
from fl_core.files import write_atomically

CHECKPOINT = "checkpoint.pkl"


@dataclass(frozen=True)
class Checkpoint:
    """A run between two rollouts.

    Attributes:
        model: Content of SB3's ``model.zip``: networks, optimizers, counters, the last observation.
        replay_buffer: Pickled, for algorithms that have one.
        random_state: Of every generator that the algorithm draws from.
        envs: Environments in the middle of their episodes.
        seconds: Wall-clock time that the run has taken so far.
    """

    model: bytes
    replay_buffer: bytes | None
    random_state: dict[str, Any]
    envs: list[Any]
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Writes the file under a temporary name and then moves it, so a kill at any moment leaves the old one."""
        write_atomically(path, pickle.dumps(self))


def take(model: BaseAlgorithm, seconds: float = 0.0) -> Checkpoint:
    """A checkpoint of a model and its environments, between two rollouts."""
    content = io.BytesIO()
    model.save(content)
    return Checkpoint(
        content.getvalue(),
        pickle.dumps(model.replay_buffer) if isinstance(model, OffPolicyAlgorithm) else None,
        _random_state(model),
        _resumable(model.env).saved_states(),
        seconds,
    )


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint of this machine's own run.

    Raises:
        ValueError: Damaged, or written by another version.
    """
    try:
        content = pickle.loads(path.read_bytes())
    except Exception as error:  # a pickle may fail in any way
        raise ValueError(f"{path} is damaged, or of another version: {error!r}") from error
    if not isinstance(content, Checkpoint):
        raise ValueError(f"{path} is no checkpoint of a training run")
    return content


def restore(checkpoint: Checkpoint, algorithm: str, envs: VecEnv) -> Any:
    """The model, and ``envs`` in the state in which they were: the run goes on as if it had never stopped."""
    model = load_algorithm(algorithm, io.BytesIO(checkpoint.model), envs, keep_episode=True)
    if checkpoint.replay_buffer is not None:
        model.replay_buffer = pickle.loads(checkpoint.replay_buffer)
    _resumable(envs).load_saved_states(checkpoint.envs)  # after the model, whose loading seeds them
    _set_random_state(model, checkpoint.random_state)
    return model


def _resumable(envs: VecEnv | None) -> FederationVecEnv | WorkerVecEnv:
    if not isinstance(envs, FederationVecEnv | WorkerVecEnv):
        raise ValueError(
            f"only environments from make_training_envs can be saved and resumed, got {type(envs).__name__}; make them "
            "with it, or save the model alone with model.save"
        )
    return envs


def _random_state(model: BaseAlgorithm) -> dict[str, Any]:
    # SB3 draws from the global generators; nothing of this project does.
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "actions": model.action_space.np_random.bit_generator.state,
    }


def _set_random_state(model: BaseAlgorithm, state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    model.action_space.np_random.bit_generator.state = state["actions"]
