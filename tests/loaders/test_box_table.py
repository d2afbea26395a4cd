"""BoxTable: saved and opened bit for bit, refused when it does not fit, and whole on the disk or not there."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable

NDArray = npt.NDArray[Any]
METADATA = {"dataset": "3-0123456789abcdef", "checkpoint": "c0ffee", "epoch": "40", "delta": "0.7", "note": "é ∞"}
HEADER = {"format": "saga-fast/box-table", "version": "1"}  # the one that needs no digest


def make_table(n: int, *, seed: int = 0) -> BoxTable:
    rng = np.random.default_rng(seed)
    near = rng.uniform(0, 0.9, (n, 2))
    boxes = np.concatenate([near, rng.uniform(0.01, 1, (n, 2)) * (1 - near)], 1).astype(np.float32)
    score = rng.normal(size=n).astype(np.float32)
    score[:1] = np.nan  # a score is only reported: any bits are kept
    return BoxTable(boxes, rng.random(n) < 0.5, rng.integers(-1, 128, n, np.int32), score, METADATA)


def columns(**other: NDArray) -> dict[str, NDArray]:
    """Three rows as they lie in a file, with some columns replaced."""
    own: dict[str, NDArray] = {
        "boxes": np.tile(np.array([0.25, 0.25, 0.5, 0.5], np.float32), (3, 1)),
        "found": np.ones(3, np.uint8),
        "pseudo_label": np.zeros(3, np.int32),
        "score": np.zeros(3, np.float32),
    }
    return own | other


def one_line(error: pytest.ExceptionInfo[SagaError], *parts: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_round_trip_keeps_every_bit(tmp_path: Path, n: int) -> None:
    table = make_table(n)
    table.save(tmp_path / "new" / "folders" / "table.safetensors")
    opened = BoxTable.open(str(tmp_path / "new" / "folders" / "table.safetensors"))
    assert len(opened) == len(table) == n
    for name, dtype in (("boxes", "<f4"), ("found", "|b1"), ("pseudo_label", "<i4"), ("score", "<f4")):
        before, after = getattr(table, name), getattr(opened, name)
        assert before.dtype == after.dtype == np.dtype(dtype)
        assert before.shape == after.shape
        assert before.tobytes() == after.tobytes()
    assert {key: opened.metadata[key] for key in METADATA} == METADATA


def test_file_is_what_the_design_says(tmp_path: Path) -> None:
    table = make_table(5)
    table.save(tmp_path / "table.safetensors")
    with safe_open(tmp_path / "table.safetensors", framework="numpy") as file:
        metadata = file.metadata()
        stored = {name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert stored == {
        "boxes": ("F32", [5, 4]),
        "found": ("U8", [5]),
        "pseudo_label": ("I32", [5]),
        "score": ("F32", [5]),
    }
    assert metadata.items() >= (METADATA | HEADER | {"version": "2", "num_images": "5"}).items()
    assert float(metadata["found_fraction"]) == pytest.approx(table.found.mean(), abs=1e-6)
    assert metadata["created_by"].startswith("saga-fast ")


def test_metadata_cannot_forge_the_header(tmp_path: Path) -> None:
    table = BoxTable.whole(2)
    forged = {"format": "other", "version": "0", "num_images": "9"}
    BoxTable(table.boxes, table.found, table.pseudo_label, table.score, forged).save(tmp_path / "t.safetensors")
    assert BoxTable.open(tmp_path / "t.safetensors").metadata["num_images"] == "2"


@pytest.mark.parametrize("n", [0, 1, 7])
def test_whole_has_the_whole_image_for_every_image(n: int) -> None:
    table = BoxTable.whole(n)
    np.testing.assert_array_equal(table.boxes, np.array([[0, 0, 1, 1]] * n, np.float32).reshape(n, 4))
    assert table.boxes.dtype == np.float32
    assert table.found.tolist() == [False] * n
    assert table.pseudo_label.tolist() == [-1] * n
    assert table.score.tolist() == [0.0] * n
    assert table.metadata == {}
    assert table.found_fraction == 0.0
    assert table.mean_area == (1.0 if n else 0.0)


def test_summaries() -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.5, 0, 0.25, 1], [0, 0, 0.5, 1]], np.float32)
    found = np.array([False, True, True, True])
    table = BoxTable(boxes, found, np.zeros(4, np.int32), np.zeros(4, np.float32))
    assert table.found_fraction == 0.75
    assert table.mean_area == (1 + 0.25 + 0.25 + 0.5) / 4


def test_check_names_both_data_sets() -> None:
    table = make_table(3)
    table.check(METADATA["dataset"], 3)
    with pytest.raises(SagaError) as error:
        table.check("3-fedcba9876543210", 3)
    one_line(error, METADATA["dataset"], "3-fedcba9876543210", "build-att")


def test_check_of_a_table_without_data_set_is_by_length() -> None:
    BoxTable.whole(3).check("3-fedcba9876543210", 3)
    with pytest.raises(SagaError) as error:
        BoxTable.whole(3).check("4-fedcba9876543210", 4)
    one_line(error, "3 rows", "4 images")


WRONG_BOXES = {
    "nan": (np.nan, 0, 0.5, 0.5),
    "nan side": (0, 0, 0.5, np.nan),
    "infinite": (0, np.inf, 0.5, 0.5),
    "infinite side": (0, 0, np.inf, 0.5),
    "left of the image": (-0.01, 0, 0.5, 0.5),
    "above the image": (0, -1e-6, 0.5, 0.5),
    "right of the image": (0.6, 0, 0.41, 1),
    "below the image": (0, 0.6, 1, 0.40001),
    "just too wide": (0, 0, 1.00001, 1),
    "no width": (0.5, 0.5, 0, 0.5),
    "no height": (0.5, 0.5, 0.5, 0),
    "negative side": (0.5, 0.5, -0.1, 0.5),
    "pixels": (10, 20, 100, 50),
}


@pytest.mark.parametrize("box", WRONG_BOXES.values(), ids=WRONG_BOXES)
def test_wrong_boxes_are_refused(tmp_path: Path, box: tuple[float, ...]) -> None:
    boxes = columns()["boxes"]
    boxes[1] = box
    with pytest.raises(SagaError) as error:
        BoxTable(boxes, np.ones(3, np.bool_), np.zeros(3, np.int32), np.zeros(3, np.float32))
    one_line(error, "1 boxes", "row 1")
    path = tmp_path / "table.safetensors"
    save_file(columns(boxes=boxes), path, metadata=HEADER)
    with pytest.raises(SagaError) as error:
        BoxTable.open(path)
    one_line(error, path, "row 1")


def test_a_far_edge_may_round_to_just_above_1() -> None:
    above = np.nextafter(np.float32(1), np.float32(2))
    boxes = np.array([[0, 0, above, 1], [0.5, 0.5, 0.5, above - np.float32(0.5)]], np.float32)
    assert (boxes[:, :2] + boxes[:, 2:] > 1).any(1).all()
    table = BoxTable(boxes, np.ones(2, np.bool_), np.zeros(2, np.int32), np.zeros(2, np.float32))
    np.testing.assert_array_equal(table.boxes, boxes)


WRONG_COLUMNS = {
    "boxes of 5": columns(boxes=np.ones((3, 5), np.float32)),
    "boxes flat": columns(boxes=np.ones(12, np.float32)),
    "boxes of more rows": columns(boxes=np.tile(np.array([0, 0, 1, 1], np.float32), (4, 1))),
    "boxes a number": columns(boxes=np.ones((), np.float32)),
    "found of fewer rows": columns(found=np.ones(2, np.uint8)),
    "score as a matrix": columns(score=np.ones((3, 1), np.float32)),
    "boxes float64": columns(boxes=columns()["boxes"].astype(np.float64)),
    "boxes float16": columns(boxes=columns()["boxes"].astype(np.float16)),
    "found int64": columns(found=np.ones(3, np.int64)),
    "pseudo_label int64": columns(pseudo_label=np.zeros(3, np.int64)),
    "score float64": columns(score=np.zeros(3, np.float64)),
    "one more": columns(extra=np.zeros(3, np.float32)),
    "none": {},
    "no score": {name: column for name, column in columns().items() if name != "score"},
}


@pytest.mark.parametrize("name", WRONG_COLUMNS)
def test_wrong_columns_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "table.safetensors"
    save_file(columns(), path, metadata=HEADER)
    assert len(BoxTable.open(path)) == 3
    save_file(WRONG_COLUMNS[name], path, metadata=HEADER)
    with pytest.raises(SagaError) as error:
        BoxTable.open(path)
    one_line(error, path)


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        (None, "saga-fast/box-table"),
        (HEADER | {"format": "pt"}, "'pt'"),
        (HEADER | {"version": "3"}, "'3'"),
        (HEADER | {"version": "2"}, "damaged"),
        ({"format": HEADER["format"]}, "version"),
    ],
)
def test_other_formats_and_versions_are_refused(tmp_path: Path, metadata: dict[str, str] | None, named: str) -> None:
    path = tmp_path / "table.safetensors"
    save_file(columns(), path, metadata=metadata)
    with pytest.raises(SagaError) as error:
        BoxTable.open(path)
    one_line(error, path, named)


def test_a_models_weights_are_refused(tmp_path: Path) -> None:
    # NumPy has no bfloat16, so the file must be refused before its tensors are read.
    path = tmp_path / "model.safetensors"
    save_torch_file({"weight": torch.zeros(2, 2, dtype=torch.bfloat16)}, path, metadata={"format": "pt"})
    with pytest.raises(SagaError) as error:
        BoxTable.open(path)
    one_line(error, path)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1000, -1])
def test_cut_files_are_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "table.safetensors"
    make_table(100).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SagaError) as error:
        BoxTable.open(path)
    one_line(error, path)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("boxes: none\n" * 100)
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(1000))
    for path in (tmp_path / "missing", tmp_path, tmp_path / "text", tmp_path / "noise"):
        with pytest.raises(SagaError) as error:
            BoxTable.open(path)
        one_line(error, path)


@contextmanager
def assert_nothing_changes(folder: Path) -> Iterator[None]:
    def content() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    before = content()
    yield
    assert content() == before


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("existing", [False, True])
def test_a_write_that_is_cut_short_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool, error: BaseException
) -> None:
    path = tmp_path / "table.safetensors"
    if existing:
        make_table(10).save(path)
    unfinished: list[Path] = []

    def fail(_: int) -> None:
        unfinished.extend(set(tmp_path.iterdir()) - {path})
        raise error

    monkeypatch.setattr(os, "fsync", fail)  # the data is written, but not on the disk
    with assert_nothing_changes(tmp_path), pytest.raises(type(error)):
        make_table(20).save(path)
    assert len(unfinished) == 1


@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_is_an_os_error_and_leaves_the_folder_as_it_was(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "table.safetensors"
    if existing:
        make_table(10).save(path)
    # The system refuses to let a file grow beyond 8 KiB, as a full disk or a quota would.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with assert_nothing_changes(tmp_path), pytest.raises(OSError):
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
        try:
            make_table(1000).save(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    below_a_file = tmp_path / "file"
    below_a_file.touch()
    # Not even root can make a file in /proc.
    for folder in (Path("/proc/self"), below_a_file):
        with assert_nothing_changes(tmp_path), pytest.raises(OSError) as error:
            BoxTable.whole(3).save(folder / "table.safetensors")
        assert error.value.filename is not None  # what the command line names


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_others_may_read_a_table_as_any_new_file(tmp_path: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        BoxTable.whole(3).save(tmp_path / "table.safetensors")
    finally:
        os.umask(old)
    assert (tmp_path / "table.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_renewed_table_takes_the_old_ones_place(tmp_path: Path) -> None:
    path = tmp_path / "table.safetensors"
    make_table(10, seed=1).save(path)
    old = BoxTable.open(path)
    make_table(10, seed=2).save(path)
    # The open table still holds its own epoch's boxes: nothing is mapped from the file that changed.
    np.testing.assert_array_equal(old.boxes, make_table(10, seed=1).boxes)
    np.testing.assert_array_equal(BoxTable.open(path).boxes, make_table(10, seed=2).boxes)
    assert [file.name for file in tmp_path.iterdir()] == ["table.safetensors"]
