"""What happens besides learning: evaluation on fixed scenarios, checkpoints, curves. One concern a callback."""

import io
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from fl_core.files import write_atomically


class FixedScenarioEvaluation(BaseCallback):
    """Plays the same episodes again and again: train attacks, validation data, seeds that never change.

    So evaluations are paired over the run, the first one (before any learning here) included. The policy with the
    highest mean reward is handed to ``on_best``.

    Args:
        env: Evaluation environment.
        every: Time steps between evaluations.
        episodes: Number of episodes.
        file: ``evaluations.npz``: time steps, and the mean reward of every episode at each.
        on_best: Called after an evaluation that was the best so far.
    """

    SEED = 1_000_000

    def __init__(
        self, env: gym.Env[Any, Any], *, every: int, episodes: int, file: Path, on_best: Callable[[], None]
    ) -> None:
        super().__init__()
        self._env, self._every, self._episodes, self._file, self._on_best = env, every, episodes, file, on_best
        self._timesteps: list[int] = []
        self._results: list[list[float]] = []
        self.best = float("-inf")
        if file.exists():  # resumed
            with np.load(file) as known:
                self._timesteps, self._results = known["timesteps"].tolist(), known["results"].tolist()
            self.best = max(map(float, np.mean(self._results, axis=1)))

    def _on_training_start(self) -> None:
        if self.num_timesteps not in self._timesteps:
            self.evaluate()

    def _on_rollout_start(self) -> None:
        # Here, not in `_on_step`: between rollouts the policy is what the last update has made of it.
        if self.num_timesteps - self._timesteps[-1] >= self._every:
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
        self.logger.record("eval/mean_reward", mean)
        self.logger.record("eval/validation_accuracy", float(np.mean(accuracy)))
        self.logger.dump(self.num_timesteps)
        self._timesteps.append(self.num_timesteps)
        self._results.append(list(episodes))
        content = io.BytesIO()
        np.savez(content, timesteps=np.array(self._timesteps), results=np.array(self._results))
        write_atomically(self._file, content.getvalue())
        if mean > self.best:
            self.best = mean
            self._on_best()
        return mean

    def _play(self, seed: int) -> tuple[float, float]:
        observation, info = self._env.reset(seed=seed)
        rewards, done = [], False
        while not done:
            action, _ = self.model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, info = self._env.step(action)
            rewards.append(float(reward))
            done = terminated or truncated
        return float(np.mean(rewards)), float(info["validation_accuracy"])


class Checkpoint(BaseCallback):
    """Saves the model every so many time steps, under a temporary name first.

    Args:
        directory: The run directory: ``model.zip`` is the latest, ``checkpoints/`` keeps them all.
        every: Time steps between checkpoints.
    """

    def __init__(self, directory: Path, *, every: int) -> None:
        super().__init__()
        self._directory, self._every = directory, every

    def _on_training_start(self) -> None:
        self._last = self.num_timesteps

    def _on_step(self) -> bool:
        if self.num_timesteps - self._last >= self._every:
            self._last = self.num_timesteps
            save_model(self.model, self._directory / "checkpoints" / f"model_{self.num_timesteps}.zip")
            save_model(self.model, self._directory / "model.zip")
        return True


class RewardTerms(BaseCallback):
    """Logs the mean of every reward term, and the honest clients' share of the clients' weight, over a rollout."""

    def _on_training_start(self) -> None:
        self._values: dict[str, list[float]] = defaultdict(list)

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            for name, value in info["reward_terms"].items():
                self._values[f"reward_terms/{name}"].append(value)
            weights, malicious = info["weights"], info["malicious"]
            if malicious.any() and weights.sum() > 0:
                self._values["trust/honest_weight_share"].append(float(weights[~malicious].sum() / weights.sum()))
        return True

    def _on_rollout_end(self) -> None:
        for name, values in self._values.items():
            self.logger.record(name, float(np.mean(values)))
        self._values.clear()


def save_model(model: BaseAlgorithm, path: Path) -> None:
    """``model.save`` that never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    model.save(content)
    write_atomically(path, content.getvalue())
