"""One rule with different numbers of clients, on the seeds and attacks that the results have in common.

    python benchmarks/clients.py results/held_out results/held_out_10_clients
    python benchmarks/clients.py results/scaling --rules optigradtrust shapley fltrust krum

Prints, for each environment, heterogeneity and number of clients, the mean test accuracy under attack, the mean regret
to the anchored oracle and the median of the server's time for a round. Only cells with attackers count, and of them
those whose heterogeneity, attack, fraction and seed every number of clients has.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Annotated

import tyro

from agents.statistics import read_results

Scenario = tuple[str, str, str, float, int]


@dataclass(frozen=True)
class Arguments:
    """Which results, and of which rules."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Results directories with `results.csv` and `timings.csv`."""
    rules: tuple[str, ...] = ("optigradtrust",)
    """Rules."""


def column(paths: list[Path], rule: str, name: str) -> dict[int, dict[Scenario, float]]:
    """A rule's figures under attack, by number of clients and scenario."""
    found: dict[int, dict[Scenario, float]] = defaultdict(dict)
    for row in (row for path in paths for row in read_results(path)):
        if row["rule"] == rule and float(row["malicious_fraction"]) > 0:
            scenario = (
                row["env_id"],
                row["heterogeneity"],
                row["attack"],
                float(row["malicious_fraction"]),
                int(row["seed"]),
            )
            found[int(row["num_clients"])][scenario] = float(row[name])
    return found


def main(arguments: Arguments) -> None:
    """Prints a line for each rule, heterogeneity and number of clients."""
    for rule in arguments.rules:
        accuracy = column([path / "results.csv" for path in arguments.results], rule, "test_accuracy")
        regret = column([path / "results.csv" for path in arguments.results], rule, "regret_anchored")
        seconds = column([path / "timings.csv" for path in arguments.results], rule, "server_seconds")
        if not accuracy:
            raise SystemExit(f"none of the results has the rule {rule!r} under attack")
        common = set.intersection(*(set(cells) for cells in accuracy.values()))
        if not common:
            raise SystemExit(f"no scenario has been run on the same seeds with {sorted(accuracy)} clients each")
        for env_id, kind in sorted({scenario[:2] for scenario in common}):
            scenarios = [scenario for scenario in common if scenario[:2] == (env_id, kind)]
            seeds = len({scenario[4] for scenario in scenarios})
            for clients in sorted(accuracy):
                share = fmean(accuracy[clients][scenario] for scenario in scenarios)
                behind = fmean(regret[clients][scenario] for scenario in scenarios)
                cost = median(seconds[clients][scenario] for scenario in scenarios)
                figures = f"{100 * share:.1f} %  regret {100 * behind:.1f}  {1e3 * cost:.1f} ms"
                print(f"{rule}  {env_id}  {kind}  {clients} clients  {figures}  {seeds} seeds")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
