"""Several federations in one process, as a Gymnasium vector environment."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from fl_core.checkpoint import check_state
from fl_core.registry import check_known, check_types
from optigrad_env.env import OptiGradEnv
from optigrad_env.scenarios import TRAINING_SPLITS

# What Gymnasium's vector environment remembers from one step to the next.
_KEPT = ("_env_obs", "_rewards", "_terminations", "_truncations", "_autoreset_envs")

Wrapper = Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]


class OptiGradVectorEnv(SyncVectorEnv[Any, NDArray[np.float32]]):
    """``num_envs`` federations, each with its own draw of root data, validation data and initial weights.

    What ``gym.make_vec(id, num_envs=...)`` makes::

        envs = gym.make_vec("OptiGrad/Digits-v0", num_envs=8, num_clients=10)
        observations, infos = envs.reset(seed=0)                     # (8, 10, 6); seeds 0, 1, ... 7
        observations, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())

    Environment i is ``OptiGradEnv(split_seed=split_seed + i)``, equal to it bit by bit: the round is written there, and
    here is only what makes one environment of many. ``reset``, seeds, ``options`` (with ``reset_mask``), infos and
    autoreset are Gymnasium's.

    The federations take their steps one after the other. Running the same phase of all of them in one call was measured
    to bring 1 % on 8x8 images, where it would bring the most (docs/vector.md); more processes bring more.

    Args:
        num_envs: E, number of federations.
        autoreset_mode: ``"NextStep"`` (Gymnasium's default: the step after the last one resets), ``"SameStep"`` (the
            last step resets; the last observation and info are ``infos["final_obs"]`` and ``infos["final_info"]``),
            ``"Disabled"`` (reset with a ``reset_mask``), or the ``AutoresetMode``.
        split_seed: Seed of the first federation's data and weights; the others' follow.
        around: Wrappers to put around every environment, the first innermost. Not called ``wrappers``, because
            ``gym.make_vec`` keeps that name for itself.
        **kwargs: Of every environment: see ``OptiGradEnv``.

    Raises:
        ValueError: A wrong argument.
    """

    env_class: ClassVar[type[OptiGradEnv]] = OptiGradEnv

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        split_seed: int = TRAINING_SPLITS,
        around: Sequence[Wrapper] = (),
        **kwargs: Any,
    ) -> None:
        check_types({"num_envs": num_envs, "split_seed": split_seed}, {"num_envs": int, "split_seed": int})
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if not isinstance(around, Sequence) or not all(map(callable, around)):
            raise ValueError(f"around must be a list of wrappers, such as [ClientHistory], got {around!r}")
        if not isinstance(autoreset_mode, AutoresetMode):
            check_known("autoreset_mode", [autoreset_mode], [mode.value for mode in AutoresetMode])
        makers = [partial(self._make, around, split_seed=split_seed + i, **kwargs) for i in range(num_envs)]
        super().__init__(makers, autoreset_mode=autoreset_mode)

    @classmethod
    def _make(cls, around: Sequence[Wrapper], **kwargs: Any) -> gym.Env[Any, Any]:
        env: gym.Env[Any, Any] = cls.env_class(**kwargs)
        for wrapper in around:
            env = wrapper(env)
        return env

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """One round in every federation.

        Raises:
            ValueError: Actions of the wrong shape, or not finite; no federation has then taken the step.
        """
        actions = np.asarray(actions, dtype=np.float32)
        if actions.shape != self.action_space.shape:
            wanted = self.action_space.shape
            raise ValueError(
                f"actions must have shape {wanted}, one value a federation and client; got {actions.shape}"
            )
        if not np.isfinite(actions).all():
            raise ValueError(f"actions must be finite, got {actions}")
        return super().step(actions)

    def state_dict(self) -> dict[str, Any]:
        """All episodes as data, and who is to be reset next; see ``OptiGradEnv.state_dict``."""
        kept = {name: copy.deepcopy(getattr(self, name)) for name in _KEPT}
        return {"envs": [env.get_wrapper_attr("state_dict")() for env in self.envs], "vector": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues all episodes of a ``state_dict``, bit by bit.

        Raises:
            ValueError: Another number of federations, or one with other settings.
        """
        check_state(state, "envs", "vector")
        if len(state["envs"]) != self.num_envs:
            raise ValueError(f"the state is of {len(state['envs'])} federations, here are {self.num_envs}")
        for env, of_env in zip(self.envs, state["envs"], strict=True):
            env.get_wrapper_attr("load_state_dict")(of_env)
        for name, value in copy.deepcopy(state["vector"]).items():
            setattr(self, name, value)
