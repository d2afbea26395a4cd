"""jigsaw_patches: exact equality with the oracle; geometry checked on images of pixel coordinates."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from saga_fast.kernels import jigsaw_patches
from saga_fast.kernels.philox import JIGSAW, uniforms_reference, uniforms_torch

IMPLS = ("torch", "reference")
INDICES = np.array([0, 5, 2**31, 2**40 + 7, 5])


def coordinates(batch: int, side: int) -> npt.NDArray[np.float32]:
    """Return (B, 2, side, side): the row and the column of each pixel."""
    rows, columns = np.mgrid[:side, :side]
    return np.tile(np.stack([rows, columns]), (batch, 1, 1, 1)).astype(np.float32)


def cells_of(patches: npt.NDArray[Any], cell: int) -> npt.NDArray[Any]:
    """Return the cell (B, 9) of each patch; asserts that all its pixels are in one cell."""
    cells = (patches[:, :, 0] // cell * 3 + patches[:, :, 1] // cell).astype(np.int64)
    assert (cells == cells[:, :, :1, :1]).all()
    first: npt.NDArray[Any] = cells[:, :, 0, 0]
    return first


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("side", "patch"), [(255, 64), (64, 16), (29, 9), (29, 1), (3, 1), (27, 7)])
def test_geometry(side: int, patch: int, impl: str) -> None:
    """The patches are nine squares of adjacent pixels, one from each cell."""
    patches = jigsaw_patches(coordinates(5, side), patch=patch, seed=3, epoch=2, indices=INDICES, impl=impl)
    assert patches.shape == (5, 9, 2, patch, patch)
    offsets = patches - patches[..., :1, :1]
    assert (offsets == np.mgrid[:patch, :patch]).all()
    cells = cells_of(patches, side // 3)
    assert (np.sort(cells, 1) == np.arange(9)).all()
    np.testing.assert_array_equal(patches[1], patches[4])  # same index


def test_positions_and_orders_are_uniform() -> None:
    count, side, patch = 4000, 12, 2  # 3 x 3 positions in a cell
    indices = np.arange(count)
    patches = jigsaw_patches(coordinates(count, side), patch=patch, seed=0, epoch=0, indices=indices)
    corners = patches[..., 0, 0].astype(np.int64)
    cells = corners[..., 0] // 4 * 3 + corners[..., 1] // 4
    positions = corners[..., 0] % 4 * 3 + corners[..., 1] % 4
    for values in (cells[:, 0], cells[:, 4], cells[:, 8], positions[:, 0], positions[:, 8]):
        frequency = np.bincount(values, minlength=9) / count
        assert len(frequency) == 9
        assert np.abs(frequency - 1 / 9).max() < 5 * np.sqrt(1 / 9 * 8 / 9 / count)
    by_cell = np.take_along_axis(positions, np.argsort(cells, 1), 1)
    assert np.abs(np.corrcoef(by_cell.T) - np.eye(9)).max() < 5 / np.sqrt(count)  # the cells' draws are independent


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_equal_to_the_oracle(layout: str, dtype: torch.dtype) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 31, 31))).to(dtype)
    if layout == "channels_last":
        images = images.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        images = images.repeat(1, 1, 1, 2)[..., ::2].flip(0)
    key: dict[str, Any] = {"patch": 8, "seed": 2**63 + 11, "epoch": 2**31, "indices": torch.from_numpy(INDICES)}
    patches = jigsaw_patches(images, **key)
    assert patches.dtype == dtype
    assert torch.equal(patches.float(), jigsaw_patches(images, **key, impl="reference").float())


def test_a_draw_is_a_function_of_seed_epoch_and_index() -> None:
    def drawn(seed: int = 1, epoch: int = 2, indices: npt.NDArray[Any] = INDICES) -> npt.NDArray[Any]:
        images = coordinates(len(indices), 30)
        return jigsaw_patches(images, patch=4, seed=seed, epoch=epoch, indices=indices)

    expected = drawn()
    for n in range(5):
        np.testing.assert_array_equal(drawn(indices=INDICES[n : n + 1])[0], expected[n])
    for changed in (drawn(seed=2), drawn(epoch=3), drawn(indices=INDICES + 1)):
        assert (changed != expected).any((1, 2, 3, 4)).all()


def test_uniforms_torch_equal_the_oracle() -> None:
    for seed, epoch in ((0, 0), (2**64 - 1, 2**32 - 1), (2**40 + 3, 17)):
        indices = [0, 1, 2**32 - 1, 2**32, 2**62 + 9]
        drawn = uniforms_torch(seed, epoch, torch.tensor(indices), purpose=JIGSAW, blocks=7)
        for row, index in zip(drawn.numpy(), indices, strict=True):
            expected = [uniforms_reference(seed, epoch, index, 0, JIGSAW, block) for block in range(7)]
            np.testing.assert_array_equal(row, np.concatenate(expected))


@pytest.mark.parametrize("impl", IMPLS)
def test_empty(impl: str) -> None:
    empty = torch.zeros(0, 3, 30, 30), torch.zeros(0, dtype=torch.int64)
    assert jigsaw_patches(empty[0], patch=4, seed=0, epoch=0, indices=empty[1], impl=impl).shape == (0, 9, 3, 4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(2, 3, 30, 31)}, r"images must be \(B, C, S, S\), got \(2, 3, 30, 31\)"),
        ({"indices": torch.zeros(3, dtype=torch.int64)}, r"indices must be \(2,\) int64, got \(3,\)"),
        ({"indices": torch.zeros(2, dtype=torch.int32)}, "int64, got .* torch.int32"),
        ({"indices": np.zeros(2, np.int64)}, "of one type, on one device, got Tensor on cpu and ndarray on cpu"),
        (
            {"indices": torch.zeros(2, dtype=torch.int64, device="meta")},
            "on one device, got Tensor on cpu and Tensor on meta",
        ),
        ({"patch": 0}, r"patch must be in \[1, 10\], at most a third of the side, got 0"),
        ({"patch": 11}, "got 11"),
        ({"seed": -1}, "seed must be"),
        ({"epoch": 2**32}, "epoch must be"),
        ({"impl": "numba"}, "impl must be one of .*, got 'numba'"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    valid: dict[str, Any] = {
        "images": torch.zeros(2, 3, 30, 30),
        "indices": torch.zeros(2, dtype=torch.int64),
        "patch": 4,
        "seed": 0,
        "epoch": 0,
    }
    with pytest.raises(ValueError, match=message):
        jigsaw_patches(**{**valid, **changes})
