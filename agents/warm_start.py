"""Two stages before reinforcement learning, on recorded rounds of the train attacks.

1. *Cloning*: the policy learns to tell honest from malicious clients, by their labels.
2. *Gradient through the aggregation*: the oracle gap is differentiable in the trust, because the validation loss of
   ``w + Σ wᵢ·clip(Δᵢ) + w₀·reference`` backpropagates through the aggregation to the policy. The value head learns the
   gap at the same time, so that reinforcement learning starts with a critic that has seen its reward.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from agents.trust_net import TrustNet
from fl_core import Federation
from fl_core.aggregation import TrustWeighting
from fl_core.evaluation import capped_cross_entropy
from optigrad_env.observation import SCORE_SCALE
from optigrad_env.wrappers import RecordedRound

Progress = Callable[[int], object]


@dataclass(frozen=True)
class WarmStart:
    """How long each stage is.

    Attributes:
        rounds: Recorded rounds, half of them with trust that does not come from the policy, half with the clone's.
        clone_steps: Adam steps of behaviour cloning.
        gradient_steps: Adam steps on the oracle gap.
        batch: Rounds in a gradient step; a cloning step takes four times as many.
        samples: Validation samples, drawn anew for each gradient step.
        learning_rate: Of Adam; falls to a tenth along a cosine in each stage.
    """

    rounds: int = 1200
    clone_steps: int = 300
    gradient_steps: int = 600
    batch: int = 16
    samples: int = 64
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name, least in {"rounds": 2, "clone_steps": 0, "gradient_steps": 0, "batch": 1, "samples": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be greater than 0, got {self.learning_rate}")

    def shortened(self, share: float) -> "WarmStart":
        """The same with every stage in proportion, ``share`` in (0, 1]; at least 32 rounds."""
        share = max(share, min(32 / self.rounds, 1.0))
        return replace(
            self,
            rounds=round(share * self.rounds),
            clone_steps=ceil(share * self.clone_steps),
            gradient_steps=ceil(share * self.gradient_steps),
        )


# All updates of a recorded round are kept: 76 kB for ten clients on digits, 4 MB on 28x28 images.
_RECORDING_MEMORY = 2**30
# Pixels of an image up to which the full length is affordable: a gradient step runs 32 models on a hundred images.
_AFFORDABLE_PIXELS = 256


def affordable_share(federation: Federation) -> float:
    """Share of a full warm start that a federation's updates (memory) and images (time) allow, in (0, 1]."""
    round_size = 4 * federation.config.num_clients * federation.layout.num_shared
    pixels = prod(federation.dataset.image_shape)
    return min(1.0, _RECORDING_MEMORY / (WarmStart.rounds * round_size), _AFFORDABLE_PIXELS / pixels)


@dataclass(frozen=True, eq=False)
class Recording:
    """Recorded rounds of one federation's data, stacked.

    Attributes:
        federation: Owner of the data that the rounds were recorded with: reference half and validation data.
        rounds: Fields of ``RecordedRound`` with a leading axis of rounds.
    """

    federation: Federation
    rounds: RecordedRound

    def __len__(self) -> int:
        return len(self.rounds.corrupted)


