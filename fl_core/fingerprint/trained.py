"""Autoencoders that are trained once in a process, by whoever asks first."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fl_core.fingerprint.autoencoder import UpdateAutoencoder
from fl_core.fingerprint.simulation import HonestSimulator, train_autoencoder

# Sixteen federations with eight draws of root data each; one is 3 MB and the network's size.
_KEPT = 128
_TRAINED: dict[str, UpdateAutoencoder] = {}


@dataclass(frozen=True, eq=False)
class AutoencoderOnce:
    """Gives the autoencoder that is trained from these, and trains it if nobody has before.

    Holds no configuration on purpose: a rule can reach this object through its view, and a configuration's split seed
    may be the seed of the episode too.

    Attributes:
        key: Digest of all that the training depends on.
        simulator: Makes the honest updates that it is trained on.
        shared: (P,) the federation's initial weights.
        local: (L,) likewise.
        seed: Of the training.
        rounds: Simulated rounds.
    """

    key: str
    simulator: HonestSimulator
    shared: Tensor
    local: Tensor
    seed: int
    rounds: int

    def __call__(self) -> UpdateAutoencoder:
        """Never to be modified: others have the same one."""
        autoencoder = _TRAINED.pop(self.key, None)
        if autoencoder is None:
            generator = torch.Generator().manual_seed(self.seed)
            autoencoder = train_autoencoder(self.simulator, self.shared, self.local, generator, self.rounds)
        _TRAINED[self.key] = autoencoder  # the last of them: what was asked for longest ago goes first
        while len(_TRAINED) > _KEPT:
            del _TRAINED[next(iter(_TRAINED))]
        return autoencoder


def forget_autoencoders() -> None:
    """Empties the process's memory of them; they are trained again when they are asked for."""
    _TRAINED.clear()
