"""The six features of every client, in their fixed order, and their bounded transform that a policy observes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fl_core.fingerprint import geometry
from fl_core.fingerprint.autoencoder import UpdateAutoencoder
from fl_core.fingerprint.shapley import CoalitionGame, ShapleyEstimator
from fl_core.fingerprint.simulation import HonestSimulator
from fl_core.randomness import Purpose, Streams

FEATURES = ("reconstruction_error", "root_cosine", "peer_cosine", "norm", "sign_agreement", "shapley")

# Log-ratios are cut at ±3: a factor of 20 up or down says all there is to say.
LOG_RATIO = 3.0
OBSERVATION_LOW = (-LOG_RATIO, -1.0, -1.0, -LOG_RATIO, -1.0, -1.0)
OBSERVATION_HIGH = (LOG_RATIO, 1.0, 1.0, LOG_RATIO, 1.0, 1.0)
# What a client whose update was rejected looks like: the worst value in every feature.
_WORST_RAW = (float("inf"), -1.0, -1.0, float("inf"), 0.0, float("-inf"))
_WORST_OBSERVATION = (LOG_RATIO, -1.0, -1.0, LOG_RATIO, -1.0, -1.0)

REFRESH_EVERY = 20
REFRESH_UPDATES = 33
REFRESH_STEPS = 20


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Features of N clients, columns in the order of ``FEATURES``.

    Attributes:
        raw: (N, 6) float64, as defined.
        observation: (N, 6) float32, bounded by ``OBSERVATION_LOW`` and ``OBSERVATION_HIGH``.
    """

    raw: Tensor
    observation: Tensor

    def column(self, feature: str) -> Tensor:
        """One feature of the observation, (N,) float32."""
        return self.observation[:, FEATURES.index(feature)]


class Fingerprinter:
    """Computes fingerprints from what a server has. One object an episode: it keeps the autoencoder's refreshes.

    Args:
        simulator: Makes honest updates from the reference half.
        utility_images: (V, C, H, W).
        utility_labels: (V,) int64.
        num_classes: C.
        autoencoder: Gives the one trained for this federation's data and network, which is never modified; asked when
            the first fingerprint is computed, because a rule that looks at none should not wait for its training.
        shapley: Estimator.
        streams: The episode's random streams.
    """

    def __init__(
        self,
        simulator: HonestSimulator,
        utility_images: Tensor,
        utility_labels: Tensor,
        num_classes: int,
        autoencoder: Callable[[], UpdateAutoencoder],
        shapley: ShapleyEstimator,
        streams: Streams,
    ) -> None:
        self._simulator = simulator
        self._utility_images = utility_images
        self._utility_labels = utility_labels
        self._num_classes = num_classes
        self._shapley = shapley
        self._streams = streams
        self._trained_autoencoder = autoencoder
        self._refreshed_at = 0

    @cached_property
    def _autoencoder(self) -> UpdateAutoencoder:
        return self._trained_autoencoder()

    def __call__(
        self, updates: Tensor, rejected: Tensor, shared: Tensor, reference: Tensor, local: Tensor, round_: int
    ) -> Fingerprint:
        """Fingerprints one round.

        Args:
            updates: (N, P) as received.
            rejected: (N,) bool, clients whose update is not finite; they get the worst value in every feature.
            shared: (P,) global model that the round began with.
            reference: (P,) reference update.
            local: (L,) the server's BatchNorm after its reference training.
            round_: Round number from 0.
        """
        raw = torch.tensor(_WORST_RAW, dtype=torch.float64).repeat(len(updates), 1)
        observation = torch.tensor(_WORST_OBSERVATION, dtype=torch.float32).repeat(len(updates), 1)
        if not bool(rejected.all()):
            accepted = updates[~rejected]
            columns = (
                self.reconstruction_error(accepted, shared, reference, local, round_),
                geometry.root_cosine(accepted, reference),
                geometry.peer_cosine(accepted),
                geometry.norms(accepted),
                geometry.sign_agreement(accepted, reference),
                self.shapley(accepted, shared, local, round_),
            )
            raw[~rejected] = torch.stack([column.double() for column in columns], dim=1)
            observation[~rejected] = self._observe(raw[~rejected]).to(torch.float32)
        return Fingerprint(raw, observation)

    def reconstruction_error(
        self, updates: Tensor, shared: Tensor, reference: Tensor, local: Tensor, round_: int
    ) -> Tensor:
        """Feature 0, (A,); refreshes the autoencoder first when its time has come."""
        scale = torch.linalg.vector_norm(reference)
        if round_ - self._refreshed_at >= REFRESH_EVERY:
            self._refresh(shared, local, scale, round_)
        return self._autoencoder.error(self._autoencoder.sketch(updates, scale))

    def shapley(self, updates: Tensor, shared: Tensor, local: Tensor, round_: int) -> Tensor:
        """Feature 5, (A,) float64, of updates that are clipped to their median norm first."""
        clipped = geometry.clip_to_median(updates)
        simulator = self._simulator
        mean = shared + clipped.mean(dim=0)
        statistics = simulator.engine.reestimate(mean[None], local[None], simulator.images)[0]
        game = CoalitionGame(
            simulator.engine,
            shared,
            statistics,
            clipped,
            self._utility_images,
            self._utility_labels,
            self._num_classes,
        )
        return self._shapley(game, self._streams.torch(Purpose.SHAPLEY, round_))

    def _refresh(self, shared: Tensor, local: Tensor, scale: Tensor, round_: int) -> None:
        generator = self._streams.torch(Purpose.AUTOENCODER, round_)
        sketches = self._autoencoder.sketch(self._simulator(shared, local, REFRESH_UPDATES, generator), scale)
        # Every third update is kept for the calibration.
        calibration, train = sketches[::3], torch.cat([sketches[1::3], sketches[2::3]])
        self._autoencoder = self._autoencoder.refreshed(train, calibration, REFRESH_STEPS, generator)
        self._refreshed_at = round_

    def _observe(self, raw: Tensor) -> Tensor:
        error, root, peer, norm, sign, shapley = raw.unbind(dim=1)
        largest = shapley.abs().max()
        return torch.stack(
            [
                _log_ratio(error, self._autoencoder.typical_error.double()),
                root.clamp(-1, 1),
                peer.clamp(-1, 1),
                _log_ratio(norm, geometry.median(norm)),
                2 * sign - 1,
                shapley / torch.where(largest > 0, largest, 1.0),
            ],
            dim=1,
        )


def _log_ratio(values: Tensor, typical: Tensor) -> Tensor:
    """``log(value / typical)`` cut at ±3; 0 where both are 0."""
    tiny = torch.finfo(torch.float64).tiny
    return (values.clamp_min(tiny).log() - typical.clamp_min(tiny).log()).clamp(-LOG_RATIO, LOG_RATIO)
