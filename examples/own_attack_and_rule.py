"""Put an attack and an aggregation rule of your own beside the others.

python evaluate.py --plugin examples/own_attack_and_rule.py --rules fedavg shortest_half fltrust --attacks echo alie
python examples/own_attack_and_rule.py
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from agents.evaluation import Grid, run_grid, summarise
from fl_core.aggregation import Aggregate, Rule, ServerView, register_rule
from fl_core.attacks import AdversaryView, Attack, Knowledge, register_attack


@register_attack("echo")
@dataclass(frozen=True)
class Echo(Attack):
    """All malicious clients send the first honest client's update, several times over."""

    knows: ClassVar[Knowledge] = Knowledge.HONEST_UPDATES
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
        rules=("fedavg", "shortest_half", "fltrust"), attacks=("echo",), malicious_fractions=(0.3,), seeds=(0, 1)
    )
    rows = [row for result in run_grid(grid) for row in result.rows]
    for entry in summarise(rows):
        accuracy, regret = entry["accuracy"]["value"], entry["regret"]["value"]
        print(f"{entry['rule']:>16}: accuracy {accuracy:.1f} %, regret {regret:+.1f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
