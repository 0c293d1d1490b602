"""When a run directory may be written to."""

import json
from pathlib import Path
from typing import Any

import pytest

from agents.run_directory import CONFIG, MODEL, lock_run, open_run

SETTINGS: dict[str, Any] = {"seed": 0, "algo": "ppo", "timesteps": 100}


def a_run(directory: Path, **settings: Any) -> Path:
    open_run(directory, {**SETTINGS, **settings}, resume=False, overwrite=False)
    (directory / MODEL).write_bytes(b"model")
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("exists", [True, False])
def test_a_new_run_writes_its_settings_even_into_an_empty_directory(tmp_path: Path, exists: bool) -> None:
    directory = tmp_path / "runs" / "new"
    if exists:
        directory.mkdir(parents=True)
    assert open_run(directory, SETTINGS, resume=False, overwrite=False) == directory
    assert json.loads((directory / CONFIG).read_text()) == SETTINGS


def test_an_existing_run_is_neither_deleted_nor_continued_unasked(tmp_path: Path) -> None:
    before = contents(a_run(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"exists already.*--resume.*--overwrite"):
        open_run(tmp_path / "run", SETTINGS, resume=False, overwrite=False)
    assert contents(tmp_path / "run") == before


def test_overwriting_begins_from_nothing(tmp_path: Path) -> None:
    open_run(a_run(tmp_path / "run"), {**SETTINGS, "seed": 1}, resume=False, overwrite=True)
    assert list(contents(tmp_path / "run")) == [CONFIG]
    assert json.loads((tmp_path / "run" / CONFIG).read_text())["seed"] == 1


def test_a_directory_that_holds_no_run_is_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"not a run directory; it is not deleted"):
        open_run(tmp_path, SETTINGS, resume=False, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_in_the_place_of_the_directory_is_refused_and_kept(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ValueError, match=r"run.*(exists already|not a run directory)"):
        open_run(tmp_path / "run", SETTINGS, resume=False, overwrite=overwrite)
    assert (tmp_path / "run").read_text() == "a file"


@pytest.mark.parametrize("content", ["file", "directory"])
def test_what_is_no_run_is_called_so_at_once_and_no_flag_is_offered_that_is_refused_then(
    tmp_path: Path, content: str
) -> None:
    if content == "file":
        (tmp_path / "run").write_text("a file")
    else:
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"not a run directory.*give another --run-dir") as refused:
        open_run(tmp_path / "run", SETTINGS, resume=False, overwrite=False)
    assert "--overwrite" not in str(refused.value)


def test_what_is_left_of_settings_that_were_never_written_to_the_end_is_no_content(tmp_path: Path) -> None:
    (tmp_path / ".config.json.x1y2").write_text("{")
    assert open_run(tmp_path, SETTINGS, resume=False, overwrite=False) == tmp_path


def test_who_is_killed_while_overwriting_may_overwrite_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = a_run(tmp_path / "run")
    (directory / "checkpoints").mkdir()
    gone: list[str] = []
    unlink = Path.unlink

    def last(self: Path, missing_ok: bool = False) -> None:
        gone.append(self.name)
        if self.name == CONFIG:
            raise KeyboardInterrupt
        unlink(self, missing_ok)

    # Directories are listed in no order that could be relied on.
    listed = [directory / CONFIG, directory / MODEL, directory / "checkpoints"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "iterdir", lambda _: iter(listed))
        patch.setattr(Path, "unlink", last)
        open_run(directory, SETTINGS, resume=False, overwrite=True)
    assert gone == [MODEL, CONFIG]
    open_run(directory, {**SETTINGS, "seed": 1}, resume=False, overwrite=True)
    assert list(contents(directory)) == [CONFIG]


def test_a_run_may_be_resumed_with_more_timesteps(tmp_path: Path) -> None:
    directory = a_run(tmp_path / "run")
    assert open_run(directory, {**SETTINGS, "timesteps": 200}, resume=True, overwrite=False) == directory
    assert (directory / MODEL).read_bytes() == b"model"


