"""A hyperparameter sweep with Optuna: train attacks and validation data alone, never the held-out ones.

    pip install -c constraints.txt 'optigradtrust[sweep]'
    python examples/optuna_sweep.py --trials 20 --timesteps 4000 --study runs/sweep.db

Each trial trains PPO with other settings on the same federations and is scored by its mean reward on fixed scenarios of
the train attacks, in a federation with root and validation data of its own. Trials that fall behind the median are
stopped. The study is in a file: the same command goes on with it.
"""

import sys
from dataclasses import dataclass
from math import log
from pathlib import Path

import gymnasium as gym
import numpy as np
import optuna
import torch
import tyro
from stable_baselines3 import PPO

from agents.environments import make_env, make_training_envs
from agents.policies import AttentionPolicy
from optigrad_env.scenarios import EVALUATION_SPLIT


@dataclass(frozen=True)
class Arguments:
    """Optuna on PPO's settings."""

    env_id: str = "OptiGrad/Digits-v0"
    """Environment."""
    num_clients: int = 10
    """Clients."""
    rounds: int = 20
    """Length of an episode."""
    trials: int = 20
    """Trials to run now."""
    timesteps: int = 4_000
    """Rounds of a trial, in four parts with an evaluation after each."""
    episodes: int = 10
    """Episodes of an evaluation."""
    n_envs: int = 2
    """Federations to train on."""
    seed: int = 0
    """Seed of the sweep; trials train and are scored on the same scenarios."""
    study: Path | None = None
    """SQLite file of the study; none keeps it in memory."""


PARTS = 4


def evaluate(model: PPO, env: gym.Env, episodes: int) -> float:
    """Mean reward of a round over episodes that are the same every time."""
    rewards = []
    for seed in range(episodes):
        observation, _ = env.reset(seed=1_000_000 + seed)
        done = False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(model.predict(observation, deterministic=True)[0])
            rewards.append(float(reward))
            done = terminated or truncated
    return float(np.mean(rewards))


def trial_score(trial: optuna.Trial, arguments: Arguments) -> float:
    """Trains with the trial's settings; the best of the evaluations along the way."""
    federation = {"num_clients": arguments.num_clients, "rounds": arguments.rounds}
    envs = make_training_envs(arguments.env_id, arguments.n_envs, arguments.seed, processes=1, **federation)
    env = make_env(arguments.env_id, **federation, split_seed=EVALUATION_SPLIT)
    # A multiple of the numbers of minibatches that are tried.
    steps = max(arguments.timesteps // PARTS // arguments.n_envs // 4, 2) * 4
    model = PPO(
        AttentionPolicy,
        envs,
        gamma=0.0,
        gae_lambda=1.0,
        n_steps=steps,
        batch_size=steps * arguments.n_envs // trial.suggest_categorical("minibatches", [1, 2, 4]),
        n_epochs=trial.suggest_int("n_epochs", 2, 16, log=True),
        learning_rate=trial.suggest_float("learning_rate", 5e-5, 5e-3, log=True),
        clip_range=trial.suggest_float("clip_range", 0.05, 0.4),
        policy_kwargs={"log_std_init": log(trial.suggest_float("exploration", 0.05, 0.6, log=True))},
        seed=arguments.seed,
        device="cpu",
    )
    best = float("-inf")
    try:
        for part in range(PARTS):
            model.learn(steps * arguments.n_envs, reset_num_timesteps=part == 0)
            best = max(best, evaluate(model, env, arguments.episodes))
            trial.report(best, part)
            if trial.should_prune():
                raise optuna.TrialPruned
    finally:
        envs.close()
    return best


def main(arguments: Arguments) -> optuna.Study:
    """Runs the trials and prints the best settings."""
    for name in ("trials", "timesteps", "episodes"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(arguments, name)}")
    torch.set_num_threads(1)
    if arguments.study is not None:
        arguments.study.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="ppo",
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
        storage=f"sqlite:///{arguments.study}" if arguments.study else None,
        load_if_exists=True,
    )
    # Another seed for every trial that is there already: a study that goes on would else try the first settings again.
    study.sampler = optuna.samplers.TPESampler(seed=arguments.seed + len(study.trials))
    study.optimize(lambda trial: trial_score(trial, arguments), n_trials=arguments.trials)
    print(f"best mean reward {study.best_value:+.4f} nats a round over the honest mean, with {study.best_params}")
    return study


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments))
    except (OSError, ValueError) as error:
        sys.exit(f"optuna_sweep: {error}")
