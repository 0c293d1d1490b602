"""Publishes a policy: its three files in another directory, weighed in another way if that is asked for.

    python -m agents.publish runs/mine policies/mine
    python -m agents.publish runs/mine:update_clip=median_or_reference policies/mine

How trust becomes an update is part of the card, and may be chosen after training, on train attacks and validation data
(``benchmarks/levers.py``). Where it is not what the policy was trained with, the card says both.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from agents.deployed import load_policy, read_card, save_policy, weighting_of
from agents.evaluation.policies import parse_policy
from agents.run_directory import CONFIG

# What training sees of a weighting: it ends where an update is made, and the safeguard comes after it.
_TRAINED_WITH = ("update_clip", "root_anchor", "sybil_exponent", "sybil_power")
# What a card does not name that is from before there was such a thing.
_OFF = {"sybil_exponent": 0.0, "sybil_power": 0.0}


@dataclass(frozen=True)
class Arguments:
    """Writes a policy's weights, JSON and card to a directory."""

    policy: Annotated[str, tyro.conf.Positional]
    """Run directory or name of a policy that ships; options of its weighting after a colon."""
    directory: Annotated[Path, tyro.conf.Positional]
    """Where to."""


def publish(policy: str, directory: Path) -> None:
    """Writes the policy, with all that its card says of where it comes from.

    Raises:
        ValueError: An option that a weighting does not have, or cannot have with this value; or a directory that is a
            file or a training run.
        PolicyFileError: There is no such policy, or it cannot be written there.
    """
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; give a directory")
    if (directory / CONFIG).exists():
        raise ValueError(f"{directory} is a training run, whose policy would be overwritten; give another directory")
    source, options = parse_policy(policy)
    network, provenance = load_policy(source), read_card(source)["provenance"]
    before = weighting_of(network)
    deployed = replace(before, **options)
    # Published again, the policy is what it was.
    trained = provenance.get("trained_with") or {name: getattr(before, name) for name in _TRAINED_WITH}
    provenance = {name: value for name, value in provenance.items() if name != "trained_with"}
    if any(getattr(deployed, name) != value for name, value in {**_OFF, **trained}.items()):
        provenance["trained_with"] = trained
    save_policy(network, directory, provenance, deployed)


def cli() -> None:
    """Entry point: errors of the user's making are one line, not a traceback."""
    arguments = tyro.cli(Arguments, description=__doc__)
    try:
        publish(arguments.policy, arguments.directory)
    except (OSError, ValueError) as error:
        sys.exit(f"publish: {error}")


if __name__ == "__main__":
    cli()
