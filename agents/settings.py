"""The settings of a training run: what the command line is made from, and what config.json holds."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import inf
from pathlib import Path
from typing import Any, Literal

from agents.algorithms import Hyperparams, check_algorithm, check_distribution, learns_off_policy, read_hyperparams
from agents.callbacks import SELECTIONS
from agents.console import LOG_FORMATS
from agents.dataset_options import parse_dataset_options
from agents.deployed import CARD, load_policy
from agents.run_directory import CONFIG, HYPERPARAMS, START, read_config
from agents.warm_start import KINDS
from fl_core.registry import check_fields, check_known
from optigrad_env.scenarios import make_scenarios

# How a run is called and shown, which changes nothing in it.
_NOT_OF_THE_RUN = ("resume", "overwrite", "progress", "quiet", "log_format", "run_dir")
_PATHS = ("data_dir", "hyperparams")


@dataclass(frozen=True)
class TrainingSettings:
    """Trains a trust policy with Stable-Baselines3 on a simulated federation.

    The policy sees only the five train attacks and is selected on validation data. The run directory gets config.json,
    policy.safetensors, policy.json and card.md (for evaluate.py and deployment), evaluations.npz, tensorboard/,
    model.zip and checkpoints/ (Stable-Baselines3's), and checkpoint.pkl (for --resume).
    """

    env_id: str = "OptiGrad/Digits-v0"
    """Environment to train on."""
    algo: str = "ppo"
    """Algorithm: ppo, a2c, trpo, sac, td3 or tqc."""
    distribution: str | None = None
    """Action distribution: squashed, beta or gaussian; by default that of the algorithm's settings."""
    hyperparams: Path | None = None
    """Settings of the algorithm, a YAML file in rl_zoo3's form; by default agents/hyperparams/ALGO.yml."""
    timesteps: int = 20_000
    """Environment steps, that is federated rounds, over all environments, rounded up to whole rollouts (whose length is
    in the algorithm's settings); the rounds of the warm start are extra."""
    n_envs: int = 2
    """Environments, each with root data of its own, over one worker process a core; more give more diverse data."""
    num_clients: int | None = None
    """Clients in the training federation, by default the environment's; the policy runs with any other number too."""
    scenarios: str = "default"
    """Named distribution of training scenarios: default; broad (up to 60 % malicious, more kinds of heterogeneity,
    later attacks); faint (the same, and attacks too weak to stand out); wide (broad with alpha from 0.1, and other root
    data in every episode; without the gradient of the warm start)."""
    data_dir: Path | None = None
    """Where the data set's files are; by default $OPTIGRAD_DATA, else the user's cache directory."""
    download: bool = False
    """Fetch the data set's files if they are missing."""
    dataset_options: tuple[str, ...] = ()
    """What the data set takes, as NAME=VALUE: `image_size=64`, and for folders of one's own `group_pattern=REGEX`, so
    that images of one patient stay together."""
    seed: int = 0
    """Seed of the algorithm, of the warm start and of the scenarios that are drawn: environment i has this seed plus i.
    Root and validation data and initial weights are the same for any."""
    run_dir: Path = Path("runs/trust")
    """Where the results go."""
    resume: bool = False
    """Continue the run in --run-dir, however it ended; its settings need not be said again. --timesteps may be more."""
    overwrite: bool = False
    """Delete the run in --run-dir first."""
    start_from: str | None = None
    """Policy to begin with, a run directory or the name of one that ships; with --warm-start gradient or none."""
    warm_start: Literal["clone+gradient", "gradient", "clone", "none"] = "clone+gradient"
    """Before the algorithm starts: clone honest/malicious labels, then follow the gradient through the aggregation."""
    clone_weight: float = 0.0
    """Weight of the cloning loss in the gradient stage; above 0 it keeps the policy from trusting root data alone."""
    warm_start_length: float = 1.0
    """Length of the warm start in units of the usual 1,200 recorded rounds, with as many more steps."""
    warm_start_memory: float = 2.0
    """GiB for its recorded rounds; what does not fit shortens it, to 32 rounds at the least: twenty clients on 28x28
    images take 8 MB a round."""
    update_clip: str | None = None
    """Norm that updates are cut down to, in training and deployed: median, reference, median_or_reference or none; by
    default the environment's, median."""
    safeguard: bool = True
    """Whether the policy is deployed with the safeguard, a line search on root data; training goes without."""
    eval_every: int = 1_000
    """Time steps between evaluations on fixed scenarios, rounded up to whole rollouts; the best policy is kept."""
    eval_episodes: int = 10
    """Episodes of an evaluation."""
    select_by: Literal["reward", "accuracy"] = "reward"
    """Criterion for the best policy: mean reward, or validation accuracy after the last round."""
    checkpoint_every: int = 500
    """Time steps between checkpoints for --resume, rounded up to whole rollouts."""
    progress: bool = True
    """Show progress bars, on a terminal."""
    quiet: bool = False
    """Print nothing but errors."""
    log_format: Literal["text", "json"] = "text"
    """json: an object a line, for batch systems; curves are in it too."""

    def check(self) -> None:
        """Raises a ValueError for a setting that cannot work, naming it.

        Not in ``__post_init__``: tyro would take the error for one of parsing, and print a box of its own around it.
        """
        check_fields(self)
        parse_dataset_options(self.dataset_options)
        check_algorithm(self.algo)
        check_distribution(self.algo, self.distribution)
        check_known("warm start", [self.warm_start], KINDS)
        check_known("selection", [self.select_by], SELECTIONS)
        check_known("log format", [self.log_format], LOG_FORMATS)
        settings = read_hyperparams(self.algo, self.env_id, warm_started=self.refines, file=self.settings_file)
        if self.start is not None:
            self._check_start(self.start, settings)
        for name in ("warm_start_length", "warm_start_memory"):
            if not 0 < getattr(self, name) < inf:
                raise ValueError(
                    f"{name.replace('_', '-')} must be greater than 0 and finite, got {getattr(self, name)}"
                )
            if not self.warm_started and getattr(self, name) != getattr(type(self), name):
                raise ValueError(
                    f"{name.replace('_', '-')} {getattr(self, name)} is for the warm start, which --warm-start none "
                    "leaves out"
                )
        if not 0 <= self.clone_weight < inf:
            raise ValueError(f"clone-weight must be 0 or more and finite, got {self.clone_weight}")
        if self.clone_weight and not self.warm_start.endswith("gradient"):
            raise ValueError(
                f"clone-weight {self.clone_weight} is for the gradient, which --warm-start {self.warm_start} leaves out"
            )
        if make_scenarios(self.scenarios).roots > 1 and self.warm_start.endswith("gradient"):
            others = "clone or none" if self.start is None else "none"
            raise ValueError(
                f"scenarios {self.scenarios!r} draw other root data in every episode, and the gradient through the "
                f"aggregation scores recorded rounds with one: give --warm-start {others}"
            )
        for name in ("timesteps", "eval_every", "eval_episodes", "checkpoint_every", "n_envs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2**32), got {self.seed}")

    @property
    def start(self) -> str | None:
        """Where the policy to begin with is: for a run that is resumed, its own copy, if it was written to the end."""
        copy = self.run_dir / START
        whole = (copy / CARD).is_file()  # the last of the two files that make a policy
        return str(copy) if self.start_from is not None and self.resume and whole else self.start_from

    @property
    def settings_file(self) -> Path | None:
        """Where the algorithm's own settings are, if not the package's: for a run that is resumed, its own copy."""
        copy = self.run_dir / HYPERPARAMS
        return copy if self.hyperparams is not None and self.resume and copy.is_file() else self.hyperparams

    def _check_start(self, path: str, settings: Hyperparams) -> None:
        if self.warm_start.startswith("clone"):
            raise ValueError(
                f"start-from {path}: cloning would overwrite what this policy has learned; "
                "give --warm-start gradient or none"
            )
        if self.warm_start == "none" and learns_off_policy(self.algo):
            raise ValueError(
                f"start-from {path}: the critic of {self.algo} knows nothing yet, and what it says would undo what "
                "this policy has learned; give --warm-start gradient, or an algorithm that learns on-policy"
            )
        sizes = load_policy(path).architecture
        wanted = settings.architecture
        if sizes != wanted:
            raise ValueError(f"start-from {path}: this policy has {sizes}, the algorithm's settings ask for {wanted}")

    @property
    def warm_started(self) -> bool:
        """Whether there is a warm start."""
        return self.warm_start != "none"

    @property
    def refines(self) -> bool:
        """Whether the algorithm gets a policy that knows something already."""
        return self.warm_started or self.start_from is not None

    def config(self) -> dict[str, Any]:
        """What makes the run what it is, as JSON has it."""
        return {
            name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name not in _NOT_OF_THE_RUN
        }


def settings_of_run(directory: Path) -> TrainingSettings:
    """The settings of the run in a directory, to resume it.

    Raises:
        ValueError: There is no run, or its config.json is damaged or of another version.
    """
    config: Mapping[str, Any] = read_config(directory)
    known = {field.name for field in fields(TrainingSettings)}
    given = {name: value for name, value in config.items() if name in known}
    written = {name: given[name] for name in _PATHS if given.get(name) is not None}
    for name, value in written.items():
        if not isinstance(value, str):
            raise ValueError(f"{directory / CONFIG} is damaged: {name} must be a path or null, got {value!r}")
    paths: dict[str, Any] = {name: Path(value) for name, value in written.items()}
    options = given.get("dataset_options") or ()
    if not isinstance(options, list | tuple) or not all(isinstance(option, str) for option in options):
        raise ValueError(f"{directory / CONFIG} is damaged: dataset_options must be a list of texts, got {options!r}")
    paths["dataset_options"] = tuple(options)
    try:
        return TrainingSettings(**{**given, **paths, "run_dir": directory, "resume": True})
    except TypeError as error:
        raise ValueError(f"the run in {directory} is of another version: {error}") from error
