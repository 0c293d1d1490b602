"""Training environments: one process a core, one thread a process."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import VecEnv

from agents.dataset_options import with_those_of_the_id
from agents.resumable import Resumable
from agents.vec_env import FederationVecEnv
from agents.worker_vec_env import WorkerVecEnv
from fl_core.registry import check_known
from optigrad_env.scenarios import TRAINING_SPLITS
from optigrad_env.wrappers import RoundRecorder


def environment_ids() -> list[str]:
    """The ids that this package registers."""
    return sorted(name for name in gym.registry if name.startswith("OptiGrad/"))


def make_env(env_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """``gym.make``, with an error that lists the ids; ``dataset_options`` add to those of the id.

    Raises:
        ValueError: Unknown id, or a wrong argument.
    """
    check_known("environment id", [env_id], environment_ids())
    return gym.make(env_id, disable_env_checker=True, **with_those_of_the_id(env_id, kwargs))


def given_settings(**settings: Any) -> dict[str, Any]:
    """What a command line says of the federation: without what was left unsaid, which is the environment's."""
    return {name: value for name, value in settings.items() if value is not None and value is not False}


def make_training_envs(
    env_id: str,
    count: int,
    seed: int,
    *,
    processes: int | None = None,
    around: Sequence[Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]] = (),
    **kwargs: Any,
) -> VecEnv:
    """``count`` environments, each with its own draw of root and validation data, shared out over worker processes.

    What they play does not depend on how they are shared out.

    Args:
        env_id: Registered id.
        count: Number of environments.
        seed: Seed of the first; the others follow.
        processes: Number of processes, by default one a core, and never more than environments. One is this process.
        around: Wrappers for each environment, the innermost first, such as ``partial(ClientHistory, k=4)``. After one
            that changes what is seen of the clients there is no warm start.
        **kwargs: Of the environment, as in ``make_env``.

    Raises:
        ValueError: Unknown id, a wrong argument, or ``count`` or ``processes`` below 1.
    """
    check_known("environment id", [env_id], environment_ids())
    if count < 1:
        raise ValueError(f"n-envs must be at least 1, got {count}")
    if processes is not None and processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    processes = min(count, processes or available_cores())
    edges = [TRAINING_SPLITS + count * i // processes for i in range(processes + 1)]
    kwargs = with_those_of_the_id(env_id, kwargs)
    makers = [
        partial(_share, env_id, last - first, tuple(around), {**kwargs, "split_seed": first})
        for first, last in pairwise(edges)
    ]
    envs = makers[0]() if processes == 1 else WorkerVecEnv(makers)
    envs.seed(seed)
    return envs


def available_cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _share(env_id: str, count: int, around: tuple[Callable[..., Any], ...], kwargs: dict[str, Any]) -> VecEnv:
    """Environments of one process; ``split_seed`` is the first one's, and the others' follow."""
    envs = gym.make_vec(
        env_id, count, autoreset_mode=AutoresetMode.SAME_STEP, around=(RoundRecorder, *around, Resumable), **kwargs
    )
    assert isinstance(envs, SyncVectorEnv)
    return FederationVecEnv(envs)
