"""Stable-Baselines3 policies around the attention network."""

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from agents.trust_net import Architecture, TrustNet
from optigrad_env.observation import SCORE_SCALE


class _Unflattened(BaseFeaturesExtractor):
    """Hands the (B, N, 6) observation on as it is: SB3's default would flatten it, and with it lose the clients."""

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        super().__init__(observation_space, features_dim=1)

    def forward(self, observations: Tensor) -> Tensor:
        return observations


class AttentionPolicy(ActorCriticPolicy):
    """Actor and critic on one ``TrustNet``; a Gaussian around its score, with one exploration scale for all clients.

    The weights' shapes do not depend on the number of clients: SB3's own ``log_std`` of shape (N,) would tie the policy
    to the N that it was trained with.

    Args:
        observation_space: ``Box((N, 6))``.
        action_space: ``Box((N,))``.
        lr_schedule: Learning rate.
        architecture: Sizes of the network, as a mapping or an ``Architecture``.
        **kwargs: Of ``ActorCriticPolicy``.

    Raises:
        ValueError: gSDE is asked for: its noise is a matrix per client, which no other number of clients could use.
    """

    trust_net: TrustNet

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        architecture: Architecture | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("use_sde"):
            raise ValueError("use_sde=True cannot work here: gSDE's noise is tied to the number of clients")
        self._architecture = architecture
        kwargs["features_extractor_class"] = _Unflattened
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        """Replaces SB3's multilayer perceptron; called by its constructor."""
        self.trust_net = TrustNet(self._architecture, features=self.observation_space.shape[-1])  # type: ignore[index]
        self.log_std = nn.Parameter(torch.full((1,), float(self.log_std_init)))
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _distribution_and_value(self, obs: PyTorchObs) -> tuple[Distribution, Tensor]:
        score, value = self.trust_net.score_and_value(self.extract_features(obs))  # type: ignore[arg-type]
        assert isinstance(self.action_dist, DiagGaussianDistribution)
        return self.action_dist.proba_distribution(score / SCORE_SCALE, self.log_std), value[:, None]

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Action (B, N), value (B, 1) and log-probability (B,) of that action."""
        distribution, value = self._distribution_and_value(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, value, distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Value (B, 1), log-probability (B,) and entropy (B,) for given actions."""
        distribution, value = self._distribution_and_value(obs)
        return value, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """Distribution over actions."""
        return self._distribution_and_value(obs)[0]

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Value (B, 1)."""
        return self._distribution_and_value(obs)[1]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "architecture": self._architecture}
