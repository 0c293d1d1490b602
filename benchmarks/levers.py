"""Compares policies where choices may be made: train attacks, validation data, federations of their own.

    python benchmarks/levers.py runs/one digits digits:safeguard=false     # rows are appended to results/levers.csv
    python benchmarks/levers.py --fractions 0 --seeds 60 digits digits:safeguard=false
    python benchmarks/levers.py --strengths searched digits                # an adversary that tries out strengths

Every train attack in both forms at the usual and at four times the usual strength (``--strengths``), 30, 45 and 60 % of
20 clients malicious, and no attack; Dirichlet α 0.5 and 0.1; root data and initial weights of the training side (split
seeds from 20,000 on), validation accuracy over the last three of 20 rounds. Regret is to the plain oracle, in points.
With ``--strengths searched`` the adversary takes, in every round, of sixteen strengths that it tries the one that moves
the rule in question furthest from the honest mean; the rows ``searched_along`` of the file are of an adversary that
set it furthest back along that mean. A policy's rows are written as soon as it has been run. No test data and no
held-out attack: what is chosen here may be reported elsewhere.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Annotated, ClassVar

import torch
import tyro
from appended import ORIGIN, append, check_header, origin
from torch import Tensor

from agents.evaluation.policies import rule_or_policy
from fl_core import Federation, Scenario, configure
from fl_core.aggregation import Rule
from fl_core.aggregation.reference import AnchoredOracle, Oracle
from fl_core.attacks import AdversaryView, Attack, Knowledge, make_attack, register_attack
from fl_core.attacks.search import line_search
from fl_core.registry import check_known
from optigrad_env.registration import ENVIRONMENTS
from optigrad_env.scenarios import EVALUATION_SPLIT, TRAIN_ATTACKS

COLUMNS = (
    *("policy", "alpha", "malicious_fraction", "mean_regret", "worst_regret", "mean_regret_anchored"),
    *("worst_below_root", "seeds", "env_id", "strengths", "attacks", "validation", "num_clients", *ORIGIN),
)
STRENGTH = {"scaling": "factor", "partial_scaling": "factor", "sign_flip": "scale", "gaussian_noise": "factor"}
ROUNDS, FINAL_ROUNDS = 20, 3
REFERENCES = ("oracle", "anchored_oracle", "root_only")
SEARCHED = "searched"
FORMS = ("independent", "colluding")


@register_attack(SEARCHED)
@dataclass(frozen=True)
class Searched(Attack):
    """A train attack at the strength that moves the deployed rule furthest from the honest mean, in every round.

    Attributes:
        train_attack: Its name.
        colluding: Its form.
        largest: Largest multiple of its usual strength that is tried.
        evaluations: Budget: how often the deployed rule is evaluated in a round.
    """

    knows: ClassVar[Knowledge] = Knowledge.POLICY
    train_attack: str = "sign_flip"
    colluding: bool = False
    largest: float = 16.0
    evaluations: int = 16

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        everyone, places = adversary.arrange(own, honest), adversary.places(own, honest)
        mean, state = honest.mean(dim=0).double(), adversary.generator.get_state()

        def sent(multiple: float) -> Tensor:
            adversary.generator.set_state(state)  # the same noise at every strength
            strength = {STRENGTH[self.train_attack]: multiple * usual_strength(self.train_attack)}
            return make_attack(self.train_attack, colluding=self.colluding, **strength)(everyone, places, adversary)

        def damage(multiple: float) -> float:
            return float((adversary.aggregate(SEARCHED, sent(multiple)).double() - mean).norm())

        return sent(line_search(damage, self.largest, self.evaluations))[places]


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
    strengths: tuple[str, ...] = ("1.0", "4.0")
    """Multiples of each attack's usual strength; ``searched`` for the most damaging in every round."""
    attacks: tuple[str, ...] = TRAIN_ATTACKS
    """Which of the train attacks."""
    forms: tuple[str, ...] = FORMS
    """Which of their forms, independent and colluding."""
    validation: int | None = None
    """Validation samples; by default as many as the environment has."""
    workers: int = 2
    """Processes, one thread each."""
    out: Path = Path("results/levers.csv")
    """Where rows are appended."""


def check(arguments: Arguments) -> None:
    """Raises a ValueError for what would otherwise stop the run in its middle."""
    for strength in arguments.strengths:
        if strength != SEARCHED and not strength.replace(".", "", 1).isdigit():
            raise ValueError(f"strengths must be numbers of 0 or more, or {SEARCHED!r}; got {strength!r}")
    check_known("train attack", arguments.attacks, TRAIN_ATTACKS)
    check_known("form", arguments.forms, FORMS)
    for label in arguments.policies:
        rule_or_policy(label)
    check_header(arguments.out, COLUMNS)


