"""Heatmaps of the report: the same maps that the boxes come from, for each checkpoint in the run folder."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saga_fast import load_model
from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.attention.channel_weights import Score
from saga_fast.kernels import attention_boxes
from saga_fast.loaders import ImageFolder, LoaderOptions, WholePlan, open_loader
from saga_fast.loaders.decode import decode_image
from saga_fast.report.gallery import make_gallery
from saga_fast.report.heat import checkpoint_heatmaps, coarse_maps, overlay
from saga_fast.report.runs import read_runs


@pytest.mark.parametrize("score", ["pseudo_label", "activation", "background"])
def test_maps_are_those_of_the_boxes(finished_run: Path, images: Path, score: Score) -> None:
    model, source = load_model(finished_run / "last.pt"), ImageFolder(images / "train")
    options = AttentionPass(size=16, score=score)
    loader = open_loader("folder", source, WholePlan(size=16), LoaderOptions(threads=1), batch_size=8)
    table = build_box_table(model, loader, options)
    maps = coarse_maps(model, [decode_image(source.read(i)) for i in range(len(source))], options)
    assert maps.ndim == 3
    boxes, found = attention_boxes(maps[:, None], torch.ones(len(maps), 1), delta=0.7, size=16)
    assert found.numpy().tolist() == table.found.astype(bool).tolist()
    np.testing.assert_allclose(boxes.numpy(), table.boxes, atol=1e-6)


def test_heatmaps_of_the_checkpoints_in_the_folder(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "saga")
    (run,) = read_runs([tmp_path / "saga"])
    pictures = [np.zeros((20, 24, 3), np.uint8), np.full((9, 7, 3), 80, np.uint8)]
    last = f"epoch {run.epochs[-1]['epoch']}"
    assert [heatmaps.label for heatmaps in checkpoint_heatmaps(run, [3], pictures)] == [last]
    shutil.copy(run.folder / "last.pt", run.folder / "epoch_0003.pt")
    assert [heatmaps.label for heatmaps in checkpoint_heatmaps(run, [3], pictures)] == ["epoch 3", last]
    made = make_gallery(run)
    assert made
    assert made.heatmaps[-1] == last
    assert all(tile.heatmaps[-1].alt == f"{tile.caption}, heatmap of {last}" for tile in made.tiles)
    (run.folder / "last.pt").write_bytes(b"damaged")  # its heatmaps are left out
    assert [heatmaps.label for heatmaps in checkpoint_heatmaps(run, [], pictures)] == []
    made = make_gallery(run)
    assert made
    assert last not in made.heatmaps
    assert checkpoint_heatmaps(run, [3], []) == ()


def test_overlay_is_bright_where_the_map_is() -> None:
    picture = Image.new("RGB", (30, 20), (128, 128, 128))
    brightness = np.asarray(overlay(picture, torch.tensor([[0.0, 1.0], [0.0, 0.0]])), np.float64).sum(2)
    assert brightness.shape == (20, 30)
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert row < 10 <= 15 <= column
    assert brightness[-1, 0] < 3 * 128
