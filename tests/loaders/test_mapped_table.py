"""Box tables that are mapped: the tables that are read, and nothing of a hostile file is read."""

import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable, box_table


@pytest.mark.parametrize("damage", [False, True])
def test_a_mapped_table_is_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bool) -> None:
    generator = np.random.default_rng(0)
    whole = BoxTable.whole(1000)
    whole.boxes[:, 2:] = generator.uniform(0.1, 1.0, (1000, 2))
    whole.found[::2] = True
    path = tmp_path / "table.safetensors"
    BoxTable(whole.boxes, whole.found, whole.pseudo_label, whole.score, {"dataset": "it"}).save(path)
    plain = BoxTable.open(path)
    monkeypatch.setattr(box_table, "MAPPED_BYTES", 0)
    if damage:
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.write_bytes(content)
        with pytest.raises(SagaError, match="damaged"):
            BoxTable.open(path)
        return
    table = BoxTable.open(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    for name in ("boxes", "found", "pseudo_label", "score"):
        one, two = getattr(table, name), getattr(plain, name)
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    assert dict(table.metadata) == dict(plain.metadata)
    table.save(path)  # over the file that is mapped
    np.testing.assert_array_equal(BoxTable.open(path).boxes, plain.boxes)


@pytest.mark.parametrize("content", [b"x" * 64, b"\xff" * 7 + b"\x7f" + b"{}" * 40, b"\x02" + b"\0" * 7 + b"{}"])
def test_other_files_are_refused_when_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(box_table, "MAPPED_BYTES", 0)
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(SagaError, match="not a box table"):
        BoxTable.open(tmp_path / "other")


def test_mapped_boxes_become_tensors_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.safetensors"
    BoxTable.whole(10).save(path)
    content = path.read_bytes()
    monkeypatch.setattr(box_table, "MAPPED_BYTES", 0)
    table = BoxTable.open(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("boxes", "found", "pseudo_label", "score"):
            assert getattr(table, name).flags.writeable  # PyTorch warns only once in a process
            torch.from_numpy(getattr(table, name))[:] = 1
    assert path.read_bytes() == content


@pytest.mark.parametrize("is_mapped", [True, False])
def test_a_header_of_gigabytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_mapped: bool) -> None:
    path = tmp_path / "table.safetensors"
    size = 110_000_000  # of a file that has holes: it takes no space
    with path.open("wb") as file:
        file.write((size - 8).to_bytes(8, "little"))
        file.truncate(size)
    monkeypatch.setattr(box_table, "MAPPED_BYTES", 0 if is_mapped else size)
    tracemalloc.start()
    try:
        with pytest.raises(SagaError, match="not a box table"):
            BoxTable.open(path)
        assert tracemalloc.get_traced_memory()[1] < (0 if is_mapped else size) + 2**20
    finally:
        tracemalloc.stop()
