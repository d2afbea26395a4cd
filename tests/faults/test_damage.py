"""Damaged files of ours: refused, or what was written; never something else."""

import json
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from saga_fast.checkpoint import read_checkpoint, save_checkpoint
from saga_fast.cli import main
from saga_fast.config_file import load_config
from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable, LoaderOptions, Place, WholePlan, open_loader
from saga_fast.loaders.box_table import FORMAT, WITHOUT_DIGEST
from saga_fast.loaders.engines import require_engine
from saga_fast.runtime.metrics import Metrics, read_metrics
from saga_fast.train.cycle import train


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    model = {"a": torch.arange(100.0), "b": torch.ones(3)}
    return {"config": {}, "model": model, "epoch": 3, "box_table": None, "rng": [1, "x"]}


@pytest.fixture(scope="module")
def written(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("checkpoint") / "c.pt"
    save_checkpoint(path, content)
    return path.read_bytes()


def is_refused_or_whole(path: Path, content: dict[str, Any]) -> bool:
    """Whether it is refused; if not, it is compared."""
    try:
        read = read_checkpoint(path)
    except SagaError as error:
        assert "\n" not in str(error)
        return True
    assert set(read) == {*content, "format", "version"}
    assert all(read[key] == content[key] for key in content if key != "model")
    assert read["model"].keys() == content["model"].keys()
    assert all(torch.equal(read["model"][key], tensor) for key, tensor in content["model"].items())
    return False


def test_a_flipped_bit_anywhere_in_a_checkpoint(written: bytes, content: dict[str, Any], tmp_path: Path) -> None:
    # torch.load itself takes 3 of 10 of them for other weights.
    path, harmless = tmp_path / "c.pt", 0
    positions = range(0, len(written), 5)
    for at in positions:
        path.write_bytes(written[:at] + bytes([written[at] ^ 1 << at % 8]) + written[at + 1 :])
        harmless += not is_refused_or_whole(path, content)
    assert harmless < len(positions)  # padding, dates and the like
    at = written.index(content["model"]["a"].numpy().tobytes()[8:])
    path.write_bytes(written[:at] + b"\1" + written[at + 1 :])
    with pytest.raises(SagaError, match="data/0 is damaged"):
        read_checkpoint(path)


def test_a_checkpoint_cut_anywhere(written: bytes, content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    for length in [*range(0, len(written), 23), *range(len(written) - 40, len(written))]:
        path.write_bytes(written[:length])
        assert is_refused_or_whole(path, content)
    for more in (b"\0", b"PK", written):
        path.write_bytes(written + more)
        is_refused_or_whole(path, content)


def test_a_table_of_boxes_that_are_none_is_refused_from_the_disk(tmp_path: Path) -> None:
    for row in ([np.nan, 0, 1, 1], [0, 0, np.inf, 1], [-0.1, 0, 1, 1], [0, 0, 0, 1], [0.5, 0, 0.6, 1], [9, 9, 9, 9]):
        columns: dict[str, Any] = {
            "boxes": np.array([[0, 0, 1, 1], row], np.float32),
            "found": np.ones(2, np.uint8),
            "pseudo_label": np.zeros(2, np.int32),
            "score": np.zeros(2, np.float32),
        }
        save_file(columns, tmp_path / "t.safetensors", {"format": FORMAT, "version": WITHOUT_DIGEST})
        with pytest.raises(SagaError, match=r"t\.safetensors: 1 boxes are empty or leave.*row 1"):
            BoxTable.open(tmp_path / "t.safetensors")


def test_a_flipped_bit_anywhere_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    boxes = np.random.default_rng(0).uniform(0.1, 0.5, (9, 4)).astype(np.float32)
    table = BoxTable(boxes, boxes[:, 0] > 0.3, np.arange(9, dtype=np.int32), boxes[:, 1].copy(), {"epoch": "3"})
    table.save(path)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        try:
            read = BoxTable.open(path)
        except SagaError:
            continue
        for column in ("boxes", "found", "pseudo_label", "score"):
            np.testing.assert_array_equal(getattr(read, column), getattr(table, column))
    path.write_bytes(data)
    assert BoxTable.open(path).metadata["epoch"] == "3"
    assert "sha256" not in BoxTable.open(path).metadata
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(SagaError):
            BoxTable.open(path)


def test_a_table_whose_header_claims_terabytes_is_refused(tmp_path: Path) -> None:
    column = {"dtype": "F32", "shape": [2**38, 4], "data_offsets": [0, 2**42]}
    for header in (json.dumps({"boxes": column}).encode(), b"[" * 90_000, b"{}", b"\xff" * 90):
        for length in (len(header), 2**62, 2**64 - 1):
            (tmp_path / "t.safetensors").write_bytes(struct.pack("<Q", length) + header)
            with pytest.raises(SagaError, match="not a box table"):
                BoxTable.open(tmp_path / "t.safetensors")


GARBAGE = [
    b"\0" * 50,
    b"\xff\xfe",
    b"5",
    b"null",
    b"[" * 50_000,
    b"9" * 5000,
    b'{"kind": "epoch"}',
    b'{"epoch": 1}',
    b'"',
]


def test_garbage_in_metrics_takes_no_row_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"kind": "epoch", "epoch": epoch, "loss": 0.5} for epoch in range(len(GARBAGE))]
    lines = [line for row, noise in zip(rows, GARBAGE, strict=True) for line in (json.dumps(row).encode(), noise)]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b'\n{"kind": "epoch", "epo')
    with caplog.at_level(logging.WARNING):
        assert read_metrics(tmp_path) == rows
    assert len(caplog.records) == len(GARBAGE)  # not of the last line, which a crash leaves
    metrics = Metrics(tmp_path, keep=lambda row: row["epoch"] < 3)
    metrics.add("epoch", 3, loss=0.25)
    metrics.close(finished=True)
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3]


def test_a_run_resumes_beside_garbage_in_its_metrics(finished_run: Path, tiny_yaml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = load_config(tiny_yaml, [f"out={run}"])
    run.mkdir()
    for name in ("last.pt", "metrics.jsonl"):
        (run / name).write_bytes((finished_run / name).read_bytes())
    (run / "att").symlink_to(finished_run / "att")
    rows = read_metrics(run)
    (run / "metrics.jsonl").write_bytes(b"\xff garbage\n" + (run / "metrics.jsonl").read_bytes() + b"\0" * 4096)
    train(config, resume=True)
    assert read_metrics(run) == rows


@pytest.mark.parametrize("crop", ["cpu", "gpu"])
def test_a_beton_file_that_is_cut_while_it_is_read_ends_the_epoch_and_not_the_process(
    make_images: Callable[..., Path], tmp_path: Path, crop: Place
) -> None:
    require_engine("ffcv")
    path = tmp_path / "x.beton"
    assert main(["pack", str(make_images(tmp_path / "images")), str(path), "--mode", "raw"]) == 0
    options = LoaderOptions(batch_size=2, threads=1, prefetch=0, crop=crop)
    batches = iter(open_loader("ffcv", path, WholePlan(size=4), options))
    next(batches)
    os.truncate(path, 5000)  # far below the next image: reading there would be SIGBUS
    with pytest.raises(SagaError, match=r"was cut from \d+ to 5000 bytes while in use"):
        next(batches)
