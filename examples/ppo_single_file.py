"""PPO in one file, without Stable-Baselines3: an agent of one's own around the environment and the network.

    python examples/ppo_single_file.py --timesteps 20000 --run-dir runs/single_file
    python evaluate.py --policies runs/single_file --out results/single_file

In the manner of CleanRL's ``ppo_continuous_action.py``. The reward of a round says all there is to say about its
action, so the advantage is the reward minus the predicted one: no returns, no bootstrapping (a discount of 0).
"""

import sys
import time
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn
from torch.distributions import Normal

from agents import TrustNet, save_policy
from fl_core.registry import check_known
from optigrad_env import TRAIN_ATTACKS
from optigrad_env.observation import SCORE_SCALE
from optigrad_env.registration import ENVIRONMENTS


@dataclass(frozen=True)
class Arguments:
    """PPO on a federation."""

    env_id: str = "OptiGrad/Digits-v0"
    """Environment."""
    num_clients: int = 10
    """Clients; the trained policy runs with any other number too."""
    rounds: int = 20
    """Length of an episode."""
    num_envs: int = 4
    """Federations, each with root data of its own."""
    timesteps: int = 20_000
    """Rounds to learn from, over all federations."""
    rollout: int = 128
    """Rounds of each federation between two updates."""
    minibatch: int = 128
    """Rounds in a gradient step."""
    epochs: int = 8
    """Passes over a rollout."""
    learning_rate: float = 5e-4
    """Of Adam; falls to 0 along the run."""
    clip: float = 0.2
    """How far an update may move the probability of an action."""
    exploration: float = 0.3
    """First standard deviation of the actions."""
    value_weight: float = 0.5
    """Weight of the critic's error in the loss."""
    max_grad_norm: float = 0.5
    """Length that a gradient is cut to."""
    seed: int = 0
    """Seed of the network, the noise and the federations."""
    run_dir: Path = Path("runs/single_file")
    """Where the policy goes."""


class Agent(nn.Module):
    """A Gaussian around the network's score, with one exploration scale for all clients."""

    def __init__(self, exploration: float) -> None:
        super().__init__()
        self.trust_net = TrustNet()
        self.log_std = nn.Parameter(torch.tensor(log(exploration)))

    def forward(self, observations: torch.Tensor) -> tuple[Normal, torch.Tensor]:
        """Distribution of the actions (B, N) and predicted rewards (B,)."""
        score, value = self.trust_net.score_and_value(observations)
        return Normal(score / SCORE_SCALE, self.log_std.exp()), value


def main(arguments: Arguments) -> list[float]:
    """Trains; returns the mean reward of each rollout."""
    check_known("environment without a mask", [arguments.env_id], ENVIRONMENTS)
    if arguments.rollout < 2 or min(arguments.num_envs, arguments.minibatch, arguments.epochs) < 1:
        raise ValueError(f"rollout must be at least 2, num_envs, minibatch and epochs at least 1; got {arguments}")
    if (arguments.run_dir / "config.json").exists():
        raise ValueError(f"{arguments.run_dir} is a run of train_agent.py, whose policy would be lost; give another")
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    envs = gym.make_vec(
        arguments.env_id,
        arguments.num_envs,
        autoreset_mode="SameStep",
        num_clients=arguments.num_clients,
        rounds=arguments.rounds,
    )
    agent = Agent(arguments.exploration)
    optimizer = torch.optim.Adam(agent.parameters(), lr=arguments.learning_rate, eps=1e-5)
    batch = arguments.rollout * arguments.num_envs
    updates = max(arguments.timesteps // batch, 1)
    observation = torch.from_numpy(envs.reset(seed=arguments.seed)[0])
    means: list[float] = []
    started = time.perf_counter()

    for update in range(updates):
        optimizer.param_groups[0]["lr"] = arguments.learning_rate * (1 - update / updates)

        observations, actions, log_probs, rewards, values = [], [], [], [], []
        for _ in range(arguments.rollout):
            with torch.no_grad():
                distribution, value = agent(observation)
                action = distribution.sample()
            following, reward, _, _, _ = envs.step(action.numpy())
            observations.append(observation)
            actions.append(action)
            log_probs.append(distribution.log_prob(action).sum(dim=-1))
            rewards.append(torch.from_numpy(reward).float())
            values.append(value)
            observation = torch.from_numpy(following)

        seen, acted, old_log_prob, earned, predicted = map(
            torch.cat, (observations, actions, log_probs, rewards, values)
        )
        advantage = earned - predicted
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)

        for _ in range(arguments.epochs):
            for picks in torch.randperm(batch).split(arguments.minibatch):
                distribution, value = agent(seen[picks])
                ratio = (distribution.log_prob(acted[picks]).sum(dim=-1) - old_log_prob[picks]).exp()
                clipped = ratio.clamp(1 - arguments.clip, 1 + arguments.clip)
                policy_loss = -torch.min(advantage[picks] * ratio, advantage[picks] * clipped).mean()
                value_loss = (value - earned[picks]).square().mean()
                optimizer.zero_grad()
                (policy_loss + arguments.value_weight * value_loss).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), arguments.max_grad_norm)
                optimizer.step()

        means.append(float(np.mean(earned.numpy())))
        speed = batch * (update + 1) / (time.perf_counter() - started)
        print(f"rounds {batch * (update + 1):7d}  reward {means[-1]:+.4f}  {speed:.0f} rounds/s", flush=True)

    envs.close()
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(arguments).items()}
    # Without the attacks that it has seen, a benchmark could call none held out.
    facts = {"algorithm": "ppo_single_file", "attacks_seen": list(TRAIN_ATTACKS), **settings}
    save_policy(agent.trust_net, arguments.run_dir, facts)
    return means


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments))
    except ValueError as error:
        sys.exit(f"ppo_single_file: {error}")
