"""How unlike the clients of a cell are, as one word of a command line: ``0.5``, ``iid``, ``label_skew_70``."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from fl_core.data import partition_names
from fl_core.registry import check_known


@dataclass(frozen=True)
class Heterogeneity:
    """A partition with its parameters set.

    Attributes:
        label: The word that stands for it in tables.
        alpha: Dirichlet concentration, where it has one.
        partition: Name of the partition; ``None`` where ``alpha`` alone says it.
        options: Parameters of the partition other than ``alpha``.
    """

    label: str
    alpha: float | None = None
    partition: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_heterogeneity(word: str | float) -> Heterogeneity:
    """Reads one word: a Dirichlet α, ``iid``, ``label_skew_PERCENT``, or another partition by its name.

    Args:
        word: Such as ``0.1``, ``"iid"``, ``"label_skew_90"``, ``"by_group"``.

    Raises:
        ValueError: No such partition, an α out of range, or a share above 100 %.
    """
    text = str(word)
    try:
        alpha = float(text)
    except ValueError:
        pass
    else:
        if not 0 < alpha < inf:
            raise ValueError(f"heterogeneity: a Dirichlet alpha must be greater than 0 and finite (or iid), got {text}")
        return Heterogeneity(f"{alpha:g}", alpha)
    skewed = re.fullmatch(r"label_skew_(\d{1,3})", text)
    if skewed:
        if int(skewed[1]) > 100:
            raise ValueError(f"heterogeneity {text!r}: a share of the samples is at most 100 percent")
        return Heterogeneity(text, partition="label_skew", options={"q": int(skewed[1]) / 100})
    words = ["a Dirichlet alpha", "label_skew_70", *(name for name in partition_names() if name != "label_skew")]
    check_known("heterogeneity", [text], words)
    return Heterogeneity(text, partition=text)


def show_heterogeneity(label: str) -> str:
    """A label as a heading has it: ``α 0.5``, ``IID``, ``label skew 70 %``."""
    het = parse_heterogeneity(label)
    if het.alpha is not None:
        return f"α {het.label}"
    if het.partition == "label_skew":
        return f"label skew {100 * het.options['q']:.0f} %"
    return "IID" if label == "iid" else label.replace("_", " ")
