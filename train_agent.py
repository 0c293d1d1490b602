"""Trains a trust policy on a federation and saves it: `python train_agent.py --help`."""

import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tqdm import tqdm

from agents.algorithms import algorithm_names, load_algorithm, make_algorithm
from agents.callbacks import Checkpoint, FixedScenarioEvaluation, RewardTerms, save_model
from agents.deployed import save_policy
from agents.environments import base_env, given_settings, make_env, make_training_envs
from agents.run_directory import EVALUATIONS, MODEL, TENSORBOARD, open_run
from agents.warm_start import WarmStart, affordable_share, warm_start
from fl_core.registry import check_known
from optigrad_env.scenarios import EVALUATION_SPLIT, TRAINING_SPLITS


@dataclass(frozen=True)
class Arguments:
    """Trains a trust policy with Stable-Baselines3 on a simulated federation.

    The policy sees only the five train attacks and is selected on validation data. The run directory gets config.json,
    model.zip (for --resume), policy.safetensors and policy.json (for evaluate.py and deployment), evaluations.npz,
    checkpoints/ and tensorboard/.
    """

    env_id: str = "OptiGrad/Digits-v0"
    """Environment to train on."""
    algo: str = "ppo"
    """Algorithm; ppo is the only one yet."""
    timesteps: int = 20_000
    """Federated rounds to learn from, over all environments, rounded up to whole rollouts of at most 512; those of the
    warm start are extra."""
    n_envs: int = 2
    """Environments, each with root data of its own, shared out over one process a core: more are more diverse."""
    num_clients: int | None = None
    """Clients in the training federation, by default the environment's; the policy runs with any other number too."""
    data_dir: Path | None = None
    """Where the data set's files are; by default $OPTIGRAD_DATA, else the user's cache directory."""
    download: bool = False
    """Fetch the data set's files if they are missing."""
    seed: int = 0
    """Seed of everything."""
    run_dir: Path = Path("runs/trust")
    """Where the results go."""
    resume: bool = False
    """Continue the run in --run-dir."""
    overwrite: bool = False
    """Delete the run in --run-dir first."""
    warm_start: bool = True
    """Clone honest/malicious labels, then follow the gradient through the aggregation, before the algorithm starts."""
    eval_every: int = 1_000
    """Time steps between evaluations on fixed scenarios; the best policy is the one that is kept."""
    eval_episodes: int = 10
    """Episodes of an evaluation."""
    progress: bool = True
    """Show progress bars."""


def main(arguments: Arguments) -> int:
    """Runs the training; returns the exit status."""
    check_known("algorithm", [arguments.algo], algorithm_names())
    for name in ("timesteps", "eval_every", "eval_episodes", "n_envs"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    if not 0 <= arguments.seed < 2**32:
        raise ValueError(f"seed must lie in [0, 2**32), got {arguments.seed}")
    torch.set_num_threads(1)
    federation = given_settings(
        num_clients=arguments.num_clients, data_dir=arguments.data_dir, download=arguments.download
    )
    evaluation_env = make_env(arguments.env_id, **federation, split_seed=EVALUATION_SPLIT)
    # The hardest partition first, in this process: one that cannot be drawn is an error here, not in a worker.
    evaluation_env.reset(seed=0, options={"alpha": base_env(evaluation_env).scenarios.alpha[0]})
    directory = open_run(arguments.run_dir, _config(arguments), resume=arguments.resume, overwrite=arguments.overwrite)
    envs = make_training_envs(arguments.env_id, arguments.n_envs, arguments.seed, **federation)
    tensorboard = directory / TENSORBOARD
    print(f"run directory {directory}    curves: tensorboard --logdir {tensorboard}")

    if arguments.resume:
        model = load_algorithm(arguments.algo, directory / MODEL, envs)
        # A seed of its own: the first one would play the run's first episodes, with the same noise, again.
        model.set_random_seed(int(np.random.SeedSequence([arguments.seed, model.num_timesteps]).generate_state(1)[0]))
    else:
        model = make_algorithm(
            arguments.algo,
            envs,
            seed=arguments.seed,
            timesteps=arguments.timesteps,
            warm_started=arguments.warm_start,
            tensorboard=tensorboard,
        )

    provenance = {
        "command": shlex.join(["python", *sys.argv]),
        "env_id": arguments.env_id,
        "seed": arguments.seed,
        "algorithm": arguments.algo,
        "warm_start": arguments.warm_start,
        "num_clients": base_env(evaluation_env).federation.config.num_clients,
        "attacks_seen": [name for name in base_env(evaluation_env).scenarios.attacks if name != "none"],
        "selected_by": "mean reward on fixed scenarios of the train attacks, on validation data",
    }

    def keep_policy() -> None:
        save_policy(model.policy.trust_net, directory, {**provenance, "timesteps": model.num_timesteps})

    evaluation = FixedScenarioEvaluation(
        evaluation_env,
        every=arguments.eval_every,
        episodes=arguments.eval_episodes,
        file=directory / EVALUATIONS,
        on_best=keep_policy,
    )
    try:
        if arguments.warm_start and model.num_timesteps == 0:  # also after a run that was stopped in its warm start
            _warm_start(model, envs, arguments, federation)
        model.learn(
            max(arguments.timesteps - model.num_timesteps, 0),
            callback=[evaluation, Checkpoint(directory, every=arguments.eval_every), RewardTerms()],
            reset_num_timesteps=not arguments.resume,
            tb_log_name=arguments.algo,
            progress_bar=arguments.progress,
        )
        evaluation.finish()
    except KeyboardInterrupt:
        save_model(model, directory / MODEL)
        if evaluation.best == float("-inf"):
            keep_policy()
        print(f"\ninterrupted: the model so far is in {directory / MODEL}; continue with --resume")
        return 130
    finally:
        envs.close()
    save_model(model, directory / MODEL)
    print(f"best mean reward {evaluation.best:+.4f} nats a round over the honest mean; policy in {directory}")
    return 0


def _warm_start(model: Any, envs: Any, arguments: Arguments, federation: dict[str, Any]) -> None:
    copies = [
        base_env(make_env(arguments.env_id, **federation, split_seed=TRAINING_SPLITS + i)).federation
        for i in range(arguments.n_envs)
    ]
    share = affordable_share(copies[0])
    settings = WarmStart().shortened(share)
    if share < 1:
        print(
            f"warm start: {settings.rounds} rounds, {share:.0%} of the full length, for updates and images of this size"
        )
    total = settings.rounds + settings.clone_steps + settings.gradient_steps
    with tqdm(total=total, desc="warm start", disable=not arguments.progress) as bar:
        figures = warm_start(model.policy.trust_net, envs, copies, settings, arguments.seed, bar.update)
    print("warm start: " + ", ".join(f"{name} {value:+.4f}" for name, value in figures.items()))


def _config(arguments: Arguments) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(arguments).items()
        if name not in ("resume", "overwrite", "progress", "run_dir")
    }


def cli() -> None:
    """Entry point: errors of the user's making are one line, not a traceback."""
    try:
        sys.exit(main(tyro.cli(Arguments)))
    except ValueError as error:
        sys.exit(f"train_agent: {error}")


if __name__ == "__main__":
    cli()