def usual_strength(attack: str) -> float:
    """The strength that a train attack has if nothing else is said."""
    strength: float = getattr(make_attack(attack), STRENGTH[attack])
    return strength


def attacks(
    names: tuple[str, ...], strengths: tuple[str, ...], forms: tuple[str, ...] = FORMS
) -> Iterator[tuple[str, dict[str, object]]]:
    """Train attacks with their options; what has no strength comes once, and not at all if strengths are searched."""
    for name, form in product(names, forms):
        colluding = form == "colluding"
        for strength in strengths if name in STRENGTH else ():
            if strength == SEARCHED:
                yield SEARCHED, {"train_attack": name, "colluding": colluding}
            else:
                yield name, {"colluding": colluding, STRENGTH[name]: float(strength) * usual_strength(name)}
        if name not in STRENGTH and set(strengths) != {SEARCHED}:
            yield name, {"colluding": colluding}


@torch.no_grad()
def accuracy(arguments: Arguments, label: str, scenario: Scenario, seed: int) -> float:
    """Validation accuracy in percent of one federation under a policy or rule."""
    settings = {**ENVIRONMENTS[arguments.env_id], "num_clients": arguments.num_clients, "data_dir": arguments.data_dir}
    if arguments.validation is not None:
        settings["validation"] = arguments.validation
    federation = Federation(configure(split_seed=EVALUATION_SPLIT + 1 + seed, **settings))
    federation.reset(scenario, entropy=seed)
    known: dict[str, Rule] = {
        "oracle": Oracle().told(federation.malicious),
        "anchored_oracle": AnchoredOracle().told(federation.malicious),
    }
    rule = known.get(label) or rule_or_policy(label)
    rule.reset()
    nothing, accuracies = torch.zeros(1, federation.layout.num_shared), []
    for number in range(ROUNDS):
        federation.apply(rule(federation.local_round(rule).view).update)
        if number >= ROUNDS - FINAL_ROUNDS:
            accuracies.append(100 * float(federation.evaluate(nothing, "validation").accuracy[0]))
    return fmean(accuracies)


def main(arguments: Arguments) -> None:
    """Runs policy after policy; prints and appends to the file a line for each α and fraction."""
    check(arguments)
    origins = {label: origin(label) for label in arguments.policies}
    scenarios = [
        (alpha, fraction, Scenario(name, fraction, alpha, 0, options))
        for alpha, fraction in product(arguments.alphas, arguments.fractions)
        for name, options in (
            attacks(arguments.attacks, arguments.strengths, arguments.forms) if fraction else [("none", {})]
        )
    ]
    # The references look at honest clients or at none: one run for all attacks on the same clients.
    first = list({(alpha, fraction): Scenario("none", fraction, alpha) for alpha, fraction, _ in scenarios}.items())
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(arguments.workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:

        def means(label: str, played: list[Scenario]) -> list[float]:
            """Accuracy under each scenario, a mean over the federations."""
            seeds = range(arguments.seeds)
            futures = [[pool.submit(accuracy, arguments, label, one, seed) for seed in seeds] for one in played]
            return [fmean(future.result() for future in of_seeds) for of_seeds in futures]

        known = {label: means(label, [scenario for _, scenario in first]) for label in REFERENCES}
        reference = {key: [known[label][i] for label in REFERENCES] for i, (key, _) in enumerate(first)}
        for label in arguments.policies:
            reached: dict[tuple[float, float], list[float]] = {}
            for (*key, _), value in zip(scenarios, means(label, [one for *_, one in scenarios]), strict=True):
                reached.setdefault((key[0], key[1]), []).append(value)
            found = reached.items()
            rows = [row(arguments, label, key, values, reference[key], origins[label]) for key, values in found]
            append(arguments.out, rows, COLUMNS)


def row(
    arguments: Arguments,
    label: str,
    key: tuple[float, float],
    values: list[float],
    reference: list[float],
    source: tuple[str, str],
) -> dict[str, object]:
    """A line of the file, from the accuracies under each attack and those of the references."""
    oracle, anchored, root_only = reference
    figures = (
        oracle - fmean(values),
        oracle - min(values),
        anchored - fmean(values),
        root_only - min(values),
    )
    some = [*(arguments.forms if arguments.forms != FORMS else ())]
    some += arguments.attacks if arguments.attacks != TRAIN_ATTACKS else ()
    under_attack = (" ".join(arguments.strengths), " ".join(some)) if key[1] else ("", "")
    told = (arguments.seeds, arguments.env_id, *under_attack, arguments.validation or "", arguments.num_clients)
    columns = (Path(label).name, *key, *(round(figure, 2) for figure in figures), *told, *source)
    return dict(zip(COLUMNS, columns, strict=True))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
