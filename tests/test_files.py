"""Tests of locks of files and folders."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from talud.errors import BusyError, OutputError
from talud.files import exclusive_lock


def hold(path: Path, held: Event, end: Event) -> None:
    with exclusive_lock(path):
        held.set()
        end.wait()


@pytest.mark.parametrize("name", ["new/file.lock", "."])
def test_lock_of_another_process_is_an_error_until_it_ends(name: str, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    held, end = spawn.Event(), spawn.Event()
    process = spawn.Process(target=hold, args=(tmp_path / name, held, end))
    process.start()
    assert held.wait(60)
    busy = BusyError("another process uses it")
    with pytest.raises(BusyError, match="another process uses it"), exclusive_lock(tmp_path / name, busy):
        pass
    process.kill()
    process.join()
    with exclusive_lock(tmp_path / name, busy) as descriptor:
        assert os.path.samestat(os.fstat(descriptor), (tmp_path / name).stat())


def test_lock_keeps_the_content_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "id").write_text("known")
    with exclusive_lock(tmp_path / "id"):
        assert (tmp_path / "id").read_text() == "known"


def test_disk_without_locks_is_an_error_if_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(os.strerror(37))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OutputError, match="no file locks on this disk"), exclusive_lock(tmp_path / "lock"):
        pass
    with exclusive_lock(tmp_path / "lock", required=False):
        pass


def test_unwritable_lock_names_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/lock: cannot be written"), exclusive_lock(tmp_path / "file/lock"):
        pass
