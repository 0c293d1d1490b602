"""A training run, from its settings to its summary."""

import shlex
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from agents.algorithms import make_algorithm, start_from
from agents.callbacks import Figures, FixedScenarioEvaluation, ProgressBar, RoundCurves, Saving, save_model
from agents.checkpoint import CHECKPOINT, Checkpoint, read, restore
from agents.console import Console
from agents.critics import critic_steps, replay_keeper, warm_critic
from agents.dataset_options import parse_dataset_options
from agents.deployed import load_policy, read_card, save_policy, weighting_of
from agents.environments import given_settings, make_env, make_training_envs
from agents.run_directory import (
    EVALUATIONS,
    HYPERPARAMS,
    MODEL,
    START,
    TENSORBOARD,
    check_run,
    lock_run,
    open_run,
    read_config,
)
from agents.settings import TrainingSettings
from agents.warm_start import WarmStart, affordable, units, warm_start
from fl_core.aggregation import TrustWeighting
from fl_core.files import write_atomically
from optigrad_env.env import federated
from optigrad_env.scenarios import EVALUATION_SPLIT, TRAINING_SPLITS, ScenarioDistribution, make_scenarios

_SELECTED_BY = {"reward": "mean reward", "accuracy": "accuracy after the last round"}


@dataclass(frozen=True)
class Summary:
    """How a run went.

    Attributes:
        run_dir: Its directory.
        interrupted: It was stopped by Ctrl-C.
        timesteps: Rounds that were learned from.
        seconds: Wall-clock time, warm start, evaluations and parts before a resumption included.
        first_reward: Mean reward on the fixed scenarios before the algorithm started, in nats a round.
        best_reward: That of the best policy, which was kept.
        last_reward: That of the last policy.
        benchmark: The command that benchmarks the policy on what it was trained on.
    """

    run_dir: Path
    interrupted: bool
    timesteps: int
    seconds: float
    first_reward: float
    best_reward: float
    last_reward: float
    benchmark: str

    def __str__(self) -> str:
        if self.interrupted:
            return (
                f"interrupted after {self.timesteps} rounds: the model is in {self.run_dir / MODEL}, the best policy "
                f"so far in {self.run_dir}; continue with --resume --run-dir {self.run_dir}"
            )
        return (
            f"{self.timesteps} rounds, {self.seconds:.0f} s with warm start and evaluations\n"
            f"mean reward, nats a round over the honest mean: first {self.first_reward:+.4f}, "
            f"best {self.best_reward:+.4f}, last {self.last_reward:+.4f}\n"
            f"policy in {self.run_dir}; benchmark it: {self.benchmark}"
        )


def train(settings: TrainingSettings, command: str | None = None) -> Summary:
    """Runs a training, or the rest of one.

    Args:
        settings: What to train, and how.
        command: What the policy's card says that it was made by; by default this call.

    Raises:
        ValueError: A setting that cannot work, before anything is written or deleted; a run that cannot be resumed.
    """
    settings.check()
    torch.set_num_threads(1)
    console = Console(settings.log_format, quiet=settings.quiet)
    federation = given_settings(
        num_clients=settings.num_clients,
        update_clip=settings.update_clip,
        scenarios=None if settings.scenarios == "default" else settings.scenarios,
        data_dir=settings.data_dir,
        download=settings.download,
        dataset_options=parse_dataset_options(settings.dataset_options),
    )
    evaluation_env = make_env(settings.env_id, **federation, split_seed=EVALUATION_SPLIT)
    # The hardest partition first, in this process: one that cannot be drawn is an error here, not in a worker.
    evaluation_env.reset(seed=0, options=_hardest(federated(evaluation_env).scenarios))
    config = {**settings.config(), "command": command or f"agents.training.train({settings!r})"}
    # Read before anything is deleted: they may lie in the directory that is to be overwritten.
    hyperparams = None if settings.settings_file is None else settings.settings_file.read_bytes()
    start = None if settings.start is None else (load_policy(settings.start), read_card(settings.start))
    check_run(settings.run_dir, config, resume=settings.resume, overwrite=settings.overwrite)
    with ExitStack() as stack:
        envs = make_training_envs(settings.env_id, settings.n_envs, settings.seed, **federation)
        stack.callback(envs.close)
        # Before the old run is deleted: only the algorithm itself can tell whether its settings fit.
        saved = _saved(settings)
        model = _model(settings, envs, saved)
        if saved is not None:
            _check_length(settings, model.num_timesteps)
        stack.enter_context(lock_run(settings.run_dir))
        directory = open_run(settings.run_dir, config, resume=settings.resume, overwrite=settings.overwrite)
        if hyperparams is not None:
            write_atomically(directory / HYPERPARAMS, hyperparams)
        if start is not None:
            save_policy(start[0], directory / START, start[1].get("provenance"), weighting_of(start[0]))
        if start is not None and saved is None:
            start_from(model, start[0])
        console.say(
            "start",
            f"run directory {directory}    curves: tensorboard --logdir {directory / TENSORBOARD}",
            run_dir=str(directory),
            resumed=saved is not None,
            **config,
        )
        model.set_logger(_logger(directory / TENSORBOARD / settings.algo, console))
        try:
            return _run(settings, directory, model, envs, evaluation_env, saved, console, federation)
        finally:
            model.logger.close()


