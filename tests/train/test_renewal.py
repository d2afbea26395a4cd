"""The ways to renew D^att in whole runs: what is computed when, and runs that were killed end like others."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import Crash, assert_same_run, crash_at, rows_of, spoiled_copy

from saga_fast.attention import box_iou, build_box_table
from saga_fast.checkpoint import load_model, read_checkpoint
from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable, ImageFolder, WholePlan, open_loader
from saga_fast.train import cycle, epoch, renewal
from saga_fast.train.config import load_config
from saga_fast.train.cycle import train
from saga_fast.train.epoch import train_epoch

WAYS = {
    "streaming": ["attention.renew=streaming", "plain.epochs=2", "saga.epochs=3", "attention.period=1"],
    "changed": ["attention.renew=changed", "plain.epochs=0", "saga.epochs=5", "attention.period=1"],
    "fraction": ["attention.renew=fraction", "plain.epochs=0", "saga.epochs=5", "attention.period=1"],
}
CRASHES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "in a step": lambda m: crash_at(m, epoch, "normalized", 18),
    "at a renewal": lambda m: crash_at(m, renewal, "box_iou", 2),
    "after a checkpoint": lambda m: crash_at(m, cycle, "save_checkpoint", 5, after=True),
}


@pytest.fixture(scope="module")
def finished(tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each way, with a checkpoint after every other step."""
    folder = tmp_path_factory.mktemp("ways")
    for way, overrides in WAYS.items():
        train(load_config(tiny_yaml, [f"out={folder / way}", *overrides, "checkpoint.every_steps=2"]))
    return {way: folder / way for way in WAYS}


def test_streaming_computes_nothing(finished: dict[str, Path]) -> None:
    """No attention pass at all: the plain epoch before the SAGA phase has left maps; 40 of 41 images fill batches."""
    rows = rows_of(finished["streaming"], "renewal")
    assert [row["computed"] for row in rows] == [0, 0, 0]
    assert rows[0]["agreement"] is None
    assert all(0.2 < row["agreement"] < 1.0 for row in rows[1:])
    assert all(row["found_fraction"] > 0.5 for row in rows)
    table = BoxTable.open(finished["streaming"] / "att/epoch_0002.safetensors")
    assert table.metadata["renew"] == "streaming"
    assert table.metadata["mirror"] == "False"
    assert (table.pseudo_label == -1).sum() in (0, 1)
    maps = read_checkpoint(finished["streaming"] / "last.pt")["attention_maps"]
    assert maps["sums"].shape[:2] == (41, 1)
    assert (maps["weights"].sum((1, 2)) > 0).all()  # by now every image had its turn


@pytest.mark.parametrize(("period", "expected"), [(1, 6), (6, 7)])
def test_streaming_watches_from_some_epochs_before_the_first_renewal(
    tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, period: int, expected: int
) -> None:
    watched: list[bool] = []

    def record(*arguments: Any, stream: Any, **options: Any) -> Any:
        watched.append(stream is not None)
        return train_epoch(*arguments, stream=stream, **options)

    monkeypatch.setattr(cycle, "train_epoch", record)
    overrides = ["attention.renew=streaming", f"attention.period={period}", "plain.epochs=7", "saga.epochs=1"]
    train(load_config(tiny_yaml, [f"out={tmp_path / 'run'}", *overrides]))
    assert watched == [False] * (8 - expected) + [True] * expected


def test_streaming_from_a_checkpoint_begins_with_a_pass(ckpt: Path, tiny_yaml: Path, tmp_path: Path) -> None:
    overrides = ["attention.renew=streaming", "attention.period=1", "saga.epochs=2"]
    train(load_config(tiny_yaml, [f"out={tmp_path / 'run'}", *overrides]), ckpt=ckpt)
    assert [row["computed"] for row in rows_of(tmp_path / "run", "renewal")] == [41, 0]