def warm_start(
    policy: TrustNet,
    envs: VecEnv,
    federations: Sequence[Federation],
    settings: WarmStart,
    seed: int,
    progress: Progress,
) -> dict[str, float]:
    """Runs both stages; the policy is trained in place.

    Args:
        policy: The network.
        envs: Training environments wrapped in ``RoundRecorder``.
        federations: For each environment a federation with the same data.
        settings: Lengths of the stages.
        seed: Seed of behaviour and batches.
        progress: Called with the number of units done: rounds and steps alike.

    Returns:
        Figures of the stages on the recorded rounds: cloning loss, oracle gap before and after the gradient stage.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    half = settings.rounds // 2
    recordings = record(envs, federations, half, _mixed_behaviour(envs, rng), progress)
    cloning_loss = clone(policy, recordings, settings, rng, progress)
    recordings += record(envs, federations, settings.rounds - half, _policy_behaviour(policy, rng), progress)
    before = mean_gap(policy, recordings)
    gradient(policy, recordings, settings, rng, progress)
    return {
        "cloning_loss": cloning_loss,
        "gap_after_cloning": before,
        "gap_after_gradient": mean_gap(policy, recordings),
    }


Behaviour = Callable[[NDArray[np.float32], list[RecordedRound]], NDArray[np.float32]]


def record(
    envs: VecEnv, federations: Sequence[Federation], rounds: int, behaviour: Behaviour, progress: Progress
) -> list[Recording]:
    """Plays ``rounds`` rounds in all environments together and keeps them."""
    kept: list[list[RecordedRound]] = [[] for _ in federations]
    observations = envs.reset()
    for _ in range(-(-rounds // envs.num_envs)):
        present = envs.env_method("recorded_round")
        for rows, round_ in zip(kept, present, strict=True):
            rows.append(round_)
        assert isinstance(observations, np.ndarray)
        observations = envs.step(behaviour(observations, present))[0]
        progress(envs.num_envs)
    return [Recording(f, _stack(rows)) for f, rows in zip(federations, kept, strict=True)]


def clone(
    policy: TrustNet, recordings: Sequence[Recording], settings: WarmStart, rng: np.random.Generator, progress: Progress
) -> float:
    """Binary cross-entropy of trust against "is honest"; returns the mean over the last tenth of the steps."""
    observations = torch.cat([recording.rounds.observation for recording in recordings])
    honest = torch.cat([~recording.rounds.corrupted for recording in recordings]).float()
    losses = []
    for step in _optimise(policy, settings.learning_rate, settings.clone_steps):
        picks = torch.from_numpy(rng.integers(len(observations), size=4 * settings.batch))
        score, _ = policy.score_and_value(observations[picks])
        losses.append(step(F.binary_cross_entropy_with_logits(score, honest[picks])))
        progress(1)
    return float(np.mean(losses[-max(len(losses) // 10, 1) :])) if losses else float("nan")


def gradient(
    policy: TrustNet, recordings: Sequence[Recording], settings: WarmStart, rng: np.random.Generator, progress: Progress
) -> None:
    """Follows the gradient of the oracle gap through the aggregation."""
    for step in _optimise(policy, settings.learning_rate, settings.gradient_steps):
        recording = recordings[int(rng.integers(len(recordings)))]
        picks = torch.from_numpy(rng.integers(len(recording), size=settings.batch))
        validation = recording.federation.splits.validation
        chosen = rng.choice(len(validation), size=min(settings.samples, len(validation)), replace=False)
        gap, value = oracle_gap(policy, recording, picks, validation[torch.from_numpy(chosen)])
        step(-gap.mean() + 0.5 * F.mse_loss(value, gap.detach()))
        progress(1)


def oracle_gap(policy: TrustNet, recording: Recording, picks: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """The oracle gap of the policy's trust in recorded rounds, and the value that its critic predicts.

    Args:
        policy: The network.
        recording: Recorded rounds.
        picks: (B,) indices of rounds.
        samples: (V,) indices of the validation samples that losses are taken on.

    Returns:
        Gap (B,) in nats, differentiable in the policy, and predicted value (B,).
    """
    federation, rounds = recording.federation, recording.rounds
    score, value = policy.score_and_value(rounds.observation[picks])
    weighting: TrustWeighting = federation.config.weighting
    weights, root_weight = weighting.weights(torch.sigmoid(score) * ~rounds.rejected[picks])
    update = torch.einsum("bn,bnp->bp", weights, rounds.updates[picks]) + root_weight[:, None] * rounds.reference[picks]
    with torch.no_grad():
        honest = _loss(federation, rounds, picks, rounds.honest[picks], samples)
    return honest - _loss(federation, rounds, picks, update, samples), value


@torch.no_grad()
def mean_gap(policy: TrustNet, recordings: Sequence[Recording], batch: int = 32) -> float:
    """Mean oracle gap of the policy over all recorded rounds, in nats."""
    gaps = [
        oracle_gap(policy, recording, picks, recording.federation.splits.validation)[0]
        for recording in recordings
        for picks in torch.arange(len(recording)).split(batch)
    ]
    return float(torch.cat(gaps).mean())


def _loss(federation: Federation, rounds: RecordedRound, picks: Tensor, update: Tensor, samples: Tensor) -> Tensor:
    """Loss (B,) of the models that the updates would make, scored as the environment scores them."""
    device, engine = federation.device, federation.engine
    models = (rounds.shared[picks] + update).to(device)
    local = engine.reestimate(models, rounds.server_local[picks].to(device), federation.simulator.images)
    logits = engine.logits(models, local, federation.dataset.images(samples))
    return capped_cross_entropy(logits, federation.dataset.labels[samples]).mean(dim=1).to(update.device)


def _optimise(policy: TrustNet, learning_rate: float, steps: int) -> Any:
    """Yields, ``steps`` times, a function that takes one Adam step on a loss and returns its value."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1), eta_min=learning_rate / 10)

    def step(loss: Tensor) -> float:
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        return float(loss.detach())

    for _ in range(steps):
        yield step


def _mixed_behaviour(envs: VecEnv, rng: np.random.Generator) -> Behaviour:
    """Trust that ranges, from round to round, over random, uniform, and more or less informed by the truth."""
    shape = (envs.num_envs, *envs.action_space.shape)  # type: ignore[misc]

    def act(observations: NDArray[np.float32], present: list[RecordedRound]) -> NDArray[np.float32]:
        truth = np.stack([1.0 - 2.0 * round_.corrupted.numpy() for round_ in present])
        informed = rng.uniform(0, 1, size=(envs.num_envs, 1))
        noise = rng.uniform(-1, 1, size=shape)
        return (informed * truth + (1 - informed) * noise).astype(np.float32)

    return act


def _policy_behaviour(policy: TrustNet, rng: np.random.Generator) -> Behaviour:
    """The policy's own trust with a little noise."""

    @torch.no_grad()
    def act(observations: NDArray[np.float32], present: list[RecordedRound]) -> NDArray[np.float32]:
        score, _ = policy.score_and_value(torch.from_numpy(observations))
        action = score.numpy() / SCORE_SCALE + 0.2 * rng.standard_normal(score.shape)
        return action.clip(-1, 1).astype(np.float32)

    return act


def _stack(rounds: list[RecordedRound]) -> RecordedRound:
    return RecordedRound(*(torch.stack(column) for column in zip(*(vars(r).values() for r in rounds), strict=True)))
