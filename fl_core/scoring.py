"""How a federation's models are scored: on which samples, with which BatchNorm, piece by piece."""

from collections.abc import Sequence
from math import nan

import torch
from torch import Tensor

from fl_core.attacks import Attack
from fl_core.data import Dataset, Splits
from fl_core.data.shift import FeatureShift
from fl_core.evaluation import IMAGES_AT_ONCE, Metrics, personalised_accuracy, score
from fl_core.registry import check_known
from fl_core.training import Engine

SPLITS = ("validation", "test")
# Many models, each on images of its own kind: a part of a large test side, evenly spread over it, says enough.
_PERSONALISED_SAMPLES = 2000


class Scorer:
    """Scores models on a federation's validation or test data, and on no other.

    Args:
        engine: Runs the models.
        dataset: Images and labels.
        splits: Which of them are for what.
    """

    def __init__(self, engine: Engine, dataset: Dataset, splits: Splits) -> None:
        self._engine, self._dataset = engine, dataset
        # Indices that are needed in every round, where the images are.
        self._of_split: dict[str, Tensor] = {name: getattr(splits, name).to(dataset.labels.device) for name in SPLITS}

    def evaluate(
        self, models: Tensor, local: Tensor, reference_images: Tensor, split: str, at_most: int | None = None
    ) -> Metrics:
        """Scores global models with a server's BatchNorm, its statistics re-estimated for each.

        Args:
            models: (M, P).
            local: (L,), the server's.
            reference_images: (R, C, H, W), what the statistics are estimated on.
            split: ``"validation"`` or ``"test"``.
            at_most: Largest number of samples: every second, third, ... of the split; ``None`` for all of them.

        Raises:
            ValueError: Another split, or fewer than one sample.
        """
        samples = self._samples(split, at_most)
        own = self._engine.reestimate(models, local.expand(len(models), -1), reference_images)
        return score(self._logits(models, own, samples), self._dataset.labels[samples])

    def attack_success(
        self, attack: Attack, shared: Tensor, local: Tensor, reference_images: Tensor, split: str
    ) -> float:
        """Share of the inputs with the attack's trigger that a model (P,) takes for what the adversary wants.

        The other arguments are those of ``evaluate``. NaN for an attack without a target, or if no sample of the split
        can carry the trigger.
        """
        samples = self._samples(split)
        aimed = attack.triggered(self._dataset.images(samples), self._dataset.labels[samples])
        if aimed is None or not len(aimed[1]):
            return nan
        images, wanted = aimed
        own = self._engine.reestimate(shared[None], local[None], reference_images)
        pieces = [self._engine.logits(shared[None], own, piece)[0] for piece in images.split(IMAGES_AT_ONCE)]
        logits = torch.cat(pieces)
        # A non-finite output is nothing's, as in ``score``; the argmax of NaN would be class 0, the usual target.
        return float(((logits.argmax(dim=1) == wanted) & logits.isfinite().all(dim=1)).double().mean())

    def personalised(
        self, shared: Tensor, local: Tensor, shards: Sequence[Tensor], shifts: Sequence[FeatureShift], split: str
    ) -> Tensor:
        """(M,) accuracy of the global model (P,) with each of M clients' own BatchNorm.

        On at most 2,000 samples of the split, evenly spread, mixed as the client's own classes are.

        Args:
            shared: (P,).
            local: (M, L).
            shards: Each client's samples.
            shifts: How each client sees images; empty if all see them as they are.
            split: ``"validation"`` or ``"test"``.
        """
        samples = self._samples(split, _PERSONALISED_SAMPLES)
        if shifts:
            rows = [self._logits(shared[None], local[i : i + 1], samples, shift) for i, shift in enumerate(shifts)]
            logits = torch.cat(rows)
        else:
            logits = self._logits(shared.expand(len(local), -1), local, samples)
        metrics = score(logits, self._dataset.labels[samples])
        classes = self._dataset.num_classes
        counts = [torch.bincount(self._dataset.labels[shard], minlength=classes) for shard in shards]
        return personalised_accuracy(metrics.class_accuracy, torch.stack(counts))

    def _logits(self, shared: Tensor, local: Tensor, samples: Tensor, shift: FeatureShift | None = None) -> Tensor:
        """(M, V, classes) of M models on samples (V,)."""
        pieces = [self._dataset.images(piece) for piece in samples.split(IMAGES_AT_ONCE)]
        return torch.cat([self._engine.logits(shared, local, shift(p) if shift else p) for p in pieces], dim=1)

    def _samples(self, split: str, at_most: int | None = None) -> Tensor:
        """All samples of a split, or at most so many of them, evenly spread."""
        check_known("split", [split], SPLITS)
        samples = self._of_split[split]
        if at_most is None:
            return samples
        if at_most < 1:
            raise ValueError(f"at_most must be at least 1 sample (or None for all), got {at_most}")
        return samples[:: -(-len(samples) // at_most)]
