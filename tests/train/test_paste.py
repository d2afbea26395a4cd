"""Pasted views, against loops over pixels in float64, and training with them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from run_folders import figures
from torch import Tensor

from saga_fast.config_file import load_config
from saga_fast.kernels.philox import PASTE, draw
from saga_fast.train.cycle import train
from saga_fast.train.paste import SIDES, paste_views

SIZE, SEED, EPOCH = 12, 7, 3


@pytest.fixture
def views() -> Tensor:
    return torch.randn(9, 3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


INDEX = torch.arange(100, 109)


def paste(views: Tensor, share: float, index: Tensor = INDEX, seed: int = SEED) -> Tensor:
    return paste_views(views, index, seed=seed, epoch=EPOCH, share=share)


def pasted_by_loops(views: Tensor, share: float) -> npt.NDArray[np.float64]:
    """View 0 of the result (B, 3, S, S), pixel by pixel."""
    source = views.double().numpy()
    result = source[:, 0].copy()
    draws = draw(SEED, EPOCH, INDEX.numpy(), purpose=PASTE)
    for n, (use, side, x, y) in enumerate(draws):
        if use >= share:
            continue
        result[n] = source[n - 1, 0]
        length = SIZE * (SIDES[0] + (SIDES[1] - SIDES[0]) * side)
        left, top = (SIZE - length) * x, (SIZE - length) * y
        for i in range(SIZE):
            for j in range(SIZE):
                row, column = (i + 0.5 - top) / length * SIZE, (j + 0.5 - left) / length * SIZE
                if 0 <= row <= SIZE and 0 <= column <= SIZE:
                    result[n, :, i, j] = bilinear(source[n, 1], row - 0.5, column - 0.5)
    return result


def bilinear(image: npt.NDArray[np.float64], row: float, column: float) -> npt.NDArray[np.float64]:
    row, column = np.clip(row, 0, SIZE - 1), np.clip(column, 0, SIZE - 1)
    i, j = min(int(row), SIZE - 2), min(int(column), SIZE - 2)
    dy, dx = row - i, column - j
    upper = (1 - dx) * image[:, i, j] + dx * image[:, i, j + 1]
    lower = (1 - dx) * image[:, i + 1, j] + dx * image[:, i + 1, j + 1]
    mixture: npt.NDArray[np.float64] = (1 - dy) * upper + dy * lower
    return mixture


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_view_0_equals_loops(views: Tensor, share: float) -> None:
    result = paste(views, share)
    assert result.shape == (9, 2, 3, SIZE, SIZE)
    np.testing.assert_allclose(result[:, 0], pasted_by_loops(views, share), atol=2e-5)
    torch.testing.assert_close(result[:, 1], views[:, 2], rtol=0, atol=0)
    changed = (result[:, 0] != views[:, 0]).flatten(1).any(1)
    assert int(changed.sum()) == int((draw(SEED, EPOCH, INDEX.numpy(), purpose=PASTE)[:, 0] < share).sum())


def test_place_depends_on_the_image_alone(views: Tensor) -> None:
    """Not on its place in the batch: only what lies below changes with that."""
    views[:, 0] = 0.0
    order = torch.tensor([4, 2, 7, 1, 0, 8, 3, 6, 5])
    torch.testing.assert_close(paste(views[order], 0.7, INDEX[order]), paste(views, 0.7)[order], rtol=0, atol=0)
    assert not torch.equal(paste(views, 0.7, seed=SEED + 1), paste(views, 0.7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_format_is_kept(views: Tensor, dtype: torch.dtype) -> None:
    channels_last = views.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3).to(dtype)
    result = paste(channels_last, 1.0)
    assert result.dtype == dtype
    assert result.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, paste(views.to(dtype), 1.0))


def test_one_view_is_pasted_or_whole(views: Tensor) -> None:
    """For methods with one view: InsDis, PIRL, CMC."""
    result = paste(views[:, :2], 0.5)
    torch.testing.assert_close(result[:, 0], paste(views, 0.5)[:, 0])
    assert result.shape[1] == 1


@pytest.mark.parametrize("method", ["simclr", "mocov2", "pirl", "cmc", "insdis"])
def test_training(tiny_yaml: Path, tmp_path: Path, method: str) -> None:
    """Methods with two views, one, and further ones of another size; equal runs are equal, and pasting changes them."""
    small = {"pirl": ", negatives: 4, jigsaw_size: 15, jigsaw_patch: 4", "insdis": ", negatives: 16"}
    small |= {"cmc": ", negatives: 8", "mocov2": ", queue_size: 32"}
    overrides = [f"method={{name: {method}{small.get(method, '')}}}", "evaluate=null", "plain.epochs=1"]
    overrides += ["saga.epochs=1", "attention={views: paste, period: 1, delta: 0.5}"]
    runs = [tmp_path / name for name in ("first", "again", "never")]
    for run, share in zip(runs, (0.6, 0.6, 0.0), strict=True):
        train(load_config(tiny_yaml, [*overrides, f"out={run}", f"attention.share={share}"]))
    first, again, never = (figures(run) for run in runs)
    assert first == again
    assert first[0] == never[0]  # the plain epoch
    losses = [[row["loss"] for row in rows if row["kind"] == "epoch"] for rows in (first, never)]
    assert np.isfinite(losses).all()
    assert losses[0][1] != losses[1][1]
