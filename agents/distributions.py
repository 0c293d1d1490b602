"""Distributions of an action around a score: each has the network's own trust for its mode, mean or median.

All have one exploration scale for all clients, so that the weights know no number of clients, and leave clients that
are not there out of probability and entropy.
"""

from abc import abstractmethod
from math import log
from typing import Any, Self

import torch
from stable_baselines3.common.distributions import Distribution
from torch import Tensor, nn
from torch import distributions as td
from torch.nn.functional import softplus

from fl_core.registry import check_known


class TrustDistribution(Distribution):
    """A distribution over actions (B, N) in [-1, 1], independent over the clients.

    ``distribution`` is the PyTorch distribution underneath, before any squashing.
    """

    distribution: td.Distribution
    drive: Tensor
    mask: Tensor | None

    def proba_distribution(self, drive: Tensor, log_std: Tensor, mask: Tensor | None = None) -> Self:
        """Sets the parameters.

        Args:
            drive: (B, N), of which the deterministic action is the tanh.
            log_std: (1,), logarithm of an action's standard deviation at trust one half.
            mask: (B, N) bool, which clients are there.
        """
        self.drive, self.mask = drive, mask
        # Who is not there is the same in every policy: no divergence between two of them comes from there.
        std = log_std.exp() if mask is None else torch.where(mask, log_std.exp(), 1.0)
        self.distribution = self._around(drive, std)
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-density (B,) of actions (B, N)."""
        return self._over_clients(self._log_prob_of_each(actions))

    def entropy(self) -> Tensor | None:
        """Entropy (B,) in nats; ``None`` where there is no closed form."""
        return self._over_clients(self.distribution.entropy())

    def mode(self) -> Tensor:
        """The action (B, N) that the network's score stands for."""
        return torch.tanh(self.drive)

    def actions_from_params(self, *args: Any, deterministic: bool = False, **kwargs: Any) -> Tensor:
        """Actions (B, N) for the parameters of ``proba_distribution``."""
        return self.proba_distribution(*args, **kwargs).get_actions(deterministic=deterministic)

    def log_prob_from_params(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Actions (B, N), differentiable in the parameters, and their log-density (B,)."""
        return self.proba_distribution(*args, **kwargs)._sample_with_log_prob()

    def _sample_with_log_prob(self) -> tuple[Tensor, Tensor]:
        actions = self.sample()
        return actions, self.log_prob(actions)

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Not here: the network is a ``TrustNet``."""
        raise NotImplementedError("the parameters come from a TrustNet, not from a layer of the distribution's own")

    @abstractmethod
    def _around(self, drive: Tensor, std: Tensor) -> td.Distribution: ...

    @abstractmethod
    def _log_prob_of_each(self, actions: Tensor) -> Tensor: ...

    def _over_clients(self, values: Tensor) -> Tensor:
        return (values if self.mask is None else values * self.mask).sum(dim=-1)


class Gaussian(TrustDistribution):
    """Normal around the action; what leaves the box is cut off by the environment."""

    def _around(self, drive: Tensor, std: Tensor) -> td.Distribution:
        return td.Normal(torch.tanh(drive), std.expand_as(drive))

    def sample(self) -> Tensor:
        """Actions (B, N), differentiable; some may lie outside the box."""
        return self.distribution.rsample()

    def _log_prob_of_each(self, actions: Tensor) -> Tensor:
        return self.distribution.log_prob(actions)


# The largest action that squashed samples come to, so that its atanh is finite in float32.
_EDGE = 1.0 - 1e-6


class SquashedGaussian(TrustDistribution):
    """tanh of a normal (Haarnoja et al. 2018, arXiv 1801.01290, appendix C): never outside the box.

    Where the network is sure, the same scale moves the action less.
    """

    def _around(self, drive: Tensor, std: Tensor) -> td.Distribution:
        return td.Normal(drive, std.expand_as(drive))

    def sample(self) -> Tensor:
        """Actions (B, N), differentiable."""
        return torch.tanh(self.distribution.rsample()).clamp(-_EDGE, _EDGE)

    def entropy(self) -> None:
        """``None``: no closed form. Algorithms then estimate it from samples."""

    def _sample_with_log_prob(self) -> tuple[Tensor, Tensor]:
        # Of what is squashed, not of what comes out: at the edge the way back through atanh has a false gradient.
        x = self.distribution.rsample()
        log_prob = self.distribution.log_prob(x) - 2 * (log(2) - x - softplus(-2 * x))
        return torch.tanh(x).clamp(-_EDGE, _EDGE), self._over_clients(log_prob)

    def _log_prob_of_each(self, actions: Tensor) -> Tensor:
        actions = actions.clamp(-_EDGE, _EDGE)
        return self.distribution.log_prob(torch.atanh(actions)) - torch.log1p(-actions.square())


class Beta(TrustDistribution):
    """Beta, stretched to the box, with the score's action for its mode (Chou et al. 2017, ICML).

    Both parameters are above 1, so that it has one peak; from a scale of about 0.5 on it nears the uniform one, whose
    scale is 0.577. A softplus takes it there: at a hard bound no gradient would lead back.
    """

    def _around(self, drive: Tensor, std: Tensor) -> td.Distribution:
        # (1 + tanh x) / 2 = σ(2x). The stretched variance at the middle is 1 / (3 + concentration).
        mode, concentration = torch.sigmoid(2 * drive), softplus(std.pow(-2) - 3)
        return td.Beta(1 + mode * concentration, 1 + (1 - mode) * concentration)

    def sample(self) -> Tensor:
        """Actions (B, N), differentiable."""
        return (2 * self.distribution.rsample() - 1).clamp(-_EDGE, _EDGE)

    def entropy(self) -> Tensor:
        """Entropy (B,) in nats, that of the stretched distribution."""
        return self._over_clients(self.distribution.entropy() + torch.log(torch.tensor(2.0)))

    def _log_prob_of_each(self, actions: Tensor) -> Tensor:
        share = (1 + actions.clamp(-_EDGE, _EDGE)) / 2
        return self.distribution.log_prob(share) - torch.log(torch.tensor(2.0))


DISTRIBUTIONS: dict[str, type[TrustDistribution]] = {
    "squashed": SquashedGaussian,
    "beta": Beta,
    "gaussian": Gaussian,
}


def make_distribution(name: str) -> TrustDistribution:
    """An empty distribution by its name.

    Raises:
        ValueError: Unknown name; the message lists what there is.
    """
    check_known("distribution", [name], DISTRIBUTIONS)
    return DISTRIBUTIONS[name]()
