"""Compares policies where choices may be made: train attacks, validation data, federations of their own.

    python benchmarks/levers.py runs/one digits digits:safeguard=false     # rows are appended to results/levers.csv
    python benchmarks/levers.py --fractions 0 --seeds 60 digits digits:safeguard=false

Every train attack in both forms at the usual and at four times the usual strength (``--strengths``), 30, 45 and 60 % of
20 clients malicious, and no attack; Dirichlet α 0.5 and 0.1; root data and initial weights of the training side (split
seeds from 20,000 on), validation accuracy over the last three of 20 rounds. Regret is to the plain oracle, in points.
No test data and no held-out attack: what is chosen here may be reported elsewhere.
"""

import csv
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import tyro

from agents import TrustAggregator, load_policy
from agents.deployed import weighting_of
from agents.evaluation.policies import parse_policy
from fl_core import Federation, Scenario, configure
from fl_core.aggregation import Rule, make_rule, rule_names
from fl_core.aggregation.reference import AnchoredOracle, Oracle
from optigrad_env.registration import ENVIRONMENTS
from optigrad_env.scenarios import EVALUATION_SPLIT, TRAIN_ATTACKS

COLUMNS = (
    *("policy", "alpha", "malicious_fraction", "mean_regret", "worst_regret", "mean_regret_anchored"),
    *("worst_below_root", "seeds", "env_id", "strengths"),
)
STRENGTH = {"scaling": "factor", "partial_scaling": "factor", "sign_flip": "scale", "gaussian_noise": "factor"}
ROUNDS, FINAL_ROUNDS = 20, 3
REFERENCES = ("oracle", "anchored_oracle", "root_only")


@dataclass(frozen=True)
class Arguments:
    """Runs policies, and rules by name, under the train attacks."""

    policies: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run directories, names of policies that ship, or of aggregation rules."""
    env_id: str = "OptiGrad/Digits-v0"
    """Whose federation."""
    data_dir: Path | None = None
    """Where the data set's files are."""
    seeds: int = 4
    """Federations."""
    num_clients: int = 20
    """Clients."""
    fractions: tuple[float, ...] = (0.0, 0.3, 0.45, 0.6)
    """Shares of malicious clients; 0 is no attack."""
    alphas: tuple[float, ...] = (0.5, 0.1)
    """Dirichlet concentrations."""
    strengths: tuple[float, ...] = (1.0, 4.0)
    """Multiples of each attack's usual strength."""
    workers: int = 2
    """Processes, one thread each."""
    out: Path = Path("results/levers.csv")
    """Where rows are appended."""


def attacks(strengths: tuple[float, ...]) -> Iterator[tuple[str, dict[str, object]]]:
    """Train attacks with their options; what has no strength comes once."""
    for name, colluding in product(TRAIN_ATTACKS, (False, True)):
        if name not in STRENGTH:
            yield name, {"colluding": colluding}
            continue
        usual = getattr(Scenario(name).make_attack(), STRENGTH[name])
        for strength in strengths:
            yield name, {"colluding": colluding, STRENGTH[name]: strength * usual}


def made(label: str) -> Rule:
    """A rule by its name, or a policy with its options."""
    if label in rule_names():
        return make_rule(label)
    source, options = parse_policy(label)
    policy = load_policy(source)
    return TrustAggregator(policy, replace(weighting_of(policy), **options))


@torch.no_grad()
def accuracy(arguments: Arguments, label: str, scenario: Scenario, seed: int) -> float:
    """Validation accuracy in percent of one federation under a policy or rule."""
    settings = {**ENVIRONMENTS[arguments.env_id], "num_clients": arguments.num_clients, "data_dir": arguments.data_dir}
    federation = Federation(configure(split_seed=EVALUATION_SPLIT + 1 + seed, **settings))
    federation.reset(scenario, entropy=seed)
    known: dict[str, Rule] = {
        "oracle": Oracle().told(federation.malicious),
        "anchored_oracle": AnchoredOracle().told(federation.malicious),
    }
    rule = known.get(label) or made(label)
    rule.reset()
    nothing, accuracies = torch.zeros(1, federation.layout.num_shared), []
    for number in range(ROUNDS):
        federation.apply(rule(federation.local_round(rule).view).update)
        if number >= ROUNDS - FINAL_ROUNDS:
            accuracies.append(100 * float(federation.evaluate(nothing, "validation").accuracy[0]))
    return fmean(accuracies)


def main(arguments: Arguments) -> None:
    """Runs everything, prints a line for each policy, α and fraction, and appends it to the file."""
    labels = [*REFERENCES, *arguments.policies]
    scenarios = [
        (0.0, alpha, Scenario("none", 0.0, alpha))
        if fraction == 0
        else (fraction, alpha, Scenario(n, fraction, alpha, 0, o))
        for alpha, fraction in product(arguments.alphas, arguments.fractions)
        for n, o in (attacks(arguments.strengths) if fraction else [("none", {})])
    ]
    # The references look at honest clients or at none: one run for all attacks on the same clients.
    first = {key[:2]: key for key in reversed(scenarios)}
    tasks = [
        (label, *key, seed)
        for label in labels
        for key in scenarios
        for seed in range(arguments.seeds)
        if label not in REFERENCES or first[key[:2]] == key
    ]
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(arguments.workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        chunks = [(arguments, label, scenario, seed) for label, _, _, scenario, seed in tasks]
        results = list(pool.map(accuracy, *zip(*chunks, strict=True), chunksize=4))
    of: dict[tuple[str, float, float, int], list[float]] = {}
    for (label, fraction, alpha, scenario, _), value in zip(tasks, results, strict=True):
        of.setdefault((label, alpha, fraction, scenarios.index((fraction, alpha, scenario))), []).append(value)
    reference = {key[:3]: fmean(values) for key, values in of.items() if key[0] in REFERENCES}
    fresh = not arguments.out.exists()
    with arguments.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if fresh:
            writer.writeheader()
        for label, alpha, fraction in product(arguments.policies, arguments.alphas, arguments.fractions):
            keys = [key for key in of if key[:3] == (label, alpha, fraction)]
            oracle, anchored, root_only = (reference[name, alpha, fraction] for name in REFERENCES)
            to_oracle = [oracle - fmean(of[key]) for key in keys]
            to_anchored = [anchored - fmean(of[key]) for key in keys]
            below = max(root_only - fmean(of[key]) for key in keys)
            figures = [round(value, 2) for value in (fmean(to_oracle), max(to_oracle), fmean(to_anchored), below)]
            told = (arguments.seeds, arguments.env_id, " ".join(map(str, arguments.strengths)) if fraction else "")
            row = dict(zip(COLUMNS, (Path(label).name, alpha, fraction, *figures, *told), strict=True))
            writer.writerow(row)
            print(row, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
