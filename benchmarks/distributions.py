"""PPO with each distribution of actions, from scratch and after the same warm start; writes results/distributions.csv.

Train attacks and validation data only. What is compared is the mean reward of the deterministic policy on the fixed
scenarios of training: `python benchmarks/distributions.py --help`.
"""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import tyro

from agents.algorithms import make_algorithm
from agents.callbacks import FixedScenarioEvaluation
from agents.environments import make_env, make_training_envs
from agents.warm_start import WarmStart, warm_start
from fl_core.files import write_csv
from optigrad_env.env import federated
from optigrad_env.scenarios import EVALUATION_SPLIT, TRAINING_SPLITS

ENVIRONMENT, ENVS = "OptiGrad/Digits-v0", 2


@dataclass(frozen=True)
class Arguments:
    """How long and how often."""

    distributions: tuple[str, ...] = ("gaussian", "squashed", "beta")
    """Distributions to compare."""
    timesteps: int = 6000
    """Time steps of PPO."""
    seeds: int = 3
    """Seeds, from 0 upwards."""
    out: Path = Path("results/distributions.csv")
    """Where the rows go."""


def main(arguments: Arguments) -> None:
    """Runs all of them; prints and writes each row as it comes."""
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        start = _warm_started(seed)
        for warm in (False, True):
            for distribution in arguments.distributions:
                figures = _run(distribution, arguments.timesteps, seed, start if warm else None)
                rows.append({"distribution": distribution, "warm_start": warm, "seed": seed, **figures})
                print(rows[-1], flush=True)
                write_csv(arguments.out, rows)


def _warm_started(seed: int) -> dict[str, Any]:
    envs = make_training_envs(ENVIRONMENT, ENVS, seed, processes=1)
    copies = [federated(make_env(ENVIRONMENT, split_seed=TRAINING_SPLITS + i)).federation for i in range(ENVS)]
    policy = make_algorithm("ppo", envs, seed=seed).policy.trust_net
    warm_start(policy, envs, copies, WarmStart(), seed, lambda _: None)
    envs.close()
    return deepcopy(policy.state_dict())


def _run(distribution: str, timesteps: int, seed: int, start: dict[str, Any] | None) -> dict[str, float]:
    envs = make_training_envs(ENVIRONMENT, ENVS, seed, processes=1)
    model = make_algorithm(
        "ppo", envs, seed=seed, timesteps=timesteps, warm_started=start is not None, distribution=distribution
    )
    if start is not None:
        model.policy.trust_net.load_state_dict(start)
    with TemporaryDirectory() as directory:
        file = Path(directory, "evaluations.npz")
        env = make_env(ENVIRONMENT, split_seed=EVALUATION_SPLIT)
        evaluation = FixedScenarioEvaluation(env, every=1500, episodes=10, file=file, on_best=lambda _: None)
        model.learn(timesteps, callback=[evaluation])
        evaluation.finish()
        with np.load(file) as kept:
            means = kept["results"].mean(axis=1)
    envs.close()
    return {
        "first": round(float(means[0]), 5),
        "best": round(float(means.max()), 5),
        "last": round(float(means[-1]), 5),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Arguments))
