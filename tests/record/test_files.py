import errno
import fcntl
import json
import os

import pytest

from odebench.errors import UsageError
from odebench.record import files
from odebench.record.writer import write_status


def refuse(number):
    def function(*_):
        raise OSError(number, os.strerror(number))

    return function


@pytest.mark.parametrize("links", [True, False])
def test_the_file_before_is_kept_under_its_name(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for content in (b"1", b"2", b"3"):
        files.write_atomically(last, content, previous)
    assert (last.read_bytes(), previous.read_bytes()) == (b"3", b"2")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_write_that_fails_changes_neither_the_file_nor_the_one_before(tmp_path, monkeypatch):
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for content in (b"1", b"2"):
        files.write_atomically(last, content, previous)
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(last, b"3", previous)
    assert (last.read_bytes(), previous.read_bytes()) == (b"2", b"1")


def test_a_file_that_already_has_both_names_keeps_them(tmp_path):
    """What a kill between the link and the rename leaves."""
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    last.write_bytes(b"1")
    os.link(last, previous)
    files.write_atomically(last, b"2", previous)
    assert (last.read_bytes(), previous.read_bytes()) == (b"2", b"1")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_status_finds_room_on_a_full_disk_and_is_refused_by_a_read_only_one(tmp_path, monkeypatch):
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
        files.locked(tmp_path / "log.txt"),
        pytest.raises(UsageError, match=f"{tmp_path} is in use by another process"),
        files.locked(tmp_path / "log.txt"),
    ):
        pass
    with files.locked(tmp_path / "log.txt"):
        pass
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    with files.locked(tmp_path / "log.txt"):
        assert "log.txt cannot be locked (No locks available)" in caplog.text


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in (".status.json.12.tmp", "checkpoints/.last.pt.34.tmp", ".hidden", "notes.tmp", "checkpoints/last.pt"):
        (tmp_path / name).touch()
    files.remove_temporaries(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".hidden", "notes.tmp", "checkpoints/last.pt"}
