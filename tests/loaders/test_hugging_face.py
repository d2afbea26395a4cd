"""Hugging Face's folders and parquet files: the images of the same rows, without network and without paths followed."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from remote_fixtures import folder
from same_batches import assert_same_epochs

from saga_fast.cli import main
from saga_fast.errors import SagaError
from saga_fast.loaders import BadImages, CropPlan, ImageFolder, LoaderOptions, WholePlan, open_loader, open_source
from saga_fast.loaders.hugging_face import HuggingFaceImages, is_hugging_face

__all__ = ["folder"]

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are errors, and converted files go to a folder of the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("no network is used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "arrow"))


def rows_of(folder: ImageFolder, *, parts: slice = slice(None)) -> Any:
    """A data set of an Image and a ClassLabel column."""
    indices = range(len(folder))[parts]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(folder.classes)),
            "note": datasets.Value("string"),
        }
    )
    images = [{"bytes": folder.read(index), "path": folder.paths[index]} for index in indices]
    labels = [int(folder.labels[index]) for index in indices]
    return datasets.Dataset.from_dict({"image": images, "label": labels, "note": ["x"] * len(images)}, features)


def save(folder: ImageFolder, path: Path) -> Path:
    rows_of(folder).save_to_disk(str(path), num_shards=3)
    return path


def write(folder: ImageFolder, path: Path, parts: slice = slice(None)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows_of(folder, parts=parts).to_parquet(str(path))
    return path


def write_two(folder: ImageFolder, path: Path) -> Path:
    write(folder, path / "train-00000-of-00002.parquet", slice(0, 9))
    write(folder, path / "train-00001-of-00002.parquet", slice(9, None))
    (path / "README.md").write_text("# a card")
    return path


def write_pattern(folder: ImageFolder, path: Path) -> Path:
    write(folder, write_two(folder, path) / "test-00000-of-00001.parquet")
    return path / "train-*.parquet"


FORMS: dict[str, Callable[[ImageFolder, Path], Path]] = {
    "folder of save_to_disk": save,
    "file": lambda folder, path: write(folder, path / "x.parquet"),
    "folder": write_two,
    "pattern": write_pattern,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("engine", ["folder", "dali"])
def test_the_rows_are_the_folder(folder: ImageFolder, tmp_path: Path, engine: str, form: str) -> None:
    if engine == "dali":
        pytest.importorskip("nvidia.dali")
    path = FORMS[form](folder, tmp_path / "data")
    source = open_source(engine, path)
    assert isinstance(source, HuggingFaceImages)
    assert source.root == path
    is_saved = form == "folder of save_to_disk"  # which keeps the last part of a path
    assert source.paths == [Path(name).name if is_saved else name for name in folder.paths]
    assert (source.classes, len(source)) == (folder.classes, len(folder))
    np.testing.assert_array_equal(source.labels, folder.labels)
    assert [source.read(index) for index in range(23)] == [folder.read(index) for index in range(23)]
    options = LoaderOptions(batch_size=5, shuffle=True, threads=2)
    ours = open_loader(engine, path, CropPlan(size=9, seed=0), options)
    base = open_loader("folder", folder, CropPlan(size=9, seed=0), options)
    assert_same_epochs(ours, base)


def test_the_converted_file_lies_in_the_cache(folder: ImageFolder, tmp_path: Path) -> None:
    path = write(folder, tmp_path / "x.parquet")
    open_source("folder", path, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("*.arrow"))
    assert not (tmp_path / "arrow").exists()
    open_source("folder", path)
    assert list((tmp_path / "arrow").rglob("*.arrow"))


def refused(path: Path, *words: str) -> None:
    """Opening it is an error of one line with these words."""
    with pytest.raises(SagaError) as error:
        open_source("folder", path)
    assert "\n" not in str(error.value)
    for word in (path.name, *words):
        assert word in str(error.value)


def test_several_splits(folder: ImageFolder, tmp_path: Path) -> None:
    splits = {"train": rows_of(folder), "test": rows_of(folder, parts=slice(0, 2))}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "both"))
    refused(tmp_path / "both", "several splits", str(tmp_path / "both" / "train"), str(tmp_path / "both" / "test"))
    assert len(open_source("folder", tmp_path / "both" / "test")) == 2
    write_pattern(folder, tmp_path / "files")
    refused(tmp_path / "files", "several splits", "train-*.parquet", "test-*.parquet")
    assert len(open_source("folder", tmp_path / "files" / "test-*.parquet")) == 23


def write_table(path: Path, columns: dict[str, Any]) -> Path:
    """A parquet file without the features of ``datasets``."""
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("kind", ["struct", "struct of large bytes", "bytes", "large bytes"])
def test_columns_without_features(folder: ImageFolder, tmp_path: Path, kind: str) -> None:
    data = [folder.read(index) for index in range(4)]
    of_bytes = pyarrow.large_binary() if "large" in kind else pyarrow.binary()
    column = pyarrow.array(data, of_bytes)
    if "struct" in kind:
        names = pyarrow.array([folder.paths[0], None, folder.paths[2], None])
        column = pyarrow.StructArray.from_arrays([column, names], ["bytes", "path"])
    path = write_table(tmp_path / "x.parquet", {"picture": column, "label": [2, 0, 1, 0], "other": ["a"] * 4})
    source = open_source("folder", path)
    assert [source.read(index) for index in range(4)] == data
    numbers = [f"{row:09}" for row in range(4)]
    named = [folder.paths[0], numbers[1], folder.paths[2], numbers[3]]
    assert source.paths == (named if "struct" in kind else numbers)
    assert source.labels.tolist() == [2, 0, 1, 0]
    assert source.classes == ("0", "1", "2")


def save_as_images(images: list[Any], path: Path) -> Path:
    """A column of Image as it is: ``save_to_disk`` would read the files and addresses that it names."""
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    datasets.Dataset.from_dict({"image": images}, features).save_to_disk(str(path))
    about = json.loads((path / "dataset_info.json").read_text())
    about["features"]["image"] = {"_type": "Image"}
    (path / "dataset_info.json").write_text(json.dumps(about))
    return path


@pytest.mark.parametrize("engine", ["folder", "dali"])
def test_rows_without_an_image_are_bad_images(folder: ImageFolder, tmp_path: Path, engine: str) -> None:
    if engine == "dali":
        pytest.importorskip("nvidia.dali")
    (tmp_path / "real.jpg").write_bytes(folder.read(0))
    images: list[Any] = [{"bytes": folder.read(index), "path": None} for index in range(8)]
    images[2] = None
    images[3] = {"bytes": None, "path": str(tmp_path / "real.jpg")}
    images[5] = {"bytes": None, "path": "http://127.0.0.1:9/x.jpg"}
    source = open_source(engine, save_as_images(images, tmp_path / "data"))
    bad = BadImages(source, max_fraction=0.5)
    loader = open_loader(engine, source, WholePlan(size=8), batch_size=4, bad=bad)
    assert [index for batch in loader for index in batch.index.tolist()] == [0, 1, 4, 6, 7]
    assert bad.reasons == {row: f"row {row} of {tmp_path / 'data'} holds no image" for row in (2, 3, 5)}
    assert (source.classes, source.labels.tolist()) == ((), [-1] * 8)


def test_images_that_are_only_paths_are_refused(folder: ImageFolder, tmp_path: Path) -> None:
    images = [{"bytes": None, "path": str(Path(str(folder.root)) / name)} for name in folder.paths]
    refused(save_as_images(images, tmp_path / "data"), "column 'image' holds paths, save the images themselves")


def test_columns_of_images(folder: ImageFolder, tmp_path: Path) -> None:
    data = [folder.read(0)]
    two = write_table(tmp_path / "two.parquet", {"left": data, "right": data})
    refused(two, "needs one column of images, has left, right; its columns: left (binary), right (binary)")
    none = write_table(tmp_path / "none.parquet", {"text": ["a"], "size": [1]})
    refused(none, "needs one column of images, has none; its columns: text (string), size (int64)")
    refused(write_table(tmp_path / "empty.parquet", {"image": pyarrow.array([], pyarrow.binary())}))


@pytest.mark.parametrize("labels", [[0, -2], [0, 2**20], [2**40, 0]])
def test_labels_out_of_range(folder: ImageFolder, tmp_path: Path, labels: list[int]) -> None:
    path = write_table(tmp_path / "x.parquet", {"image": [folder.read(0)] * 2, "label": labels})
    refused(path, "must be in 0 to 1048575, or -1 for none: column label has", str(min(*labels, 0) or max(labels)))


@pytest.mark.parametrize("kind", [pyarrow.uint8(), pyarrow.uint64(), pyarrow.int8()])
def test_labels_of_any_integers(folder: ImageFolder, tmp_path: Path, kind: Any) -> None:
    labels = pyarrow.array([1, None, 0], kind)
    path = write_table(tmp_path / "x[1].parquet", {"image": [folder.read(0)] * 3, "label": labels})
    source = open_source("folder", path)
    assert source.labels.tolist() == [1, -1, 0] and source.labels.dtype == np.int64 and source.labels.flags.writeable


def test_a_label_beyond_64_bits(folder: ImageFolder, tmp_path: Path) -> None:
    labels = pyarrow.array([2**64 - 1], pyarrow.uint64())
    refused(write_table(tmp_path / "x.parquet", {"image": [folder.read(0)], "label": labels}), "too large", "label")


def test_labels_beyond_the_names(folder: ImageFolder, tmp_path: Path) -> None:
    data = write(folder, tmp_path / "x.parquet")
    table = pyarrow.parquet.read_table(data)
    wrong = table.set_column(1, table.schema.field("label"), pyarrow.array([3] * len(table), pyarrow.int64()))
    pyarrow.parquet.write_table(wrong, tmp_path / "y.parquet")
    refused(tmp_path / "y.parquet")
    missing = table.set_column(1, table.schema.field("label"), pyarrow.array([None] * len(table), pyarrow.int64()))
    pyarrow.parquet.write_table(missing, tmp_path / "z.parquet")
    assert set(open_source("folder", tmp_path / "z.parquet").labels.tolist()) == {-1}


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet", None], ids=str)
def test_damaged_parquet(folder: ImageFolder, tmp_path: Path, content: bytes | None) -> None:
    path = write(folder, tmp_path / "x.parquet")
    path.write_bytes(path.read_bytes()[:-50] if content is None else content)
    refused(path, "cannot read")
    refused(tmp_path / "y.parquet", "no such parquet file")
    refused(tmp_path / "y-*.parquet", "no such parquet file")


@pytest.mark.parametrize("name", ["../outside.arrow", "/etc/passwd", "sub/x.arrow", 3, None])
def test_a_list_of_files_outside_of_the_folder(folder: ImageFolder, tmp_path: Path, name: object) -> None:
    path = save(folder, tmp_path / "data")
    shutil.copy(next(path.glob("*.arrow")), tmp_path / "outside.arrow")
    state = json.loads((path / "state.json").read_text())
    state["_data_files"][1]["filename"] = name
    (path / "state.json").write_text(json.dumps(state))
    refused(path, f"state.json names {name!r}: expected names of files in its folder")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"_data_files": 3}', "[" * 10**5], ids=lambda text: text[:20])
@pytest.mark.parametrize("file", ["state.json", "dataset_info.json"])
def test_damaged_descriptions(folder: ImageFolder, tmp_path: Path, file: str, content: str) -> None:
    path = save(folder, tmp_path / "data")
    (path / file).write_text(content)
    if (file, content) == ("dataset_info.json", '{"_data_files": 3}'):
        assert len(open_source("folder", path)) == 23  # an unknown key
        return
    refused(path)


def test_a_damaged_arrow_file(folder: ImageFolder, tmp_path: Path) -> None:
    path = save(folder, tmp_path / "data")
    arrow = next(path.glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:200])
    refused(path, "cannot read")


def test_fingerprint(folder: ImageFolder, tmp_path: Path) -> None:
    path = save(folder, tmp_path / "data")
    source = open_source("folder", path)
    shutil.copytree(path, tmp_path / "copy")
    assert open_source("folder", tmp_path / "copy").fingerprint == source.fingerprint
    data = [folder.read(index) for index in range(4)]
    ours = open_source("folder", write_table(tmp_path / "x.parquet", {"image": data}))
    data[2] += b"\0"
    other = open_source("folder", write_table(tmp_path / "y.parquet", {"image": data}))
    assert ours.fingerprint != other.fingerprint


def test_which_folders_are_hugging_faces(folder: ImageFolder, tmp_path: Path) -> None:
    assert is_hugging_face(save(folder, tmp_path / "saved"))
    assert is_hugging_face(write_two(folder, tmp_path / "files"))
    (tmp_path / "files" / "cat.jpg").write_bytes(folder.read(0))
    assert not is_hugging_face(tmp_path / "files")


def test_pack(folder: ImageFolder, tmp_path: Path) -> None:
    pytest.importorskip("ffcv")
    out = tmp_path / "x.beton"
    data = save(folder, tmp_path / "data")
    assert main(["pack", str(data), str(out), "--workers", "1"]) == 0
    packed = open_source("ffcv", out)
    assert packed.paths == [Path(name).name for name in folder.paths]
    assert packed.labels.tolist() == folder.labels.tolist()
    assert packed.fingerprint == open_source("folder", data).fingerprint  # box tables are valid for both
    path = tmp_path / "x.beton.json"
    path.write_text(path.read_text().replace(packed.fingerprint, packed.fingerprint.replace("23-", "24-")))
    with pytest.raises(SagaError, match=r"x\.beton\.json is damaged"):
        open_source("ffcv", out)


def test_missing_package(folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, tmp_path / "x.parquet")

    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("saga_fast.loaders.packages.importlib.import_module", absent)
    refused(path, "needs datasets (No module named 'datasets'): pip install 'saga-fast[hf]'")
