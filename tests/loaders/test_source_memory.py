"""Memory, threads and descriptors stay flat over epochs of tar files, remote tar files and parquet files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from epochs_in_process import growth, run_epochs
from tar_files import make_folder, write_shards
from web_server import serving

from saga_fast.loaders import ImageFolder

EPOCHS, WARM_UP, N = 30, 6, 120


@contextmanager
def tars(folder: ImageFolder, root: Path) -> Iterator[str]:
    yield str(write_shards(folder, root / "tars"))


@contextmanager
def remote(folder: ImageFolder, root: Path) -> Iterator[str]:
    with serving(write_shards(folder, root / "site")) as server:
        yield f"{server.url}/{{00000..00002}}.tar"


@contextmanager
def parquet(folder: ImageFolder, root: Path) -> Iterator[str]:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    from pyarrow.parquet import write_table

    columns = {"image": [folder.read(index) for index in range(N)], "label": folder.labels.tolist()}
    write_table(pyarrow.table(columns), root / "x.parquet", row_group_size=16)
    yield str(root / "x.parquet")


SOURCES = (tars, remote, parquet)


@pytest.mark.parametrize("engine", ["folder", "dali"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_memory_and_threads_stay_flat(tmp_path: Path, engine: str, source: Callable[..., Iterator[str]]) -> None:
    if engine == "dali":
        pytest.importorskip("nvidia.dali")
    folder = make_folder(tmp_path / "images", N)
    # Freed arrays go back to the system at once, so that 4 MB can be the limit: an epoch's views weigh 6.6 MB.
    environment = {"SAGA_FAST_CACHE": str(tmp_path / "caches"), "HF_DATASETS_CACHE": str(tmp_path / "arrow")}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536"}
    stops = [3 if epoch % 3 == 0 else None for epoch in range(EPOCHS)]
    with source(folder, tmp_path) as data:  # type: ignore[attr-defined]
        epochs = run_epochs(engine, data, stops, environment=environment)
    assert growth(epochs.memory, WARM_UP) < 4
    assert all(names == epochs.python_threads[WARM_UP] for names in epochs.python_threads[WARM_UP:])
    # DALI's own three may end a moment after the epoch; one leaked per epoch would be 24.
    assert max(epochs.threads[WARM_UP:]) <= max(epochs.threads[:WARM_UP]) + 3
    assert max(epochs.files) <= 32 + min(epochs.files)  # the connections that are kept
