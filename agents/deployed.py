"""Policies as files, and as aggregation rules.

A policy is two files: ``policy.safetensors`` (weights, no code) and ``policy.json`` (architecture, the layout of the
features it was trained on, and where it comes from).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from agents.trust_net import Architecture, TrustNet
from fl_core.aggregation import ServerView, TrustRule, TrustWeighting
from fl_core.files import write_atomically, write_json
from fl_core.fingerprint import FEATURES

WEIGHTS, CARD = "policy.safetensors", "policy.json"
FORMAT_VERSION = 1


class PolicyFileError(ValueError):
    """A policy file that is missing, damaged, or made for another layout of features."""


def save_policy(policy: TrustNet, directory: Path | str, provenance: Mapping[str, Any] | None = None) -> Path:
    """Writes the two files; each is written under a temporary name first, so a crash never leaves half a file.

    Args:
        policy: The network.
        directory: Where to; made if it is not there.
        provenance: Anything that says where the policy comes from (training command, attacks seen), for the card.

    Returns:
        The directory.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    card = {
        "format_version": FORMAT_VERSION,
        "features": list(FEATURES),
        "architecture": asdict(policy.architecture),
        "provenance": dict(provenance or {}),
    }
    weights = {name: value.contiguous() for name, value in policy.state_dict().items()}
    write_atomically(directory / WEIGHTS, save(weights))
    write_json(directory / CARD, card)
    return directory


def load_policy(path: Path | str) -> TrustNet:
    """Loads a policy, frozen and in evaluation mode.

    Args:
        path: A run directory, or any other that holds ``policy.safetensors`` and ``policy.json``.

    Returns:
        A plain module: fingerprint (N, 6) to trust (N,), for any N.

    Raises:
        PolicyFileError: A file is missing or damaged, or the policy was made for another layout of features.
    """
    card, weights = read_card(path), Path(path) / WEIGHTS
    try:
        policy = TrustNet(Architecture(**card["architecture"]), features=len(FEATURES))
        policy.load_state_dict(load(weights.read_bytes()))
    except OSError as error:
        raise PolicyFileError(f"cannot read {weights}: {error.strerror}; is {path} a run directory?") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PolicyFileError(f"{weights} is damaged or does not fit {CARD}: {error}") from error
    return policy.eval().requires_grad_(False)


def read_card(path: Path | str) -> dict[str, Any]:
    """The contents of a policy's ``policy.json``, checked.

    Raises:
        PolicyFileError: Missing, damaged, of another format version or layout of features.
    """
    card_path = Path(path) / CARD
    try:
        card: dict[str, Any] = json.loads(card_path.read_text())
        version, features = card["format_version"], card["features"]
    except OSError as error:
        raise PolicyFileError(f"cannot read {card_path}: {error.strerror}; is {path} a run directory?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PolicyFileError(f"{card_path} is damaged: {error!r}") from error
    if version != FORMAT_VERSION:
        raise PolicyFileError(f"{card_path} has format version {version}, this version reads {FORMAT_VERSION}")
    if features != list(FEATURES):
        raise PolicyFileError(f"{card_path} was made for the features {features}; this version has {list(FEATURES)}")
    return card


@dataclass(frozen=True)
class TrustAggregator(TrustRule):
    """A policy as an aggregation rule.

    Attributes:
        policy: Fingerprint (N, 6) to trust (N,).
        weighting: How trust becomes an update; what the policy was trained with.
    """

    policy: nn.Module
    weighting: TrustWeighting = field(default_factory=TrustWeighting)

    @torch.no_grad()
    def trust(self, view: ServerView) -> Tensor:
        """See ``TrustRule.trust``. The policy sees rejected clients too, at their worst, as it did in training."""
        observation = view.fingerprint.observation
        where = next((parameter.device for parameter in self.policy.parameters()), observation.device)
        trust: Tensor = self.policy(observation.to(where))
        return trust[~view.rejected].to(observation.device)
