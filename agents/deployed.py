"""Policies as files, and as aggregation rules.

A policy is two files: ``policy.safetensors`` (weights, no code) and ``policy.json`` (architecture, the layout of the
features it was trained on, how its trust becomes an update, and where it comes from). ``card.md`` says the same to
people.
"""

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from agents.model_card import model_card
from agents.trust_net import Architecture, TrustNet
from fl_core.aggregation import ServerView, TrustRule, TrustWeighting
from fl_core.files import to_json, write_atomically
from fl_core.fingerprint import FEATURES
from fl_core.registry import check_known

WEIGHTS, CARD, MODEL_CARD = "policy.safetensors", "policy.json", "card.md"
PRETRAINED = Path(__file__).parent / "pretrained"
FORMAT_VERSION = 1


class PolicyFileError(ValueError):
    """A policy file that is missing, damaged, made for another layout of features, or that cannot be written."""


def save_policy(
    policy: TrustNet,
    directory: Path | str,
    provenance: Mapping[str, Any] | None = None,
    weighting: TrustWeighting | None = None,
) -> Path:
    """Writes weights, JSON and a model card; each under a temporary name first, so a crash never leaves half a file.

    Nor does one between two of them leave a policy that loads and is not its card's: a card knows its weights.

    Args:
        policy: The network.
        directory: Where to; made if it is not there.
        provenance: Anything that says where the policy comes from (training command, attacks seen), for the card.
        weighting: How its trust became an update in training, and whether the safeguard stands behind it; by default
            what it was loaded with, or the usual one.

    Returns:
        The directory.

    Raises:
        PolicyFileError: The policy reads other features than a server has, has weights that are not finite, or cannot
            be written there; or the provenance holds what JSON does not have.
        ValueError: A fact of the provenance that is read again is not of its kind.
    """
    _check_features("the policy", policy)
    try:
        _check_finite(policy)
    except ValueError as error:
        raise PolicyFileError(f"the policy cannot be saved: {error}") from error
    _check_provenance({} if provenance is None else provenance)
    directory = Path(directory)
    card = {
        "format_version": FORMAT_VERSION,
        "features": list(FEATURES),
        "architecture": asdict(policy.architecture),
        "weighting": asdict(weighting or weighting_of(policy)),
        "provenance": dict(provenance or {}),
    }
    weights = save({name: value.contiguous() for name, value in policy.state_dict().items()})
    card["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    try:  # all of it before the first file is written: a policy that is there stays whole
        files = {WEIGHTS: weights, CARD: to_json(card), MODEL_CARD: model_card(card).encode()}
    except TypeError as error:
        raise PolicyFileError(f"the policy cannot be saved, its provenance is no plain data: {error}") from error
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(directory / name, content)
    except OSError as error:
        raise PolicyFileError(f"cannot write a policy to {directory}: {error.strerror}") from error
    return directory


def load_policy(path: Path | str, *, trusted: bool = False) -> TrustNet:
    """Loads a policy, frozen and in evaluation mode.

    Args:
        path: A run directory or any other that holds ``policy.safetensors`` and ``policy.json``; one of such a pair of
            files, whatever its name; the name of a policy that ships with the package; or, if trusted, a ``model.zip``.
        trusted: The ``.zip`` comes from somebody whose code you would run: loading it runs code in it.

    Returns:
        A plain module: fingerprint (N, 6) to trust (N,), for any N. ``TrustAggregator`` finds in it how its trust is
        to be weighed.

    Raises:
        PolicyFileError: A file is missing or damaged, the policy was made for another layout of features, there is no
            shipped policy of this name, or a ``.zip`` that is not trusted.
        TypeError: What is given is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be that of a policy or the name of one that ships, got {path!r}")
    if Path(path).suffix == ".zip":
        return _load_zip(Path(path), trusted)
    card, weights = read_card(path), _pair(path)[0]
    try:
        content = weights.read_bytes()
        _check_checksum(card, content)
        policy = _filled(Architecture(**card["architecture"]), len(FEATURES), load(content))
        policy.weighting = TrustWeighting(**card.get("weighting", {}))
    except OSError as error:
        raise PolicyFileError(f"cannot read {weights}: {error.strerror}; is {path} a run directory?") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PolicyFileError(f"{weights} is damaged or does not fit {CARD}: {error}") from error
    return policy.eval().requires_grad_(False)


def _filled(architecture: Architecture, features: int, state: Mapping[str, Tensor]) -> TrustNet:
    """A network with these weights, float32.

    Made without weights of its own: they would be drawn from the caller's random numbers, and be as large as a file
    says before its weights were looked at.
    """
    with torch.device("meta"):
        policy = TrustNet(architecture, features)
    policy.load_state_dict({name: value.to(torch.float32, copy=True) for name, value in state.items()}, assign=True)
    _check_finite(policy)
    return policy


def _check_checksum(card: Mapping[str, Any], weights: bytes) -> None:
    """A ValueError, if a card says of which weights it is, and these are others."""
    told = card.get("weights_sha256")
    if told is not None and told != hashlib.sha256(weights).hexdigest():
        raise ValueError(
            f"the card is of weights with the SHA-256 {told}, and these are others: the policy was being written when "
            "it was read, or writing it was broken off; write it again"
        )


def shipped_policies() -> list[str]:
    """Names of the policies that ship with the package."""
    return sorted(path.parent.name for path in PRETRAINED.glob(f"*/{CARD}"))


def read_card(path: Path | str) -> dict[str, Any]:
    """The contents of a policy's ``policy.json``, checked.

    Raises:
        PolicyFileError: Missing, damaged, of another format version or layout of features.
    """
    card_path = _pair(path)[1]
    try:
        card: dict[str, Any] = json.loads(card_path.read_text())
        version, features = card["format_version"], card["features"]
    except OSError as error:
        raise PolicyFileError(f"cannot read {card_path}: {error.strerror}; is {path} a run directory?") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PolicyFileError(f"{card_path} is damaged: {error!r}") from error
    if version != FORMAT_VERSION:
        raise PolicyFileError(f"{card_path} has format version {version}, this version reads {FORMAT_VERSION}")
    if features != list(FEATURES):
        raise PolicyFileError(f"{card_path} was made for the features {features}; this version has {list(FEATURES)}")
    try:
        _check_provenance(card.setdefault("provenance", {}))
    except ValueError as error:
        raise PolicyFileError(f"{card_path} is damaged: {error}") from error
    return card


def weighting_of(policy: nn.Module) -> TrustWeighting:
    """How a policy's trust is to be weighed, as far as it is known; else the usual way."""
    weighting = getattr(policy, "weighting", None)
    return weighting if isinstance(weighting, TrustWeighting) else TrustWeighting()


def _check_features(what: str, policy: TrustNet) -> None:
    if policy.features != len(FEATURES):
        raise PolicyFileError(
            f"{what} reads {policy.features} features a client (ClientHistory, FeatureSubset?); only policies on the "
            f"six can be published: {', '.join(FEATURES)}"
        )


def _check_finite(policy: TrustNet) -> None:
    """A ValueError where trust would be NaN."""
    broken = [name for name, value in policy.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"there are weights that are not finite, in {', '.join(broken)}")


def _check_provenance(provenance: Any) -> None:
    """A ValueError if a fact that programs read is not of its kind; what people alone read may be anything."""
    if not isinstance(provenance, Mapping):
        raise ValueError(f"provenance must be a mapping of names to facts, got {provenance!r}")
    # A text would be taken for its letters, and no attack for seen.
    seen = provenance.get("attacks_seen")
    if seen is not None and not (isinstance(seen, list | tuple) and all(isinstance(name, str) for name in seen)):
        raise ValueError(f"attacks_seen must be a list of names of attacks, got {seen!r}")
    threshold = provenance.get("detection_threshold")
    a_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if threshold is not None and not (a_number and isfinite(threshold)):
        raise ValueError(f"detection_threshold must be a number, got {threshold!r}")
    for name in ("metrics", "trained_with"):
        if not isinstance(provenance.get(name) or {}, Mapping):
            raise ValueError(f"{name} must be a mapping of names to values, got {provenance[name]!r}")
    trained = provenance.get("trained_with")
    if trained:
        check_known("option in trained_with", trained, [each.name for each in fields(TrustWeighting)])
        missing = [name for name in ("update_clip", "root_anchor") if name not in trained]
        if missing:
            raise ValueError(f"trained_with must say {' and '.join(missing)}, got {trained!r}")
        TrustWeighting(**trained)


def _pair(path: Path | str) -> tuple[Path, Path]:
    """Where the weights and the JSON of a policy are."""
    given = Path(path)
    if given.suffix in (Path(WEIGHTS).suffix, Path(CARD).suffix) and not given.is_dir():
        return given.with_suffix(Path(WEIGHTS).suffix), given.with_suffix(Path(CARD).suffix)
    if given.name == str(path) and not (given / CARD).exists():  # a folder of images may have a policy's name
        if given.name in shipped_policies():
            given = PRETRAINED / given.name
        elif not given.exists():
            raise PolicyFileError(
                f"there is no directory {str(path)!r} and no shipped policy of this name; "
                f"shipped are: {', '.join(shipped_policies()) or 'none'}{_hint(str(path))}"
            )
    return given / WEIGHTS, given / CARD


def _hint(path: str) -> str:
    """What to do, if somebody has given options as on a command line."""
    name, _, options = path.partition(":")
    if not options:
        return ""
    return (
        f". Options behind a colon are for command lines: here load {name!r}, and give TrustAggregator another "
        "weighting, TrustAggregator(policy, dataclasses.replace(policy.weighting, ...))"
    )


def _load_zip(path: Path, trusted: bool) -> TrustNet:
    if not trusted:
        raise PolicyFileError(
            f"{path} is a Stable-Baselines3 file: to load it executes code that is in it. Load the directory with "
            f"{WEIGHTS} and {CARD} instead, or say trusted=True if you would run its author's programs"
        )
    # Here, because a deployed policy needs no Stable-Baselines3.
    from stable_baselines3.common.save_util import load_from_zip_file  # noqa: PLC0415

    try:
        data, parameters, _ = load_from_zip_file(path, device="cpu")
        architecture = (data or {})["policy_kwargs"].get("architecture")
        state = {
            name.split("trust_net.", 1)[1]: value
            for name, value in dict(parameters["policy"]).items()
            if name.startswith(("trust_net.", "actor.trust_net."))
        }
        policy = _filled(
            architecture if isinstance(architecture, Architecture) else Architecture(**architecture or {}),
            state["embed.weight"].shape[-1] // 2,
            state,
        )
    except OSError as error:
        raise PolicyFileError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # what is in a pickle may fail in any way
        raise PolicyFileError(f"{path} is damaged or holds no attention policy: {error!r}") from error
    _check_features(str(path), policy)
    return policy.eval().requires_grad_(False)


@dataclass(frozen=True)
class TrustAggregator(TrustRule):
    """A policy as an aggregation rule.

    Attributes:
        policy: Fingerprint (N, 6) to trust (N,), without a memory: copies of the rule share it.
        weighting: How trust becomes an update; by default what the policy's card says.
    """

    policy: nn.Module
    weighting: TrustWeighting = field(default=None)  # type: ignore[assignment]  # __post_init__ puts one there

    def __post_init__(self) -> None:
        given: TrustWeighting | None = self.weighting
        if not isinstance(self.policy, nn.Module):
            raise ValueError(f"policy must be a torch module, such as load_policy('digits') gives, got {self.policy!r}")
        if not isinstance(given, TrustWeighting | None):
            raise ValueError(
                f"weighting must be a TrustWeighting, such as TrustWeighting(safeguard=True), got {given!r}"
            )
        object.__setattr__(self, "weighting", given or weighting_of(self.policy))

    def __deepcopy__(self, memo: dict[int, object]) -> "TrustAggregator":
        """A copy around the same policy, which is frozen: an attack that tries out a rule copies it each time."""
        other = copy.copy(self)
        for name, value in vars(self).items():
            if name != "policy":
                object.__setattr__(other, name, copy.deepcopy(value, memo))
        return other

    @torch.no_grad()
    def trust(self, view: ServerView) -> Tensor:
        """See ``TrustRule.trust``. The policy sees rejected clients too, at their worst, as it did in training.

        Raises:
            ValueError: The policy did not answer with a tensor of one value a client.
        """
        observation = view.fingerprint.observation
        where = next((parameter.device for parameter in self.policy.parameters()), observation.device)
        trust: Tensor = self.policy(observation.to(where))
        if not isinstance(trust, Tensor) or trust.shape != view.rejected.shape:
            found = tuple(trust.shape) if isinstance(trust, Tensor) else type(trust).__name__
            raise ValueError(
                f"the policy must give one trust value for each of {len(observation)} clients, got {found}"
            )
        return trust[~view.rejected].to(observation.device)
