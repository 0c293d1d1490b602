"""Training environments: one process each, one thread a process."""

import signal
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from fl_core.registry import check_known
from optigrad_env import OptiGradEnv
from optigrad_env.scenarios import TRAINING_SPLITS
from optigrad_env.wrappers import RoundRecorder


def environment_ids() -> list[str]:
    """The ids that this package registers."""
    return sorted(name for name in gym.registry if name.startswith("OptiGrad/"))


def make_env(env_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """``gym.make``, with an error that lists the ids.

    Raises:
        ValueError: Unknown id, or a wrong argument.
    """
    check_known("environment id", [env_id], environment_ids())
    return gym.make(env_id, disable_env_checker=True, **kwargs)


def base_env(env: gym.Env[Any, Any]) -> OptiGradEnv:
    """The federation's environment under the wrappers."""
    inner = env.unwrapped
    if not isinstance(inner, OptiGradEnv):
        raise ValueError(f"{inner} is not one of {', '.join(environment_ids())}")
    return inner


def make_training_envs(env_id: str, count: int, seed: int, **kwargs: Any) -> VecEnv:
    """``count`` environments, each with its own draw of root and validation data, in a process of its own.

    Args:
        env_id: Registered id.
        count: Number of environments; 1 stays in this process.
        seed: Seed of the first; the others follow.
        **kwargs: Of the environment.

    Raises:
        ValueError: ``count`` below 1.
    """
    if count < 1:
        raise ValueError(f"n-envs must be at least 1, got {count}")
    makers = [_maker(env_id, {**kwargs, "split_seed": TRAINING_SPLITS + i}) for i in range(count)]
    envs: VecEnv
    if count == 1:
        envs = DummyVecEnv(makers)
    else:
        envs = SubprocVecEnv([_in_worker(make) for make in makers], start_method="forkserver")
    envs.seed(seed)
    return envs


def _maker(env_id: str, kwargs: dict[str, Any]) -> Callable[[], gym.Env[Any, Any]]:
    def make() -> gym.Env[Any, Any]:
        return Monitor(RoundRecorder(make_env(env_id, **kwargs)))

    return make


def _in_worker(make: Callable[[], gym.Env[Any, Any]]) -> Callable[[], gym.Env[Any, Any]]:
    def make_in_worker() -> gym.Env[Any, Any]:
        # One thread a process: a second one does nothing for small networks and waits for the other processes'.
        torch.set_num_threads(1)
        # Ctrl-C is for the main process, which then closes the workers in order.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return make()

    return make_in_worker
