"""What an adversary may know, beside its own clients' updates."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from fl_core.aggregation.base import Rule
from fl_core.aggregation.view import ServerView

RULE_NEEDED = (
    "{} is made against the deployed rule, and none is known here: it runs in the benchmark (evaluate.py), or give the "
    "rule to Federation.local_round(rule=...)"
)


class Knowledge(StrEnum):
    """Threat model of an attack: what it needs to know beyond what any client has.

    That is its own data and update, the broadcast model and its last change. ``FINGERPRINT`` is what the server
    computes from root data, be it the reference update alone. ``RULE`` and ``FINGERPRINT`` each include the honest
    updates, neither the other; ``POLICY`` includes all.
    """

    NOTHING = "nothing"
    HONEST_UPDATES = "honest updates"
    RULE = "rule"
    FINGERPRINT = "fingerprint"
    POLICY = "policy"

    @property
    def needs_rule(self) -> bool:
        """Whether an attack that knows this asks the deployed rule: it can be played only where there is one."""
        return self in (Knowledge.RULE, Knowledge.POLICY)


@dataclass(frozen=True, eq=False)
class AdversaryView:
    """What the adversary has in one round; the counterpart of ``ServerView``.

    Attributes:
        generator: Source of all its randomness.
        round: Round number from 0.
        global_model: (P,) float32, what was broadcast.
        last_change: (P,) float32, the global model's change in the round before; every client sees it. Zeros at first.
        server: White box: the view that the server would have of updates (N, P) if they were sent.
        rule: White box: the rule that is deployed. Use ``aggregate``, which leaves its memory untouched.
        malicious: (N,) bool, places of its own clients among all; ``Attack.__call__`` fills it in.
        clients: (N,) int64, who stands in each place, for attacks that remember clients; by default 0 to N − 1.
    """

    generator: torch.Generator
    round: int = 0
    global_model: Tensor | None = None
    last_change: Tensor | None = None
    server: Callable[[Tensor], ServerView] | None = None
    rule: Rule | None = None
    malicious: Tensor | None = None
    clients: Tensor | None = None

    def places(self, own: Tensor, honest: Tensor) -> Tensor:
        """Which rows of all N the adversary's own f are, (N,) bool; the first f where the places are not known."""
        if self.malicious is not None:
            return self.malicious
        return torch.arange(len(own) + len(honest), device=own.device) < len(own)

    def honest_clients(self, own: Tensor, honest: Tensor) -> list[int]:
        """Who has sent each of the honest updates (N − f, P)."""
        places = self.places(own, honest).cpu()
        clients = torch.arange(len(places)) if self.clients is None else self.clients
        return [int(client) for client in clients[~places]]

    def arrange(self, own: Tensor, honest: Tensor) -> Tensor:
        """All rows (N, P) in the order in which the server gets them, from own (f, P) and honest ones (N − f, P).

        Most rules do not care, but one that remembers clients does.
        """
        places = self.places(own, honest)
        updates = honest.new_empty(len(places), honest.shape[1])
        updates[places], updates[~places] = own, honest
        return updates

    def known_change(self, attack: str) -> Tensor:
        """The global model's change (P,) in the round before; zeros in the first.

        Raises:
            ValueError: This adversary has not been told.
        """
        if self.last_change is None:
            raise ValueError(f"{attack} reads the global model's last change: give AdversaryView one (last_change=...)")
        return self.last_change

    def server_view(self, attack: str, updates: Tensor) -> ServerView:
        """What the server would see of ``updates`` (N, P).

        Raises:
            ValueError: This adversary does not know the server.
        """
        if self.server is None:
            raise ValueError(f"{attack} knows the server's fingerprint: give AdversaryView a server (server=...)")
        return self.server(updates)

    def aggregate(self, attack: str, updates: Tensor) -> Tensor:
        """The update (P,) that the deployed rule would make of ``updates`` (N, P).

        A rule with a memory is asked as a copy: what the adversary tries out does not happen.

        Raises:
            ValueError: No rule is known.
        """
        if self.rule is None:
            raise ValueError(RULE_NEEDED.format(attack))
        if self.server is None:
            view = ServerView(updates, self.global_model, round=self.round, clients=self.clients)
        else:
            view = self.server(updates)
        return copy.deepcopy(self.rule)(view).update


@dataclass(frozen=True, eq=False)
class LocalData:
    """Training data of malicious clients in one round, as an attack on the data sees it.

    Attributes:
        images: (M, K, B, C, H, W) float32, standardised: K batches for each of M malicious clients.
        labels: (M, K, B) int64.
        ranks: (M,) int64, place of each among all malicious clients, from 0.
        num_classes: C.
        logits: The global model's outputs: images (V, C, H, W) to (V, num_classes).
    """

    images: Tensor
    labels: Tensor
    ranks: Tensor
    num_classes: int
    logits: Callable[[Tensor], Tensor]
