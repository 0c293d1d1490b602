"""Put an attack and an aggregation rule of your own beside the others.

python examples/own_attack_and_rule.py
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.benchmark import Grid, run
from agents.statistics import summarise
from fl_core.aggregation import Aggregate, Rule, ServerView, register_rule
from fl_core.attacks import AdversaryView, Attack, register_attack


@register_attack("echo")
@dataclass(frozen=True)
class Echo(Attack):
    """All malicious clients send the first honest client's update, several times over."""

    factor: float = 3.0

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        return self.factor * honest[0].expand_as(own)


@register_rule("shortest_half")
class ShortestHalf(Rule):
    """Mean of the half of the updates with the smallest norms."""

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        updates = view.accepted
        keep = updates.norm(dim=1).argsort()[: (len(updates) + 1) // 2]
        weights = torch.zeros(len(updates)).index_fill(0, keep, 1 / len(keep))
        return Aggregate(weights @ updates, weights)


def main() -> None:
    """A small benchmark."""
    grid = Grid(
        rules=("fedavg", "shortest_half", "fltrust"),
        policies=(),
        attacks=("echo",),
        malicious_fractions=(0.3,),
        alphas=(0.5,),
        seeds=(0, 1),
    )
    rows = [row for batch in run(grid, workers=1) for row in batch]
    for entry in summarise(rows):
        print(f"{entry['rule']:>16}: accuracy {entry['accuracy']['mean']:.1f} %, regret {entry['regret']['mean']:+.1f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
