"""The ways to renew D^att in whole runs: what is computed when, and runs that were killed end like others."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from run_folders import Crash, assert_same_run, crash_at, rows_of, spoiled_copy

from saga_fast.attention import build_box_table
from saga_fast.checkpoint import load_model
from saga_fast.config_file import load_config
from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable, ImageFolder, WholePlan, open_loader
from saga_fast.loaders.boxes import box_iou
from saga_fast.train import cycle, renewal, step
from saga_fast.train.cycle import train

WAYS = {
    "changed": ["attention.renew=changed", "plain.epochs=0", "saga.epochs=5", "attention.period=1"],
}
CRASHES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "in a step": lambda m: crash_at(m, step, "normalize_views", 18),
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


def test_changed(finished: dict[str, Path]) -> None:
    """All images twice, then those whose boxes changed and a quarter of the rest; only their rows are new."""
    changed = [row["computed"] for row in rows_of(finished["changed"], "renewal")]
    assert changed[:2] == [41, 41]
    assert all(10 <= number < 41 for number in changed[2:])
    tables = [BoxTable.open(path) for path in sorted((finished["changed"] / "att").iterdir())]
    for number, (before, after) in enumerate(itertools.pairwise(tables), 1):
        assert 1 <= (before.score != after.score).sum() <= changed[number]


def test_rows_of_an_incremental_renewal_are_the_networks(tiny_yaml: Path, tmp_path: Path) -> None:
    """The images that a renewal looks at get what a whole pass of the same network gives them, to rounding."""
    out = tmp_path / "run"
    settings = ["plain.epochs=0", "saga.epochs=3", "attention.period=1", "checkpoint.keep_every=1"]
    train(load_config(tiny_yaml, [f"out={out}", *settings, "attention.renew=changed"]))
    before, after = (BoxTable.open(out / f"att/epoch_{number:04d}.safetensors") for number in (1, 2))
    config = load_config(tiny_yaml, [f"out={out}", *settings])
    source = ImageFolder(config.data.train)
    loader = open_loader("folder", source, WholePlan(size=config.crop.size), batch_size=8)
    whole = build_box_table(load_model(out / "epoch_0002.pt"), loader, config.attention_pass)
    new = before.score != after.score
    assert new.sum() == rows_of(out, "renewal")[2]["computed"] < 41
    np.testing.assert_allclose(after.score[new], whole.score[new], rtol=1e-4)
    assert np.median(box_iou(after.boxes[new], whole.boxes[new])) > 0.99
    np.testing.assert_array_equal(after.boxes[~new], before.boxes[~new])


@pytest.mark.parametrize("moment", CRASHES)
@pytest.mark.parametrize("way", WAYS)
def test_crash_and_resume(
    finished: dict[str, Path], tiny_yaml: Path, tmp_path: Path, way: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last two tables are restored with the checkpoint."""
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
        (["attention.renew=streaming"], r"attention.renew=streaming was removed after it lost in docs/study.md"),
        (["attention.renew=fraction"], r"attention.renew=fraction was removed"),
        (["attention.score=norm"], r"attention.score=norm was removed"),
        (["attention.margin=0.1"], r"attention.margin=0.1 was removed"),
        (["attention.decay=0.9"], r"attention.decay=0.9 was removed"),
        (
            ["attention.renew=changed", "attention.provider=table", "attention.provider_table=t"],
            "renew changed needs provider self, whose boxes change, got table",
        ),
    ],
)
def test_refused(tiny_yaml: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(SagaError, match=words):
        load_config(tiny_yaml, overrides)


def test_unused_keys_of_older_configs_are_accepted(tiny_yaml: Path) -> None:
    """Every checkpoint of version 0.1.0 has these keys, whether they were used or not."""
    unused = ["attention.margin=0.0", "attention.fraction=0.25", "attention.decay=0.5"]
    assert load_config(tiny_yaml, unused) == load_config(tiny_yaml)
