"""``saga-fast eval pairs``: checkpoints are told apart, and attention crops are those of training."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from saga_fast import load_model
from saga_fast.attention.config import AttentionConfig
from saga_fast.checkpoint import checkpoint_config, read_checkpoint, save_checkpoint
from saga_fast.cli import main
from saga_fast.cli.subject import make_table
from saga_fast.errors import SagaError
from saga_fast.loaders import LoaderOptions, WholePlan, open_loader


def similarities(ckpts: list[Path], images: Path, out: Path) -> list[tuple[str, str, float]]:
    """(name, kind of crop, mean) of each row."""
    arguments = ["eval", "pairs", "--ckpt", *map(str, ckpts), "--data", str(images / "val"), "--json", str(out)]
    assert main([*arguments, "--png", str(out.with_suffix(".png"))]) == 0
    return [(row["name"], row["views"], row["mean"]) for row in json.loads(out.read_text())["rows"]]


def test_checkpoints_in_folders_of_the_same_name(finished_run: Path, images: Path, tmp_path: Path) -> None:
    ckpts = [tmp_path / name / "saga" / "last.pt" for name in ("one", "two")]
    for ckpt in ckpts:
        ckpt.parent.mkdir(parents=True)
        shutil.copy(finished_run / "last.pt", ckpt)
    rows = similarities(ckpts, images, tmp_path / "pairs.json")
    assert [name for name, _, _ in rows] == ["one/saga/last"] * 2 + ["two/saga/last"] * 2
    assert [name for name, _, _ in similarities(ckpts[:1], images, tmp_path / "pairs.json")] == ["saga/last"] * 2


def test_boxes_are_widened_as_in_training(finished_run: Path, images: Path, tmp_path: Path) -> None:
    """With a margin that covers the image, an attention crop is a plain crop."""
    content = read_checkpoint(finished_run / "last.pt")
    content["config"]["attention"] |= {"min_side": 1.0}
    ckpt = tmp_path / "run" / "last.pt"
    ckpt.parent.mkdir()
    save_checkpoint(ckpt, content)
    (_, _, plain), (_, _, guided) = similarities([ckpt], images, tmp_path / "pairs.json")
    assert guided == plain
    (_, _, plain), (_, _, guided) = similarities([finished_run / "last.pt"], images, tmp_path / "pairs.json")
    assert guided != plain


def test_boxes_of_a_classifier(finished_run: Path, images: Path, tmp_path: Path) -> None:
    """A run whose boxes came from another network is evaluated with that one's, whatever the run's own weights."""
    ckpt = finished_run / "last.pt"
    config = checkpoint_config(read_checkpoint(ckpt), ckpt)
    loader = open_loader(
        "folder", images / "val", WholePlan(size=config.crop.size), LoaderOptions(threads=1), batch_size=8
    )
    expected = make_table(load_model(ckpt), loader, config)
    other = load_model(ckpt)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    assert not np.array_equal(make_table(other, loader, config).boxes, expected.boxes)
    attention = replace(config.attention or AttentionConfig(), provider="supervised", provider_ckpt=str(ckpt))
    config = replace(config, attention=attention)
    np.testing.assert_array_equal(make_table(other, loader, config).boxes, expected.boxes)
    gone = replace(config, attention=replace(attention, provider_ckpt=str(tmp_path / "gone.pt")))
    with pytest.raises(SagaError, match=r"gone\.pt"):
        make_table(other, loader, gone)
