"""Stable-Baselines3 policies around the attention network, for algorithms that learn from a replay buffer."""

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from agents.distributions import make_distribution
from agents.observations import AsItIs, check_spaces, clients_and_mask
from agents.policies import NO_GSDE, architecture_of, check_not_replaced
from agents.trust_net import ActionValueNet, Architecture, TrustNet

# An exploration scale outside exp(-5) .. 1 is a breakdown: no noise at all, or nothing else. The parameter itself is
# kept there after every step: behind a clamp, a step that overshoots would leave it without a gradient to come back by.
_LOG_STD_MIN, _LOG_STD_MAX = -5.0, 0.0

NO_GAUSSIAN = (
    "its actions leave the box, so a critic would be asked about others than it has learned from; take squashed or beta"
)

NO_TARGET = (
    "the actor's target is TD3's, whose actor is deterministic: give policy_kwargs=dict(distribution=None), got "
    "distribution {!r}"
)
NO_DISTRIBUTION = (
    "distribution None is a deterministic actor, for TD3 alone; SAC and TQC draw actions: leave it out, or give "
    "policy_kwargs=dict(distribution='squashed')"
)
NO_QUANTILES = "TQC's critics have quantiles: give policy_kwargs=dict(n_quantiles=25), got n_quantiles None"


class _NoTargetError(ValueError, AttributeError):
    """An error in words for who needs the target; for who asks whether there is one, none."""


class TrustActor(BasePolicy):
    """A ``TrustNet`` as an actor: deterministic (TD3), or a distribution around its score (SAC, TQC)."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        architecture: Architecture,
        distribution: str | None,
        log_std_init: float,
    ) -> None:
        super().__init__(observation_space, action_space, features_extractor_class=AsItIs, squash_output=True)
        self.features_extractor = self.make_features_extractor()
        self.trust_net = TrustNet(architecture, check_spaces(observation_space, action_space))
        self.action_dist = None if distribution is None else make_distribution(distribution)
        if self.action_dist is not None:
            if not _LOG_STD_MIN <= log_std_init <= _LOG_STD_MAX:
                raise ValueError(f"log_std_init must lie in [{_LOG_STD_MIN}, {_LOG_STD_MAX}], got {log_std_init}")
            self.log_std = nn.Parameter(torch.full((1,), float(log_std_init)))

    def keep_scale_in_bounds(self, *_: Any) -> None:
        """To be called after every step of the optimiser."""
        if self.action_dist is not None:
            self.log_std.data.clamp_(_LOG_STD_MIN, _LOG_STD_MAX)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Actions (B, N)."""
        drive, mask = self._drive(obs)
        if self.action_dist is None:
            return torch.tanh(drive)
        return self.action_dist.actions_from_params(drive, self._scale(), mask, deterministic=deterministic)

    def action_log_prob(self, obs: PyTorchObs) -> tuple[Tensor, Tensor]:
        """Sampled actions (B, N) and their log-density (B,), as of a round in which everybody is there.

        SB3's target entropy is meant for all N clients; a round with fewer is counted up to N, so that each client
        explores as much in a full round as in an empty one.
        """
        if self.action_dist is None:
            raise ValueError(NO_DISTRIBUTION)
        drive, mask = self._drive(obs)
        actions, log_prob = self.action_dist.log_prob_from_params(drive, self._scale(), mask)
        return actions, log_prob if mask is None else log_prob * mask.shape[-1] / mask.sum(dim=-1).clamp(min=1)

    def _drive(self, obs: PyTorchObs) -> tuple[Tensor, Tensor | None]:
        clients, mask = clients_and_mask(self.extract_features(obs, self.features_extractor))
        return self.trust_net.drive_and_value(clients, mask)[0], mask

    def _scale(self) -> Tensor:
        return self.log_std.clamp(_LOG_STD_MIN, _LOG_STD_MAX)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        actions: Tensor = self(observation, deterministic)
        return actions


