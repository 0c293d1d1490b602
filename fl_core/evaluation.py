"""How good models are on a labelled set: accuracy, loss, per class, personalised."""

from dataclasses import dataclass
from math import log

from torch import Tensor
from torch.nn import functional as F

# Images that go through a model together: more would leave the cache, and at last the memory.
IMAGES_AT_ONCE = 500


@dataclass(frozen=True, eq=False)
class Metrics:
    """Figures of M models on one labelled set.

    Attributes:
        accuracy: (M,) float64 in [0, 1].
        loss: (M,) float64, mean cross-entropy in nats, each sample capped at twice the loss of a uniform guess.
        class_accuracy: (M, C) float64; NaN for a class without samples.
    """

    accuracy: Tensor
    loss: Tensor
    class_accuracy: Tensor


def score(logits: Tensor, labels: Tensor) -> Metrics:
    """Scores outputs of M models.

    The cap keeps one hopeless sample, or a model that an attack has blown up, from drowning the mean; a non-finite
    output counts as wrong and as the cap.

    Args:
        logits: (M, V, C).
        labels: (V,) int64.
    """
    num_classes = logits.shape[-1]
    finite = logits.isfinite().all(dim=-1)
    correct = ((logits.argmax(dim=-1) == labels) & finite).double()
    classes = F.one_hot(labels, num_classes).double()
    return Metrics(
        accuracy=correct.mean(dim=1),
        loss=capped_cross_entropy(logits, labels).mean(dim=1),
        class_accuracy=correct @ classes / classes.sum(dim=0),
    )


def capped_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every sample, at most ``2 log C``: (M, V, C), (V,) to (M, V) float64; differentiable."""
    cap = 2 * log(logits.shape[-1])
    rows = logits.flatten(0, 1).double()
    finite = rows.isfinite().all(dim=-1)
    # Both before and after: a loss that is not taken would still send NaN back.
    losses = F.cross_entropy(rows.where(finite[:, None], 0.0), labels.repeat(len(logits)), reduction="none")
    return losses.where(finite, cap).clamp_max(cap).view(len(logits), -1)


def personalised_accuracy(class_accuracy: Tensor, class_counts: Tensor) -> Tensor:
    """Accuracy of each client's own model on test data mixed as that client's own classes are.

    Args:
        class_accuracy: (N, C), of client i's model on the test samples of class c.
        class_counts: (N, C), how many samples of each class client i has.

    Returns:
        (N,) float64. Classes without test samples are left out; NaN for a client that has no others.
    """
    known = ~class_accuracy.isnan()
    counts = class_counts.double() * known
    return (counts * class_accuracy.nan_to_num(0)).sum(dim=1) / counts.sum(dim=1)
