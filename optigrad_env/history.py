"""What has happened in an episode so far, for pictures."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class History:
    """An episode after T rounds. A client that is absent in a round has NaN there.

    Attributes:
        accuracy: T + 1 values: validation accuracy at the start and after each round.
        features: T + 1 observations (N, 6) float32, that of the waiting round last.
        oracle: T values: validation accuracy of the honest mean of the same round's updates.
        trust: T answers (N,) float32 of the agent.
    """

    accuracy: list[float]
    features: list[NDArray[np.float32]]
    oracle: list[float] = field(default_factory=list)
    trust: list[NDArray[np.float32]] = field(default_factory=list)

    def append(self, accuracy: float, oracle: float, trust: NDArray[np.float32], features: NDArray[np.float32]) -> None:
        """Adds a round that has ended, with the features of the next one."""
        self.accuracy.append(accuracy)
        self.oracle.append(oracle)
        self.trust.append(trust)
        self.features.append(features)

    def copy(self) -> "History":
        """One that later rounds are not added to."""
        return History(list(self.accuracy), list(self.features), list(self.oracle), list(self.trust))