class TrustCritic(BaseModel):
    """Several ``ActionValueNet``, each with a trunk of its own; with quantiles in TQC, without in SAC and TD3."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        architecture: Architecture,
        n_critics: int,
        n_quantiles: int | None,
    ) -> None:
        super().__init__(observation_space, action_space, features_extractor_class=AsItIs)
        self.features_extractor = self.make_features_extractor()
        features = check_spaces(observation_space, action_space)
        self.q_networks = nn.ModuleList(
            ActionValueNet(architecture, features, outputs=n_quantiles or 1) for _ in range(n_critics)
        )
        self.n_critics, self.n_quantiles = n_critics, n_quantiles

    @property
    def quantiles_total(self) -> int:
        """Quantiles of all critics, which TQC asks for."""
        if self.n_quantiles is None:
            raise ValueError(NO_QUANTILES)
        return self.n_critics * self.n_quantiles

    def forward(self, obs: PyTorchObs, actions: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Every network's value, a tuple of (B, 1); with quantiles (B, n_critics, n_quantiles)."""
        values = tuple(self._value(network, obs, actions) for network in self.q_networks)
        return values if self.n_quantiles is None else torch.stack(values, dim=1)

    def q1_forward(self, obs: PyTorchObs, actions: Tensor) -> Tensor:
        """The first network's value (B, 1), for TD3's actor."""
        return self._value(self.q_networks[0], obs, actions)

    def _value(self, network: nn.Module, obs: PyTorchObs, actions: Tensor) -> Tensor:
        assert self.features_extractor is not None
        clients, mask = clients_and_mask(self.extract_features(obs, self.features_extractor))
        value: Tensor = network(clients, actions, mask)
        return value


class OffPolicyAttentionPolicy(BasePolicy):
    """Actor, critics and targets of SAC, TD3 and TQC: no weight's shape depends on the number of clients.

    Args:
        observation_space: ``Box((N, 6))``, or ``Dict(clients=Box((N, 6)), mask=MultiBinary(N))``.
        action_space: ``Box((N,))``.
        lr_schedule: Learning rate.
        architecture: Sizes of actor and critics, as a mapping or an ``Architecture``.
        distribution: ``squashed`` or ``beta``; ``None`` for a deterministic actor, with a target of its own (TD3).
        log_std_init: Logarithm of the exploration scale to begin with.
        n_critics: Number of critics.
        n_quantiles: Quantiles of each critic (TQC); ``None`` for its mean alone.
        use_sde: SB3 passes it on; must be False.
        **kwargs: Of ``BasePolicy``: the optimizer's class and arguments.

    Raises:
        ValueError: Other spaces, gSDE, or a distribution whose actions leave the box.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        architecture: Architecture | Mapping[str, int] | None = None,
        distribution: str | None = "squashed",
        log_std_init: float = -2.0,
        n_critics: int = 2,
        n_quantiles: int | None = None,
        use_sde: bool = False,
        **kwargs: Any,
    ) -> None:
        if use_sde:
            raise ValueError(NO_GSDE)
        check_not_replaced(kwargs)
        if distribution == "gaussian":
            raise ValueError(f"distribution 'gaussian' cannot work here: {NO_GAUSSIAN}")
        super().__init__(observation_space, action_space, features_extractor_class=AsItIs, squash_output=True, **kwargs)
        self._settings = {
            "architecture": architecture_of(architecture),
            "distribution": distribution,
            "log_std_init": log_std_init,
            "n_critics": n_critics,
            "n_quantiles": n_quantiles,
        }
        spaces_ = (observation_space, action_space, architecture_of(architecture))
        self.actor = TrustActor(*spaces_, distribution, log_std_init)
        self.critic = TrustCritic(*spaces_, n_critics, n_quantiles)
        self.critic_target = TrustCritic(*spaces_, n_critics, n_quantiles)
        if distribution is None:
            self.actor_target = TrustActor(*spaces_, distribution, log_std_init)
        self.follow()
        for part in (self.actor, self.critic):
            part.optimizer = self.optimizer_class(part.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]
        self.actor.optimizer.register_step_post_hook(self.actor.keep_scale_in_bounds)

    @property
    def trust_net(self) -> TrustNet:
        """The actor's network: what is deployed."""
        return self.actor.trust_net

    def __getattr__(self, name: str) -> Any:
        """As a module has it; SB3 does not tell a policy whose it is, and TD3 is known by what it looks for."""
        if name == "actor_target" and name not in self._modules:
            raise _NoTargetError(NO_TARGET.format(self._settings["distribution"]))
        return super().__getattr__(name)

    def follow(self) -> None:
        """Sets the targets to what they follow: at the beginning, and after a warm start."""
        self.critic_target.load_state_dict(self.critic.state_dict())
        if "actor_target" in self._modules:
            self.actor_target.load_state_dict(self.actor.state_dict())

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Actions (B, N)."""
        return self._predict(obs, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        actions: Tensor = self.actor(observation, deterministic)
        return actions

    def set_training_mode(self, mode: bool) -> None:
        """Training or evaluation mode, of what is trained."""
        self.actor.set_training_mode(mode)
        self.critic.set_training_mode(mode)
        self.training = mode

    def _get_constructor_parameters(self) -> dict[str, Any]:
        optimizer = {"optimizer_class": self.optimizer_class, "optimizer_kwargs": self.optimizer_kwargs}
        own = {**self._settings, **optimizer, "lr_schedule": self._dummy_schedule}
        return {**super()._get_constructor_parameters(), **own}
