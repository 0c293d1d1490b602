"""What each part of the policy and of its training is worth; writes results/ablations.csv.

Train attacks and validation data only: no held-out attack and no test data. Two parts, each with several seeds:

``warm-start``: the network after its warm start without one thing: a feature, the z-scores, attention, a stage.
``scratch``: PPO without a warm start, with the attention policy and with Stable-Baselines3's ``MlpPolicy``, for two
numbers of clients, and with discounts above 0.

What is compared is the mean reward (oracle gap, nats a round) on the same episodes of federations that no training has
drawn from: `python benchmarks/ablations.py --help`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from stable_baselines3 import PPO
from torch import Tensor, nn

from agents.algorithms import read_hyperparams
from agents.environments import make_env, make_training_envs
from agents.playing import Act, greedy, play
from agents.policies import AttentionPolicy
from agents.trust_net import TrustNet
from agents.warm_start import WarmStart, warm_start
from fl_core.files import write_csv
from fl_core.fingerprint import FEATURES
from optigrad_env.env import federated
from optigrad_env.scenarios import EVALUATION_SPLIT, TRAINING_SPLITS

ENVIRONMENT = "OptiGrad/Digits-v0"


@dataclass(frozen=True)
class Arguments:
    """How long and how often."""

    parts: tuple[Literal["warm-start", "scratch"], ...] = ("warm-start", "scratch")
    """What to compare."""
    seeds: int = 3
    """Seeds, from 0 upwards."""
    warm_start_length: float = 1.0
    """Length of the warm start, in units of the usual one."""
    timesteps: int = 8192
    """Time steps of PPO from scratch."""
    episodes: int = 20
    """Episodes on each of three federations that a policy is measured by."""
    out: Path = Path("results/ablations.csv")
    """Where the rows go."""


class _Blind(nn.Module):
    """The first layer, with some of its inputs always 0."""

    def __init__(self, embed: nn.Module, columns: list[int]) -> None:
        super().__init__()
        self.embed, self.columns = embed, columns

    def forward(self, tokens: Tensor) -> Tensor:
        seen = tokens.clone()
        seen[..., self.columns] = 0
        result: Tensor = self.embed(seen)
        return result


class _Alone(nn.Module):
    """A block in which each client attends to itself alone."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, tokens: Tensor, _: Tensor | None) -> Tensor:
        result: Tensor = self.block(tokens, torch.eye(tokens.shape[-2], dtype=torch.bool))
        return result


def networks() -> dict[str, Callable[[], TrustNet]]:
    """The network, and what it is without one of its parts."""
    width = len(FEATURES)

    def blind(columns: list[int]) -> TrustNet:
        policy = TrustNet()
        policy.embed = _Blind(policy.embed, columns)  # type: ignore[assignment]
        return policy

    def alone() -> TrustNet:
        policy = TrustNet()
        policy.blocks = nn.ModuleList(map(_Alone, policy.blocks))
        return policy

    without = {f"without {name}": [i, i + width] for i, name in enumerate(FEATURES)}
    without["without z-scores"] = list(range(width, 2 * width))
    return {
        "everything": TrustNet,
        **{name: lambda columns=columns: blind(columns) for name, columns in without.items()},  # type: ignore[misc]
        "without attention": alone,
    }


def warm_started(make: Callable[[], TrustNet], kind: str, length: float, seed: int) -> Act:
    """A network after its warm start on eight federations."""
    envs = make_training_envs(ENVIRONMENT, 8, seed, processes=1, scenarios="broad")
    copies = [federated(make_env(ENVIRONMENT, split_seed=TRAINING_SPLITS + i)).federation for i in range(8)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # torch's layers draw their first weights from the global stream only
        policy = make()
    warm_start(policy, envs, copies, WarmStart().scaled(length), seed, lambda _: None, kind=kind)
    envs.close()

    return greedy(policy)


def from_scratch(policy: Any, clients: int, gamma: float, timesteps: int, seed: int) -> Act:
    """PPO with a policy class, or ``"MlpPolicy"``, and with equal settings otherwise."""
    settings = dict(read_hyperparams("ppo", ENVIRONMENT, warm_started=False).constructor)
    scale = settings.pop("policy_kwargs")["log_std_init"]
    envs = make_training_envs(ENVIRONMENT, 2, seed, processes=1, num_clients=clients)
    settings |= {"gamma": gamma, "seed": seed, "device": "cpu", "policy_kwargs": {"log_std_init": scale}}
    model = PPO(policy, envs, **settings).learn(timesteps)
    envs.close()

    return lambda observation: model.predict(observation, deterministic=True)[0]


def mean_reward(act: Act, clients: int, episodes: int, scenarios: str) -> float:
    """Nats a round over ``episodes`` episodes on each of three federations."""
    rewards: list[float] = []
    for split in range(EVALUATION_SPLIT, EVALUATION_SPLIT + 3):
        env = make_env(ENVIRONMENT, num_clients=clients, split_seed=split, scenarios=scenarios)
        rewards += [play(env, act, seed)[0] for seed in range(episodes)]
    return float(np.mean(rewards))


def main(arguments: Arguments) -> None:
    """Runs all of them; prints and writes each row as it comes."""
    rows: list[dict[str, Any]] = []

    def add(part: str, variant: str, clients: int, seed: int, act: Act, scenarios: str) -> None:
        reward = mean_reward(act, clients, arguments.episodes, scenarios)
        row = {"part": part, "variant": variant, "num_clients": clients, "seed": seed, "mean_reward": round(reward, 5)}
        rows.append(row)
        print(row, flush=True)
        write_csv(arguments.out, rows)

    for seed in range(arguments.seeds):
        if "warm-start" in arguments.parts:
            plans = {name: (make, "clone+gradient") for name, make in networks().items()}
            plans |= {"cloning only": (TrustNet, "clone"), "gradient only": (TrustNet, "gradient")}
            for name, (make, kind) in plans.items():
                act = warm_started(make, kind, arguments.warm_start_length, seed)
                add("warm-start", name, 10, seed, act, "broad")
        if "scratch" in arguments.parts:
            for clients in (10, 20):
                for name, policy in (("attention", AttentionPolicy), ("MlpPolicy", "MlpPolicy")):
                    act = from_scratch(policy, clients, 0.0, arguments.timesteps, seed)
                    add("scratch", name, clients, seed, act, "default")
            for gamma in (0.5, 0.9, 0.99):
                act = from_scratch(AttentionPolicy, 10, gamma, arguments.timesteps, seed)
                add("scratch", f"attention, gamma {gamma}", 10, seed, act, "default")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Arguments))