def test_changed_and_fraction(finished: dict[str, Path]) -> None:
    """All images at first; ``changed`` once more, to see what changes; then fewer, whose rows alone are new."""
    changed = [row["computed"] for row in rows_of(finished["changed"], "renewal")]
    assert changed[:2] == [41, 41]
    assert all(10 <= number < 41 for number in changed[2:])
    assert [row["computed"] for row in rows_of(finished["fraction"], "renewal")] == [41, 10, 10, 10, 10]
    tables = [BoxTable.open(path) for path in sorted((finished["fraction"] / "att").iterdir())]
    for before, after in itertools.pairwise(tables):
        assert 1 <= (before.score != after.score).sum() <= 10


def test_rows_of_an_incremental_renewal_are_the_networks(tiny_yaml: Path, tmp_path: Path) -> None:
    """The images that a renewal looks at get what a whole pass of the same network gives them, to rounding."""
    out = tmp_path / "run"
    settings = ["plain.epochs=0", "saga.epochs=2", "attention.period=1", "checkpoint.keep_every=1"]
    train(load_config(tiny_yaml, [f"out={out}", *settings, "attention.renew=fraction", "attention.fraction=0.5"]))
    before, after = (BoxTable.open(out / f"att/epoch_{number:04d}.safetensors") for number in (0, 1))
    config = load_config(tiny_yaml, [f"out={out}", *settings])
    source = ImageFolder(config.data.train)
    loader = open_loader("folder", source, WholePlan(size=config.crop.size), batch_size=8)
    whole = build_box_table(load_model(out / "epoch_0001.pt"), loader, **config.looking)
    new = before.score != after.score
    assert 15 <= new.sum() <= 20
    np.testing.assert_allclose(after.score[new], whole.score[new], rtol=1e-4)
    assert np.median(box_iou(after.boxes[new], whole.boxes[new])) > 0.99
    np.testing.assert_array_equal(after.boxes[~new], before.boxes[~new])


@pytest.mark.parametrize("moment", CRASHES)
@pytest.mark.parametrize("way", WAYS)
def test_crash_and_resume(
    finished: dict[str, Path], tiny_yaml: Path, tmp_path: Path, way: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The maps, and the last two tables, come back with the checkpoint."""
    run = tmp_path / "run"
    config = load_config(tiny_yaml, [f"out={run}", *WAYS[way], "checkpoint.every_steps=2"])
    with monkeypatch.context() as patch:
        CRASHES[moment](patch)
        with pytest.raises(Crash):
            train(config)
    train(config, resume=True)
    assert_same_run(run, finished[way])


@pytest.mark.parametrize("way", WAYS)
def test_bad_images(images: Path, tiny_yaml: Path, tmp_path: Path, way: str) -> None:
    """They keep the whole image, however boxes are renewed."""
    data = spoiled_copy(images, tmp_path / "data")
    overrides = [f"out={tmp_path / 'run'}", f"data.train={data}", "data.max_bad_fraction=0.2", *WAYS[way]]
    train(load_config(tiny_yaml, overrides))
    for path in sorted((tmp_path / "run/att").iterdir()):
        table = BoxTable.open(path)
        assert (table.pseudo_label[[4, 31, 40]] == -1).all()
        np.testing.assert_array_equal(table.boxes[[4, 31, 40]], [[0, 0, 1, 1]] * 3)


def test_a_missing_table_of_the_renewal_before(finished: dict[str, Path], tiny_yaml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished["changed"], run)
    (run / "att/epoch_0003.safetensors").unlink()
    config = load_config(tiny_yaml, [f"out={run}", *WAYS["changed"]])
    with pytest.raises(SagaError, match=r"epoch_0003.safetensors is missing or not the table of last.pt"):
        train(config, resume=True)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["attention.renew=sometimes"], "attention.renew"),
        (["attention.renew=fraction", "attention.fraction=0"], r"fraction must be in \(0, 1\], got 0"),
        (["attention.renew=streaming", "attention.decay=1"], r"decay must be in \[0, 1\), got 1"),
        (
            ["attention.renew=changed", "attention.provider=table", "attention.provider_table=t"],
            "renew changed needs provider self, whose boxes change, got table",
        ),
    ],
)
def test_refused(tiny_yaml: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(SagaError, match=words):
        load_config(tiny_yaml, overrides)
