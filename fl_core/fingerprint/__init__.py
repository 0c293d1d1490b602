"""The six-feature fingerprint of each client's update."""

from fl_core.fingerprint.autoencoder import UpdateAutoencoder
from fl_core.fingerprint.fingerprint import FEATURES, OBSERVATION_HIGH, OBSERVATION_LOW, Fingerprint, Fingerprinter
from fl_core.fingerprint.shapley import CoalitionGame, ShapleyEstimator, make_shapley, shapley_names
from fl_core.fingerprint.simulation import SIMULATED_ROUNDS, HonestSimulator, train_autoencoder

__all__ = [
    "FEATURES",
    "OBSERVATION_HIGH",
    "OBSERVATION_LOW",
    "SIMULATED_ROUNDS",
    "CoalitionGame",
    "Fingerprint",
    "Fingerprinter",
    "HonestSimulator",
    "ShapleyEstimator",
    "UpdateAutoencoder",
    "make_shapley",
    "shapley_names",
    "train_autoencoder",
]
