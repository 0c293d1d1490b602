"""Independent random streams from one seed, addressed by purpose and index.

Every consumer of randomness owns a stream named by ``(purpose, index)``. Streams are children of one root seed
(numpy's ``SeedSequence`` spawn keys), so adding a client, an attack or a feature never shifts the numbers that
another one draws. Nothing here, and nothing in this package, touches a global generator.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What a stream is for. Append only: the values are part of every seeded result."""

    SPLIT = 0
    PARTITION = 1
    MODEL = 2
    CLIENT = 3
    MALICIOUS = 4
    ATTACK = 5
    AUTOENCODER = 6
    SHAPLEY = 7
    SERVER = 8
    FINGERPRINT = 9
    FEATURE_SHIFT = 10
    RULE = 11
    ROOT = 12
    PARTICIPATION = 13


@dataclass(frozen=True)
class Streams:
    """The random streams of one episode.

    Args:
        entropy: Any non-negative integer; equal entropy, equal streams.
    """

    entropy: int

    def _child(self, purpose: Purpose, index: int) -> np.random.SeedSequence:
        return np.random.SeedSequence(self.entropy, spawn_key=(int(purpose), index))

    def numpy(self, purpose: Purpose, index: int = 0) -> np.random.Generator:
        """A fresh numpy generator at the start of stream ``(purpose, index)``."""
        return np.random.default_rng(self._child(purpose, index))

    def seed(self, purpose: Purpose, index: int = 0) -> int:
        """What the torch generator of stream ``(purpose, index)`` is seeded with, below 2**63."""
        words = self._child(purpose, index).generate_state(1, np.uint64)
        return int(words[0]) & (2**63 - 1)

    def torch(self, purpose: Purpose, index: int = 0) -> torch.Generator:
        """A fresh CPU ``torch.Generator`` at the start of stream ``(purpose, index)``."""
        return torch.Generator().manual_seed(self.seed(purpose, index))

    def descend(self, purpose: Purpose) -> "Streams":
        """Streams of their own for somebody who must not be able to work out these: the way back is a hash."""
        first, second = (int(word) for word in self._child(purpose, 0).generate_state(2, np.uint64))
        return Streams((first << 64) | second)
