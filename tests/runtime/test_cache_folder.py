"""The cache folder: where it lies, and what is said of it."""

import os
from pathlib import Path

import pytest

from saga_fast.runtime import cache
from saga_fast.runtime.cache import cache_folder


@pytest.fixture(autouse=True)
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of a user whose home cannot be written: a file lies in its place."""
    (tmp_path / "home").write_bytes(b"")
    (tmp_path / "temporary").mkdir()
    for name in ("SAGA_FAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(cache, "_said", set())
    return tmp_path / "temporary"


def test_the_temporary_folder_is_named_once(homeless: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = homeless / f"saga-fast-{os.geteuid()}"
    for name in ("listings", "index", "listings"):
        assert cache_folder(name) == base / name
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"cached files are kept in {base} (")
    assert "home/.cache/saga-fast/listings: Not a directory" in message
    assert "SAGA_FAST_CACHE chooses another folder" in message


@pytest.mark.parametrize("variable", ["SAGA_FAST_CACHE", "XDG_CACHE_HOME"])
def test_nothing_is_said_of_a_folder_that_was_chosen(
    homeless: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str
) -> None:
    monkeypatch.setenv(variable, str(homeless / f"saga-fast-{os.geteuid()}"))
    assert cache_folder("listings").is_relative_to(homeless / f"saga-fast-{os.geteuid()}")
    assert not caplog.records
