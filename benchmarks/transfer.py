"""Policies on data sets that they were not trained on; writes results/transfer.csv.

Train attacks and validation data only, on the fixed scenarios by which training selects: a data set's own policy was
chosen on them, the others were not. The mean reward (oracle gap, nats a round) and the mean
validation accuracy of the last round over the same episodes for every policy. `equal` is no policy at all: every
client is trusted fully, and the root data is one more client.

    python benchmarks/transfer.py digits fashion_mnist --env-ids OptiGrad/Digits-v0 OptiGrad/MNIST-v0 --data-dir DIR
"""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from agents import load_policy
from agents.callbacks import FixedScenarioEvaluation
from agents.environments import given_settings, make_env
from fl_core.files import write_atomically
from optigrad_env.observation import SCORE_SCALE
from optigrad_env.scenarios import EVALUATION_SPLIT

Act = Callable[[NDArray[np.float32]], NDArray[np.float32]]


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
    data_dir: Path | None = None
    """Where the data sets' files are."""
    out: Path = Path("results/transfer.csv")
    """Where the rows go."""


def acting(policy: str) -> Act:
    """What the policy does with an observation (N, 6): actions (N,)."""
    if policy == "equal":
        return lambda observation: np.ones(len(observation), dtype=np.float32)
    network = load_policy(policy)

    @torch.no_grad()
    def act(observation: NDArray[np.float32]) -> NDArray[np.float32]:
        score, _ = network.score_and_value(torch.from_numpy(observation))
        action: NDArray[np.float32] = score.numpy() / SCORE_SCALE
        return action

    return act


def main(arguments: Arguments) -> None:
    """Plays everything; prints and writes each row as it comes."""
    rows: list[dict[str, Any]] = []
    for env_id in arguments.env_ids:
        settings = given_settings(data_dir=arguments.data_dir, num_clients=arguments.num_clients)
        env = make_env(env_id, **settings, split_seed=EVALUATION_SPLIT, scenarios="broad")
        for policy in ("equal", *arguments.policies):
            act, rewards, accuracies = acting(policy), [], []
            for episode in range(arguments.episodes):
                observation, info = env.reset(seed=FixedScenarioEvaluation.SEED + episode)
                over = False
                while not over:
                    observation, reward, terminated, truncated, info = env.step(act(observation))
                    rewards.append(float(reward))
                    over = terminated or truncated
                accuracies.append(info["validation_accuracy"])
            rows.append(
                {
                    "policy": policy,
                    "env_id": env_id,
                    "num_clients": arguments.num_clients,
                    "episodes": arguments.episodes,
                    "mean_reward": round(float(np.mean(rewards)), 4),
                    "validation_accuracy": round(float(np.mean(accuracies)), 4),
                }
            )
            print(rows[-1], flush=True)
            text = io.StringIO()
            writer = csv.DictWriter(text, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(arguments.out, text.getvalue().encode())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Arguments))
