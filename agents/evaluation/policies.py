"""The policies of a grid: where they are, what their rows are called, and what their cards say they have seen."""

import hashlib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from agents.deployed import PRETRAINED, WEIGHTS, TrustAggregator, load_policy, read_card, weighting_of
from agents.evaluation.options import parse_options
from agents.trust_net import TrustNet
from fl_core.aggregation import Rule, TrustWeighting, make_rule, rule_names
from fl_core.registry import check_known

# "The policy that is shipped for this data set": one row in a table over several data sets.
SHIPPED = "shipped"
SHIPPED_LABEL = "optigradtrust"
# For data sets that no policy was trained on: of those there are, the one that has seen images of a usual size.
_FALLBACK = "fashion_mnist"


@dataclass(frozen=True)
class PolicyFacts:
    """What a report says of a policy.

    Attributes:
        source: Directory, or the name of a shipped policy.
        network: What was read from there, once: whoever trains on meanwhile changes nothing.
        checksum: SHA-256 of its weights, and of its weighting where that is not the usual one.
        weighting: How its trust becomes an update.
        seen: Attacks that it was trained on; ``None`` if its card does not say.
        threshold: Threshold of detection that was fixed in training; ``None`` if its card has none.
        provenance: All that its card says of where it comes from.
    """

    source: str
    network: TrustNet = field(repr=False, compare=False)
    checksum: str
    weighting: TrustWeighting
    seen: tuple[str, ...] | None
    threshold: float | None
    provenance: dict[str, Any]


def shipped_policy(data_set: str) -> Path:
    """Directory of the policy that comes with the package for a data set: its own, or the fallback."""
    own = PRETRAINED / data_set
    return own if (own / WEIGHTS).is_file() else PRETRAINED / _FALLBACK


def parse_policy(spec: str) -> tuple[str, dict[str, Any]]:
    """A policy, and how its trust is weighed otherwise than its card says: ``"runs/mine:safeguard=false"``.

    Raises:
        ValueError: The weighting has no such option, or an option has no value.
    """
    path, _, given = spec.rpartition(":")
    if not path or any(separator in given for separator in "/\\") or Path(spec).exists():
        return spec, {}
    options = parse_options(spec, path, given)
    check_known("option of a policy", options, [each.name for each in fields(TrustWeighting)])
    return path, options


def rule_or_policy(spec: str) -> Rule:
    """The rule of this name, pre-aggregations before it included, or a policy as a rule, weighed as its card says.

    A policy may have options behind it, see ``parse_policy``.

    Raises:
        PolicyFileError: There is neither.
        ValueError: An option that a weighting does not have, or a value that it cannot have.
    """
    if spec.rpartition("+")[2] in rule_names():
        return make_rule(spec)
    source, options = parse_policy(spec)
    policy = load_policy(source)
    return TrustAggregator(policy, replace(weighting_of(policy), **options))


def policy_label(spec: str) -> str:
    """Name of a policy's row: that of its directory, also where that was given as ``.``, and its options."""
    policy, options = parse_policy(spec)
    label = SHIPPED_LABEL if policy == SHIPPED else Path(policy).resolve().name
    return f"{label} ({spec.removeprefix(policy).lstrip(':')})" if options else label


def locate_policy(policy: str, data_set: str) -> str:
    """Where a policy of a grid is, for a federation on this data set: what ``load_policy`` takes."""
    return str(shipped_policy(data_set)) if policy == SHIPPED else policy


def policy_facts(source: str, **weighting: Any) -> PolicyFacts:
    """Reads a policy's card and checks that its weights load.

    Args:
        source: Directory, or the name of a shipped policy.
        **weighting: Fields of ``TrustWeighting`` that are to be otherwise than its card says.

    Raises:
        PolicyFileError: A file is missing, damaged, or made for another layout of features.
        ValueError: A value that such a field cannot have.
    """
    provenance = read_card(source)["provenance"]
    policy = load_policy(source)
    digest = hashlib.sha256()
    for name, value in sorted(policy.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    weighting_used = replace(weighting_of(policy), **weighting)
    if weighting_used != TrustWeighting():
        # What is off is not told: policies from before there was such a thing keep the checksums of their results.
        told = repr(weighting_used).replace(", sybil_power=0.0)", ")").replace(", sybil_exponent=0.0)", ")")
        digest.update(told.encode())
    seen = provenance.get("attacks_seen")
    threshold = provenance.get("detection_threshold")
    if threshold is not None:
        digest.update(repr(float(threshold)).encode())
    return PolicyFacts(
        source,
        policy,
        digest.hexdigest(),
        weighting_used,
        None if seen is None else tuple(seen),
        None if threshold is None else float(threshold),
        provenance,
    )
