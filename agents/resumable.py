"""An environment in the middle of an episode as bytes."""

import pickle
from typing import Any

import gymnasium as gym


class Resumable(gym.Wrapper[Any, Any, Any, Any]):
    """Saves an environment in the middle of an episode as bytes, and continues from there.

    Bytes, not objects: they travel from a worker process and into a checkpoint as they are.
    """

    def saved_state(self) -> bytes:
        """The state of the environment, as it is between two steps."""
        return pickle.dumps(self.get_wrapper_attr("state_dict")())

    def load_saved_state(self, state: bytes) -> None:
        """Continues where ``saved_state`` was called, in an environment made with the same arguments."""
        self.get_wrapper_attr("load_state_dict")(pickle.loads(state))
