"""Fits the two controls that learn without reinforcement learning: ``python -m agents.controls``.

``logistic`` is fitted to the labels, ``feature_weights`` to the oracle gap, both on the same recorded rounds of the
train attacks, in federations with root and validation data of the training splits. The numbers go into the package,
beside the command and the seeds that they come from.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from tqdm import tqdm

from agents.environments import make_env, make_training_envs
from agents.warm_start import Progress, Recording, honest_loss, mixed_behaviour, record, trusted_loss
from fl_core.aggregation import learned
from fl_core.files import write_json
from fl_core.fingerprint import FEATURES
from optigrad_env.env import federated
from optigrad_env.scenarios import TRAINING_SPLITS, ScenarioDistribution

COMMAND = "python -m agents.controls"
FITTED = Path(learned.__file__).parent / "fitted"
CHOSEN = 4
_DECIMALS = 4


@dataclass(frozen=True)
class Controls:
    """Fits the rules logistic and feature_weights on recorded rounds of the train attacks.

    The numbers that the package comes with were made with the defaults.
    """

    env_id: str = "OptiGrad/Digits-v0"
    """Environment whose train attacks, heterogeneity and onsets the rounds are drawn from."""
    num_clients: int = 20
    """Clients of a federation."""
    federations: int = 4
    """Federations, each with root and validation data of its own."""
    rounds: int = 400
    """Recorded rounds, over all federations."""
    population: int = 24
    """Candidates in an iteration of the cross-entropy method."""
    elite: int = 6
    """Candidates that the next iteration is drawn around."""
    screening: int = 6
    """Iterations for each choice of four features, on a quarter of the rounds."""
    iterations: int = 15
    """Iterations for the choice with the largest gap, on all rounds."""
    seed: int = 0
    """Seed of episodes, behaviour and candidates."""

    def __post_init__(self) -> None:
        for name in ("num_clients", "federations", "rounds", "population", "elite", "screening", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.elite >= self.population:
            raise ValueError(f"elite={self.elite} must be smaller than population={self.population}")


def fit(controls: Controls, progress: Progress) -> dict[str, dict[str, Any]]:
    """Records the rounds and fits both rules.

    Args:
        controls: Settings.
        progress: Called with the number of recorded rounds and tried candidates.

    Returns:
        For each rule the contents of its file: its numbers, where they come from, and their figures.
    """
    rng = np.random.default_rng(np.random.SeedSequence(controls.seed, spawn_key=(2,)))
    recordings = record_rounds(controls, rng, progress)
    rounds = Rounds(recordings)
    return {
        name: {**numbers, **_provenance(controls), "mean_gap": round(rounds.gap(trust), _DECIMALS)}
        for name, (numbers, trust) in {
            "logistic": fit_logistic(recordings),
            "feature_weights": fit_feature_weights(rounds, controls, rng, progress),
        }.items()
    }


def record_rounds(controls: Controls, rng: np.random.Generator, progress: Progress) -> list[Recording]:
    """Rounds of train attacks, played with trust that ranges from random to informed by the truth."""
    settings: dict[str, Any] = {"num_clients": controls.num_clients}
    envs = make_training_envs(controls.env_id, controls.federations, controls.seed, processes=1, **settings)
    try:
        federations = [
            federated(make_env(controls.env_id, split_seed=split, **settings)).federation for split in _splits(controls)
        ]
        return record(envs, federations, controls.rounds, mixed_behaviour(envs, rng), progress)
    finally:
        envs.close()


# Observation (..., 6) to trust (...).
TrustOf = Callable[[Tensor], Tensor]


class Rounds:
    """The oracle gap of any trust on recorded rounds.

    Args:
        recordings: The rounds, a recording a federation.
        every: Take each ``every``-th round only.
    """

    def __init__(self, recordings: Sequence[Recording], every: int = 1) -> None:
        self.recordings = recordings
        self._picks = [torch.arange(0, len(recording), every) for recording in recordings]
        self._honest = torch.cat(
            [honest_loss(r, picks, r.federation.splits.validation) for r, picks in self._parts()]
        ).mean()

    @torch.no_grad()
    def gap(self, trust: TrustOf) -> float:
        """Mean oracle gap in nats: loss of the honest mean minus that of the aggregate with this trust."""
        losses = [
            trusted_loss(trust(r.rounds.observation[picks]), r, picks, r.federation.splits.validation)
            for r, picks in self._parts()
        ]
        return float(self._honest - torch.cat(losses).mean())

    def _parts(self) -> Iterator[tuple[Recording, Tensor]]:
        return zip(self.recordings, self._picks, strict=True)


def fit_logistic(recordings: Sequence[Recording]) -> tuple[dict[str, Any], TrustOf]:
    """Logistic regression of "is honest" on the six observed features: its numbers and its trust."""
    observed = torch.cat([r.rounds.observation.flatten(0, 1) for r in recordings]).numpy()
    honest = ~torch.cat([r.rounds.corrupted.flatten() for r in recordings]).numpy()
    model = LogisticRegression(max_iter=1000).fit(observed.astype(np.float64), honest)
    intercept = round(float(model.intercept_[0]), _DECIMALS)
    numbers: dict[str, Any] = {"weights": _named(FEATURES, model.coef_[0]), "intercept": intercept}
    return numbers, learned.Logistic(**numbers).trust_of


def fit_feature_weights(
    rounds: Rounds, controls: Controls, rng: np.random.Generator, progress: Progress
) -> tuple[dict[str, Any], TrustOf]:
    """Four features, their weights and a cut-off with the largest oracle gap: the numbers and their trust."""
    fewer = Rounds(rounds.recordings, every=4)
    best: dict[tuple[str, ...], tuple[float, NDArray[np.float64]]] = {}
    for features in combinations(FEATURES, CHOSEN):
        start = np.zeros(CHOSEN + 1), np.full(CHOSEN + 1, 2.0)
        best[features] = _search(fewer, features, start, controls, controls.screening, rng, progress)
    features = max(best, key=lambda choice: best[choice][0])
    # Wide enough to leave the place that a quarter of the rounds has led to.
    start = best[features][1], np.full(CHOSEN + 1, 0.5)
    _, values = _search(rounds, features, start, controls, controls.iterations, rng, progress)
    numbers = _five_numbers(features, values)
    return numbers, learned.FeatureWeights(**numbers).trust_of


def _search(
    rounds: Rounds,
    features: tuple[str, ...],
    start: tuple[NDArray[np.float64], NDArray[np.float64]],
    controls: Controls,
    iterations: int,
    rng: np.random.Generator,
    progress: Progress,
) -> tuple[float, NDArray[np.float64]]:
    """The cross-entropy method (Rubinstein 1999) from a mean and deviations: the best gap that was seen, and where."""
    mean, deviation = start
    best, place = -np.inf, mean
    for _ in range(iterations):
        candidates = mean + deviation * rng.standard_normal((controls.population, len(mean)))
        gaps = np.array([rounds.gap(learned.FeatureWeights(**_five_numbers(features, c)).trust_of) for c in candidates])
        elite = candidates[np.argsort(-gaps, kind="stable")[: controls.elite]]
        mean, deviation = elite.mean(axis=0), elite.std(axis=0)
        if gaps.max() > best:
            best, place = float(gaps.max()), candidates[gaps.argmax()]
        progress(controls.population)
    return best, place


def _five_numbers(features: tuple[str, ...], values: NDArray[np.float64]) -> dict[str, Any]:
    """Rounded as they are written down, so that what is tried is what is kept."""
    return {"weights": _named(features, values[:-1]), "cut_off": round(float(values[-1]), _DECIMALS)}


def _named(features: Sequence[str], values: NDArray[np.float64]) -> dict[str, float]:
    return {name: round(float(value), _DECIMALS) for name, value in zip(features, values, strict=True)}


def _splits(controls: Controls) -> list[int]:
    return [TRAINING_SPLITS + i for i in range(controls.federations)]


def _provenance(controls: Controls) -> dict[str, Any]:
    return {
        "command": command(controls),
        "env_id": controls.env_id,
        "num_clients": controls.num_clients,
        "seed": controls.seed,
        "split_seeds": _splits(controls),
        "rounds": controls.rounds,
        "attacks": list(ScenarioDistribution().attacks),
    }


def command(controls: Controls) -> str:
    """The command line that has these settings."""
    defaults = vars(Controls())
    given = [
        f" --{name.replace('_', '-')} {value}" for name, value in vars(controls).items() if value != defaults[name]
    ]
    return COMMAND + "".join(given)


def main(controls: Annotated[Controls, tyro.conf.arg(name="")], out: Path = FITTED) -> None:
    """Fits both rules, writes their files to ``out`` and prints what came out."""
    torch.set_num_threads(1)
    candidates = controls.population * (15 * controls.screening + controls.iterations)
    with tqdm(total=controls.rounds + candidates, desc="controls", disable=None) as bar:
        contents = fit(controls, bar.update)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_json(out / f"{name}.json", content)
        print(f"{name}: mean oracle gap {content['mean_gap']:+.4f} nats a round; {content}")


def cli() -> None:
    """Entry point: errors of the user's making are one line, not a traceback."""
    try:
        tyro.cli(main)
    except ValueError as error:
        sys.exit(f"controls: {error}")


if __name__ == "__main__":
    cli()
