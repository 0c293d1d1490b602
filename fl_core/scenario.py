"""What one episode is about: heterogeneity, attack, share of attackers, onset."""

from dataclasses import dataclass, field
from typing import Any

from fl_core.attacks import Attack, make_attack


@dataclass(frozen=True)
class Scenario:
    """One federation's circumstances. Truth: a defence never sees any of it.

    Attributes:
        attack: Name of a registered attack, or ``"none"``.
        malicious_fraction: Share of malicious clients in [0, 1); ``floor(fraction * N)`` clients are malicious.
        alpha: Concentration of the Dirichlet label partition; ``None`` for IID.
        onset: First round (from 0) in which the malicious clients attack; before it they behave honestly.
        attack_options: Parameters of the attack, such as ``{"factor": 10.0, "colluding": True}``.
    """

    attack: str = "none"
    malicious_fraction: float = 0.0
    alpha: float | None = None
    onset: int = 0
    attack_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 <= self.malicious_fraction < 1.0:
            raise ValueError(f"malicious_fraction must lie in [0, 1), got {self.malicious_fraction}")
        if self.alpha is not None and not self.alpha > 0.0:
            raise ValueError(f"alpha must be greater than 0 (or None for IID), got {self.alpha}")
        if self.onset < 0:
            raise ValueError(f"onset must be a round number, 0 or more, got {self.onset}")
        self.make_attack()

    def make_attack(self) -> Attack:
        """The attack object; raises ValueError for an unknown name or a wrong parameter."""
        return make_attack(self.attack, **self.attack_options)

    def num_malicious(self, num_clients: int) -> int:
        """Number of malicious clients among ``num_clients``.

        The small constant keeps products such as 0.29 · 100 from losing a client to binary rounding.
        """
        return min(int(self.malicious_fraction * num_clients + 1e-9), num_clients - 1)
