"""A vector environment of this process as Stable-Baselines3's ``VecEnv``."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


class FederationVecEnv(VecEnv):
    """A vector environment of this process as a ``VecEnv``, with each episode's return as ``Monitor`` would report it.

    Args:
        envs: Several environments that reset in the same step; numbers and finished episodes come from there.

    Raises:
        ValueError: Another autoreset mode; Stable-Baselines3 knows only that one.
    """

    def __init__(self, envs: SyncVectorEnv[Any, Any]) -> None:
        mode = envs.metadata["autoreset_mode"]
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"Stable-Baselines3 needs autoreset_mode {AutoresetMode.SAME_STEP.value!r}, got {mode.value!r}"
            )
        self.envs = envs
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self.metadata = envs.metadata
        self._started = time.time()
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)

    def reset(self) -> VecEnvObs:
        """Begins an episode in every environment, with the seeds and options that were set for this reset."""
        # One by one, because each may have options of its own; a same-step vector environment keeps no state to reset.
        observations = []
        for i, env in enumerate(self.envs.envs):
            observation, self.reset_infos[i] = env.reset(seed=self._seeds[i], options=self._options[i] or None)
            observations.append(observation)
        self._returns[:], self._lengths[:] = 0, 0
        self._reset_seeds()
        self._reset_options()
        together: VecEnvObs = joined(observations, np.stack)
        return together

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Keeps the actions for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """One round in every environment; those whose episode has ended begin the next one."""
        observations, rewards, terminated, truncated, infos = self.envs.step(self._actions)
        self._returns += rewards
        self._lengths += 1
        dones = terminated | truncated
        of_each = [_info_of(infos, i) for i in range(self.num_envs)]
        for i in map(int, np.flatnonzero(dones)):
            of_each[i] = self._end_episode(i, of_each[i])
        for info, end, cut in zip(of_each, terminated, truncated, strict=True):
            info["TimeLimit.truncated"] = bool(cut and not end)
        return observations, rewards.astype(np.float32), dones, of_each

    def _end_episode(self, i: int, info: dict[str, Any]) -> dict[str, Any]:
        """The info of an episode's last step, from that of the step and of the reset that came with it."""
        terminal_observation = info.pop("final_obs")
        final: dict[str, Any] = info.pop("final_info")
        self.reset_infos[i] = info
        episode = {
            "r": round(float(self._returns[i]), 6),
            "l": int(self._lengths[i]),
            "t": round(time.time() - self._started, 6),
        }
        self._returns[i], self._lengths[i] = 0, 0
        return {**final, "terminal_observation": terminal_observation, "episode": episode}

    def saved_states(self) -> list[Any]:
        """Every environment in the middle of its episode; they must be wrapped in ``Resumable``."""
        return list(zip(self.env_method("saved_state"), self._returns.tolist(), self._lengths.tolist(), strict=True))

    def load_saved_states(self, states: Sequence[Any]) -> None:
        """Continues where ``saved_states`` was called; seeds and options that were set for a reset are forgotten."""
        for i, (state, returned, length) in enumerate(states):
            self.env_method("load_saved_state", state, indices=i)
            self._returns[i], self._lengths[i] = returned, length
        self._reset_seeds()
        self._reset_options()

    def close(self) -> None:
        """Closes every environment."""
        self.envs.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """A picture of every environment; ``render_mode`` must be ``rgb_array``."""
        return self.env_method("render")

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each environment or of a wrapper around it."""
        return [env.get_wrapper_attr(attr_name) for env in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute where it is, on each environment or on a wrapper around it."""
        for env in self._chosen(indices):
            env.set_wrapper_attr(attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Calls a method of each environment or of a wrapper around it."""
        return [env.get_wrapper_attr(method_name)(*args, **kwargs) for env in self._chosen(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Whether each environment has this wrapper. ``Monitor`` counts: what it does is done here."""
        return [wrapper_class is Monitor or is_wrapped(env, wrapper_class) for env in self._chosen(indices)]

    def _chosen(self, indices: VecEnvIndices) -> list[gym.Env[Any, Any]]:
        return [self.envs.envs[i] for i in self._get_indices(indices)]


def joined(observations: Sequence[Any], join: Callable[[list[Any]], Any]) -> Any:
    """Observations of several environments as one: arrays, or mappings of arrays key by key."""
    if isinstance(observations[0], dict):
        return {key: join([observation[key] for observation in observations]) for key in observations[0]}
    return join(list(observations))


def _info_of(infos: dict[str, Any], i: int) -> dict[str, Any]:
    """Environment i's info out of Gymnasium's vector format, in which ``_key`` marks who has ``key``."""
    return {key: _entry(value, i) for key, value in infos.items() if f"_{key}" in infos and infos[f"_{key}"][i]}


def _entry(value: Any, i: int) -> Any:
    if isinstance(value, dict):
        return _info_of(value, i)
    entry = value[i]
    return entry.item() if isinstance(entry, np.generic) else entry
