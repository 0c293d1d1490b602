"""Are the made-up federations faster than digits, and does pre-training on them help?

    python benchmarks/curriculum.py

Speed: whole environment steps, the ids taking turns in one process on one thread; medians.

Transfer: a policy is warm-started (cloning, then the gradient through the aggregation) on one of the made-up
federations or not at all, then warm-started on digits with more or fewer rounds or not at all, and scored on digits'
fixed validation scenarios: the train attacks, validation data, seeds that never change. Neither held-out attacks nor
test data are touched. Rows are written as they are done. Writes results/curriculum.csv.
"""

import copy
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.callbacks import FixedScenarioEvaluation
from agents.environments import make_env
from agents.playing import greedy
from agents.trust_net import TrustNet
from agents.warm_start import WarmStart, warm_start
from fl_core.files import write_csv
from optigrad_env.env import federated
from optigrad_env.scenarios import EVALUATION_SPLIT, TRAINING_SPLITS
from optigrad_env.wrappers import RoundRecorder

TARGET = "OptiGrad/Digits-v0"
SOURCES = {"none": None, "softmax": "OptiGrad/Softmax-v0", "quadratic": "OptiGrad/Quadratic-v0"}
COLUMNS = ("what", "pretraining", "digits_rounds", "seed", "value", "accuracy", "seconds")


@dataclass(frozen=True)
class Arguments:
    """Times the made-up federations and measures what pre-training on them is worth."""

    seeds: int = 5
    """Policies for each cell, from seed 0 upwards."""
    rounds: int = 1200
    """Rounds of pre-training; the steps of both stages are in proportion, as in the warm start."""
    digits_rounds: tuple[int, ...] = (0, 32, 120, 1200)
    """Rounds of the warm start on digits that follows, likewise."""
    episodes: int = 20
    """Validation episodes that a policy is scored on."""
    steps: int = 300
    """Environment steps to take the median time of."""
    out: Path = Path("results/curriculum.csv")
    """Where the rows go."""


def main(arguments: Arguments) -> None:
    """Measures, writes the rows as they come, prints both tables."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for row in measure(arguments):
        rows.append(row)
        write_csv(arguments.out, rows)
    console = Console(width=110)
    console.print(speed_table(rows))
    console.print(transfer_table(rows))


def measure(arguments: Arguments) -> Iterator[dict[str, Any]]:
    """All rows."""
    for env_id, seconds in time_steps(arguments.steps).items():
        yield _row("steps_per_second", env_id, value=1 / seconds)
    for seed in range(arguments.seeds):
        for source, pretraining in SOURCES.items():
            policy = _fresh(seed)
            spent = train(policy, pretraining, arguments.rounds, seed) if pretraining else 0.0
            for rounds in arguments.digits_rounds:
                tuned = copy.deepcopy(policy)
                seconds = spent + (train(tuned, TARGET, rounds, seed) if rounds else 0.0)
                gap, accuracy = score(tuned, arguments.episodes)
                yield _row("oracle_gap", source, rounds, seed, gap, accuracy, seconds)


def time_steps(steps: int) -> dict[str, float]:
    """Median seconds of an environment step for each id, taking turns."""
    ids = [TARGET, *filter(None, SOURCES.values())]
    envs = {env_id: make_env(env_id, rounds=steps + 20) for env_id in ids}
    for env in envs.values():
        env.reset(seed=0, options={"attack": "sign_flip", "malicious_fraction": 0.3, "alpha": 0.5})
    action = np.zeros(federated(envs[TARGET]).federation.config.num_clients, np.float32)
    times: dict[str, list[float]] = {env_id: [] for env_id in ids}
    for step in range(steps + 20):
        for env_id, env in envs.items():
            started = time.perf_counter()
            env.step(action)
            if step >= 20:
                times[env_id].append(time.perf_counter() - started)
    return {env_id: statistics.median(values) for env_id, values in times.items()}


def train(policy: TrustNet, env_id: str, rounds: int, seed: int) -> float:
    """Both stages of the warm start, in place, in two environments with root data of their own; seconds."""
    envs = [RoundRecorder(make_env(env_id, split_seed=TRAINING_SPLITS + i)) for i in range(2)]
    vector = DummyVecEnv([lambda env=env: env for env in envs])  # type: ignore[misc]
    vector.seed(seed)
    federations = [federated(make_env(env_id, split_seed=TRAINING_SPLITS + i)).federation for i in range(2)]
    settings = WarmStart().scaled(rounds / WarmStart.rounds) if rounds < WarmStart.rounds else WarmStart(rounds)
    started = time.perf_counter()
    warm_start(policy, vector, federations, settings, seed, lambda done: None)
    return time.perf_counter() - started


def score(policy: TrustNet, episodes: int) -> tuple[float, float]:
    """Mean oracle gap of a round in nats, and final validation accuracy, on digits' fixed validation scenarios."""
    env: gym.Env[Any, Any] = make_env(TARGET, split_seed=EVALUATION_SPLIT)
    act, rewards, accuracies = greedy(policy), [], []
    for i in range(episodes):
        observation, info = env.reset(seed=FixedScenarioEvaluation.SEED + i)
        done = False
        while not done:
            observation, reward, terminated, truncated, info = env.step(act(observation))
            rewards.append(float(reward))
            done = terminated or truncated
        accuracies.append(info["validation_accuracy"])
    return statistics.mean(rewards), statistics.mean(accuracies)


def speed_table(rows: list[dict[str, Any]]) -> Table:
    """Steps a second."""
    table = Table("id", "steps/s", "relative to digits")
    speeds = {row["pretraining"]: row["value"] for row in rows if row["what"] == "steps_per_second"}
    for env_id, speed in speeds.items():
        table.add_row(env_id, f"{speed:.0f}", f"{speed / speeds[TARGET]:.2f}")
    return table


def transfer_table(rows: list[dict[str, Any]]) -> Table:
    """Mean over seeds, and the range of the gap."""
    table = Table("pre-training", "rounds on digits", "oracle gap, nats", "lowest to highest", "accuracy", "seconds")
    scored = [row for row in rows if row["what"] == "oracle_gap"]
    for source, rounds in dict.fromkeys((row["pretraining"], row["digits_rounds"]) for row in scored):
        mine = [row for row in scored if (row["pretraining"], row["digits_rounds"]) == (source, rounds)]
        gaps = [row["value"] for row in mine]
        means = {name: statistics.mean(row[name] for row in mine) for name in ("value", "accuracy", "seconds")}
        ends = f"{min(gaps):+.4f} to {max(gaps):+.4f}"
        accuracy, seconds = f"{100 * means['accuracy']:.1f} %", f"{means['seconds']:.0f}"
        table.add_row(source, str(rounds), f"{means['value']:+.4f}", ends, accuracy, seconds)
    return table


def _fresh(seed: int) -> TrustNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TrustNet()


def _row(
    what: str,
    pretraining: str,
    digits_rounds: int | None = None,
    seed: int | None = None,
    value: float = 0.0,
    accuracy: float | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    return dict(zip(COLUMNS, (what, pretraining, digits_rounds, seed, value, accuracy, seconds), strict=True))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
