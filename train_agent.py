"""Trains a trust policy on a federation and saves it: `python train_agent.py --help`."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace

import tyro

from agents.settings import TrainingSettings, settings_of_run
from agents.training import train


def parse(command: Sequence[str] | None = None) -> TrainingSettings:
    """Settings from a command line; with --resume, what is not said is as it was in the run that is there."""
    given = tyro.cli(TrainingSettings, args=command)
    if not given.resume:
        return given
    as_before = replace(settings_of_run(given.run_dir), overwrite=given.overwrite)
    return tyro.cli(TrainingSettings, args=command, default=as_before)


def main(settings: TrainingSettings) -> int:
    """Runs the training; returns the exit status."""
    return 130 if train(settings, shlex.join(["python", *sys.argv])).interrupted else 0


def cli() -> None:
    """Entry point: errors of the user's making are one line, not a traceback."""
    try:
        sys.exit(main(parse()))
    except ValueError as error:
        sys.exit(f"train_agent: {error}")


if __name__ == "__main__":
    cli()
