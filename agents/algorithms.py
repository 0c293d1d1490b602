"""The registry behind ``--algo``."""

from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.policies import AttentionPolicy
from fl_core.registry import check_known

AlgorithmFactory = Callable[..., BaseAlgorithm]


# Measured on train attacks and validation data: larger steps learn from nothing, smaller ones keep what is there.
_PPO_FROM_SCRATCH: dict[str, Any] = {
    "learning_rate": 5e-4,
    "clip_range": 0.2,
    "n_epochs": 8,
    "policy_kwargs": {"log_std_init": log(0.3)},
}
_PPO_AFTER_WARM_START: dict[str, Any] = {
    "learning_rate": 1e-4,
    "clip_range": 0.1,
    "n_epochs": 4,
    "policy_kwargs": {"log_std_init": log(0.15)},
}


# Steps of a rollout over all environments, and about as many samples in a minibatch.
_ROLLOUT, _MINIBATCH = 512, 128


def _ppo(env: VecEnv, *, seed: int, timesteps: int, warm_started: bool, tensorboard: Path | None) -> PPO:
    """PPO (Schulman et al. 2017, arXiv 1707.06347) for a reward without carry-over.

    The oracle gap of a round says all there is to say about its action, so the discount is 0.
    """
    # A run shorter than a rollout is one rollout; minibatches are of one size, which Stable-Baselines3 asks for.
    steps = max(min(_ROLLOUT, timesteps) // env.num_envs, 8)
    minibatches = max(steps * env.num_envs // _MINIBATCH, 1)
    steps -= steps % minibatches
    return PPO(
        AttentionPolicy,
        env,
        gamma=0.0,
        gae_lambda=1.0,
        n_steps=steps,
        batch_size=steps * env.num_envs // minibatches,
        seed=seed,
        device="cpu",
        tensorboard_log=str(tensorboard) if tensorboard else None,
        **(_PPO_AFTER_WARM_START if warm_started else _PPO_FROM_SCRATCH),
    )


_ALGORITHMS: dict[str, AlgorithmFactory] = {"ppo": _ppo}
_CLASSES: dict[str, type[BaseAlgorithm]] = {"ppo": PPO}


def algorithm_names() -> list[str]:
    """Names that ``--algo`` accepts."""
    return list(_ALGORITHMS)


def make_algorithm(
    name: str,
    env: VecEnv,
    *,
    seed: int,
    timesteps: int = _ROLLOUT,
    warm_started: bool = False,
    tensorboard: Path | None = None,
) -> Any:
    """Builds an algorithm with its defaults for this environment.

    Args:
        name: One of ``algorithm_names()``.
        env: Training environments.
        seed: Seed of the algorithm.
        timesteps: Length of the run.
        warm_started: The policy will be warm-started, so that the algorithm refines it.
        tensorboard: Directory for its curves.

    Raises:
        ValueError: Unknown name.
    """
    check_known("algorithm", [name], _ALGORITHMS)
    return _ALGORITHMS[name](env, seed=seed, timesteps=timesteps, warm_started=warm_started, tensorboard=tensorboard)


def load_algorithm(name: str, path: Path, env: VecEnv) -> Any:
    """Loads a ``model.zip`` of this machine's own run. It is pickled code: never load one that somebody sent you."""
    check_known("algorithm", [name], _CLASSES)
    return _CLASSES[name].load(path, env=env, device="cpu")
