"""Policies on data sets that they were not trained on; writes results/transfer.csv.

Train attacks and validation data only, on the fixed scenarios by which training selects: a data set's own policy was
chosen on them, the others were not. The mean reward (oracle gap, nats a round) and the mean
validation accuracy of the last round over the same episodes for every policy. `equal` is no policy at all: every
client is trusted fully, and the root data is one more client. Trust is weighed as a policy's card says.

    python benchmarks/transfer.py digits fashion_mnist --env-ids OptiGrad/Digits-v0 OptiGrad/MNIST-v0 --data-dir DIR
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from agents import load_policy
from agents.callbacks import FixedScenarioEvaluation
from agents.deployed import weighting_of
from agents.environments import given_settings, make_env
from agents.playing import Act, greedy, play
from fl_core.aggregation import TrustWeighting
from fl_core.files import write_csv
from optigrad_env.scenarios import EVALUATION_SPLIT


@dataclass(frozen=True)
class Arguments:
    """Which policies, and where."""

    policies: Annotated[tuple[str, ...], tyro.conf.Positional] = ("digits", "fashion_mnist")
    """Run directories, or names of policies that ship."""
    env_ids: tuple[str, ...] = ("OptiGrad/Digits-v0", "OptiGrad/FashionMNIST-v0", "OptiGrad/MNIST-v0")
    """Environments."""
    num_clients: int = 20
    """Clients."""
    episodes: int = 15
    """Episodes, of 20 rounds."""
    scenarios: str = "broad"
    """Named distribution of scenarios."""
    safeguard: bool = False
    """Play with the safeguard, as policies are deployed; training goes without."""
    data_dir: Path | None = None
    """Where the data sets' files are."""
    out: Path = Path("results/transfer.csv")
    """Where the rows go."""


def acting(policy: str) -> Act:
    """What the policy does with an observation (N, 6): actions (N,)."""
    if policy == "equal":
        return lambda observation: np.ones(len(observation), dtype=np.float32)
    return greedy(load_policy(policy))


def main(arguments: Arguments) -> None:
    """Plays everything; prints and writes each row as it comes."""
    rows: list[dict[str, Any]] = []
    for env_id in arguments.env_ids:
        settings = given_settings(data_dir=arguments.data_dir, num_clients=arguments.num_clients)
        for policy in ("equal", *arguments.policies):
            act = acting(policy)
            weighting = TrustWeighting() if policy == "equal" else weighting_of(load_policy(policy))
            settings |= {**asdict(weighting), "safeguard": arguments.safeguard, "scenarios": arguments.scenarios}
            env = make_env(env_id, **settings, split_seed=EVALUATION_SPLIT)
            played = [play(env, act, FixedScenarioEvaluation.SEED + episode) for episode in range(arguments.episodes)]
            rows.append(
                {
                    "policy": policy,
                    "env_id": env_id,
                    "num_clients": arguments.num_clients,
                    "scenarios": arguments.scenarios,
                    "safeguard": arguments.safeguard,
                    "episodes": arguments.episodes,
                    "mean_reward": round(fmean(reward for reward, _ in played), 4),
                    "validation_accuracy": round(fmean(info["validation_accuracy"] for _, info in played), 4),
                }
            )
            print(rows[-1], flush=True)
            write_csv(arguments.out, rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Arguments))
