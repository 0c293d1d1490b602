"""Writes a page for each environment, from the class docstrings: ``python -m optigrad_env.pages docs/environments``."""

import argparse
import inspect
import sys
from pathlib import Path
from typing import Any

import gymnasium

from optigrad_env.env import OptiGradEnv
from optigrad_env.masked import MaskedOptiGradEnv
from optigrad_env.observation import action_space, masked_observation_space, observation_space
from optigrad_env.registration import ENVIRONMENTS, masked_id

_NOTE = "<!-- Written by `python -m optigrad_env.pages docs/environments`; change the docstring, not this page. -->"


def pages() -> dict[str, str]:
    """File names and contents: a page an id, and an index."""
    written = {}
    for env_id, kwargs in ENVIRONMENTS.items():
        written[_file(env_id)] = _page(env_id, masked_id(env_id), OptiGradEnv, kwargs)
        written[_file(masked_id(env_id))] = _page(masked_id(env_id), env_id, MaskedOptiGradEnv, kwargs)
    return {"README.md": _index(), **written}


def write(directory: Path) -> None:
    """Writes all pages; a page of an id that is no more is deleted.

    Raises:
        ValueError: A file that was not written by this program has the name of a page; nothing is changed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    wanted = pages()
    ours = {old for old in directory.glob("*.md") if old.read_bytes().startswith(_NOTE.encode())}
    for name in wanted:
        if (directory / name).exists() and directory / name not in ours:
            raise ValueError(f"{directory / name} was not written by this program: give a folder of the pages' own")
    for old in ours:
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        (directory / name).write_text(text, encoding="utf-8")


def _index() -> str:
    rows = [
        f"| [{env_id}]({_file(env_id)}) | [{masked_id(env_id)}]({_file(masked_id(env_id))}) | `{kwargs['dataset']}` "
        f"| {_network(kwargs)} |"
        for env_id, kwargs in ENVIRONMENTS.items()
    ]
    return "\n".join(
        [
            _NOTE,
            "# Environments",
            "",
            "| all clients in every round | clients that come and go | data set | network |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            "Data sets and their files are on [the data page](../data.md).",
            "",
        ]
    )


def _page(env_id: str, other: str, cls: type[OptiGradEnv], kwargs: dict[str, Any]) -> str:
    clients = inspect.signature(OptiGradEnv).parameters["num_clients"].default
    parts = [f"{name}: {_shape(part)}" for name, part in masked_observation_space(clients).items()]
    seen = f"Dict({', '.join(parts)})" if cls.masked else _shape(observation_space(clients))
    shown = "OptiGrad/DigitsMasked-v0" if cls.masked else "OptiGrad/Digits-v0"
    docstring = inspect.cleandoc(cls.__doc__ or "").replace(shown, env_id)
    settings = ", ".join(f"`{name}={value!r}`" for name, value in kwargs.items() if name != "dataset")
    return "\n".join(
        [
            _NOTE,
            f"# {env_id}",
            "",
            "| | |",
            "| --- | --- |",
            f'| import | `import optigrad_env; gymnasium.make("{env_id}")` |',
            f"| data set | `{kwargs['dataset']}` ([files](../data.md)) |",
            f"| network | {_network(kwargs)} |",
            f"| defaults of its own | {settings or 'none'} |",
            f"| observation space | `{seen}` |",
            f"| action space | `{_shape(action_space(clients))}` |",
            f"| {'without a mask' if cls.masked else 'with clients that come and go'} | [{other}]({_file(other)}) |",
            "",
            docstring,
            "",
        ]
    )


def _shape(space: gymnasium.Space[Any]) -> str:
    return f"{type(space).__name__}({space.shape}, {space.dtype})"


def _network(kwargs: dict[str, Any]) -> str:
    options = ", ".join(f"{name} {value}" for name, value in kwargs.get("network_options", {}).items())
    return f"`{kwargs.get('network', 'small_cnn')}`" + (f", {options}" if options else "")


def _file(env_id: str) -> str:
    return env_id.removeprefix("OptiGrad/") + ".md"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes a page for every environment, from the docstrings.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/environments"))
    folder = parser.parse_args().folder
    try:
        write(folder)
    except OSError as error:
        sys.exit(f"cannot write pages to {folder}: {error.strerror}")
    except ValueError as error:
        sys.exit(str(error))
