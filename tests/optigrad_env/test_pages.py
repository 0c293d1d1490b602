"""The committed pages of the environments are those that the docstrings make."""

from pathlib import Path

import gymnasium as gym

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
    (tmp_path / "Gone-v0.md").write_text("old")
    (tmp_path / "picture.png").write_bytes(b"")
    write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*pages(), "picture.png"}
