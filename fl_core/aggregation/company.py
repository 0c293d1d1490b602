"""How alike clients are to each other: who has more company than the others may be several voices of one."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fl_core.aggregation.gram import cosines
from fl_core.aggregation.view import ServerView
from fl_core.fingerprint.geometry import median


def company_of(updates: Tensor, exponent: float) -> Tensor:
    """Each client's company ``mᵢ = Σⱼ max(cos(Δᵢ, Δⱼ), 0)^p``, itself included.

    Args:
        updates: (A, P).
        exponent: p.

    Returns:
        (A,) float64 on the CPU, 1 or more.
    """
    # A client that sends nothing has no direction, and is alike to itself alone.
    return cosines(updates).fill_diagonal_(1).clamp_min_(0).pow_(exponent).sum(dim=1)


@dataclass(eq=False)
class CompanyMemory:
    """The company of each client relative to the median client's, as a mean over the rounds that it took part in.

    Attackers with one aim are alike in every round; honest clients whose batches are alike by chance, in some.
    """

    _sums: dict[int, tuple[float, int]] = field(default_factory=dict)

    def forget(self) -> None:
        """Before a federation's first round."""
        self._sums.clear()

    def with_round(self, view: ServerView, exponent: float) -> Tensor:
        """The accepted clients' means (A,) float64, this round's included; nothing is remembered."""
        if not len(view.accepted):
            return torch.empty(0, dtype=torch.float64)
        company = company_of(view.accepted, exponent)
        past = [self._sums.get(client, (0.0, 0)) for client in view.accepted_clients.tolist()]
        sums, rounds = torch.tensor(past, dtype=torch.float64).unbind(dim=1)
        return (sums + company / median(company)) / (rounds + 1)

    def remember(self, view: ServerView, exponent: float) -> Tensor:
        """Like ``with_round``, and from now on this round is one of the past."""
        means = self.with_round(view, exponent)
        for client, mean in zip(view.accepted_clients.tolist(), means.tolist(), strict=True):
            rounds = self._sums.get(client, (0.0, 0))[1] + 1
            self._sums[client] = mean * rounds, rounds
        return means
