"""Temporary files of killed writers go, those of living ones stay; and nothing but a regular file is read."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from saga_fast.runtime import files
from saga_fast.runtime.files import read_file, replacing, write_text

WRITER = """
import sys, time
from pathlib import Path
from saga_fast.runtime.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    """A hang ends the test, not the suite."""
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of writing ``x.txt``."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "x.txt")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_leftovers_of_a_killed_writer_go_at_the_next_write(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    (living,) = names(tmp_path)
    write_text(tmp_path / "x.txt", "new")
    assert names(tmp_path) == sorted([living, "x.txt"])  # it still writes: its file is not a leftover
    writer.kill()
    writer.wait()
    write_text(tmp_path / "y.txt", "another name")
    assert living in names(tmp_path)
    write_text(tmp_path / "x.txt", "newer")
    assert names(tmp_path) == ["x.txt", "y.txt"]
    assert (tmp_path / "x.txt").read_text() == "newer"


def test_other_files_are_no_leftovers(tmp_path: Path) -> None:
    kept = [".x.txt.short.tmp", ".x.txt.UPPER_00.tmp", ".x.txt.json.abcdefgh.tmp", "x.txt.abcdefgh.tmp", ".x.txt.tmp"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".x.txt.abcdefgh.tmp").mkdir()
    (tmp_path / ".x.txt.abcdefg1.tmp").symlink_to(tmp_path / ".x.txt.short.tmp")
    os.mkfifo(tmp_path / ".x.txt.abcdefg2.tmp")
    before = names(tmp_path)
    write_text(tmp_path / "x.txt", "content")
    assert names(tmp_path) == sorted([*before, "x.txt"])


def test_two_writers_of_one_name_both_end_well(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # whose block ended last
    assert names(tmp_path) == ["x.txt"]


def test_a_file_taken_for_a_leftover_before_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = files._lock, 0

    def late(handle: int, *, wait: bool) -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            (made,) = tmp_path.glob(".x.txt.*.tmp")
            made.unlink()
        return lock(handle, wait=wait)

    monkeypatch.setattr(files, "_lock", late)
    write_text(tmp_path / "x.txt", "content")
    assert calls == 2
    assert names(tmp_path) == ["x.txt"]


def test_leftovers_go_where_only_files_open_for_writing_are_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, which says EBADF of others."""
    (tmp_path / ".x.txt.abcdefgh.tmp").write_text("half")
    real = fcntl.flock

    def refuse(handle: int, operation: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "not open for writing")
        real(handle, operation)

    monkeypatch.setattr("fcntl.flock", refuse)
    write_text(tmp_path / "x.txt", "content")
    assert names(tmp_path) == ["x.txt"]


def test_a_file_system_without_locks_keeps_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leftover = tmp_path / ".x.txt.abcdefgh.tmp"
    leftover.write_text("perhaps somebody's")

    def refuse(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    write_text(tmp_path / "x.txt", "content")
    assert names(tmp_path) == [leftover.name, "x.txt"]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name, target in (("device", "/dev/zero"), ("loop", "loop"), ("nowhere", "missing"), ("link", "file")):
        (tmp_path / name).symlink_to(target)
    for name in ("file", "link"):
        assert read_file(tmp_path / name, 7) == b"content"
    begin = time.perf_counter()
    for name in ("folder", "fifo", "device", "loop", "nowhere", "missing"):
        with pytest.raises(OSError):
            read_file(tmp_path / name, 2**30)
    assert time.perf_counter() - begin < 5.0


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="1099511627776 bytes are more than 1073741824"):
        read_file(tmp_path / "huge", 2**30)