def test_resuming_with_other_settings_is_refused_naming_old_and_new_values(tmp_path: Path) -> None:
    before = contents(a_run(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"seed was 0, is 7, algo was 'ppo', is 'a2c'.*only timesteps") as refused:
        open_run(tmp_path / "run", {"seed": 7, "algo": "a2c", "timesteps": 200}, resume=True, overwrite=False)
    assert "timesteps was" not in str(refused.value)
    assert contents(tmp_path / "run") == before


def test_a_setting_that_the_runs_version_did_not_have_yet_is_no_difference(tmp_path: Path) -> None:
    directory = a_run(tmp_path / "run")
    assert open_run(directory, {**SETTINGS, "safeguard": True}, resume=True, overwrite=False) == directory
    with pytest.raises(ValueError, match="safeguard was True, is False"):
        open_run(directory, {**SETTINGS, "safeguard": False}, resume=True, overwrite=False)


def test_resuming_without_config_is_refused(tmp_path: Path) -> None:
    (a_run(tmp_path / "run") / CONFIG).unlink()
    with pytest.raises(ValueError, match=r"nothing to resume.*config\.json"):
        open_run(tmp_path / "run", SETTINGS, resume=True, overwrite=False)


def test_a_run_that_was_killed_before_it_saved_anything_may_be_resumed(tmp_path: Path) -> None:
    (a_run(tmp_path / "run") / MODEL).unlink()
    assert open_run(tmp_path / "run", SETTINGS, resume=True, overwrite=False) == tmp_path / "run"


def test_the_command_that_began_a_run_stays_in_its_config(tmp_path: Path) -> None:
    directory = a_run(tmp_path / "run", command="python train_agent.py")
    open_run(directory, {**SETTINGS, "command": "python train_agent.py --resume"}, resume=True, overwrite=False)
    assert json.loads((directory / CONFIG).read_text())["command"] == "python train_agent.py"


def test_resuming_what_is_not_there_makes_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to resume"):
        open_run(tmp_path / "run", SETTINGS, resume=True, overwrite=False)
    assert not (tmp_path / "run").exists()


def test_a_damaged_config_is_refused_by_name(tmp_path: Path) -> None:
    (a_run(tmp_path / "run") / CONFIG).write_text('{"seed": 0')
    with pytest.raises(ValueError, match=r"config\.json"):
        open_run(tmp_path / "run", SETTINGS, resume=True, overwrite=False)


def test_resume_and_overwrite_exclude_each_other(tmp_path: Path) -> None:
    before = contents(a_run(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"--resume and --overwrite"):
        open_run(tmp_path / "run", SETTINGS, resume=True, overwrite=True)
    assert contents(tmp_path / "run") == before


def test_two_processes_cannot_train_in_one_directory(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with lock_run(directory):
        open_run(directory, SETTINGS, resume=False, overwrite=False)
        with pytest.raises(ValueError, match=r"is being written to by another train_agent.py; wait for it"):
            lock_run(directory)
        open_run(directory, SETTINGS, resume=False, overwrite=True)
        with pytest.raises(ValueError, match="another train_agent"):  # what is overwritten stays locked
            lock_run(directory)
    lock_run(directory).close()


def test_a_place_where_no_run_can_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make the run directory"):
        lock_run(tmp_path / "file" / "run")


@pytest.mark.parametrize("content", ['{"model_type": "bert"}', "[]", "{"])
@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_another_programs_folder_is_neither_taken_over_nor_deleted(tmp_path: Path, content: str, flag: str) -> None:
    (tmp_path / CONFIG).write_text(content)
    (tmp_path / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(
        ValueError, match=r"config\.json is (not that of a run: it lacks algo, seed, timesteps|damaged)"
    ):
        open_run(tmp_path, SETTINGS, **{"resume": False, "overwrite": False, flag: True})
    assert contents(tmp_path) == before


def test_a_run_whose_data_have_moved_may_be_resumed(tmp_path: Path) -> None:
    directory = a_run(tmp_path / "run", data_dir="before", download=False)
    open_run(directory, {**SETTINGS, "data_dir": "after", "download": True}, resume=True, overwrite=False)
    assert json.loads((directory / CONFIG).read_text())["data_dir"] == "after"
