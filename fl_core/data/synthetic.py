"""Images that are made, not read: for tests, continuous integration and pre-training."""

import numpy as np
import torch

from fl_core.data.dataset import Dataset, register_dataset
from fl_core.data.location import Source

_SEED = 20_250_723
# Grey values of a standard deviation around the middle; beyond four of them pixels are cut.
_CENTRE, _SCALE = 128.0, 32.0


@register_dataset("gaussian_clusters")
def gaussian_clusters(
    source: Source, classes: int = 10, samples: int = 1800, side: int = 8, separation: float = 0.4
) -> Dataset:
    """A Gaussian cluster a class: its own random mean image plus independent noise of unit variance in every pixel.

    Equal options give equal pixels everywhere: they are drawn with a constant seed. The last quarter is the test side.

    Args:
        source: Not looked at: there are no files.
        classes: Number of classes, balanced.
        samples: Number of images.
        side: Height and width.
        separation: Standard deviation of the means' pixels. With the defaults 0.4 leaves an overlap of about a tenth.

    Raises:
        ValueError: A number out of range.
    """
    if classes < 2 or side < 1 or samples < 4 * classes:
        raise ValueError(
            "gaussian_clusters needs at least 2 classes, a side of at least 1 and 4 samples a class; "
            f"got classes={classes}, side={side}, samples={samples}"
        )
    if not 0 <= separation < np.inf:
        raise ValueError(f"separation must be 0 or more and finite, got {separation}")
    generator = np.random.default_rng(_SEED)
    labels = np.arange(samples) % classes
    means = separation * generator.standard_normal((classes, side, side))
    values = means[labels] + generator.standard_normal((samples, side, side))
    pixels = (_CENTRE + _SCALE * values).round().clip(0, 255).astype(np.uint8)
    order, border = torch.arange(samples), samples * 3 // 4
    return Dataset(
        name="gaussian_clusters",
        pixels=torch.from_numpy(pixels).unsqueeze(1),
        labels=torch.from_numpy(labels),
        classes=tuple(f"cluster {c}" for c in range(classes)),
        train=order[:border],
        # Shuffled: a sample of it, taken at equal distances, would else meet some of the classes only.
        test=order[border:][torch.from_numpy(generator.permutation(samples - border))],
    )
