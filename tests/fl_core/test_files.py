"""Files that are there in full or not at all."""

import json
from pathlib import Path

import pytest

from fl_core import files
from fl_core.files import write_atomically, write_json


def test_a_file_is_replaced_as_a_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    for content in (b"a long old content", b"new"):
        write_atomically(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_replacement_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_json_has_null_for_the_numbers_it_does_not_have(tmp_path: Path) -> None:
    content = {"mean": float("nan"), "inner": [{"error": float("-inf")}, (1.5, None, "nan")], "flag": True}
    write_json(tmp_path / "x.json", content)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    read = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert read == {"mean": None, "inner": [{"error": None}, [1.5, None, "nan"]], "flag": True}


def test_a_lock_is_held_until_it_is_closed_and_there_is_none_where_the_system_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with files.lock(tmp_path / "lock"), pytest.raises(BlockingIOError):
        files.lock(tmp_path / "lock")
    files.lock(tmp_path / "lock").close()
    monkeypatch.setattr(files, "fcntl", None)  # as on Windows
    with files.lock(tmp_path / "lock"), files.lock(tmp_path / "lock"):
        pass
