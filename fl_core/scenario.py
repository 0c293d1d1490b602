"""What one episode is about: heterogeneity, attack, share of attackers, onset."""

from dataclasses import dataclass, field
from typing import Any

from fl_core.attacks import Attack, make_attack
from fl_core.data.partition import Partition, make_partition, partition_options
from fl_core.data.shift import check_strength
from fl_core.data.splits import Root
from fl_core.registry import check_fields


@dataclass(frozen=True)
class Scenario:
    """One federation's circumstances. Truth: a defence never sees any of it.

    Attributes:
        attack: Name of a registered attack, or ``"none"``.
        malicious_fraction: Share of malicious clients in [0, 1); ``floor(fraction * N)`` clients are malicious.
        alpha: Concentration of the Dirichlet label partition; ``None`` for IID.
        onset: First round (from 0) in which the malicious clients attack; before it they behave honestly.
        attack_options: Parameters of the attack, such as ``{"factor": 10.0, "colluding": True}``.
        partition: Name of a partition; by default ``dirichlet`` where there is an ``alpha``, else ``iid``.
        partition_options: Parameters of the partition other than ``alpha``, such as ``{"q": 0.9}``.
        feature_shift: Strength of the clients' own contrast, brightness, blur and rotation; 0 for none.
        num_clients: Clients of this episode, at most the federation's ``num_clients``; ``None`` for all of those.
        participation: Share in (0, 1] of the clients that take part in a round, a random subset each time; at least one
            does, and at least one honest one.
        root_size: Samples that the server owns; ``None`` for as many as the federation has.
        root_bias: Share in [0, 1) of the root data that is of one class; the rest is balanced. ``None`` for the
            federation's.
        root_draw: Number of the draw of the root data; each is a sample of its own. With 0, and no other size and bias,
            it is the federation's own.
    """

    attack: str = "none"
    malicious_fraction: float = 0.0
    alpha: float | None = None
    onset: int = 0
    attack_options: dict[str, Any] = field(default_factory=dict)
    partition: str | None = None
    partition_options: dict[str, Any] = field(default_factory=dict)
    feature_shift: float = 0.0
    num_clients: int | None = None
    participation: float = 1.0
    root_size: int | None = None
    root_bias: float | None = None
    root_draw: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0.0 <= self.malicious_fraction < 1.0:
            raise ValueError(f"malicious_fraction must lie in [0, 1), got {self.malicious_fraction}")
        if self.alpha is not None and not self.alpha > 0.0:
            raise ValueError(f"alpha must be greater than 0 (or None for IID), got {self.alpha}")
        if self.onset < 0:
            raise ValueError(f"onset must be a round number, 0 or more, got {self.onset}")
        check_strength(self.feature_shift)
        if self.num_clients is not None and self.num_clients < 1:
            raise ValueError(f"num_clients must be at least 1 (or None for the federation's), got {self.num_clients}")
        if not 0.0 < self.participation <= 1.0:
            raise ValueError(f"participation must lie in (0, 1], got {self.participation}")
        self.make_root()
        self.make_attack()
        self.make_partition()

    def make_root(self) -> Root:
        """Which root data the server owns; raises ValueError for a size, bias or draw out of range."""
        return Root(self.root_size, self.root_bias, self.root_draw)

    def make_attack(self) -> Attack:
        """The attack object; raises ValueError for an unknown name or a wrong parameter."""
        return make_attack(self.attack, **self.attack_options)

    def under_attack(self, attack: Attack, round_: int) -> bool:
        """Whether its attack is on in a round, from 0: it has begun, and its own timetable does not say otherwise."""
        return round_ >= self.onset and attack.active(round_)

    def make_partition(self) -> Partition:
        """The partition; raises ValueError for an unknown name or a wrong parameter. One without α ignores it."""
        name = self.partition or ("iid" if self.alpha is None else "dirichlet")
        with_alpha = self.alpha is not None and "alpha" in partition_options(name)
        if with_alpha and "alpha" in self.partition_options:
            raise ValueError(f"alpha is given twice, as {self.alpha} and in partition_options={self.partition_options}")
        return make_partition(name, **({"alpha": self.alpha} if with_alpha else {}), **self.partition_options)

    def num_malicious(self, num_clients: int) -> int:
        """Number of malicious clients among ``num_clients``.

        The small constant keeps products such as 0.29 · 100 from losing a client to binary rounding.
        """
        return min(int(self.malicious_fraction * num_clients + 1e-9), num_clients - 1)

    def num_participants(self, num_clients: int) -> int:
        """Number of clients among ``num_clients`` that take part in a round, at least 1."""
        return max(int(self.participation * num_clients + 1e-9), 1)
