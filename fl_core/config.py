"""What does not change from episode to episode, as one frozen object and as flat names for command lines."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fl_core.aggregation.trust import TrustWeighting
from fl_core.data.splits import Root
from fl_core.device import check_device
from fl_core.fingerprint import SIMULATED_ROUNDS, make_shapley
from fl_core.registry import check_known, check_types
from fl_core.training import LocalTraining, make_objective

Options = Mapping[str, Any] | tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class FederationConfig:
    """Everything about a federation that does not change from episode to episode.

    Attributes:
        dataset: Name of a data set.
        data_dir: Where its files are; by default ``$OPTIGRAD_DATA``, else the user's cache directory.
        download: Fetch missing files.
        dataset_options: What the data set takes, such as ``{"image_size": 32}``; kept as a tuple of pairs.
        network: Name of a network.
        network_options: What the network takes, such as ``{"channels": (16, 32), "norm": "group"}``; likewise.
        num_clients: N.
        objective: ``fedavg``, ``fedprox``, ``fedbn`` or ``fedbn_prox``.
        mu: Weight of the proximal term, for the objectives that have one.
        loss: What clients minimise, ``cross_entropy`` or ``squared``. Models are scored by cross-entropy either way.
        training: Each client's local work in a round.
        weighting: How trust becomes an update.
        engine: Training engine; ``auto`` is the fastest that is built and can run the network on the device.
        device: Where rounds run: ``cpu``, ``cuda`` or ``cuda:1``. Random numbers are drawn on the CPU either way, so
            equal seeds give equal partitions, batches and attacks.
        shapley: Shapley estimator.
        simulated_rounds: Rounds of nine simulated clients from which the autoencoder learns what is honest. Nearly all
            of an autoencoder's cost; take fewer for a network of millions of parameters.
        root: Number of samples that the server owns.
        root_bias: Share of them in [0, 1) that is of one class, in both halves; the rest is balanced over the classes.
            Where the class has not as many, they are what it has.
        validation: Number of samples for reward and model selection.
        split_seed: Seed of the initial weights and of the draw of root and validation data. The test data never moves.
    """

    dataset: str = "digits"
    data_dir: str | None = None
    download: bool = False
    dataset_options: Options = ()
    network: str = "small_cnn"
    network_options: Options = ()
    num_clients: int = 10
    objective: str = "fedbn_prox"
    mu: float = 0.1
    loss: str = "cross_entropy"
    training: LocalTraining = field(default_factory=LocalTraining)
    weighting: TrustWeighting = field(default_factory=TrustWeighting)
    engine: str = "auto"
    device: str = "cpu"
    shapley: str = "surrogate"
    simulated_rounds: int = SIMULATED_ROUNDS
    root: int = 100
    root_bias: float = 0.0
    validation: int = 200
    split_seed: int = 0

    def __post_init__(self) -> None:
        if self.num_clients < 1:
            raise ValueError(f"num_clients must be at least 1, got {self.num_clients}")
        if self.simulated_rounds < 1:
            raise ValueError(f"simulated_rounds must be at least 1, got {self.simulated_rounds}")
        if self.split_seed < 0:
            raise ValueError(f"split_seed must be 0 or more, got {self.split_seed}")
        Root(bias=self.root_bias)
        make_objective(self.objective, self.mu, self.loss)
        make_shapley(self.shapley)
        check_device(self.device)
        for name in ("dataset_options", "network_options"):
            object.__setattr__(self, name, _options(name, getattr(self, name)))
        if self.data_dir is not None:
            object.__setattr__(self, "data_dir", str(self.data_dir))


def _options(name: str, given: Any) -> Options:
    """A mapping, or its pairs, as they come back from JSON."""
    refusal = ValueError(f"{name} must be a mapping from names to values, got {given!r}")
    try:
        options = dict(given)
    except (TypeError, ValueError) as error:
        raise refusal from error
    if not all(isinstance(option, str) for option in options):
        raise refusal
    return tuple(frozen(options))


def frozen(value: Any) -> Any:
    """A setting as something that can be a key of a cache: mappings become sorted pairs, lists (from JSON) tuples."""
    if isinstance(value, Mapping):
        return tuple(sorted(((name, frozen(inner)) for name, inner in value.items()), key=lambda pair: str(pair[0])))
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


_TRAINING_SETTINGS = {"local_steps": "steps", "batch_size": "batch_size", "learning_rate": "learning_rate"}
_WEIGHTING_SETTINGS = {field.name: field.name for field in fields(TrustWeighting)}


def federation_settings() -> list[str]:
    """Names that ``configure`` accepts."""
    plain = [field.name for field in fields(FederationConfig) if field.name not in ("training", "weighting")]
    return [*plain, *_TRAINING_SETTINGS, *_WEIGHTING_SETTINGS]


def configure(**settings: Any) -> FederationConfig:
    """A configuration from flat names, as environments and command lines give them.

    Args:
        **settings: Any of ``federation_settings()``: the fields of ``FederationConfig``, with ``local_steps``,
            ``batch_size``, ``learning_rate`` and the fields of ``TrustWeighting`` in place of the nested objects.

    Raises:
        ValueError: An unknown setting (the message lists what there is), or a value of another type or out of range.
    """
    check_known("setting", settings, federation_settings())
    _check_types(settings)

    def pick(names: dict[str, str]) -> dict[str, Any]:
        return {field: settings.pop(name) for name, field in names.items() if name in settings}

    training, weighting = LocalTraining(**pick(_TRAINING_SETTINGS)), TrustWeighting(**pick(_WEIGHTING_SETTINGS))
    return FederationConfig(**settings, training=training, weighting=weighting)


def _check_types(settings: Mapping[str, Any]) -> None:
    """Numbers and words must be such; what is more than that, and the weighting, check themselves."""
    defaults = {**asdict(FederationConfig()), **asdict(LocalTraining()), "local_steps": LocalTraining().steps}
    plain = {name: type(value) for name, value in defaults.items() if isinstance(value, bool | int | float | str)}
    check_types({n: v for n, v in settings.items() if n not in _WEIGHTING_SETTINGS}, plain)


def settings_of(config: FederationConfig) -> dict[str, Any]:
    """The inverse of ``configure``: flat names and values."""
    settings = {name: getattr(config, name) for name in federation_settings() if hasattr(config, name)}
    settings |= {name: getattr(config.training, field) for name, field in _TRAINING_SETTINGS.items()}
    return settings | {name: getattr(config.weighting, field) for name, field in _WEIGHTING_SETTINGS.items()}
