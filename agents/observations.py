"""What a policy reads out of an observation: the clients' features and, where their number varies, who is there."""

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor


class AsItIs(BaseFeaturesExtractor):
    """Hands an observation on as it is: SB3's default would flatten it, and with it lose the clients."""

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        super().__init__(observation_space, features_dim=1)

    def forward(self, observations: Any) -> Any:
        """The argument."""
        return observations


def clients_and_mask(observation: PyTorchObs) -> tuple[Tensor, Tensor | None]:
    """Features (B, N, F), and which clients are there: (B, N) bool, or ``None`` if all are."""
    if isinstance(observation, dict):
        return observation["clients"], observation["mask"] > 0.5
    return observation, None


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> int:
    """Checks that a policy can work on these spaces; returns the number of features of a client.

    Raises:
        ValueError: Neither ``Box((N, F))`` nor ``Dict(clients=Box((N, F)), mask=MultiBinary(N))``, or an action that is
            not ``Box(-1, 1, (N,))``.
    """
    clients = observation_space
    if isinstance(observation_space, spaces.Dict):
        mask = observation_space.spaces.get("mask")
        clients = observation_space.spaces.get("clients", observation_space)
        if not isinstance(mask, spaces.MultiBinary) or mask.shape != (clients.shape or ())[:1]:
            clients = observation_space
    if not isinstance(clients, spaces.Box) or len(clients.shape) != 2:
        raise ValueError(
            "the observation must be Box((N, F)), or Dict(clients=Box((N, F)), mask=MultiBinary(N)), not flattened; "
            f"got {observation_space}"
        )
    of_trust = (
        isinstance(action_space, spaces.Box)
        and action_space.shape == clients.shape[:1]
        and bool((action_space.low == -1).all() and (action_space.high == 1).all())
    )
    if not of_trust:
        raise ValueError(f"the action must be Box(-1, 1, ({clients.shape[0]},)), a value a client; got {action_space}")
    return clients.shape[1]
