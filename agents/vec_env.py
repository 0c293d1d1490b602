"""Vector environments as Stable-Baselines3's ``VecEnv``: in this process, or shared out over worker processes."""

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import CloudpickleWrapper, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

Infos = list[dict[str, Any]]

_DEAD = (
    "a worker process of the training environments has died; was memory short, or does the script that made them lack "
    "`if __name__ == '__main__':`?"
)


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
        joined: VecEnvObs = _joined(observations, np.stack)
        return joined

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


class WorkerVecEnv(VecEnv):
    """Several ``VecEnv``, each in a process of its own and with one thread, as one.

    An exception in a worker is raised here, too. Workers end when this object is closed or its process dies.

    Args:
        makers: One a process; makes the worker's share of the environments, in order.
    """

    def __init__(self, makers: Sequence[Callable[[], VecEnv]]) -> None:
        methods = multiprocessing.get_all_start_methods()
        # Not `fork`: it copies locks that other threads hold.
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        context.set_forkserver_preload([__name__, "optigrad_env"])  # PyTorch is imported once, not in every worker
        self._remotes: list[Connection] = []
        self.processes: list[Any] = []
        for make in makers:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, CloudpickleWrapper(make)), daemon=True)  # type: ignore[attr-defined]
            process.start()
            theirs.close()
            self._remotes.append(ours)
            self.processes.append(process)
        try:
            described = [_answer(remote) for remote in self._remotes]
        except BaseException:
            self.close()
            raise
        sizes = [size for size, _, _ in described]
        self._first = np.cumsum([0, *sizes])
        super().__init__(sum(sizes), *described[0][1:])

    def reset(self) -> VecEnvObs:
        """See ``FederationVecEnv.reset``."""
        shares = [(self._seeds[share], self._options[share]) for share in self._shares()]
        answers = self._ask(range(len(shares)), "reset_as", shares)
        self.reset_infos = [info for _, infos in answers for info in infos]
        self._reset_seeds()
        self._reset_options()
        joined: VecEnvObs = _joined([observations for observations, _ in answers], np.concatenate)
        return joined

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Sends each worker its actions."""
        for remote, share in zip(self._remotes, self._shares(), strict=True):
            _send(remote, "step_as", np.asarray(actions[share]))

    def step_wait(self) -> VecEnvStepReturn:
        """See ``FederationVecEnv.step_wait``."""
        answers = _answers(self._remotes)
        observations, rewards, dones, infos, reset_infos = zip(*answers, strict=True)
        self.reset_infos = [info for share in reset_infos for info in share]
        return (
            _joined(observations, np.concatenate),
            np.concatenate(rewards),
            np.concatenate(dones),
            [info for share in infos for info in share],
        )

    def saved_states(self) -> list[Any]:
        """See ``FederationVecEnv.saved_states``."""
        workers = range(len(self._remotes))
        return [state for share in self._ask(workers, "saved_states", [()] * len(workers)) for state in share]

    def load_saved_states(self, states: Sequence[Any]) -> None:
        """See ``FederationVecEnv.load_saved_states``."""
        shares = [(states[share],) for share in self._shares()]
        self._ask(range(len(shares)), "load_saved_states", shares)
        self._reset_seeds()
        self._reset_options()

    def close(self) -> None:
        """Ends the workers; one in the middle of a step ends when it wants to answer."""
        for remote in self._remotes:
            remote.close()
        for process in self.processes:
            process.join()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """See ``FederationVecEnv.get_images``."""
        return self.env_method("render")

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """See ``FederationVecEnv.get_attr``."""
        return self._ask_envs(indices, "get_attr", attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """See ``FederationVecEnv.set_attr``."""
        self._ask_envs(indices, "set_attr", attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """See ``FederationVecEnv.env_method``."""
        return self._ask_envs(indices, "env_method", method_name, *args, **kwargs)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """See ``FederationVecEnv.env_is_wrapped``."""
        return self._ask_envs(indices, "env_is_wrapped", wrapper_class)

    def _shares(self) -> list[slice]:
        return [slice(int(a), int(b)) for a, b in zip(self._first[:-1], self._first[1:], strict=True)]

    def _ask_envs(self, indices: VecEnvIndices, name: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Calls a method that takes ``indices`` in the workers that have them; answers in the order of the indices."""
        wanted = [int(i) % self.num_envs for i in self._get_indices(indices)]
        owners = [int(owner) for owner in np.searchsorted(self._first, wanted, side="right") - 1]
        asked = sorted(set(owners))
        for owner in asked:
            own = [i - int(self._first[owner]) for i, o in zip(wanted, owners, strict=True) if o == owner]
            _send(self._remotes[owner], name, *args, **kwargs, indices=own)
        answers = _answers([self._remotes[owner] for owner in asked])
        found = {owner: iter(answer or ()) for owner, answer in zip(asked, answers, strict=True)}
        return [next(found[owner], None) for owner in owners]

    def _ask(self, owners: Sequence[int], name: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        for owner, args in zip(owners, arguments, strict=True):
            _send(self._remotes[owner], name, *args)
        return _answers([self._remotes[owner] for owner in owners])


class _Share:
    """A worker's environments, with what a ``VecEnv`` keeps in attributes as arguments and results."""

    def __init__(self, envs: VecEnv) -> None:
        self._envs = envs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._envs, name)

    def reset_as(self, seeds: list[int | None], options: list[dict[str, Any]]) -> tuple[Any, Infos]:
        self._envs._seeds, self._envs._options = seeds, options
        return self._envs.reset(), self._envs.reset_infos

    def step_as(self, actions: NDArray[np.float32]) -> tuple[Any, ...]:
        return *self._envs.step(actions), self._envs.reset_infos


def _work(remote: Connection, make: CloudpickleWrapper) -> None:
    """A worker's whole life: makes its environments, then answers until the other end is closed."""
    # One thread a process: a second one does nothing for small networks and waits for the other processes'.
    torch.set_num_threads(1)
    # Ctrl-C is for the main process, which then closes the workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, OSError):  # closed, or dead
        try:
            envs = make.var()
        except Exception as error:
            remote.send(_failure(error))
            return
        share = _Share(envs)
        remote.send((envs.num_envs, envs.observation_space, envs.action_space))
        while True:
            name, args, kwargs = remote.recv()
            try:
                answer = getattr(share, name)(*args, **kwargs)
            except Exception as error:
                answer = _failure(error)
            remote.send(answer)


class _Failure:
    """An exception on its way to the main process."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _failure(error: Exception) -> _Failure:
    error.add_note("In a worker process:\n" + traceback.format_exc())
    return _Failure(error)


def _answer(remote: Connection) -> Any:
    (answer,) = _answers([remote])
    return answer


def _answers(remotes: Sequence[Connection]) -> list[Any]:
    """One answer from each worker. All are taken before a failure is raised, so that none is left for the next call."""
    answers = [_receive(remote) for remote in remotes]
    for answer in answers:
        if isinstance(answer, _Failure):
            raise answer.error
    return answers


def _send(remote: Connection, name: str, *args: Any, **kwargs: Any) -> None:
    try:
        remote.send((name, args, kwargs))
    except BrokenPipeError:
        raise RuntimeError(_DEAD) from None


def _receive(remote: Connection) -> Any:
    try:
        return remote.recv()
    except (EOFError, ConnectionResetError):
        raise RuntimeError(_DEAD) from None


def _joined(observations: Sequence[Any], join: Callable[[list[Any]], Any]) -> Any:
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
