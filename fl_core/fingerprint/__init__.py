"""The six-feature fingerprint of each client's update."""

from fl_core.fingerprint.autoencoder import UpdateAutoencoder
from fl_core.fingerprint.fingerprint import FEATURES, OBSERVATION_HIGH, OBSERVATION_LOW, Fingerprint, Fingerprinter
from fl_core.fingerprint.shapley import CoalitionGame, ShapleyEstimator, make_shapley, shapley_names
from fl_core.fingerprint.simulation import SIMULATED_ROUNDS, HonestSimulator, train_autoencoder
from fl_core.fingerprint.trained import AutoencoderOnce, forget_autoencoders

__all__ = [
    "FEATURES",
    "OBSERVATION_HIGH",
    "OBSERVATION_LOW",
    "SIMULATED_ROUNDS",
    "AutoencoderOnce",
    "CoalitionGame",
    "Fingerprint",
    "Fingerprinter",
    "HonestSimulator",
    "ShapleyEstimator",
    "UpdateAutoencoder",
    "forget_autoencoders",
    "make_shapley",
    "shapley_names",
    "train_autoencoder",
]
