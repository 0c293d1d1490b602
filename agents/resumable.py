"""An environment in the middle of an episode as bytes.

It calls ``state_dict`` and ``load_state_dict`` of an environment that has them. What stands in for them, below the
wrapper, goes when ``OptiGradEnv`` has them.
"""

import io
import pickle
from typing import Any

import gymnasium as gym

from optigrad_env import OptiGradEnv


class Resumable(gym.Wrapper[Any, Any, Any, Any]):
    """Saves an environment in the middle of an episode as bytes, and continues from there."""

    def saved_state(self) -> bytes:
        """The state of the environment, as it is between two steps."""
        env = self.unwrapped
        if hasattr(env, "state_dict"):
            return pickle.dumps(env.state_dict())
        assert isinstance(env, OptiGradEnv)
        return _pickled_episode(env)

    def load_saved_state(self, state: bytes) -> None:
        """Continues where ``saved_state`` was called, in an environment made with the same arguments."""
        env = self.unwrapped
        if hasattr(env, "load_state_dict"):
            env.load_state_dict(pickle.loads(state))
            return
        assert isinstance(env, OptiGradEnv)
        _unpickle_episode(env, state)


_FIXED_OF_FEDERATION = ("config", "dataset", "splits", "objective", "layout", "engine", "simulator")
_FIXED_OF_ENV = ("federation", "scenarios", "observation_space", "action_space", "_reward", "spec")


def _fixed(env: OptiGradEnv) -> dict[str, Any]:
    """What the arguments make, and no episode changes: data, engine, spaces. Not saved, but referred to by name."""
    found = {f"federation.{name}": getattr(env.federation, name) for name in _FIXED_OF_FEDERATION}
    return found | {name: getattr(env, name) for name in _FIXED_OF_ENV}


def _pickled_episode(env: OptiGradEnv) -> bytes:
    names = {id(value): name for name, value in _fixed(env).items() if value is not None}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> str | None:
            return names.get(id(value))

    content = io.BytesIO()
    Pickler(content).dump((vars(env), vars(env.federation)))
    return content.getvalue()


def _unpickle_episode(env: OptiGradEnv, state: bytes) -> None:
    fixed = _fixed(env)

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, name: Any) -> Any:
            return fixed[name]

    of_env, of_federation = Unpickler(io.BytesIO(state)).load()
    vars(env.federation).update(of_federation)
    vars(env).update(of_env)
