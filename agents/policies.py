"""Stable-Baselines3 policies around the attention network, for algorithms that learn on-policy."""

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from agents.distributions import TrustDistribution, make_distribution
from agents.observations import AsItIs, check_spaces, clients_and_mask
from agents.trust_net import Architecture, TrustNet
from fl_core.registry import check_known

# Of ``ActorCriticPolicy``, for the network that ``AttentionPolicy`` has another one in the place of.
_REPLACED = (
    *("net_arch", "activation_fn", "ortho_init"),
    *("features_extractor_class", "features_extractor_kwargs", "share_features_extractor"),
)
NO_GSDE = "use_sde=True cannot work here: gSDE's noise is a matrix a client, tied to the number of clients"


def check_not_replaced(policy_kwargs: Mapping[str, Any]) -> None:
    """Raises a ValueError for arguments of SB3's own networks, in whose place there is a ``TrustNet``."""
    if replaced := [name for name in _REPLACED if name in policy_kwargs]:
        raise ValueError(
            f"{', '.join(replaced)} would change nothing: the network is a TrustNet, whose sizes are "
            f"architecture={dict.fromkeys(Architecture.__dataclass_fields__, '...')}"
        )


def architecture_of(given: Architecture | Mapping[str, int] | None) -> Architecture:
    """Sizes from a mapping, as hyperparameter files have them, or as they are.

    Raises:
        ValueError: Unknown names, or sizes that cannot be.
    """
    if isinstance(given, Architecture):
        return given
    check_known("size of the network", given or {}, Architecture.__dataclass_fields__)
    return Architecture(**(given or {}))


class AttentionPolicy(ActorCriticPolicy):
    """Actor and critic on one ``TrustNet``; a distribution around its score, with one scale for all clients.

    The weights' shapes do not depend on the number of clients: SB3's own ``log_std`` of shape (N,) would tie the policy
    to the N that it was trained with.

    Args:
        observation_space: ``Box((N, 6))``, or ``Dict(clients=Box((N, 6)), mask=MultiBinary(N))``.
        action_space: ``Box((N,))``.
        lr_schedule: Learning rate.
        architecture: Sizes of the network, as a mapping or an ``Architecture``.
        distribution: ``gaussian``, ``squashed`` or ``beta``.
        **kwargs: Of ``ActorCriticPolicy``.

    Raises:
        ValueError: Other spaces, an unknown distribution, gSDE, or settings of the network that this one replaces.
    """

    trust_net: TrustNet
    action_dist: TrustDistribution

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        architecture: Architecture | Mapping[str, int] | None = None,
        distribution: str = "gaussian",
        **kwargs: Any,
    ) -> None:
        if kwargs.get("use_sde"):
            raise ValueError(NO_GSDE)
        check_not_replaced(kwargs)
        self._features = check_spaces(observation_space, action_space)
        self._architecture, self._distribution = architecture_of(architecture), distribution
        kwargs["features_extractor_class"] = AsItIs
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        """Replaces SB3's multilayer perceptron; called by its constructor."""
        self.trust_net = TrustNet(self._architecture, self._features)
        self.action_dist = make_distribution(self._distribution)
        self.log_std = nn.Parameter(torch.full((1,), float(self.log_std_init)))
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _distribution_and_value(self, obs: PyTorchObs) -> tuple[TrustDistribution, Tensor]:
        clients, mask = clients_and_mask(self.extract_features(obs))  # type: ignore[arg-type]
        drive, value = self.trust_net.drive_and_value(clients, mask)
        return self.action_dist.proba_distribution(drive, self.log_std, mask), value[:, None]

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Action (B, N), value (B, 1) and log-probability (B,) of that action."""
        distribution, value = self._distribution_and_value(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, value, distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Value (B, 1), log-probability (B,) and, if it has a closed form, entropy (B,) for given actions."""
        distribution, value = self._distribution_and_value(obs)
        return value, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs) -> TrustDistribution:
        """Distribution over actions."""
        if not torch.is_grad_enabled():
            return self._distribution_and_value(obs)[0]
        # TRPO differentiates its divergence twice, and only this kernel of the attention can be.
        with sdpa_kernel(SDPBackend.MATH):
            return self._distribution_and_value(obs)[0]

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Value (B, 1)."""
        return self._distribution_and_value(obs)[1]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        inherited = super()._get_constructor_parameters()
        own = {"architecture": self._architecture, "distribution": self._distribution}
        return {**{name: value for name, value in inherited.items() if name not in _REPLACED}, **own}
