"""Rules that remember what each client has sent before."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.aggregation.base import (
    Aggregate,
    Rule,
    check_remembered,
    fall_back,
    register_rule,
    round_generator,
    weighted_mean,
)
from fl_core.aggregation.clusters import gap_clusters, k_means
from fl_core.aggregation.gram import cosines
from fl_core.aggregation.selection import mean_of
from fl_core.aggregation.view import ServerView

# What is closer than this to being the same direction is the same.
_SAME = 1e-6


@dataclass(eq=False)
class _Sums:
    of: dict[int, Tensor] = field(default_factory=dict)


@register_rule("foolsgold")
@dataclass(frozen=True)
class FoolsGold(Rule):
    """Gives clients whose updates have, over all rounds, pointed the same way less weight: sybils share one aim.

    Formula: ``csᵢⱼ = cos(Hᵢ, Hⱼ)`` of the sums over rounds, ``vᵢ = maxⱼ csᵢⱼ``; csᵢⱼ times vᵢ/vⱼ where vⱼ > vᵢ
        (pardoning); ``αᵢ = 1 − maxⱼ csᵢⱼ``, over its largest; ``κ·(ln(α/(1 − α)) + ½)`` cut to [0, 1].
    Source: Fung et al. 2020, "The Limitations of Federated Learning in Sybil Settings", arXiv 1808.04866, algorithm 1.
    Checked against: the formula written out in numpy loops.

    The paper adds Σ αᵢ·Δᵢ to the model; here, where updates are whole local trainings, the weights are normalised to
    sum 1. Every coordinate counts as indicative. As in the authors' code, opposite directions are no similarity:
    cosines count from 0 up. A client is compared with those that take part in the round. Clients that all agree are all
    sybils to this rule: nobody is left, and the server's fallback is used.

    Attributes:
        confidence: κ.
    """

    by_client: ClassVar[bool] = True
    confidence: float = 1.0
    _sums: _Sums = field(default_factory=_Sums, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.confidence > 0:
            raise ValueError(f"foolsgold: confidence must be greater than 0, got {self.confidence}")

    def reset(self) -> None:
        """See ``Rule.reset``."""
        self._sums.of.clear()

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        largest = torch.finfo(view.accepted.dtype).max
        clients = view.accepted_clients.tolist()
        for known in self._sums.of.values():
            check_remembered("foolsgold", len(known), view.accepted)
        for client, row in zip(clients, view.accepted, strict=True):
            before = self._sums.of.get(client)
            # Cut, because a client may send numbers whose sum over rounds is infinite.
            self._sums.of[client] = row.clone() if before is None else (before + row).clamp_(-largest, largest)
        learning = self._learning_rates(cosines(torch.stack([self._sums.of[client] for client in clients])))
        total = learning.sum()
        if float(total) <= 0:
            return fall_back(view)
        weights = learning / total
        return Aggregate(weighted_mean(view.accepted, weights), weights.to(torch.float32))

    def _learning_rates(self, alike: Tensor) -> Tensor:
        """Cosines (A, A) to a rate of each client in [0, 1], (A,) float64."""
        if len(alike) == 1:
            return torch.ones(1, dtype=alike.dtype)
        alike = alike.clone().fill_diagonal_(0).clamp_min_(0)
        closest = alike.amax(dim=1)
        pardon = closest[:, None] / torch.where(closest > 0, closest, 1.0)
        alike = torch.where(closest[None, :] > closest[:, None], alike * pardon, alike)
        diverse = 1 - alike.amax(dim=1)
        diverse = torch.where(diverse < _SAME, 0.0, diverse)
        diverse = diverse / diverse.max().clamp_min(_SAME)
        return (self.confidence * (torch.logit(diverse) + 0.5)).clamp(0, 1)


@dataclass(eq=False)
class _Past:
    """What FLDetector keeps.

    Attributes:
        updates: Last update of each client, and how far the global model had moved when it was sent.
        moved: How far the global model has moved in all (P,), up to the last round.
        aggregate: Last aggregate (P,).
        model: Global model (P,) that the last round began with.
        steps: Last changes of the global model, at most a window of them.
        bends: The changes of the aggregate that belong to them.
        scores: Of each of the last rounds, a window of them, each client's share of the error.
    """

    updates: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    moved: Tensor | None = None
    aggregate: Tensor | None = None
    model: Tensor | None = None
    steps: list[Tensor] = field(default_factory=list)
    bends: list[Tensor] = field(default_factory=list)
    scores: list[dict[int, float]] = field(default_factory=list)

    def since(self, moved: Tensor | None) -> Tensor | float:
        """How far the model had moved in the last round more than it had then."""
        if moved is self.moved or self.moved is None:
            return 0.0
        return self.moved if moved is None else self.moved - moved


@register_rule("fldetector")
@dataclass(frozen=True)
class FLDetector(Rule):
    """Leaves out clients whose updates do not follow from their earlier ones.

    Formula: predicted ``pᵢ = Δᵢ that was sent last + Ĥ·(change of w since)`` with Ĥ by L-BFGS from the last aggregates;
        a client's score is the mean over a window of its share of all errors ``‖pᵢ − Δᵢ‖``; if the gap statistic sees
        more than one cluster of scores, 2-means, and the cluster of the larger ones is out.
    Source: Zhang et al. 2022, arXiv 2207.09209, algorithms 1 to 3.
    Checked against: the recursion that BFGS is, for the prediction; clients consistent and not, for the detection.

    After a detection the paper goes back to the first model and trains anew without the clients found. A rule cannot,
    and detects anew in every round; so a client is out in the rounds in which it is found, and an honest one that is
    found once comes back. The base rule is the mean. Predictions begin as soon as there is one change of the aggregate
    to predict from; until the window is full of scores nobody is left out. L-BFGS solves by pseudo-inverse: its small
    matrix may be singular.

    Attributes:
        window: Rounds that scores are averaged over, and changes that L-BFGS knows.
        draws: Reference sets of the gap statistic.
        seed: Of these, drawn anew in each round.
    """

    by_client: ClassVar[bool] = True
    window: int = 10
    draws: int = 20
    seed: int = 0
    _past: _Past = field(default_factory=_Past, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("window", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"fldetector: {name} must be at least 1, got {getattr(self, name)}")

    def reset(self) -> None:
        """See ``Rule.reset``."""
        vars(self._past).update(vars(_Past()))

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        past, clients = self._past, view.accepted_clients.tolist()
        if past.aggregate is not None:
            check_remembered("fldetector", len(past.aggregate), view.accepted)
        step, found = self._step(view), set[int]()
        if step is not None and past.steps:
            past.scores = [*past.scores, self._errors(view, clients, step)][-self.window :]
            if len(past.scores) == self.window:
                found = self._detect(view, clients)
        result = mean_of(view, torch.tensor([client not in found for client in clients]))
        if step is not None and past.aggregate is not None:
            past.steps = [*past.steps, step][-self.window :]
            past.bends = [*past.bends, result.update - past.aggregate][-self.window :]
        if step is not None:
            past.moved = step if past.moved is None else past.moved + step
        # Copies: whoever gave the view may write into its model, and into the update.
        past.aggregate = result.update.clone()
        past.model = None if view.global_model is None else view.global_model.clone()
        for client, row in zip(clients, view.accepted, strict=True):
            past.updates[client] = row.clone(), past.moved
        return result

    def _step(self, view: ServerView) -> Tensor | None:
        """How the global model has moved since the last round; where none is in the view, by what was aggregated."""
        if view.global_model is None or self._past.model is None:
            return self._past.aggregate
        return view.global_model - self._past.model

    def _errors(self, view: ServerView, clients: list[int], step: Tensor) -> dict[int, float]:
        """Each client's share of the prediction's error, for those that have sent something before.

        Who was absent has missed several steps: the prediction is over all of them.
        """
        past = self._past
        steps, bends = torch.stack(past.steps), torch.stack(past.bends)
        products: dict[int, Tensor] = {}
        errors: dict[int, float] = {}
        for client, row in zip(clients, view.accepted, strict=True):
            if client not in past.updates:
                continue
            before, moved = past.updates[client]
            if id(moved) not in products:  # all that were last there in the same round have the same
                products[id(moved)] = hessian_product(steps, bends, past.since(moved) + step)
            errors[client] = float(torch.linalg.vector_norm(before.double() + products[id(moved)] - row))
        total = sum(errors.values())
        return {client: error / total for client, error in errors.items()} if total > 0 else errors

    def _detect(self, view: ServerView, clients: list[int]) -> set[int]:
        """The clients with the larger scores, if there are two kinds of scores."""
        known = self._past.scores
        scored = {client: [scores[client] for scores in known if client in scores] for client in clients}
        means = {client: sum(values) / len(values) for client, values in scored.items() if values}
        if len(means) < 3:  # two scores are always two clusters
            return set()
        points = torch.tensor(list(means.values()), dtype=torch.float64)[:, None]
        if gap_clusters(points, 2, self.draws, round_generator(self.seed, view)) < 2:
            return set()
        labels = k_means(points[None], 2)[0][0]
        worse = int(points[labels == 1].mean() > points[labels == 0].mean())
        return {client for client, label in zip(means, labels.tolist(), strict=True) if label == worse}


def hessian_product(steps: Tensor, bends: Tensor, vector: Tensor) -> Tensor:
    """L-BFGS's product of the Hessian with a vector (Byrd et al. 1994, equation 3.5), float64.

    Args:
        steps: (m, P), changes of the parameters, oldest first.
        bends: (m, P), the changes of the gradient along them.
        vector: (P,).

    Returns:
        (P,); zeros if the last step is one.
    """
    s, y, v = steps.double(), bends.double(), vector.double()
    inner, energy = s @ y.T, s @ s.T
    if float(energy[-1, -1]) <= 0:
        return torch.zeros_like(v)
    sigma = inner[-1, -1] / energy[-1, -1]
    lower = inner.tril(-1)
    matrix = torch.cat(
        [torch.cat([sigma * energy, lower], dim=1), torch.cat([lower.T, -inner.diagonal().diag()], dim=1)]
    )
    solved = torch.linalg.pinv(matrix, hermitian=True) @ torch.cat([sigma * (s @ v), y @ v])
    product: Tensor = sigma * v - (sigma * solved[: len(s)]) @ s - solved[len(s) :] @ y
    return product.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