def _hardest(scenarios: ScenarioDistribution) -> dict[str, Any]:
    """Options of a ``reset`` with the partition that is the least likely to be possible: few classes a client, many."""
    clients = {} if scenarios.num_clients is None else {"num_clients": scenarios.num_clients[1]}
    return {"alpha": scenarios.alpha[0], **clients}


def _run(
    settings: TrainingSettings,
    directory: Path,
    model: Any,
    envs: VecEnv,
    evaluation_env: gym.Env[Any, Any],
    saved: Checkpoint | None,
    console: Console,
    federation: dict[str, Any],
) -> Summary:
    done = 0 if saved is None else model.num_timesteps
    weighting = replace(federated(evaluation_env).federation.config.weighting, safeguard=settings.safeguard)
    keep_policy = _policy_keeper(model, directory, _provenance(settings, directory, evaluation_env), weighting)
    evaluation = FixedScenarioEvaluation(
        evaluation_env,
        every=settings.eval_every,
        episodes=settings.eval_episodes,
        file=directory / EVALUATIONS,
        on_best=keep_policy,
        on_evaluation=lambda figures: console.say("evaluation", _evaluation_line(figures), **figures),
        select_by=settings.select_by,
        resumed_at=None if saved is None else done,
    )
    saving = Saving(
        directory,
        every=settings.checkpoint_every,
        keep_every=settings.eval_every,
        seconds=0.0 if saved is None else saved.seconds,
    )
    bar = ProgressBar(settings.algo, shown=settings.progress and console.shows_bars)
    interrupted = False
    try:
        # Before the first checkpoint there is nothing to resume: the run begins again, and is the same.
        if saved is None and settings.warm_started:
            _warm_start(model, envs, settings, federation, console)
        model.learn(
            max(settings.timesteps - done, 0),
            callback=[evaluation, saving, RoundCurves(), bar],
            reset_num_timesteps=saved is None,
        )
        evaluation.finish()
    except KeyboardInterrupt:
        interrupted = True
        if evaluation.best is None:
            keep_policy({"timesteps": model.num_timesteps})
    save_model(model, directory / MODEL)
    rewards = evaluation.means or [float("nan")]
    best = rewards[evaluation.best or 0]
    summary = Summary(
        directory,
        interrupted,
        model.num_timesteps,
        saving.seconds,
        rewards[0],
        best,
        rewards[-1],
        _benchmark(settings, directory),
    )
    console.say("summary", str(summary), **asdict(replace(summary, run_dir=str(directory))))  # type: ignore[arg-type]
    return summary


def _benchmark(settings: TrainingSettings, directory: Path) -> str:
    """The command; what is not said in it is evaluate.py's default, as it was the training's."""
    command = ["python", "evaluate.py", "--policies", str(directory)]
    if settings.env_id != TrainingSettings.env_id:
        command += ["--env-id", settings.env_id.replace("Masked-", "-")]  # a cell has all of its clients
    if settings.data_dir is not None:
        command += ["--data-dir", str(settings.data_dir)]
    if settings.dataset_options:
        command += ["--dataset-options", *settings.dataset_options]
    return shlex.join(command)


def _saved(settings: TrainingSettings) -> Checkpoint | None:
    """The state of a run that is to be resumed, once it has saved one."""
    path = settings.run_dir / CHECKPOINT
    return read(path) if settings.resume and path.exists() else None


def _check_length(settings: TrainingSettings, done: int) -> None:
    """Raises a ValueError for fewer time steps than a run has behind it, unless it was to be no longer anyway."""
    before = read_config(settings.run_dir).get("timesteps", settings.timesteps)
    if settings.timesteps < min(done, before):  # whole rollouts: it may have done more than it was to
        raise ValueError(
            f"timesteps {settings.timesteps}: the run in {settings.run_dir} has {done} behind it; "
            f"give at least {min(done, before)}, or leave --timesteps out"
        )


