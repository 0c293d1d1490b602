"""What README and the pages under docs tell a reader to click, type or paste works."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
import yaml
from torch import nn

import evaluate
from agents import TrustNet, save_policy
from agents.evaluation.configuration import make_grid, read_config, read_preset
from agents.settings import TrainingSettings
from fl_core.aggregation import base as rules
from fl_core.attacks import base as attacks
from fl_core.data import load_dataset
from fl_core.registry import Registry

ROOT = Path(__file__).parents[2]
# Not the environments' pages: they are one docstring each, whose blocks name sets that need files.
TOLD = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*TOLD, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs" / "environments").glob("*.md"))]
# Of blocks that cannot run here, a word that gives them away: other sets' files, or a GPU.
NEEDS = ("FashionMNIST", "cuda")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(language: str) -> list[Any]:
    return [
        pytest.param(code, id=f"{name(page)}-{i}")
        for page in TOLD
        for i, code in enumerate(code for kind, code in FENCE.findall(page.read_text()) if kind == language)
    ]


def links(page: Path) -> list[str]:
    """Targets of a page's links and pictures, but for those on other machines."""
    targets = re.findall(r"\]\(\s*([^)\s]+)\s*\)", FENCE.sub("", page.read_text()))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, as GitHub does it."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> list[Any]:
    """Lines of the pages' shell blocks, continued ones joined, and quotations in the text that begin with python."""
    told = []
    for page in TOLD:
        text = page.read_text()
        shell = [code for kind, code in FENCE.findall(text) if kind == "sh"]
        lines = [line for code in shell for line in code.replace("\\\n", " ").splitlines() if line.strip()]
        lines += [" ".join(code.split()) for code in re.findall(r"`(python [^`]+)`", FENCE.sub("", text))]
        told += [pytest.param(shlex.split(line, comments=True), id=f"{name(page)}: {line}") for line in lines]
    return told


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_row_of_a_table_has_as_many_cells_as_its_head(page: Path) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", FENCE.sub("", page.read_text()), re.MULTILINE):
        head, *rows = (len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines())
        assert rows == [head] * len(rows), table.splitlines()[0]


@pytest.mark.parametrize("words", commands())
def test_every_command_is_one_that_its_program_takes(words: list[str]) -> None:
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    if words[0] != "python":
        return
    if words[1] == "-m":
        module = ROOT / words[2].replace(".", "/")
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
        return
    assert (ROOT / words[1]).is_file()
    if words[1] == "train_agent.py":
        tyro.cli(TrainingSettings, args=words[2:]).check()
    elif words[1] == "evaluate.py":
        arguments = tyro.cli(evaluate.Arguments, args=words[2:])
        if arguments.preset is not None:
            read_preset(arguments.preset)
        if arguments.rules is not None and not arguments.plugin:
            for rule in arguments.rules:
                rules.make_rule(rule)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A reader in a directory with a trained policy, who has a network and root data; what they register is undone."""
    registries: tuple[Registry[Any], ...] = (attacks._ATTACKS, rules._RULES, rules._STEPS)
    for registry in registries:
        monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    monkeypatch.chdir(tmp_path)
    save_policy(TrustNet(), "runs/mine")
    digits = load_dataset("digits")
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    own = {"root_images": digits.images(digits.train[:40]), "root_labels": digits.labels[digits.train[:40]]}
    # A list of nothing known stands for the messages: the server answers it as any bad message.
    return {"__name__": "reader", "network": network, **own, "num_classes": 10, "rounds": 2, "DIR": tmp_path}


@pytest.mark.parametrize("code", [block for block in blocks("python") if not any(n in block.values[0] for n in NEEDS)])
def test_every_python_block_runs_as_it_stands(code: str, reader: dict[str, Any]) -> None:
    with torch.random.fork_rng():
        exec(compile(code, "block", "exec"), reader)


@pytest.mark.parametrize("code", blocks("yaml"))
def test_every_yaml_block_is_a_grid(code: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(code)
    grid = make_grid(read_config(path))
    assert set(yaml.safe_load(code)["rules"]) == set(grid.rules)
    assert len(grid.cells()) > 1


def test_the_readme_has_blocks_and_commands_to_try() -> None:
    assert len([block for block in blocks("python") if block.id.startswith("README.md")]) >= 3
    assert len([command for command in commands() if command.id.startswith("README.md")]) >= 8
