"""Heatmaps of the report: they are what the boxes are made of, from the checkpoints that a run kept."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saga_fast import load_model
from saga_fast.attention import build_box_table
from saga_fast.attention_config import AttentionConfig
from saga_fast.kernels import attention_boxes
from saga_fast.loaders import ImageFolder, WholePlan, open_loader
from saga_fast.loaders.decode import decode_image
from saga_fast.report.gallery import make_gallery
from saga_fast.report.heat import coarse_maps, heats, overlay
from saga_fast.report.runs import read_runs


@pytest.mark.parametrize("score", ["pseudo_label", "norm", "activation"])
def test_maps_are_those_of_the_boxes(finished_run: Path, images: Path, score: str) -> None:
    model, source = load_model(finished_run / "last.pt"), ImageFolder(images / "train")
    attention = AttentionConfig(score=score)  # type: ignore[arg-type]
    loader = open_loader("folder", source, WholePlan(size=16), batch_size=8, threads=1)
    table = build_box_table(model, loader, delta=0.7, normalize="minmax", score=attention.score)
    maps = coarse_maps(model, [decode_image(source.read(i)) for i in range(len(source))], 16, attention)
    assert maps.ndim == 3
    boxes, found = attention_boxes(maps[:, None], torch.ones(len(maps), 1), delta=0.7, size=16)
    assert found.numpy().tolist() == table.found.astype(bool).tolist()
    np.testing.assert_allclose(boxes.numpy(), table.boxes, atol=1e-6)


def test_checkpoints_that_were_kept(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "saga")
    (run,) = read_runs([tmp_path / "saga"])
    pictures = [np.zeros((20, 24, 3), np.uint8), np.full((9, 7, 3), 80, np.uint8)]
    last = f"epoch {run.epochs[-1]['epoch']}"
    assert [heat.words for heat in heats(run, [3], pictures)] == [last]
    shutil.copy(run.folder / "last.pt", run.folder / "epoch_0003.pt")
    assert [heat.words for heat in heats(run, [3], pictures)] == ["epoch 3", last]
    found = make_gallery(run)
    assert found
    assert found.heats[-1] == last
    assert all(tile.heats[-1].alt == f"{tile.caption}, heatmap of {last}" for tile in found.tiles)
    (run.folder / "last.pt").write_bytes(b"damaged")  # leaves the rest of the page as it is
    assert [heat.words for heat in heats(run, [], pictures)] == []
    found = make_gallery(run)
    assert found
    assert last not in found.heats
    assert heats(run, [3], []) == ()


def test_overlay_is_bright_where_the_map_is() -> None:
    picture = Image.new("RGB", (30, 20), (128, 128, 128))
    seen = np.asarray(overlay(picture, torch.tensor([[0.0, 1.0], [0.0, 0.0]])), np.float64).sum(2)
    assert seen.shape == (20, 30)
    assert np.unravel_index(seen.argmax(), seen.shape)[0] < 10 <= 15 <= np.unravel_index(seen.argmax(), seen.shape)[1]
    assert seen[-1, 0] < 3 * 128
