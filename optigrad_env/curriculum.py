"""From cheap environments to the target."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import RecordConstructorArgs

from fl_core.checkpoint import check_same, check_state
from fl_core.registry import check_known, check_types
from optigrad_env.env import Action, federated
from optigrad_env.wrappers import ClientObservation, RoundRecorder

Stage = tuple[str, int]


class Curriculum(gym.Wrapper[Any, Action, Any, Action], RecordConstructorArgs):
    """Plays cheaper environments for a number of steps each, and the target from then on.

    ::

        env = gym.make("OptiGrad/FashionMNIST-v0", num_clients=20)
        env = Curriculum(env, [("OptiGrad/Softmax-v0", 2000), ("OptiGrad/Digits-v0", 2000)])

        gym.make_vec("OptiGrad/FashionMNIST-v0", 8, around=(partial(Curriculum, stages=[("OptiGrad/Digits-v0", 500)]),))

    A fingerprint looks the same whatever the images and the network: the spaces never change. An earlier stage has the
    target's number of clients, rounds, reward, scenarios, objective, root data and split seed, and its own id's data
    set, network and local training. Stages change at resets, so an episode is of one kind; each environment counts its
    own steps, so nothing has to pass between processes. ``unwrapped`` is the environment that is played.

    Args:
        env: The target, one of this package's environments.
        stages: Ids and numbers of this environment's steps, at least 1, in order.

    Raises:
        ValueError: Another package's environment, an unknown id, a number of steps below 1, an id with another kind
            of observation, or a wrapper inside this one that changes what is seen: it would be the target's alone.
    """

    def __init__(self, env: gym.Env[Any, Action], stages: Sequence[Stage]) -> None:
        _check_pairs(stages)
        target = federated(env)
        inner = env
        while isinstance(inner, gym.Wrapper):
            if isinstance(inner, (ClientObservation, RoundRecorder)):
                raise ValueError(f"Curriculum goes inside {type(inner).__name__}, whose place is around all stages")
            inner = inner.env
        RecordConstructorArgs.__init__(self, stages=[list(stage) for stage in stages])
        super().__init__(env)
        self._target, self._spec = env, super().spec
        self._ends: list[int] = []
        self._stages: list[gym.Env[Any, Action]] = []
        known = sorted(name for name in gym.registry if name.startswith("OptiGrad/"))
        for env_id, steps in stages:
            check_known("environment id", [env_id], known)
            check_types({f"steps of {env_id!r}": steps}, {f"steps of {env_id!r}": int})
            if steps < 1:
                raise ValueError(f"stage {env_id!r} must have at least 1 step, got {steps}")
            stage = target.like(env_id)
            if stage.observation_space != env.observation_space:
                raise ValueError(
                    f"stage {env_id!r} shows {stage.observation_space}, the target {env.observation_space}"
                )
            self._stages.append(stage)
            self._ends.append(steps + (self._ends[-1] if self._ends else 0))
        self.steps = 0
        self.env = self._of_now()

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """What makes this curriculum again: of the target, whatever is played."""
        return self._spec

    @property
    def stage(self) -> int:
        """Number of the stage that the next reset begins, from 0; the target is the last."""
        return sum(self.steps >= end for end in self._ends)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode of the stage whose turn it is; a new stage is seeded from the one before."""
        following = self._of_now()
        if following is not self.env and seed is None:
            seed = int(self.env.unwrapped.np_random.integers(2**31))
        self.env = following
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Action) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See ``gymnasium.Env.step``."""
        answer = self.env.step(action)
        self.steps += 1
        return answer

    def close(self) -> None:
        """Closes every stage."""
        for env in (*self._stages, self._target):
            env.close()

    def state_dict(self) -> dict[str, Any]:
        """State of the environment that is played, and which one that is."""
        playing = [*self._stages, self._target].index(self.env)
        inside = self.env.get_wrapper_attr("state_dict")()
        return {"env": inside, "settings": self._saved_kwargs, "steps": self.steps, "playing": playing}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a ``state_dict``; raises ValueError for one of a curriculum with other stages."""
        check_state(state, "env", "settings", "steps", "playing")
        check_same(type(self).__name__, state["settings"], self._saved_kwargs)
        self.steps = state["steps"]
        self.env = [*self._stages, self._target][state["playing"]]
        self.env.reset()  # wrappers may refuse to step an environment that was never reset; its state is replaced
        self.env.get_wrapper_attr("load_state_dict")(state["env"])

    def _of_now(self) -> gym.Env[Any, Action]:
        return [*self._stages, self._target][self.stage]


def _check_pairs(stages: Any) -> None:
    def listed(value: Any) -> bool:
        return isinstance(value, Sequence) and not isinstance(value, str)

    if not listed(stages) or not all(listed(stage) and len(stage) == 2 for stage in stages):
        example = '[("OptiGrad/Softmax-v0", 2000)]'
        raise ValueError(f"stages must be a list of ids and numbers of steps, such as {example}, got {stages!r}")
