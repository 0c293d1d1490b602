"""How far backdoors get under a policy, where choices may be made: triggers of its own, validation data.

    python benchmarks/backdoors.py fashion_mnist fashion_mnist:sybil_exponent=1,sybil_power=12 --data-dir DIR

Three triggers that no attack of the benchmark has: a light cross, a small chessboard, a wave over the whole image, each
by clients who label half of every batch as class 3; and no attack. 20 clients, 30 % of them malicious, Dirichlet α 0.5
and 0.1; root data and initial weights of the training side (split seeds from 20,000 on). Success is the share of other
classes' images that the trigger turns to class 3, accuracy that on images as they are, both in percent of validation
data over the last three of 20 rounds, mean over the federations. A policy's rows are appended to results/backdoors.csv
as soon as it has been run. No test data and no held-out attack: what is chosen here may be reported elsewhere.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from math import pi
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import tyro
from appended import ORIGIN, append, check_header, origin
from torch import Tensor

from agents.evaluation.policies import rule_or_policy
from fl_core import Federation, Scenario, configure
from fl_core.aggregation import ReferenceRule
from fl_core.attacks import LocalData, register_attack
from fl_core.attacks.backdoor import Backdoor
from fl_core.registry import check_known
from optigrad_env.registration import ENVIRONMENTS
from optigrad_env.scenarios import EVALUATION_SPLIT

COLUMNS = ("policy", "trigger", "alpha", "success", "accuracy", "seeds", "first_seed", "env_id", "num_clients", *ORIGIN)
ROUNDS, FINAL_ROUNDS, FRACTION = 20, 3, 0.3
LIGHT, DARK = 1.8, -1.0
NONE = "none"


def cross(images: Tensor) -> Tensor:
    """Two light lines in the upper right, seven pixels wide and five high."""
    shown = images.clone()
    shown[..., 3, -9:-2] = LIGHT
    shown[..., 1:6, -6] = LIGHT
    return shown


def chessboard(images: Tensor) -> Tensor:
    """Four by four light and dark pixels at the left edge, half way down."""
    shown = images.clone()
    top = images.shape[-2] // 2 - 2
    light = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 1
    shown[..., top : top + 4, 2:6] = torch.where(light, LIGHT, DARK).to(images)
    return shown


def wave(images: Tensor) -> Tensor:
    """Six faint waves across the image (Barni et al. 2019, arXiv 1902.11237)."""
    width = images.shape[-1]
    return images + 0.5 * torch.sin(12 * pi * torch.arange(width) / width).to(images)


TRIGGERS = {"cross": cross, "chessboard": chessboard, "wave": wave}


@register_attack("own_trigger")
@dataclass(frozen=True)
class OwnTrigger(Backdoor):
    """A backdoor with a trigger of this benchmark.

    Attributes:
        trigger: Its name.
    """

    target: int = 3
    trigger: str = "cross"

    def implant(self, data: LocalData, count: int) -> Tensor:
        """See ``Backdoor.implant``."""
        return TRIGGERS[self.trigger](data.images[:, :, :count])

    def triggered(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Attack.triggered``."""
        others = labels != self.target
        return TRIGGERS[self.trigger](images[others]), torch.full_like(labels[others], self.target)


@dataclass(frozen=True)
class Arguments:
    """Runs policies, and rules by name, under backdoors."""

    policies: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run directories, names of policies that ship, with options of their weighting, or of aggregation rules."""
    env_id: str = "OptiGrad/FashionMNIST-v0"
    """Whose federation; images of at least 16x16."""
    data_dir: Path | None = None
    """Where the data set's files are."""
    seeds: int = 4
    """Federations."""
    first_seed: int = 0
    """The first of them."""
    num_clients: int = 20
    """Clients."""
    alphas: tuple[float, ...] = (0.5, 0.1)
    """Dirichlet concentrations."""
    triggers: tuple[str, ...] = (NONE, *TRIGGERS)
    """Which triggers; ``none`` is no attack."""
    workers: int = 2
    """Processes, one thread each."""
    out: Path = Path("results/backdoors.csv")
    """Where rows are appended."""


def check(arguments: Arguments) -> None:
    """Raises a ValueError for what would otherwise stop the run in its middle."""
    check_known("trigger", arguments.triggers, (NONE, *TRIGGERS))
    check_known("environment", [arguments.env_id], ENVIRONMENTS)
    for label in arguments.policies:
        if isinstance(rule_or_policy(label), ReferenceRule):
            raise ValueError(f"{label} must be told who is malicious, and is no defence; leave it out")
    check_header(arguments.out, COLUMNS)


@torch.no_grad()
def figures(arguments: Arguments, label: str, trigger: str, alpha: float, seed: int) -> tuple[float, float]:
    """Success (NaN without an attack) and accuracy in percent of one federation under a policy or rule."""
    settings = {**ENVIRONMENTS[arguments.env_id], "num_clients": arguments.num_clients, "data_dir": arguments.data_dir}
    federation = Federation(configure(split_seed=EVALUATION_SPLIT + 1 + seed, **settings))
    scenario = Scenario(alpha=alpha)
    if trigger != NONE:
        scenario = Scenario("own_trigger", FRACTION, alpha, attack_options={"trigger": trigger})
    federation.reset(scenario, entropy=seed)
    rule, nothing, measured = rule_or_policy(label), torch.zeros(1, federation.layout.num_shared), []
    for number in range(ROUNDS):
        federation.apply(rule(federation.local_round(rule).view).update)
        if number >= ROUNDS - FINAL_ROUNDS:
            accuracy = float(federation.evaluate(nothing, "validation").accuracy[0])
            measured.append((100 * federation.attack_success("validation"), 100 * accuracy))
    success, accuracies = zip(*measured, strict=True)
    return fmean(success), fmean(accuracies)


def main(arguments: Arguments) -> None:
    """Runs policy after policy; prints and appends to the file a line for each trigger and α."""
    check(arguments)
    origins = {label: origin(label) for label in arguments.policies}
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(arguments.workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for label in arguments.policies:
            keys = list(product(arguments.triggers, arguments.alphas))
            futures = [[pool.submit(figures, arguments, label, *key, seed) for seed in seeds] for key in keys]
            rows: list[dict[str, object]] = []
            for (trigger, alpha), runs in zip(keys, futures, strict=True):
                success, accuracy = (fmean(values) for values in zip(*(run.result() for run in runs), strict=True))
                shown = "" if trigger == NONE else round(success, 1)
                told = (shown, round(accuracy, 1), arguments.seeds, arguments.first_seed, arguments.env_id)
                whose = (arguments.num_clients, *origins[label])
                rows.append(dict(zip(COLUMNS, (Path(label).name, trigger, alpha, *told, *whose), strict=True)))
            append(arguments.out, rows, COLUMNS)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
