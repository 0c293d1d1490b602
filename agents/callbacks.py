"""What happens besides learning: evaluation on fixed scenarios, saving, curves. One concern a callback."""

import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from agents.checkpoint import CHECKPOINT, take
from agents.playing import play
from fl_core.files import write_atomically
from fl_core.registry import check_known

Figures = Mapping[str, Any]

# What a policy can be selected by, on fixed scenarios.
SELECTIONS = ("reward", "accuracy")


class FixedScenarioEvaluation(BaseCallback):
    """Plays the same episodes again and again: train attacks, validation data, seeds that never change.

    So evaluations are paired over the run, the first one (before any learning here) included. The best policy is handed
    to ``on_best``.

    Args:
        env: Evaluation environment.
        every: Time steps between evaluations.
        episodes: Number of episodes.
        file: ``evaluations.npz``: time steps, and the mean reward and the accuracy of every episode at each.
        on_best: Called after an evaluation that was the best so far, with its figures.
        on_evaluation: Called after every evaluation, with its figures.
        select_by: What the best policy has most of: ``"reward"``, the mean over rounds and episodes, or ``"accuracy"``,
            on validation data after the last round, the mean over episodes.
        resumed_at: Time steps that a resumed run has behind it: evaluations after these are forgotten, they will come
            again. ``None`` for a run from the start.
    """

    SEED = 1_000_000

    def __init__(
        self,
        env: gym.Env[Any, Any],
        *,
        every: int,
        episodes: int,
        file: Path,
        on_best: Callable[[Figures], None],
        on_evaluation: Callable[[Figures], None] = lambda _: None,
        select_by: str = "reward",
        resumed_at: int | None = None,
    ) -> None:
        super().__init__()
        check_known("selection", [select_by], SELECTIONS)
        self._select_by = select_by
        self._env, self._every, self._episodes, self._file = env, every, episodes, file
        self._on_best, self._on_evaluation = on_best, on_evaluation
        self._timesteps: list[int] = []
        self._results: list[list[float]] = []
        self._accuracies: list[list[float]] = []
        if resumed_at is not None and file.exists():
            try:
                self._read(file, resumed_at)
            except Exception as error:  # a zip file, and what numpy makes of it, may fail in any way
                raise ValueError(
                    f"{file} is damaged: {error}; move it away, and the best policy is chosen anew from here on"
                ) from error

    def _read(self, file: Path, resumed_at: int) -> None:
        with np.load(io.BytesIO(file.read_bytes())) as known:
            behind = int((known["timesteps"] <= resumed_at).sum())
            self._timesteps = known["timesteps"][:behind].tolist()
            self._results = known["results"][:behind].tolist()
            without = np.full(known["results"].shape, np.nan)  # a file of a version that did not keep them
            self._accuracies = known.get("accuracies", without)[:behind].tolist()

    @property
    def means(self) -> list[float]:
        """Mean reward of a round at every evaluation so far."""
        return [float(np.mean(episodes)) for episodes in self._results]

    @property
    def best(self) -> int | None:
        """Which evaluation so far was the best, the first of equals; ``None`` before the first."""
        scores = self._results if self._select_by == "reward" else self._accuracies
        # What was not measured, see ``_read``, is no maximum, as NaN would be.
        return int(np.argmax(np.nan_to_num(np.mean(scores, axis=1), nan=-np.inf))) if scores else None

    def _on_training_start(self) -> None:
        if not self._timesteps:
            self.evaluate()

    def _on_rollout_start(self) -> None:
        # Here, not in `_on_step`: between rollouts the policy is what the last update has made of it.
        # By multiples, as in ``Saving``: a run that is made longer goes on with what a whole one evaluates.
        if self.num_timesteps // self._every > self._timesteps[-1] // self._every:
            self.evaluate()

    def _on_step(self) -> bool:
        return True

    def finish(self) -> None:
        """Evaluates the last state too, if that was not just done."""
        if self.num_timesteps != self._timesteps[-1]:
            self.evaluate()

    def evaluate(self) -> float:
        """Plays the episodes, logs, and returns the mean reward of a round."""
        episodes, accuracy = zip(*(self._play(self.SEED + i) for i in range(self._episodes)), strict=True)
        mean = float(np.mean(episodes))
        self.logger.record("eval/mean_round_reward", mean)
        self.logger.record("eval/validation_accuracy", float(np.mean(accuracy)))
        self.logger.dump(self.num_timesteps)
        self._timesteps.append(self.num_timesteps)
        self._results.append(list(episodes))
        self._accuracies.append(list(accuracy))
        best = self.best == len(self._results) - 1
        figures = {
            "timesteps": self.num_timesteps,
            "mean_reward": mean,
            "validation_accuracy": float(np.mean(accuracy)),
        }
        self._on_evaluation({**figures, "best": best})
        if best:
            self._on_best(figures)
        # Last: a run that is killed before this evaluates again, and keeps the policy again.
        content = io.BytesIO()
        np.savez(
            content,
            timesteps=np.array(self._timesteps),
            results=np.array(self._results),
            accuracies=np.array(self._accuracies),
        )
        write_atomically(self._file, content.getvalue())
        return mean

    def _play(self, seed: int) -> tuple[float, float]:
        reward, info = play(self._env, lambda seen: self.model.predict(seen, deterministic=True)[0], seed)
        return reward, float(info["validation_accuracy"])


