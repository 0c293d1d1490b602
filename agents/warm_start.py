"""Two stages before reinforcement learning, on recorded rounds of the train attacks.

1. *Cloning*: the policy learns to tell honest from malicious clients, by their labels.
2. *Gradient through the aggregation*: the oracle gap is differentiable in the trust, because the validation loss of
   ``w + Σ wᵢ·clip(Δᵢ) + w₀·reference`` backpropagates through the aggregation to the policy. The value head learns the
   gap at the same time, so that reinforcement learning starts with a critic that has seen its reward. The gap knows one
   round ahead only, and where the next model is best made of root data alone it leads to a policy that trusts nobody:
   ``clone_weight`` keeps the cloning loss in this stage.

The second stage can be left out; then the value head alone learns the gap of the cloned policy. So can the first, for a
policy that has been trained before.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, prod
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from agents.recording import Keep, Progress, Recording, mixed_behaviour, policy_behaviour, record
from agents.trust_net import TrustNet
from fl_core import Federation
from fl_core.aggregation import TrustWeighting
from fl_core.evaluation import capped_cross_entropy
from fl_core.registry import check_known
from optigrad_env.wrappers import ClientObservation, RecordedRound

__all__ = ["KINDS", "Progress", "Recording", "WarmStart", "mixed_behaviour", "record", "warm_start"]

# What ``--warm-start`` accepts.
KINDS = ("clone+gradient", "gradient", "clone", "none")


@dataclass(frozen=True)
class WarmStart:
    """How long each stage is.

    Attributes:
        rounds: Recorded rounds, half of them with trust that does not come from the policy, half with the clone's.
        clone_steps: Adam steps of behaviour cloning.
        gradient_steps: Adam steps on the oracle gap.
        batch: Rounds in a gradient step; a cloning step takes four times as many.
        samples: Validation samples, drawn anew for each gradient step.
        value_steps: Adam steps on the value head alone, if the stage with the oracle gap is left out.
        clone_weight: Weight, in nats of oracle gap a nat, of the cloning loss in the stage with the oracle gap.
        learning_rate: Of Adam; falls to a tenth along a cosine in each stage.
    """

    rounds: int = 1200
    clone_steps: int = 300
    gradient_steps: int = 600
    value_steps: int = 150
    batch: int = 16
    samples: int = 64
    learning_rate: float = 1e-3
    clone_weight: float = 0.0

    def __post_init__(self) -> None:
        least_of = {"rounds": 2, "clone_steps": 0, "gradient_steps": 0, "value_steps": 0, "batch": 1, "samples": 1}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be greater than 0, got {self.learning_rate}")
        if not 0 <= self.clone_weight < inf:
            raise ValueError(f"clone_weight must be 0 or more and finite, got {self.clone_weight}")

    def scaled(self, share: float) -> "WarmStart":
        """The same with every stage in proportion, ``share`` above 0; at least 32 rounds."""
        share = max(share, min(32 / self.rounds, 1.0))
        return replace(
            self,
            rounds=round(share * self.rounds),
            clone_steps=ceil(share * self.clone_steps),
            gradient_steps=ceil(share * self.gradient_steps),
            value_steps=ceil(share * self.value_steps),
        )


# Pixels of an image up to which the full length is affordable: a gradient step runs 32 models on a hundred images.
_AFFORDABLE_PIXELS = 256


def affordable(federation: Federation, wanted: float = 1.0, memory: float = 2.0) -> dict[str, float]:
    """Lengths of a warm start, in units of the full one, that its limits allow, by the flag that moves each limit.

    Args:
        federation: One of those whose rounds are recorded.
        wanted: The length asked for; what time allows is less for large images.
        memory: For the updates of recorded rounds, in GiB. All of a round are kept: 150 kB for twenty clients on
            digits, 8 MB on 28x28 images; three further vectors (P,) a round are not counted.
    """
    round_size = 4 * federation.config.num_clients * federation.layout.num_shared
    pixels = prod(federation.dataset.image_shape)
    return {
        "--warm-start-length": wanted * min(1.0, _AFFORDABLE_PIXELS / pixels),
        "--warm-start-memory": memory * 2**30 / (WarmStart.rounds * round_size),
    }


def warm_start(
    policy: TrustNet,
    envs: VecEnv,
    federations: Sequence[Federation],
    settings: WarmStart,
    seed: int,
    progress: Progress,
    *,
    kind: str = "clone+gradient",
    keep: Keep | None = None,
    one_root: bool = True,
) -> dict[str, float]:
    """Runs the stages; the policy is trained in place.

    Args:
        policy: The network.
        envs: Training environments wrapped in ``RoundRecorder``.
        federations: For each environment a federation with the same data.
        settings: Lengths of the stages.
        seed: Seed of behaviour and batches.
        progress: Called with the number of units done: rounds and steps alike.
        kind: ``"clone+gradient"``, or one of the two for that stage alone.
        keep: Is given every transition of the recorded rounds.
        one_root: Whether every episode has its federation's own root data. Where it is drawn anew, recorded rounds
            cannot be scored afterwards: there is cloning alone, and no value is fitted to an oracle gap.

    Returns:
        Figures of the stages on the recorded rounds: cloning loss, oracle gap before and after the second stage.

    Raises:
        ValueError: Unknown kind, the second stage without one root, or environments in which a wrapper has changed what
            is seen of the clients.
    """
    check_known("warm start", [kind], KINDS[:-1])
    if any(envs.env_is_wrapped(ClientObservation)):
        raise ValueError(
            "recorded rounds hold the features as they are, and a wrapper changes what the policy sees of them: train "
            "without a warm start"
        )
    if kind != "clone" and not one_root:
        raise ValueError(f"warm start {kind!r} scores recorded rounds, whose root data must be the federation's own")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    half = settings.rounds // 2
    recordings = record(envs, federations, half, mixed_behaviour(envs, rng), progress, keep)
    figures = {}
    if kind != "gradient":
        figures["cloning_loss"] = clone(policy, recordings, settings, rng, progress)
    recordings += record(envs, federations, settings.rounds - half, policy_behaviour(policy, rng), progress, keep)
    if not one_root:
        return figures
    figures["gap_before" if kind == "gradient" else "gap_after_cloning"] = mean_gap(policy, recordings)
    if kind == "clone":
        fit_value(policy, recordings, settings, rng, progress)
        return figures
    gradient(policy, recordings, settings, rng, progress)
    return {**figures, "gap_after_gradient": mean_gap(policy, recordings)}


def units(settings: WarmStart, kind: str, *, one_root: bool = True) -> int:
    """What the progress of ``warm_start`` adds up to, for an even number of rounds."""
    first = 0 if kind == "gradient" else settings.clone_steps
    second = settings.value_steps if kind == "clone" else settings.gradient_steps
    return settings.rounds + first + (second if one_root else 0)


def clone(
    policy: TrustNet, recordings: Sequence[Recording], settings: WarmStart, rng: np.random.Generator, progress: Progress
) -> float:
    """Binary cross-entropy of trust against "is honest"; returns the mean over the last tenth of the steps."""
    observations = torch.cat([recording.rounds.observation for recording in recordings])
    honest = torch.cat([~recording.rounds.corrupted for recording in recordings]).float()
    masks = [recording.present for recording in recordings]
    present = None if masks[0] is None else torch.cat(masks)  # type: ignore[arg-type]
    losses = []
    for step in _optimise(policy.parameters(), settings.learning_rate, settings.clone_steps):
        picks = torch.from_numpy(rng.integers(len(observations), size=4 * settings.batch))
        mask = None if present is None else present[picks]
        score, _ = policy.score_and_value(observations[picks], mask)
        losses.append(step(_cloning_loss(score, honest[picks], mask)))
        progress(1)
    return float(np.mean(losses[-max(len(losses) // 10, 1) :])) if losses else float("nan")


def gradient(
    policy: TrustNet, recordings: Sequence[Recording], settings: WarmStart, rng: np.random.Generator, progress: Progress
) -> None:
    """Follows the gradient of the oracle gap through the aggregation, and of the cloning loss by its weight."""
    for step in _optimise(policy.parameters(), settings.learning_rate, settings.gradient_steps):
        recording, picks, samples = _batch(recordings, settings, rng)
        observation, present = _seen(recording, picks)
        score, value = policy.score_and_value(observation, present)
        gap = _gap(score, recording, picks, samples)
        loss = -gap.mean() + 0.5 * F.mse_loss(value, gap.detach())
        if settings.clone_weight:
            honest = (~recording.rounds.corrupted[picks]).float()
            loss = loss + settings.clone_weight * _cloning_loss(score, honest, present)
        step(loss)
        progress(1)


def fit_value(
    policy: TrustNet, recordings: Sequence[Recording], settings: WarmStart, rng: np.random.Generator, progress: Progress
) -> None:
    """Fits the value head, and nothing else, to the oracle gap of the policy as it is."""
    for step in _optimise(policy.value_head.parameters(), settings.learning_rate, settings.value_steps):
        batch = _batch(recordings, settings, rng)
        with torch.no_grad():
            gap, _ = oracle_gap(policy, *batch)
        recording, picks, _ = batch
        _, value = policy.score_and_value(*_seen(recording, picks))
        step(F.mse_loss(value, gap))
        progress(1)


def _batch(
    recordings: Sequence[Recording], settings: WarmStart, rng: np.random.Generator
) -> tuple[Recording, Tensor, Tensor]:
    """A recording, rounds of it (B,), and validation samples (V,)."""
    recording = recordings[int(rng.integers(len(recordings)))]
    picks = torch.from_numpy(rng.integers(len(recording), size=settings.batch))
    validation = recording.federation.splits.validation
    chosen = rng.choice(len(validation), size=min(settings.samples, len(validation)), replace=False)
    return recording, picks, validation[torch.from_numpy(chosen)]


def _seen(recording: Recording, picks: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the policy saw in some rounds: observation (B, N, 6), and who took part."""
    return recording.rounds.observation[picks], None if recording.present is None else recording.present[picks]


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
    score, value = policy.score_and_value(*_seen(recording, picks))
    return _gap(score, recording, picks, samples), value


