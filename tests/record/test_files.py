import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from odebench.errors import UsageError
from odebench.record import files
from odebench.record.writer import write_status


def refuse(number):
    def function(*_):
        raise OSError(number, os.strerror(number))

    return function


@pytest.mark.parametrize("links", [True, False])
def test_the_previous_file_is_kept_under_its_name(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for content in (b"1", b"2", b"3"):
        files.write_atomically(last, content, previous)
    assert (last.read_bytes(), previous.read_bytes()) == (b"3", b"2")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failed_write_changes_neither_the_file_nor_the_previous_one(tmp_path, monkeypatch):
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for content in (b"1", b"2"):
        files.write_atomically(last, content, previous)
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(last, b"3", previous)
    assert (last.read_bytes(), previous.read_bytes()) == (b"2", b"1")


def test_a_file_that_already_has_both_names_keeps_them(tmp_path):
    """The state after a kill between the link and the rename."""
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    last.write_bytes(b"1")
    os.link(last, previous)
    files.write_atomically(last, b"2", previous)
    assert (last.read_bytes(), previous.read_bytes()) == (b"2", b"1")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_status_is_written_on_a_full_disk_but_not_on_a_read_only_one(tmp_path, monkeypatch):
    write_status(tmp_path, "running", note="x" * 2000)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse(errno.EROFS))
        with pytest.raises(OSError, match="Read-only"):
            write_status(tmp_path, "failed")
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    write_status(tmp_path, "failed", 7, message="disk full", traceback="long")
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["status"], status["step"], status["message"]) == ("failed", 7, "disk full")
    assert "traceback" not in status


def test_a_lock_is_held_by_one_and_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, caplog):
    with (
        files.file_lock(tmp_path / "log.txt"),
        pytest.raises(UsageError, match=f"{tmp_path} is in use by another process"),
        files.file_lock(tmp_path / "log.txt"),
    ):
        pass
    with files.file_lock(tmp_path / "log.txt"):
        pass
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    with files.file_lock(tmp_path / "log.txt"):
        assert "log.txt cannot be locked (No locks available)" in caplog.text


def test_only_temporary_files_of_killed_processes_are_removed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in (".status.json.12.tmp", "checkpoints/.last.pt.34.tmp", ".hidden", "notes.tmp", "checkpoints/last.pt"):
        (tmp_path / name).touch()
    files.remove_temporary_files(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".hidden", "notes.tmp", "checkpoints/last.pt"}


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    """A folder that is not writable for any user."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and access(path, mode))
    return folder


def test_a_folder_that_cannot_be_made_is_one_line_that_names_it_as_the_user_did(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            UsageError, match=r"^run_dir=X cannot be made \((File exists|Not a directory)\); name another"
        ):
            files.make_folder(path, "run_dir=X")
    files.make_folder(tmp_path, "run_dir=X")


def test_a_file_that_cannot_be_made_raises_an_error_before_the_work(tmp_path, read_only):
    (tmp_path / "file").touch()
    for path, message in {
        tmp_path / "file": "exists; name a new file",
        tmp_path / "no" / "x.csv": f"the folder {tmp_path / 'no'} does not exist; create it",
        tmp_path / "file" / "x.csv": f"the folder {tmp_path / 'file'} does not exist",
        read_only / "x.csv": f"{read_only} is not writable",
    }.items():
        with pytest.raises(UsageError, match="--output X") as caught:
            files.check_file_can_be_made(path, "--output X")
        assert message in str(caught.value)
    files.check_file_can_be_made(tmp_path / "new.csv", "--output X")


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128, "new/" + "x" * 256, "x" * 250 + "/" + "y" * 256, "x/" * 2100])
def test_a_path_that_is_too_long_is_refused_before_any_work(name, tmp_path):
    with pytest.raises(UsageError, match=r"^run_dir=there cannot be made \(File name too long\)"):
        files.check_folder_can_be_made(tmp_path / name, "run_dir=there")
    if "/" not in name:
        with pytest.raises(UsageError, match=r"^--output there cannot be made \(File name too long\)"):
            files.check_file_can_be_made(tmp_path / name, "--output there")
    files.check_folder_can_be_made(tmp_path / ("x" * 255) / "y", "run_dir=there")
    files.check_file_can_be_made(tmp_path / ("x" * 255), "--output there")