class Saving(BaseCallback):
    """Saves between rollouts: what a resumed run needs, often, and the model for later, less often.

    Between rollouts the environments wait and the last update is done; in the middle of one, what has been played and
    not learned from would be lost.

    Args:
        directory: The run directory.
        every: Time steps between checkpoints (``checkpoint.pkl``, only the last is kept).
        keep_every: Time steps between models (``checkpoints/model_*.zip``, all are kept, and ``model.zip``).
        seconds: Wall-clock time that a resumed run has behind it.
    """

    def __init__(self, directory: Path, *, every: int, keep_every: int, seconds: float = 0.0) -> None:
        super().__init__()
        self._directory, self._every, self._keep_every = directory, every, keep_every
        self._began = time.monotonic() - seconds
        self._saved: int | None = None

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run so far, that before it was resumed included."""
        return time.monotonic() - self._began

    def _on_training_start(self) -> None:
        self._kept = self.num_timesteps

    def _on_rollout_start(self) -> None:
        # By multiples, which a resumed run passes where a whole one does. Before the checkpoint: a run that is killed
        # between the two does it again, and would otherwise go on without it.
        if self.num_timesteps // self._keep_every > self._kept // self._keep_every:
            self._keep()
        if self._saved is None or self.num_timesteps - self._saved >= self._every:
            self._save()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self._kept != self.num_timesteps:
            self._keep()
        if self._saved != self.num_timesteps:
            self._save()

    def _save(self) -> None:
        self._saved = self.num_timesteps
        take(self.model, self.seconds).save(self._directory / CHECKPOINT)

    def _keep(self) -> None:
        self._kept = self.num_timesteps
        save_model(self.model, self._directory / "checkpoints" / f"model_{self.num_timesteps}.zip")
        save_model(self.model, self._directory / "model.zip")


class RoundCurves(BaseCallback):
    """Logs means over the rounds since the last line of the log.

    Every reward term; of the trust, in rounds under attack, the honest clients' share of the clients' weight, and the
    AUROC with which it tells malicious from honest clients; each attack's regret to the honest mean, in nats a round;
    rounds a second.
    """

    def _on_training_start(self) -> None:
        self._since, self._steps = time.monotonic(), self.num_timesteps

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            for name, value in curves_of(info).items():
                self.logger.record_mean(name, value)
        return True

    def _on_rollout_end(self) -> None:
        now = time.monotonic()
        self.logger.record_mean("time/steps_per_second", (self.num_timesteps - self._steps) / (now - self._since))
        self._since, self._steps = now, self.num_timesteps


def curves_of(info: Mapping[str, Any]) -> dict[str, float]:
    """What one round's info says of the policy, by the names of the curves."""
    curves = {f"reward_terms/{name}": value for name, value in info["reward_terms"].items()}
    curves[f"regret/{info['attack']}"] = -info["reward_terms"]["oracle_gap"]
    present = info.get("participants", slice(None))  # who is absent has no weight, and was not judged
    weights, malicious = info["weights"][present], info["malicious"][present]
    attacked = info["attacking"] and malicious.any()
    if attacked and weights.sum() > 0:
        curves["trust/honest_weight_share"] = float(weights[~malicious].sum() / weights.sum())
    if attacked and not malicious.all():
        above = weights[~malicious][:, None] - weights[malicious]
        curves["trust/detection_auroc"] = float((above > 0).mean() + 0.5 * (above == 0).mean())
    return curves


class ProgressBar(BaseCallback):
    """A bar over the time steps, with the time that is left.

    Args:
        description: Its name.
        shown: ``False`` for none; otherwise it is shown on a terminal, and not in a file.
    """

    def __init__(self, description: str, *, shown: bool) -> None:
        super().__init__()
        self._description, self._shown = description, shown

    def _on_training_start(self) -> None:
        self._done = self.num_timesteps
        self._bar = tqdm(
            total=self.model._total_timesteps,
            initial=self._done,
            desc=self._description,
            unit="round",
            disable=None if self._shown else True,
        )

    def _on_step(self) -> bool:
        self._bar.update(self.num_timesteps - self._done)
        self._done = self.num_timesteps
        return True

    def _on_training_end(self) -> None:
        self._bar.close()


def save_model(model: BaseAlgorithm, path: Path) -> None:
    """``model.save`` that never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    model.save(content)
    write_atomically(path, content.getvalue())
