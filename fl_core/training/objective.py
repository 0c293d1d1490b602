"""What a client minimises, and what of it stays at home: FedAvg, FedProx, FedBN, FedBN-Prox."""

from dataclasses import dataclass
from math import inf

from fl_core.registry import check_known


@dataclass(frozen=True)
class Objective:
    """Cross-entropy plus ``mu/2 · ‖w − w_global‖²`` over the shared parameters.

    Attributes:
        name: One of ``objective_names()``.
        mu: Weight of the proximal term (FedProx, Li et al. 2020, arXiv 1812.06127, eq. 2); 0 switches it off.
        local_batchnorm: BatchNorm stays local (FedBN, Li et al. 2021, arXiv 2102.07623).
    """

    name: str
    mu: float
    local_batchnorm: bool

    def __post_init__(self) -> None:
        if not 0 <= self.mu < inf:
            raise ValueError(f"mu must be 0 or more and finite, got {self.mu}")


_PROXIMAL_AND_LOCAL = {
    "fedavg": (False, False),
    "fedprox": (True, False),
    "fedbn": (False, True),
    "fedbn_prox": (True, True),
}


def objective_names() -> list[str]:
    """Names that ``make_objective`` accepts."""
    return list(_PROXIMAL_AND_LOCAL)


def make_objective(name: str, mu: float = 0.1) -> Objective:
    """Builds an objective; ``mu`` counts only where the name says proximal.

    Raises:
        ValueError: Unknown name or negative ``mu``.
    """
    check_known("objective", [name], _PROXIMAL_AND_LOCAL)
    proximal, local_batchnorm = _PROXIMAL_AND_LOCAL[name]
    return Objective(name, mu if proximal else 0.0, local_batchnorm)
