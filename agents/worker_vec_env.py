"""Several ``VecEnv``, shared out over worker processes, as one."""

import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import CloudpickleWrapper, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from agents.vec_env import joined

Infos = list[dict[str, Any]]

_DEAD = (
    "a worker process of the training environments has died; was memory short, or does the script that made them lack "
    "`if __name__ == '__main__':`?"
)


class WorkerVecEnv(VecEnv):
    """Several ``VecEnv``, each in a process of its own and with one thread, as one.

    An exception in a worker is raised here, too; one that cannot be pickled as a RuntimeError that tells it. Workers
    end when this object is closed or its process dies.

    Args:
        makers: One a process; makes the worker's share of the environments, in order.
    """

    def __init__(self, makers: Sequence[Callable[[], VecEnv]]) -> None:
        methods = multiprocessing.get_all_start_methods()
        # Not `fork`: it copies locks that other threads hold.
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        context.set_forkserver_preload([__name__, "optigrad_env"])  # PyTorch is imported once, not in every worker
        self._workers: list[_Worker] = []
        self.processes: list[Any] = []
        for make in makers:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, CloudpickleWrapper(make)), daemon=True)  # type: ignore[attr-defined]
            process.start()
            theirs.close()
            self._workers.append(_Worker(ours))
            self.processes.append(process)
        try:
            described = _answers(self._workers)
        except BaseException:
            self.close()
            raise
        sizes = [size for size, *_ in described]
        self._first = np.cumsum([0, *sizes])
        _, metadata, *spaces = described[0]
        super().__init__(sum(sizes), *spaces)
        self.metadata = metadata

    def reset(self) -> VecEnvObs:
        """See ``FederationVecEnv.reset``."""
        shares = [(self._seeds[share], self._options[share]) for share in self._shares()]
        answers = self._ask(range(len(shares)), "reset_as", shares)
        self.reset_infos = [info for _, infos in answers for info in infos]
        self._reset_seeds()
        self._reset_options()
        together: VecEnvObs = joined([observations for observations, _ in answers], np.concatenate)
        return together

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Sends each worker its actions."""
        for worker, share in zip(self._workers, self._shares(), strict=True):
            worker.ask("step_as", np.asarray(actions[share]))

    def step_wait(self) -> VecEnvStepReturn:
        """See ``FederationVecEnv.step_wait``."""
        answers = _answers(self._workers)
        observations, rewards, dones, infos, reset_infos = zip(*answers, strict=True)
        self.reset_infos = [info for share in reset_infos for info in share]
        return (
            joined(observations, np.concatenate),
            np.concatenate(rewards),
            np.concatenate(dones),
            [info for share in infos for info in share],
        )

    def saved_states(self) -> list[Any]:
        """See ``FederationVecEnv.saved_states``."""
        workers = range(len(self._workers))
        return [state for share in self._ask(workers, "saved_states", [()] * len(workers)) for state in share]

    def load_saved_states(self, states: Sequence[Any]) -> None:
        """See ``FederationVecEnv.load_saved_states``."""
        shares = [(states[share],) for share in self._shares()]
        self._ask(range(len(shares)), "load_saved_states", shares)
        self._reset_seeds()
        self._reset_options()

    def close(self) -> None:
        """Ends the workers; one in the middle of a step ends when it wants to answer."""
        for worker in self._workers:
            worker.close()
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
        wanted = [range(self.num_envs)[int(i)] for i in self._get_indices(indices)]
        owners = [int(owner) for owner in np.searchsorted(self._first, wanted, side="right") - 1]
        asked = sorted(set(owners))
        for owner in asked:
            own = [i - int(self._first[owner]) for i, o in zip(wanted, owners, strict=True) if o == owner]
            self._workers[owner].ask(name, *args, **kwargs, indices=own)
        answers = _answers([self._workers[owner] for owner in asked])
        found = {owner: iter(answer or ()) for owner, answer in zip(asked, answers, strict=True)}
        return [next(found[owner], None) for owner in owners]

    def _ask(self, owners: Sequence[int], name: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        for owner, args in zip(owners, arguments, strict=True):
            self._workers[owner].ask(name, *args)
        return _answers([self._workers[owner] for owner in owners])


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
            remote.send((0, _failure(error)))
            return
        share = _Share(envs)
        remote.send((0, (envs.num_envs, envs.metadata, envs.observation_space, envs.action_space)))
        while True:
            number, name, args, kwargs = remote.recv()
            try:
                answer = getattr(share, name)(*args, **kwargs)
            except Exception as error:
                answer = _failure(error)
            try:
                remote.send((number, answer))
            except Exception as error:  # pickling comes before the first byte is sent
                remote.send((number, _failure(RuntimeError(f"the answer of {name} cannot be sent: {error}"))))


class _Failure:
    """An exception on its way to the main process."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _failure(error: Exception) -> _Failure:
    """The exception itself where it survives the way, else one that tells its type and message."""
    note = "In a worker process:\n" + traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(note)
    return _Failure(error)


class _Worker:
    """The main process's end of a worker.

    Questions are numbered: an answer that nobody waited for, because Ctrl-C came first, is not taken for the next one.
    """

    def __init__(self, remote: Connection) -> None:
        self._remote, self._asked = remote, 0  # unasked, a worker says what its environments are

    def ask(self, name: str, *args: Any, **kwargs: Any) -> None:
        self._asked += 1
        try:
            self._remote.send((self._asked, name, args, kwargs))
        except BrokenPipeError:
            raise RuntimeError(_DEAD) from None

    def answer(self) -> Any:
        try:
            while True:
                number, answer = self._remote.recv()
                if number == self._asked:
                    return answer
        except (EOFError, ConnectionResetError):
            raise RuntimeError(_DEAD) from None

    def close(self) -> None:
        self._remote.close()


def _answers(workers: Sequence[_Worker]) -> list[Any]:
    """One answer from each worker. All are taken before a failure is raised, so that none is left for the next call."""
    answers = [worker.answer() for worker in workers]
    for answer in answers:
        if isinstance(answer, _Failure):
            raise answer.error
    return answers
