"""The committed pages of the environments are those that the docstrings make."""

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest

from optigrad_env.pages import pages, write

DOCS = Path(__file__).parents[2] / "docs" / "environments"
HEADINGS = [
    "Description",
    "Action Space",
    "Observation Space",
    "Rewards",
    "Starting State",
    "Episode End",
    "Info",
    "Arguments",
    "Checkpoints",
    "Version History",
]


def test_the_committed_pages_are_up_to_date() -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")}
    assert committed == pages(), "run: python -m optigrad_env.pages docs/environments"


def test_every_registered_id_has_a_page_with_gymnasiums_headings() -> None:
    for env_id in (name for name in gym.registry if name.startswith("OptiGrad/")):
        page = pages()[env_id.removeprefix("OptiGrad/") + ".md"]
        assert f"# {env_id}\n" in page
        headings = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
        assert [heading for heading in headings if heading in HEADINGS] == HEADINGS
        assert f'gym.make("{env_id}"' in page


def test_writing_replaces_old_pages_and_leaves_other_files(tmp_path: Path) -> None:
    (tmp_path / "Gone-v0.md").write_text(pages()["README.md"])
    (tmp_path / "picture.png").write_bytes(b"")
    write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*pages(), "picture.png"}


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "optigrad_env.pages", str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=DOCS.parents[1])
    assert (done.returncode, done.stderr) == (1, f"cannot write pages to {tmp_path / 'file'}: File exists\n")


@pytest.mark.parametrize("name", ["README.md", "Digits-v0.md"])
def test_a_page_that_somebody_else_has_written_is_kept(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    (tmp_path / "thesis.md").write_text("mine too")
    with pytest.raises(ValueError, match=f"{name} was not written by this program"):
        write(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine", "thesis.md": "mine too"}
