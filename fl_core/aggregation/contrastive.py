"""FLGuard: clients told apart by encoders that are trained, without labels, on the updates of the last rounds."""

from collections import deque
from dataclasses import dataclass, field, replace

import torch
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor, nn
from torch.nn import functional as F

from fl_core.aggregation.base import Aggregate, Rule, check_remembered, register_rule, round_generator
from fl_core.aggregation.selection import larger_of, mean_of
from fl_core.aggregation.view import ServerView
from fl_core.fingerprint.geometry import norms

# The encoders are trained on the updates of so many rounds, and anew after so many.
_ROUNDS = 5
# Coordinates that are kept of past updates, drawn once; of a smaller model, all.
_POOL = 2**16
# What an update's coordinate may stand for at most, in standard deviations of the last rounds.
_FARTHEST = 100.0


@dataclass(frozen=True, eq=False)
class _Encoder:
    """One contrastive encoder.

    Attributes:
        coordinates: (d,) int64 into the pool.
        mean: (d,) float64, of the rows that it was trained on.
        scale: (d,) float64.
        first: (hidden, d) float64.
        second: (hidden, hidden) float64.
    """

    coordinates: Tensor
    mean: Tensor
    scale: Tensor
    first: Tensor
    second: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Representations (A, hidden) of rows (A, pool)."""
        return _represent(self.standardised(rows), self.first, self.second)

    def standardised(self, rows: Tensor) -> Tensor:
        """(A, d) float64."""
        return ((rows[:, self.coordinates] - self.mean) / self.scale).clamp(-_FARTHEST, _FARTHEST)


class _Training:
    """Encoders that are trained when they are asked for the first time.

    Args:
        rule: Whose settings. Its memory is not held: it would hold this, and only a garbage collection would free both.
        rows: (R, pool) float64, updates of earlier rounds.
        generator: Source of coordinates, initial weights and views.
    """

    def __init__(self, rule: "FLGuard", rows: Tensor, generator: torch.Generator) -> None:
        self._untrained: tuple[FLGuard, Tensor, torch.Generator] | None = (replace(rule), rows, generator)
        self._encoders: tuple[_Encoder, ...] = ()

    @property
    def encoders(self) -> tuple[_Encoder, ...]:
        if self._untrained is not None:
            rule, rows, generator = self._untrained
            self._encoders, self._untrained = rule.train(rows, generator), None
        return self._encoders


@dataclass(eq=False)
class _Past:
    """What a rule remembers.

    A copy shares updates and encoders, which nobody writes into: an attack that asks what the rule would do with other
    updates of this round would otherwise train the same encoders, and copy 50 MB, for each of its questions.
    """

    pool: Tensor | None = None
    size: int = 0
    rows: deque[Tensor] = field(default_factory=lambda: deque(maxlen=_ROUNDS))
    training: _Training | None = None
    trained: int = 0

    def __deepcopy__(self, memo: dict[int, object]) -> "_Past":
        return replace(self, rows=self.rows.copy())


@register_rule("flguard")
@dataclass(frozen=True)
class FLGuard(Rule):
    """Keeps the clients that are in the larger of two clusters in both of two learned representations.

    Formula: encoders over random coordinates and over those of least variance, trained with the NT-Xent loss on the
        last five rounds' updates; agglomerative clustering (Ward) of each representation into two, the larger of
        each, both intersected; mean of the kept updates.
    Source: Lee et al. 2023, "FLGuard: Byzantine-Robust Federated Learning via Ensemble of Contrastive Models", arXiv
        2403.02846.
    Checked against: its claims, on hand-made rounds; the NT-Xent loss against a loop.

    The authors' script turns the choice around when it is told that more than half of the clients attack; a server does
    not know that, and here the larger cluster is always kept. Their encoders have 3,072 inputs and hidden units, get
    views by noise and see batches of 32; these are smaller, are trained on all rows at once, and the two views hide
    random coordinates, the same ones for every client: so what the rule keeps does not depend on the order of the
    clients. The representations are clustered as they are, without a principal component analysis between. Of a model
    with more than 65,536 parameters a random pool of so many is looked at.

    Inputs are standardised by mean and standard deviation of the rows that were trained on, which the paper does not
    say. So one client that sends a single huge, finite vector in every fifth round makes all others look alike: a
    weakness of this implementation that no attack here uses.

    Training takes most of the time: in the first round, on that round's updates, and then after every fifth, as the
    view counts them: a view without a round number is always of the first.

    Attributes:
        coordinates: Inputs of each encoder; of a smaller model all.
        hidden: Units of each of its two layers.
        steps: Adam steps of a training.
        learning_rate: Of Adam.
        temperature: Of the contrastive loss.
        hide: Probability that a view hides a coordinate.
        seed: Of coordinates, initial weights and views.
    """

    coordinates: int = 256
    hidden: int = 64
    steps: int = 40
    learning_rate: float = 1e-3
    temperature: float = 0.5
    hide: float = 0.2
    seed: int = 0
    _past: _Past = field(default_factory=_Past, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("coordinates", "hidden", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"flguard: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"flguard: {name} must be greater than 0, got {getattr(self, name)}")
        if not 0 <= self.hide < 1:
            raise ValueError(f"flguard: hide must be a probability in [0, 1), got {self.hide}")

    def reset(self) -> None:
        """See ``Rule.reset``."""
        vars(self._past).update(vars(_Past()))

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        past, generator = self._past, round_generator(self.seed, view)
        size = view.accepted.shape[1]
        if past.pool is not None:
            check_remembered("flguard", past.size, view.accepted)
        else:
            past.size = size
            past.pool = torch.randperm(size, generator=generator)[:_POOL] if size > _POOL else torch.arange(size)
        rows = view.accepted[:, past.pool].double().cpu()
        past.rows.append(rows)
        if past.training is None:
            past.training, past.trained = _Training(self, rows, generator), view.round
        lengths = norms(view.accepted).cpu()
        kept = torch.ones(len(rows), dtype=torch.bool)
        for encoder in past.training.encoders:
            kept &= _larger_half(encoder(rows), lengths)
        if view.round + 1 - past.trained >= _ROUNDS:
            past.training, past.trained = _Training(self, torch.cat([*past.rows]), generator), view.round + 1
        return mean_of(view, kept)

    def train(self, rows: Tensor, generator: torch.Generator) -> tuple[_Encoder, ...]:
        """Both encoders, trained on rows (R, pool) of earlier rounds."""
        count = min(self.coordinates, rows.shape[1])
        variance = rows.var(dim=0, correction=0)
        # A coordinate that never moves is a dead parameter: its variance is low, and it says nothing.
        moving = torch.where(variance > 0, variance, float("inf"))
        return (
            self._encoder(rows, torch.randperm(rows.shape[1], generator=generator)[:count], generator),
            self._encoder(rows, moving.argsort(stable=True)[:count], generator),
        )

    def _encoder(self, rows: Tensor, coordinates: Tensor, generator: torch.Generator) -> _Encoder:
        chosen = rows[:, coordinates]
        scale = chosen.std(dim=0, correction=0)
        scale = torch.where(scale > 0, scale, 1.0)
        shapes = ((self.hidden, len(coordinates)), (self.hidden, self.hidden), (self.hidden, self.hidden))
        weights = [
            nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64) / shape[1] ** 0.5)
            for shape in shapes
        ]
        untrained = _Encoder(coordinates, chosen.mean(dim=0), scale, *(weight.detach() for weight in weights[:2]))
        self._fit(weights, untrained.standardised(rows), generator)
        return _Encoder(coordinates, untrained.mean, scale, *(weight.detach().clone() for weight in weights[:2]))

    @torch.enable_grad()  # the benchmark runs without
    def _fit(self, weights: list[nn.Parameter], inputs: Tensor, generator: torch.Generator) -> None:
        """Trains two layers and a projection, in place; for a single row there is nothing to contrast."""
        if len(inputs) < 2:
            return
        optimizer = torch.optim.Adam(weights, lr=self.learning_rate)
        first, second, projection = weights
        for _ in range(self.steps):
            shown = torch.rand(2, inputs.shape[1], generator=generator) >= self.hide
            one, other = (_represent(inputs * view, first, second) @ projection.T for view in shown)
            loss = nt_xent(one, other, self.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def nt_xent(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Contrastive loss of SimCLR (Chen et al. 2020, arXiv 2002.05709, equation 1) of two views (R, d) of R rows."""
    units = F.normalize(torch.cat([one, other]), dim=1)
    alike = (units @ units.T / temperature).fill_diagonal_(float("-inf"))
    partner = torch.arange(len(units)).roll(len(one))
    return F.cross_entropy(alike, partner)


def _represent(inputs: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return F.leaky_relu(F.leaky_relu(inputs @ first.T) @ second.T)


def _larger_half(points: Tensor, lengths: Tensor) -> Tensor:
    """(A,) bool."""
    if len(points) < 2:
        return torch.ones(len(points), dtype=torch.bool)
    labels = AgglomerativeClustering(n_clusters=2).fit_predict(points.numpy())
    return larger_of(torch.from_numpy(labels), lengths)
