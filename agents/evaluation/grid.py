"""What is compared on what: a grid of cells, and everything that is checked before the first one runs."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import torch

from agents.environments import make_env
from agents.evaluation.contestants import Contestant, contestants
from agents.evaluation.heterogeneity import parse_heterogeneity
from agents.evaluation.options import parse_options
from agents.evaluation.plugins import Plugin
from fl_core import Federation, Scenario, configure, settings_of
from fl_core.aggregation import ServerView, takes_num_byzantine
from fl_core.attacks import make_attack
from fl_core.attacks.schedule import ScheduledAttack
from fl_core.config import FederationConfig, frozen
from optigrad_env import TRAIN_ATTACKS
from optigrad_env.env import federated
from optigrad_env.masked import MaskedOptiGradEnv
from optigrad_env.scenarios import TRAINING_SPLITS

# Accuracy is the mean over the last rounds, never the maximum.
FINAL_ROUNDS = 3
NO_ATTACK = "none"
# Where the data lies, and what differs from cell to cell.
_NOT_MEASURED = ("data_dir", "download", "split_seed", "num_clients")
_AXES = ("env_ids", "num_clients", "attacks", "malicious_fractions", "heterogeneities", "seeds")


@dataclass(frozen=True, order=True)
class Cell:
    """One scenario from one seed; every rule of the grid is run in it.

    Attributes:
        env_id: Environment whose federation is used.
        num_clients: N.
        heterogeneity: See ``parse_heterogeneity``.
        attack: Name, with options if any, such as ``"ipm:epsilon=2"``.
        malicious_fraction: Share of malicious clients.
        seed: Draws root data, partition, malicious clients, initial model and batches.
    """

    env_id: str
    num_clients: int
    heterogeneity: str
    attack: str
    malicious_fraction: float
    seed: int

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Cell":
        """The cell that a row of results.csv is of."""
        return cls(
            row["env_id"],
            int(row["num_clients"]),
            row["heterogeneity"],
            row["attack"],
            row["malicious_fraction"],
            int(row["seed"]),
        )

    @property
    def name(self) -> str:
        """The cell as a file name."""
        return re.sub(r"[^\w.=-]+", "-", "_".join(str(value) for value in asdict(self).values()))

    @property
    def alpha(self) -> float | None:
        """Dirichlet concentration; ``None`` for another kind of partition."""
        return parse_heterogeneity(self.heterogeneity).alpha

    def scenario(self) -> Scenario:
        """The circumstances; raises ValueError for an unknown name or a value out of range."""
        kind = parse_heterogeneity(self.heterogeneity)
        name, options = parse_attack(self.attack)
        return Scenario(
            name,
            self.malicious_fraction,
            kind.alpha,
            attack_options=options,
            partition=kind.partition,
            partition_options=dict(kind.options),
        )


@dataclass(frozen=True)
class Grid:
    """Rules and policies × environments × clients × heterogeneity × attacks × malicious fractions × seeds.

    Attributes:
        rules: Names of aggregation rules; the oracles and ``root_only`` are always run, for the figures of merit.
        policies: Directories of trained policies, each one more rule named after its directory; ``"shipped"`` is the
            one that comes with the package for each environment's data set, or that for Fashion-MNIST.
        attacks: Attacks, for the malicious fractions above 0; ``"sign_flip:colluding=true"`` sets options.
        malicious_fractions: Shares of malicious clients; 0 is one scenario without attack.
        heterogeneities: Words for ``parse_heterogeneity``: Dirichlet α, ``iid``, ``label_skew_70``, ...
        seeds: Seeds.
        env_ids: Environments.
        num_clients: Numbers of clients; ``None`` is the environment's own.
        rounds: Rounds of a run.
        num_byzantine: Number of malicious clients that rules are told; ``None`` lets each assume 30 %.
        controls: Run the negative controls beside everything that reads features.
        features: Record every client's features along the anchored oracle's run, for the report.
        settings: Of every federation, see ``fl_core.federation_settings()``.
        plugins: Users' files with attacks and rules of their own.

    Raises:
        ValueError: An axis is empty, a name unknown, a value out of range, a policy missing or for other features.
    """

    rules: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    malicious_fractions: tuple[float, ...] = (0.0, 0.3)
    heterogeneities: tuple[str, ...] = ("0.5",)
    seeds: tuple[int, ...] = (0,)
    env_ids: tuple[str, ...] = ("OptiGrad/Digits-v0",)
    num_clients: tuple[int | None, ...] = (None,)
    rounds: int = 20
    num_byzantine: int | None = None
    controls: bool = False
    features: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    plugins: tuple[Plugin, ...] = ()

    def __post_init__(self) -> None:
        for name in _AXES:
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: the benchmark would have no cells")
        if not self.rules and not self.policies:
            raise ValueError("neither rules nor policies to compare")
        if self.rounds < FINAL_ROUNDS:
            raise ValueError(f"rounds must be at least {FINAL_ROUNDS}, the rounds that are averaged; got {self.rounds}")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds must be 0 or more, got {min(self.seeds)}")
        if max(self.seeds) >= TRAINING_SPLITS:
            raise ValueError(
                f"seeds must be below {TRAINING_SPLITS}, from where on training draws its root data; got "
                f"{max(self.seeds)}"
            )
        if "split_seed" in self.settings:
            raise ValueError("settings cannot hold split_seed: root data are drawn by each cell's seed; give seeds")
        for plugin in self.plugins:
            plugin.load()
        for attack in self.attacks:  # where no client is malicious no cell has it, but the references are asked
            name, options = parse_attack(attack)
            Scenario(name, attack_options=options)
        labels = tuple(parse_heterogeneity(word).label for word in self.heterogeneities)
        object.__setattr__(self, "heterogeneities", labels)
        for env_id in self.env_ids:
            self.contestants(env_id)
        self._check_clients()

    def _check_clients(self) -> None:
        """Numbers of clients go with malicious fractions, with what rules are told, and with the data there is."""
        fractions: dict[tuple[int, int], float] = {}
        for cell in self.cells():
            malicious = cell.scenario().num_malicious(cell.num_clients)
            other = fractions.setdefault((cell.num_clients, malicious), cell.malicious_fraction)
            if other != cell.malicious_fraction and malicious:
                raise ValueError(
                    f"malicious_fraction {other} and {cell.malicious_fraction} of {cell.num_clients} clients are both "
                    f"{malicious} clients, and the same runs would count twice; take one of them"
                )
            if cell.malicious_fraction > 0 and malicious == 0:
                raise ValueError(
                    f"malicious_fraction={cell.malicious_fraction} of {cell.num_clients} clients is not one whole "
                    f"client; take 0, or at least {1 / cell.num_clients:.3g}"
                )
        for env_id, clients in product(self.env_ids, self.num_clients):
            config = self.config(env_id, clients)
            Federation(config)
            if self.num_byzantine is not None and not 0 <= self.num_byzantine < config.num_clients:
                raise ValueError(
                    f"num_byzantine must be 0 or more and below the {config.num_clients} clients, got "
                    f"{self.num_byzantine}"
                )
            self._check_bounds(env_id, config)

    def _check_bounds(self, env_id: str, config: FederationConfig) -> None:
        """Rules that need the number of attackers say how many they can take when they are first called."""
        for one in self.contestants(env_id):
            if one.rule is None or one.control is not None or not takes_num_byzantine(one.rule):
                continue
            made = one.make(config)
            if not made.needs_root:
                try:
                    made(ServerView(torch.eye(config.num_clients)))
                except ValueError as error:
                    raise ValueError(f"rule {one.rule!r} with {config.num_clients} clients: {error}") from error

    def cells(self) -> list[Cell]:
        """Every scenario with every seed, in the order of results.csv.

        Without malicious clients all attacks are one: ``none``. Seed by seed, so that a run that is stopped has whole
        seeds.
        """
        clients = {axes: self.config(*axes).num_clients for axes in product(self.env_ids, self.num_clients)}
        cells = (
            Cell(env_id, clients[env_id, n], kind, *_attacked(attack, float(fraction)), seed)
            for env_id, n, seed, kind, fraction, attack in product(
                self.env_ids,
                self.num_clients,
                self.seeds,
                self.heterogeneities,
                self.malicious_fractions,
                self.attacks,
            )
        )
        return list(dict.fromkeys(cells))

    def config(self, env_id: str, num_clients: int | None = None, seed: int = 0) -> FederationConfig:
        """The federation of a cell; root data and initial weights are drawn by the seed."""
        settings = _environment_settings(env_id, num_clients, frozen(self.settings))
        return configure(**{**settings, "split_seed": seed})

    def federation_settings(self, env_id: str) -> dict[str, Any]:
        """What an environment's federations are set to, defaults included, but for what makes no difference."""
        settings = settings_of(self.config(env_id))
        return {name: value for name, value in settings.items() if name not in _NOT_MEASURED}

    def contestants(self, env_id: str) -> tuple[Contestant, ...]:
        """Policies, rules, references and controls that are run on an environment, in the order of the rows."""
        return self._contestants[env_id]

    @cached_property
    def _contestants(self) -> dict[str, tuple[Contestant, ...]]:
        return {
            env_id: contestants(
                self.rules, self.policies, self.config(env_id), self.num_byzantine, self.controls, self.settings
            )
            for env_id in dict.fromkeys(self.env_ids)
        }

    def labels(self) -> list[str]:
        """Names of everything that is run, on any environment."""
        return list(dict.fromkeys(one.label for env_id in self.env_ids for one in self.contestants(env_id)))

    def seen_attacks(self) -> set[str] | None:
        """Attacks that any policy was trained on; ``None`` if a policy's card does not say."""
        seen: set[str] = set()
        for contestant in (one for env_id in self.env_ids for one in self.contestants(env_id)):
            if contestant.policy is not None:
                if contestant.policy.seen is None:
                    return None
                seen |= {parse_attack(attack)[0] for attack in contestant.policy.seen}
        return seen

    def is_held_out(self, attack: str) -> bool:
        """Whether nobody has trained on an attack: neither the train set has it, nor the card of any policy here.

        A policy whose card does not say what it has seen may have seen all.
        """
        name, seen = self._played(attack), self.seen_attacks()
        return name not in (*TRAIN_ATTACKS, NO_ATTACK) and seen is not None and name not in seen

    def _played(self, attack: str) -> str:
        """The attack's name; of a timetable that leaves out no round, that of the attack that it is of."""
        name, options = parse_attack(attack)
        made = make_attack(name, **options)
        if isinstance(made, ScheduledAttack) and all(made.on(round_) for round_ in range(self.rounds)):
            return made.attack
        return name

    def to_json(self) -> dict[str, Any]:
        """The grid as plain data: what must be equal for results to be continued.

        Policies and plug-ins are their contents, not their paths; where the data lies makes no difference either.
        """
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        policies = {
            f"{one.label} on {env_id}": one.policy.checksum
            for env_id in self.env_ids
            for one in self.contestants(env_id)
            if one.policy is not None and one.control is None
        }
        return {
            **{name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()},
            "settings": {name: value for name, value in self.settings.items() if name not in ("data_dir", "download")},
            "policies": policies,
            "plugins": [plugin.checksum for plugin in self.plugins],
        }


