"""What a client minimises, and what of it stays at home: FedAvg, FedProx, FedBN, FedBN-Prox."""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.registry import check_known

LOSSES = ("cross_entropy", "squared")
# What the squared loss asks of the true class's output; the others' are to be 0. Large enough that the outputs, read as
# logits, are a confident answer (Hui & Belkin 2020, arXiv 2006.07322, rescale the targets for the same reason).
TARGET = 5.0


@dataclass(frozen=True)
class Objective:
    """A loss plus ``mu/2 · ‖w − w_global‖²`` over the shared parameters.

    Attributes:
        name: One of ``objective_names()``.
        mu: Weight of the proximal term (FedProx, Li et al. 2020, arXiv 1812.06127, eq. 2); 0 switches it off.
        local_batchnorm: BatchNorm stays local (FedBN, Li et al. 2021, arXiv 2102.07623).
        loss: ``cross_entropy``, or ``squared``: ½‖z − 5·onehot(y)‖² of the outputs z. For a linear network a client's
            objective is then ½(w − w_i*)ᵀA_i(w − w_i*) and a constant, A_i the second moments of its features.
    """

    name: str
    mu: float
    local_batchnorm: bool
    loss: str = "cross_entropy"

    def __post_init__(self) -> None:
        if not 0 <= self.mu < inf:
            raise ValueError(f"mu must be 0 or more and finite, got {self.mu}")
        check_known("loss", [self.loss], LOSSES)

    def total_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Sum of all samples' losses: (S, C), (S,) to a scalar."""
        if self.loss == "cross_entropy":
            return F.cross_entropy(outputs, labels, reduction="sum")
        return 0.5 * self.slope(outputs, labels).square().sum()

    def slope(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Derivative of each sample's loss in its outputs: (..., C), (...) to (..., C)."""
        if self.loss == "cross_entropy":
            outputs, target = outputs.softmax(dim=-1), 1.0
        else:
            target = TARGET
        return outputs.scatter_add(-1, labels[..., None], torch.full_like(outputs[..., :1], -target))


_PROXIMAL_AND_LOCAL = {
    "fedavg": (False, False),
    "fedprox": (True, False),
    "fedbn": (False, True),
    "fedbn_prox": (True, True),
}


def objective_names() -> list[str]:
    """Names that ``make_objective`` accepts."""
    return list(_PROXIMAL_AND_LOCAL)


def make_objective(name: str, mu: float = 0.1, loss: str = "cross_entropy") -> Objective:
    """Builds an objective; ``mu`` counts only where the name says proximal.

    Raises:
        ValueError: Unknown name or loss, or negative ``mu``.
    """
    check_known("objective", [name], _PROXIMAL_AND_LOCAL)
    proximal, local_batchnorm = _PROXIMAL_AND_LOCAL[name]
    return Objective(name, mu if proximal else 0.0, local_batchnorm, loss)
