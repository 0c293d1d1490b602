"""The six features of every client, in their fixed order, and their bounded transform that a policy observes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fl_core.fingerprint import geometry
from fl_core.fingerprint.autoencoder import UpdateAutoencoder, in_units
from fl_core.fingerprint.shapley import CoalitionGame, ShapleyEstimator
from fl_core.fingerprint.simulation import HonestSimulator
from fl_core.randomness import Purpose, Streams

FEATURES = ("reconstruction_error", "root_cosine", "peer_cosine", "norm", "sign_agreement", "shapley")

# Log-ratios are cut at ±3: a factor of 20 up or down says all there is to say.
LOG_RATIO = 3.0
# Shapley values in nats that are rounding: where nobody's update changes the loss, nobody is worth more than another.
NO_GAIN = 1e-12
OBSERVATION_LOW = (-LOG_RATIO, -1.0, -1.0, -LOG_RATIO, -1.0, -1.0)
OBSERVATION_HIGH = (LOG_RATIO, 1.0, 1.0, LOG_RATIO, 1.0, 1.0)
# What a client whose update was rejected looks like: the worst value in every feature.
_WORST_RAW = (float("inf"), -1.0, -1.0, float("inf"), 0.0, float("-inf"))
_WORST_OBSERVATION = (LOG_RATIO, -1.0, -1.0, LOG_RATIO, -1.0, -1.0)

# How often, and with how many simulated clients, the typical reconstruction error is measured anew.
REFRESH_EVERY = 20
REFRESH_UPDATES = 10


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
    """Computes fingerprints from what a server has. One object an episode: it keeps the autoencoder's calibration.

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

    @cached_property
    def typical_error(self) -> Tensor:
        """Median reconstruction error of simulated honest updates, (); measured anew every 20 rounds.

        Along a run honest updates become harder to reconstruct. The network itself stays as it is: training it further
        on simulated updates of later rounds was measured to bring nothing (docs/fingerprint.md).
        """
        return self._autoencoder.typical_error

    def calibration(self) -> tuple[int, Tensor | None]:
        """Round of the last measurement of the typical error, and what it was (``None``: the autoencoder's own)."""
        return self._refreshed_at, self.typical_error.clone() if self._refreshed_at else None

    def calibrate(self, refreshed_at: int, typical_error: Tensor | None) -> None:
        """Goes on from a ``calibration``."""
        self._refreshed_at = refreshed_at
        if typical_error is not None:
            self.typical_error = typical_error

    def __call__(
        self, updates: Tensor, rejected: Tensor, shared: Tensor, reference: Tensor, local: Tensor, round_: int
    ) -> Fingerprint:
        """Fingerprints one round.

        Args:
            updates: (N, P) as received.
            rejected: (N,) bool on the CPU, clients whose update is not finite; they get the worst value in every
                feature.
            shared: (P,) global model that the round began with.
            reference: (P,) reference update.
            local: (L,) the server's BatchNorm after its reference training.
            round_: Round number from 0.
        """
        if bool(rejected.all()):
            return Fingerprint(
                _among_rejected(updates.new_empty(0, 6, dtype=torch.float64), _WORST_RAW, rejected),
                _among_rejected(updates.new_empty(0, 6, dtype=torch.float32), _WORST_OBSERVATION, rejected),
            )
        # Picking rows copies them, which at millions of parameters is worth avoiding.
        accepted = updates[~rejected] if bool(rejected.any()) else updates
        self._prepare(shared, reference, local, round_)
        # Without autograd's bookkeeping, a tenth of the time at small P; the copies below are ordinary tensors again.
        with torch.inference_mode():
            raw = self._raw(accepted, shared, reference, local, round_)
            observation = self._observe(raw).to(torch.float32)
        return Fingerprint(
            _among_rejected(raw.clone(), _WORST_RAW, rejected),
            _among_rejected(observation.clone(), _WORST_OBSERVATION, rejected),
        )

    def reconstruction_error(
        self, updates: Tensor, shared: Tensor, reference: Tensor, local: Tensor, round_: int
    ) -> Tensor:
        """Feature 0, (A,); refreshes the calibration first when its time has come."""
        self._prepare(shared, reference, local, round_)
        scale = geometry.norms(reference[None])
        return self._autoencoder.error(self._autoencoder.sketch(updates, scale))

    def shapley(
        self, updates: Tensor, shared: Tensor, local: Tensor, round_: int, lengths: Tensor | None = None
    ) -> Tensor:
        """Feature 5, (A,) float64, of updates that are clipped to their median norm; ``lengths`` are their norms."""
        lengths = geometry.norms(updates) if lengths is None else lengths
        game = self._game(updates, geometry.clip_factors(lengths, geometry.median(lengths)), shared, local)
        return self._shapley(game, self._streams.torch(Purpose.SHAPLEY, round_) if self._shapley.draws else None)

    def losses(self, candidates: Tensor, shared: Tensor, local: Tensor) -> Tensor:
        """Capped loss (M, V) float64 on each sample of the utility half, of models ``shared + candidates``, (M, P).

        BatchNorm's statistics are each model's own, re-estimated on the reference half as they will be when the model
        is used. One set for all, as in the Shapley value's game, would let a single absurd candidate spoil the rest.
        """
        game = self._game(candidates, candidates.new_ones(len(candidates), dtype=torch.float64), shared, local)
        losses = []
        with torch.inference_mode():
            for piece in game.pieces(candidates):
                models = shared + piece
                own = game.engine.reestimate(models, local.expand(len(piece), -1), game.reference_images)
                logits = game.engine.logits(models, own, game.images)
                losses.append(game.losses(logits).clamp_max(game.cap))
        return torch.cat(losses).clone()

    def _game(self, updates: Tensor, clip: Tensor, shared: Tensor, local: Tensor) -> CoalitionGame:
        return CoalitionGame(
            engine=self._simulator.engine,
            shared=shared,
            local=local,
            updates=updates,
            clip=clip,
            reference_images=self._simulator.images,
            images=self._utility_images,
            labels=self._utility_labels,
            num_classes=self._num_classes,
        )

    def _raw(self, updates: Tensor, shared: Tensor, reference: Tensor, local: Tensor, round_: int) -> Tensor:
        """(A, 6) float64; the norms, and the pass over memory that takes them, are shared by all features."""
        measured = geometry.measure(updates, reference, self._autoencoder.signs)
        sketches = in_units(measured.folded, measured.norms, measured.reference_norm)
        return torch.stack(
            [
                self._autoencoder.error(sketches).double(),
                measured.root_cosine,
                measured.peer_cosine,
                measured.norms,
                measured.sign_agreement,
                self.shapley(updates, shared, local, round_, measured.norms),
            ],
            dim=1,
        )

    def _prepare(self, shared: Tensor, reference: Tensor, local: Tensor, round_: int) -> None:
        """What trains: the autoencoder when it is first needed, simulated clients when the calibration is due."""
        autoencoder = self._autoencoder
        if round_ - self._refreshed_at < REFRESH_EVERY:
            return
        generator = self._streams.torch(Purpose.AUTOENCODER, round_)
        updates = self._simulator(shared, local, REFRESH_UPDATES, generator)
        sketches = autoencoder.sketch(updates, geometry.norms(reference[None]))
        self.typical_error = geometry.median(autoencoder.error(sketches))
        self._refreshed_at = round_

    def _observe(self, raw: Tensor) -> Tensor:
        error, root, peer, norm, sign, shapley = raw.unbind(dim=1)
        return torch.stack(
            [
                _log_ratio(error, self.typical_error.double()),
                root.clamp(-1, 1),
                peer.clamp(-1, 1),
                _log_ratio(norm, geometry.median(norm)),
                2 * sign - 1,
                shapley / shapley.abs().max().clamp_min(NO_GAIN),
            ],
            dim=1,
        )


def _among_rejected(values: Tensor, worst: tuple[float, ...], rejected: Tensor) -> Tensor:
    """Rows (A, 6) of the accepted clients and the worst row for the rejected ones: (N, 6)."""
    if len(values) == len(rejected):
        return values
    rows = torch.tensor(worst, dtype=values.dtype).to(values.device).repeat(len(rejected), 1)
    rows[~rejected] = values
    return rows


def _log_ratio(values: Tensor, typical: Tensor) -> Tensor:
    """``log(value / typical)`` cut at ±3; 0 where both are 0."""
    tiny = torch.finfo(torch.float64).tiny
    return (values.clamp_min(tiny).log() - typical.clamp_min(tiny).log()).clamp(-LOG_RATIO, LOG_RATIO)