def _model(settings: TrainingSettings, envs: VecEnv, saved: Checkpoint | None) -> Any:
    if saved is not None:
        return restore(saved, settings.algo, envs)
    return make_algorithm(
        settings.algo,
        envs,
        seed=settings.seed,
        timesteps=settings.timesteps,
        warm_started=settings.refines,
        distribution=settings.distribution,
        env_id=settings.env_id,
        hyperparams=settings.settings_file,
    )


def _logger(folder: Path, console: Console) -> Logger:
    return Logger(str(folder), [TensorBoardOutputFormat(str(folder)), console])


def _provenance(settings: TrainingSettings, directory: Path, evaluation_env: gym.Env[Any, Any]) -> dict[str, Any]:
    env = federated(evaluation_env)
    return {
        "command": read_config(directory)["command"],
        "env_id": settings.env_id,
        "dataset": env.federation.config.dataset,
        "seed": settings.seed,
        "split_seeds": [TRAINING_SPLITS + i for i in range(settings.n_envs)],
        "evaluation_split_seed": EVALUATION_SPLIT,
        "algorithm": settings.algo,
        "warm_start": settings.warm_start,
        "num_clients": env.federation.config.num_clients,
        **_seen(settings, directory, [name for name in env.scenarios.attacks if name != "none"]),
        "selected_by": f"{_SELECTED_BY[settings.select_by]} on fixed scenarios of the train attacks, validation data",
        "versions": {name: version(name) for name in ("optigradtrust", "torch", "stable-baselines3", "sb3-contrib")},
    }


def _seen(settings: TrainingSettings, directory: Path, attacks: list[str]) -> dict[str, Any]:
    """Attacks of this run and of the one that it started from; nothing where that one's card does not say."""
    if settings.start_from is None:
        return {"attacks_seen": attacks}
    before = read_card(directory / START)["provenance"]
    seen = before.get("attacks_seen")
    started = {"started_from": {"policy": settings.start_from, "command": before.get("command")}}
    return started if seen is None else {**started, "attacks_seen": list(dict.fromkeys([*seen, *attacks]))}


def _policy_keeper(model: Any, directory: Path, provenance: dict[str, Any], weighting: TrustWeighting) -> Any:
    def keep(figures: Figures) -> None:
        metrics = {name: figures[name] for name in ("mean_reward", "validation_accuracy") if name in figures}
        facts = {**provenance, "timesteps": figures["timesteps"], "metrics": metrics}
        save_policy(model.policy.trust_net, directory, facts, weighting)

    return keep


def _evaluation_line(figures: Figures) -> str:
    best = "  best so far" if figures["best"] else ""
    return (
        f"{figures['timesteps']:>8} rounds   mean reward {figures['mean_reward']:+.4f}   "
        f"validation accuracy {figures['validation_accuracy']:.3f}{best}"
    )


def _warm_start(
    model: Any, envs: VecEnv, settings: TrainingSettings, federation: dict[str, Any], console: Console
) -> None:
    copies = [
        federated(make_env(settings.env_id, **federation, split_seed=TRAINING_SPLITS + i)).federation
        for i in range(settings.n_envs)
    ]
    wanted = settings.warm_start_length
    flag, share = min(affordable(copies[0], wanted, settings.warm_start_memory).items(), key=lambda limit: limit[1])
    lengths = replace(WarmStart().scaled(share), clone_weight=settings.clone_weight)
    if share < wanted:
        size = "updates" if flag == "--warm-start-memory" else "images"
        text = (
            f"warm start: {lengths.rounds} rounds, {share / wanted:.0%} of its length, for {size} of this size "
            f"({flag} is how to ask for more)"
        )
        console.say("warm_start_shortened", text, rounds=lengths.rounds, share=share)
    one_root = make_scenarios(settings.scenarios).roots == 1
    total = units(lengths, settings.warm_start, one_root=one_root) + critic_steps(model, lengths.rounds)
    shown = settings.progress and console.shows_bars
    with tqdm(total=total, desc="warm start", disable=None if shown else True) as bar:
        figures = warm_start(
            model.policy.trust_net,
            envs,
            copies,
            lengths,
            settings.seed,
            bar.update,
            kind=settings.warm_start,
            keep=replay_keeper(model),
            one_root=one_root,
        )
        warm_critic(model, bar.update)
    text = "warm start: " + ", ".join(f"{name.replace('_', ' ')} {value:+.4f}" for name, value in figures.items())
    console.say("warm_start", text, **figures)
