"""Fixtures of the tests of tar files, at addresses and on this machine: a test file imports those that it uses."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tar_files import make_folder, write_shards
from web_server import WebServer, serving

from saga_fast.loaders import ImageFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    return make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept indices, empty at first."""
    monkeypatch.setenv("SAGA_FAST_CACHE", str(tmp_path / "caches"))
    return tmp_path / "caches" / "index"


@pytest.fixture
def server(folder: ImageFolder, tmp_path: Path, caches: Path) -> Iterator[WebServer]:  # noqa: ARG001
    """The folder as three tar files."""
    with serving(write_shards(folder, tmp_path / "site")) as server:
        yield server