def _gap(score: Tensor, recording: Recording, picks: Tensor, samples: Tensor) -> Tensor:
    """The oracle gap (B,) in nats that trust of these scores (B, N) leads to."""
    return honest_loss(recording, picks, samples) - trusted_loss(torch.sigmoid(score), recording, picks, samples)


def _cloning_loss(score: Tensor, honest: Tensor, present: Tensor | None) -> Tensor:
    """Binary cross-entropy in nats of trust (B, N) against "is honest", a mean over the clients that take part."""
    weight = None if present is None else present / present.float().mean()
    return F.binary_cross_entropy_with_logits(score, honest, weight)


def trusted_loss(trust: Tensor, recording: Recording, picks: Tensor, samples: Tensor) -> Tensor:
    """Loss (B,) in nats of the models that trust (B, N) leads to in the rounds ``picks``, differentiable in it."""
    rounds = recording.rounds
    weighting: TrustWeighting = recording.federation.config.weighting
    weights, root_weight = weighting.weights(trust * rounds.discount[picks] * ~rounds.rejected[picks])
    update = torch.einsum("bn,bnp->bp", weights, rounds.updates[picks]) + root_weight[:, None] * rounds.reference[picks]
    return _loss(recording.federation, rounds, picks, update, samples)


@torch.no_grad()
def honest_loss(recording: Recording, picks: Tensor, samples: Tensor) -> Tensor:
    """Loss (B,) in nats of the models that the honest mean leads to in the rounds ``picks``."""
    return _loss(recording.federation, recording.rounds, picks, recording.rounds.honest[picks], samples)


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


def _optimise(parameters: Iterable[nn.Parameter], learning_rate: float, steps: int) -> Any:
    """Yields, ``steps`` times, a function that takes one Adam step on a loss and returns its value."""
    parameters = list(parameters)
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1), eta_min=learning_rate / 10)

    def step(loss: Tensor) -> float:
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        return float(loss.detach())

    for _ in range(steps):
        yield step
