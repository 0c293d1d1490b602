"""How alike clients are to each other: those that are more alike than the others may be sybils of one."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fl_core.aggregation.gram import cosines
from fl_core.aggregation.view import ServerView
from fl_core.fingerprint.geometry import median


def similarity_mass(updates: Tensor, exponent: float) -> Tensor:
    """Each client's similarity mass ``mᵢ = Σⱼ max(cos(Δᵢ, Δⱼ), 0)^p``, itself included.

    Args:
        updates: (A, P).
        exponent: p.

    Returns:
        (A,) float64 on the CPU, 1 or more.
    """
    # A client that sends nothing has no direction, and is alike to itself alone.
    return cosines(updates).fill_diagonal_(1).clamp_min_(0).pow_(exponent).sum(dim=1)


def trusted_median(values: Tensor, trust: Tensor) -> Tensor:
    """Median (), of values (A,) that count by trust (A,), 0 or more; the plain one if nobody is trusted."""
    order = values.argsort(stable=True)
    counted = trust.to(values)[order].cumsum(dim=0)
    if float(counted[-1]) <= 0:
        return median(values)
    return values[order][int((counted < counted[-1] / 2).sum())]


@dataclass(eq=False)
class SimilarityMemory:
    """Each client's similarity mass over that of the median client, as a mean over the rounds that it took part in.

    Attackers with one aim are alike in every round; honest clients whose batches are alike by chance, in some. The
    median is weighted by trust: otherwise attackers that send unrelated noise would lower it, and the honest clients'
    similarity would look suspicious.
    """

    _sums: dict[int, tuple[float, int]] = field(default_factory=dict)

    def means(self) -> dict[int, float]:
        """Mᵢ by client: above 1 for who has been more alike to the others than most."""
        return {client: total / rounds for client, (total, rounds) in self._sums.items()}

    def forget(self) -> None:
        """Before a federation's first round."""
        self._sums.clear()

    def remember(self, view: ServerView, exponent: float, trust: Tensor) -> Tensor:
        """Adds a round.

        Args:
            view: The round.
            exponent: p of ``similarity_mass``.
            trust: (A,), of the accepted clients, A at least 1.

        Returns:
            (A,) float64 on the CPU, above 0: their means, this round's included.
        """
        mass = similarity_mass(view.accepted, exponent)
        relative = mass / trusted_median(mass, trust.cpu())
        means = []
        for client, value in zip(view.accepted_clients.tolist(), relative.tolist(), strict=True):
            total, rounds = self._sums.get(client, (0.0, 0))
            self._sums[client] = total + value, rounds + 1
            means.append((total + value) / (rounds + 1))
        return torch.tensor(means, dtype=torch.float64)