def parse_attack(spec: str) -> tuple[str, dict[str, Any]]:
    """Name and options of ``"sign_flip"`` or ``"sign_flip:scale=3,colluding=true"``.

    Raises:
        ValueError: An option without a value, or with one that cannot be read.
    """
    name, _, given = spec.partition(":")
    return name, parse_options(spec, name, given)


def _attacked(attack: str, fraction: float) -> tuple[str, float]:
    return (NO_ATTACK, 0.0) if fraction == 0 or attack == NO_ATTACK else (attack, fraction)


@lru_cache(maxsize=256)
def _environment_settings(
    env_id: str, num_clients: int | None, settings: tuple[tuple[str, Any], ...]
) -> dict[str, Any]:
    """Settings of an environment's federation. Made once: an environment loads its data set."""
    given = {**dict(settings), **({} if num_clients is None else {"num_clients": num_clients})}
    env = federated(make_env(env_id, **given))
    if isinstance(env, MaskedOptiGradEnv):
        raise ValueError(
            f"environment {env_id!r} is for training with clients that come and go, and a cell has all of its clients "
            f"in every round; give {env_id.replace('Masked', '')!r}"
        )
    found = settings_of(env.federation.config)
    del found["split_seed"]  # the benchmark's federations draw root data and initial weights by their own seeds
    return found
