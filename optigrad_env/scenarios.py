"""Which attacks an agent may learn from, which are held out, and the distribution of training scenarios.

The border is fixed here, in advance: the train attacks are the five of arXiv 2507.23638, each in an independent and a
colluding form; every other attack is held out: no policy, parameter or threshold is chosen by it.

``on_off`` and ``late_onset`` are held out for their timetables, although what they do by default is a train attack,
``sign_flip``: no training scenario stops once it has begun, and by default none begins as late. ``BROAD`` and
``FAINT``, which the policies that ship were trained with, do reach the round in which ``late_onset`` begins (``onset``
up to 10): fewer than one of their episodes in a hundred are
``sign_flip`` from that round on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any

import numpy as np

from fl_core import Scenario
from fl_core.attacks import attack_names
from fl_core.registry import check_fields, check_known, check_types

TRAIN_ATTACKS = ("scaling", "partial_scaling", "sign_flip", "gaussian_noise", "label_flip")

# Root and validation data, and initial weights, of training federations are drawn with these seeds; an environment's
# own default is the first of them. The benchmark draws from 0 upwards.
TRAINING_SPLITS = 10_000
EVALUATION_SPLIT = 20_000

# Strengths are drawn log-uniformly, around the usual value of each attack.
_STRENGTHS: dict[str, dict[str, tuple[float, float]]] = {
    "scaling": {"factor": (2.0, 20.0)},
    "partial_scaling": {"factor": (2.0, 20.0)},
    "sign_flip": {"scale": (0.5, 10.0)},
    "gaussian_noise": {"factor": (0.5, 10.0)},
    "label_flip": {},
}
# What else an attack has that is drawn log-uniformly, and is no strength.
_SHARES: dict[str, dict[str, tuple[float, float]]] = {"partial_scaling": {"share": (0.2, 0.8)}}


_RANGES = ("malicious_fraction", "alpha", "onset", "root_size", "root_bias", "num_clients", "participation")
_OPTIONAL_RANGES = ("root_size", "root_bias", "num_clients")
_GOLDEN = (5**0.5 - 1) / 2


def held_out_attacks() -> list[str]:
    """Every registered attack that is neither ``none`` nor a train attack, plug-ins included."""
    return [name for name in attack_names() if name != "none" and name not in TRAIN_ATTACKS]


def attack_set(name: str) -> list[str]:
    """The attacks that ``train``, ``held_out`` or ``all`` stands for; any other name stands for itself."""
    sets = {"train": list(TRAIN_ATTACKS), "held_out": held_out_attacks()}
    sets["all"] = sets["train"] + sets["held_out"]
    return sets.get(name, [name])


@dataclass(frozen=True)
class ScenarioDistribution:
    """Where an episode's scenario is drawn from.

    Each field is a switch of its own: a range of one value, such as ``onset=(0, 0)``, draws nothing. What is switched
    off by default does not shift the numbers that the others draw.

    Attributes:
        attacks: Attacks, drawn uniformly; ``"none"`` is one of them.
        malicious_fraction: Range (low, high), drawn uniformly.
        alpha: Range (low, high) of the Dirichlet concentration, drawn log-uniformly.
        onset: First and last round in which the attack may begin, drawn uniformly; half of the episodes, and those
            that draw it, begin in the first.
        random_strength: Draw the attack's strength too; otherwise its usual value.
        weakest: The lower ends of the strengths' ranges are multiplied by this, at most 1: with 0.05, updates that are
            shrunk to a tenth or turned round at a fortieth of their size, which no single feature gives away.
        collusion: Probability of an attack's colluding form.
        roots: Number of draws of root data that episodes choose from. 1 is the federation's own alone; each other one
            is a sample of its own, of another size and bias, for which an autoencoder is trained once.
        root_size: Range (low, high) of the root data's size, log-uniform over the draws; ``None`` for the federation's.
        root_bias: Range (low, high) of the share of the root data that is of one class, uniform over the draws;
            ``None`` for the federation's.
        num_clients: Range (low, high) of the number of clients, drawn uniformly; ``None`` for the federation's. For
            environments with a mask.
        participation: Range (low, high) of the share of clients that take part in a round, drawn uniformly. Likewise.
    """

    attacks: tuple[str, ...] = (*TRAIN_ATTACKS, "none")
    malicious_fraction: tuple[float, float] = (0.1, 0.5)
    alpha: tuple[float, float] = (0.1, 1.0)
    onset: tuple[int, int] = (0, 5)
    random_strength: bool = True
    weakest: float = 1.0
    collusion: float = 0.5
    roots: int = 1
    root_size: tuple[int, int] | None = None
    root_bias: tuple[float, float] | None = None
    num_clients: tuple[int, int] | None = None
    participation: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        for field in fields(self):  # a distribution that came through JSON has lists
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        check_fields(self)
        check_types({"attacks": self.attacks}, {"attacks": Sequence[str]})
        if not self.attacks:
            raise ValueError(f"attacks is empty; there are: {', '.join(attack_names())}")
        for name in self.attacks:
            Scenario(attack=name)
        for name in _RANGES:
            edges = getattr(self, name)
            if edges is None and name in _OPTIONAL_RANGES:
                continue
            a_pair = isinstance(edges, tuple) and len(edges) == 2 and None not in edges
            for edge in edges if a_pair else ():
                Scenario(**{name: edge})
            if not a_pair or edges[0] > edges[1] or edges[1] == inf:
                raise ValueError(f"{name} must be a range (low, high) with low <= high, both finite, got {edges!r}")
        if not 0.0 <= self.collusion <= 1.0:
            raise ValueError(f"collusion must be a probability in [0, 1], got {self.collusion}")
        if not 0.0 < self.weakest <= 1.0:
            raise ValueError(f"weakest must be a factor in (0, 1], got {self.weakest}")
        if self.roots < 1:
            raise ValueError(f"roots must be at least 1, the federation's own; got {self.roots}")
        if self.roots == 1 and (self.root_size is not None or self.root_bias not in (None, (0.0, 0.0))):
            raise ValueError("root_size and root_bias spread over several draws of root data: give roots, such as 8")

    def sample(self, generator: np.random.Generator, pinned: Mapping[str, Any] | None = None) -> Scenario:
        """Draws a scenario.

        Args:
            generator: Source of the draw. The same numbers are drawn whatever is pinned.
            pinned: Fields of ``Scenario`` with the values they must have. A pinned attack comes at its usual
                strength unless ``attack_options`` is pinned too.

        Raises:
            ValueError: An unknown field or a value out of range.
        """
        check_types({"options": pinned}, {"options": dict | None})
        pinned = dict(pinned or {})
        check_known("option", pinned, [field.name for field in fields(Scenario)])
        of_attack = pinned.get("attack_options")
        if isinstance(of_attack, Mapping) and of_attack and "attack" not in pinned:  # none at all fit any attack
            raise ValueError("attack_options are of one attack, and without it another is drawn: pin attack as well")
        attack = str(generator.choice(self.attacks))
        drawn: dict[str, Any] = {
            "attack": attack,
            "malicious_fraction": float(generator.uniform(*self.malicious_fraction)),
            "alpha": _log_uniform(generator, *self.alpha),
            "onset": int(generator.integers(self.onset[0], self.onset[1], endpoint=True)),
        }
        if generator.random() < 0.5:
            drawn["onset"] = self.onset[0]
        options = self._options(attack, generator)
        drawn["attack_options"] = {} if "attack" in pinned else options
        if self.roots > 1:
            drawn |= self.root(int(generator.integers(self.roots)))
        if self.num_clients is not None:
            drawn["num_clients"] = int(generator.integers(*self.num_clients, endpoint=True))
        if self.participation != (1.0, 1.0):
            drawn["participation"] = float(generator.uniform(*self.participation))
        of_partition = pinned.get("partition_options")
        if isinstance(of_partition, Mapping) and "alpha" in of_partition:  # said there, so not drawn
            del drawn["alpha"]
        return Scenario(**{**drawn, **pinned})

    def root(self, draw: int) -> dict[str, Any]:
        """Fields of ``Scenario`` that say which root data draw number ``draw`` is, from 0.

        The draws are spread over their ranges evenly: sizes in order, biases by the golden ratio's multiples, which
        fill an interval evenly and know no order. So they are few, the same in every process, and cover both ranges.
        """
        place, other = (draw + 0.5) / self.roots, (draw * _GOLDEN) % 1.0
        size = bias = None
        if self.root_size is not None:
            smallest, largest = self.root_size
            size = round(smallest * (largest / smallest) ** place)
        if self.root_bias is not None:
            low, high = self.root_bias
            bias = low + (high - low) * other
        return {"root_size": size, "root_bias": bias, "root_draw": draw}

    def _options(self, attack: str, generator: np.random.Generator) -> dict[str, Any]:
        if attack not in _STRENGTHS:
            return {}
        options: dict[str, Any] = {"colluding": bool(generator.random() < self.collusion)}
        if self.random_strength:
            for name, (low, high) in _STRENGTHS[attack].items():
                options[name] = _log_uniform(generator, self.weakest * low, high)
            for name, bounds in _SHARES.get(attack, {}).items():
                options[name] = _log_uniform(generator, *bounds)
        return options


def _log_uniform(generator: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(generator.uniform(np.log(low), np.log(high))))


# More of what the default draws: no malicious clients and a malicious majority, nearly equal clients, late attacks.
BROAD = ScenarioDistribution(malicious_fraction=(0.0, 0.6), alpha=(0.05, 10.0), onset=(0, 10))
# As BROAD, with attacks too weak for any one feature to show: what they cost is the length of the aggregate's step.
FAINT = replace(BROAD, weakest=0.05)
# As BROAD with α from 0.1, and root data of other sizes, up to half of them of one class.
WIDE = ScenarioDistribution(
    malicious_fraction=(0.0, 0.6), alpha=(0.1, 10.0), onset=(0, 10), roots=8, root_size=(20, 200), root_bias=(0.0, 0.5)
)
_NAMED = {"default": ScenarioDistribution(), "broad": BROAD, "faint": FAINT, "wide": WIDE}


def make_scenarios(
    scenarios: str | ScenarioDistribution | Mapping[str, Any] | None, **usual: Any
) -> ScenarioDistribution:
    """A distribution from what an environment was given.

    Args:
        scenarios: A distribution; ``"default"``, ``"broad"``, ``"faint"`` or ``"wide"``; or a mapping of the fields
            that differ from the default.
        **usual: Fields whose default is another one here; those of a given distribution stay as they are.

    Raises:
        ValueError: Unknown name or field; the message lists what there is.
    """
    if isinstance(scenarios, ScenarioDistribution):
        return scenarios
    if isinstance(scenarios, str):
        check_known("distribution of scenarios", [scenarios], _NAMED)
        return replace(_NAMED[scenarios], **usual)
    check_types({"scenarios": scenarios}, {"scenarios": str | dict | None})
    given = dict(scenarios or {})
    check_known("field of scenarios", given, ScenarioDistribution.__dataclass_fields__)
    return ScenarioDistribution(**{**usual, **given})
