"""The score ``background``, the largest region and the mirrored pass, against loops in float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor

from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.attention.channel_weights import Score, channel_weights
from saga_fast.attention.config import Region
from saga_fast.attention.heatmap import foreground_map, largest_region, mean_activations, scaled_map
from saga_fast.kernels.attention_boxes.reference import attention_boxes_reference
from saga_fast.loaders import BoxTable, LoaderOptions, WholePlan, open_loader
from saga_fast.methods import METHODS, Method, build_method
from saga_fast.models.encoder import EncoderConfig

SIZE = 40
ENCODER: dict[str, Any] = {
    "name": "resnet18",
    "stem": "small",
    "args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24]},
}


@pytest.fixture(scope="module")
def model() -> Method:
    torch.manual_seed(0)
    made = build_method(METHODS["simclr"].Config(name="simclr"), EncoderConfig(**ENCODER))
    with torch.no_grad():
        for _ in range(3):
            made.encoder(torch.randn(16, 3, 32, 32))
    return made.eval()


@pytest.fixture(scope="module")
def few(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("few"), per_class=12, size=(SIZE, SIZE), ending=".png", seed=1)


@pytest.fixture(scope="module")
def mirrored(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mirrored")
    for path in few.rglob("*.png"):
        (root / path.parent.name).mkdir(exist_ok=True)
        with Image.open(path) as image:
            ImageOps.mirror(image).save(root / path.parent.name / path.name)
    return root


def table_of(
    model: Method,
    folder: Path,
    *,
    score: Score = "pseudo_label",
    mirror: bool = False,
    delta: float = 0.7,
    region: Region = "all",
) -> BoxTable:
    loader = open_loader("folder", folder, WholePlan(size=SIZE), LoaderOptions(threads=1), batch_size=16)
    return build_box_table(
        model, loader, AttentionPass(size=SIZE, score=score, mirror=mirror, delta=delta, region=region)
    )


def seen(model: Method, folder: Path) -> tuple[Tensor, Tensor]:
    """A of the images and of their mirror images, mirrored back."""
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))])
    mean, std = torch.tensor(model.encoder.mean), torch.tensor(model.encoder.std)
    x = ((torch.from_numpy(pixels).float() / 255.0 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        return model.encoder.features(x), model.encoder.features(x.flip(3)).flip(3)


def foreground_by_loops(looks: list[Tensor]) -> npt.NDArray[np.float64]:
    """L (B, u, v), cell by cell."""
    arrays = [look.double().numpy() for look in looks]
    count, channels, u, v = arrays[0].shape
    maps = np.zeros((count, u, v))
    for n in range(count):
        cells = np.zeros((u, v, channels))
        for i in range(u):
            for j in range(v):
                for array in arrays:
                    vector = array[n, :, i, j]
                    cells[i, j] += vector / np.linalg.norm(vector) / len(arrays)
        border = [cells[i, j] for i in range(u) for j in range(v) if i in (0, u - 1) or j in (0, v - 1)]
        half = -(-len(border) // 2)
        differences, direction = np.zeros((u, v, channels)), np.zeros(channels)
        for i in range(u):
            for j in range(v):
                near = sorted(border, key=lambda cell: float(np.sum((cells[i, j] - cell) ** 2)))
                differences[i, j] = cells[i, j] - np.mean(near[1 : 1 + half], axis=0)
                direction += np.linalg.norm(differences[i, j]) ** 4 * differences[i, j]
        maps[n] = [[max(differences[i, j] @ direction, 0.0) for j in range(v)] for i in range(u)]
    return maps


@pytest.mark.parametrize("shape", [(5, 5), (2, 3), (4, 7)])
@pytest.mark.parametrize("count", [1, 2])
def test_foreground_equals_loops(shape: tuple[int, int], count: int) -> None:
    looks = list(torch.randn(count, 3, 6, *shape, generator=torch.Generator().manual_seed(1)).unbind(0))
    maps = foreground_map(looks)
    assert maps.shape == (3, 1, *shape)
    np.testing.assert_allclose(maps[:, 0], foreground_by_loops(looks), rtol=1e-5, atol=1e-6)


def region_by_label(coarse: npt.NDArray[np.float64], delta: float) -> npt.NDArray[np.float64]:
    """The region with the largest sum and the cells around it, by scipy's labels of connected cells."""
    labels, count = ndimage.label(coarse >= delta)
    sums = ndimage.sum(coarse, labels, range(1, count + 1))
    region = labels == 1 + np.argmax(sums)
    around = ndimage.binary_dilation(region, np.ones((3, 3))) & (labels == 0)
    return np.where(region | around, coarse, 0.0)


@pytest.mark.parametrize("shape", [(7, 7), (1, 1), (1, 12), (9, 5), (14, 14)])
@pytest.mark.parametrize("delta", [0.1, 0.5, 0.8])
def test_largest_region_equals_scipy(shape: tuple[int, int], delta: float) -> None:
    noise = torch.rand(20, *shape, generator=torch.Generator().manual_seed(2))
    maps = scaled_map(noise[:, None], torch.ones(20, 1), "max")
    kept = largest_region(maps, delta)
    for coarse, region in zip(maps.numpy(), kept.numpy(), strict=True):
        np.testing.assert_array_equal(region, region_by_label(coarse, delta))


def test_a_region_that_winds_through_the_map_is_whole() -> None:
    """A spiral: the longest path between two cells of a map."""
    spiral = torch.tensor(
        [
            [1, 1, 1, 1, 1, 1, 1],
            [0, 0, 0, 0, 0, 0, 1],
            [1, 1, 1, 1, 1, 0, 1],
            [1, 0, 0, 0, 1, 0, 1],
            [1, 0, 1, 1, 1, 0, 1],
            [1, 0, 0, 0, 0, 0, 1],
            [1, 1, 1, 1, 1, 1, 1],
        ]
    )
    torch.testing.assert_close(largest_region(spiral[None].float(), 0.5), spiral[None].float())


def test_two_objects_have_no_common_box() -> None:
    maps = torch.zeros(1, 1, 8, 8)
    maps[0, 0, 1:3, 1:3], maps[0, 0, 5:8, 5:8] = 1.0, 0.9
    kept = largest_region(maps[:, 0], 0.5)[:, None]
    (both,), _ = attention_boxes_reference(maps.numpy(), np.ones((1, 1)), 0.5, 64, "minmax")
    (one,), _ = attention_boxes_reference(kept.numpy(), np.ones((1, 1)), 0.5, 64, "minmax")
    assert both[:2].max() < 0.2
    assert one[:2].min() > 0.5


@pytest.mark.parametrize("maps", [torch.zeros(2, 4, 4), torch.full((2, 4, 4), float("nan"))])
def test_a_map_without_a_region_stays_empty(maps: Tensor) -> None:
    assert not largest_region(maps, 0.5).any()


@pytest.mark.parametrize("score", ["background", "pseudo_label"])
def test_boxes_of_the_largest_region(model: Method, few: Path, score: Score) -> None:
    table = table_of(model, few, score=score, delta=0.6, region="largest")
    features, _ = seen(model, few)
    weights, _, _ = channel_weights(model.encoder, model.projector, features, score)
    coarse = foreground_map([features]) if score == "background" else features
    weights = weights[:, :1] ** 0 if score == "background" else weights
    scaled = scaled_map(coarse, weights, "minmax").double().numpy()
    regions = np.stack([region_by_label(each, 0.6) for each in scaled])[:, None]
    boxes, _ = attention_boxes_reference(regions, np.ones((len(regions), 1)), 0.6, SIZE, "minmax")
    assert np.mean((table.boxes == boxes).all(1)) > 0.9
    assert np.mean((table.boxes == table_of(model, few, score=score, delta=0.6).boxes).all(1)) < 0.9
    assert table.metadata["region"] == "largest"


@pytest.mark.parametrize("mirror", [False, True])
def test_boxes_equal_the_reference(model: Method, few: Path, mirror: bool) -> None:
    table = table_of(model, few, score="background", mirror=mirror, delta=0.5)
    maps = foreground_by_loops(list(seen(model, few))[: 1 + mirror])[:, None]
    boxes, found = attention_boxes_reference(maps, np.ones((len(maps), 1)), 0.5, SIZE, "minmax")
    assert np.mean((table.boxes == boxes).all(1)) > 0.9
    np.testing.assert_allclose(table.boxes, boxes, atol=1.01 / SIZE)  # a pixel, where rounding decides
    np.testing.assert_array_equal(table.found, found)
    assert len(np.unique(boxes, axis=0)) > 8
    assert table.metadata["mirror"] == str(mirror)


def test_scores_of_channels_take_the_mean(model: Method, few: Path) -> None:
    """With ``mirror`` the pseudo label and its weights are those of the averaged activations."""
    table = table_of(model, few, mirror=True)
    features = mean_activations(seen(model, few))
    weights, label, _ = channel_weights(model.encoder, model.projector, features, "pseudo_label")
    boxes, _ = attention_boxes_reference(features.numpy(), weights.numpy(), 0.7, SIZE, "minmax")
    np.testing.assert_array_equal(table.pseudo_label, label)
    assert np.mean((table.boxes == boxes).all(1)) > 0.9
    assert np.mean((table.boxes == table_of(model, few).boxes).all(1)) < 0.9


@pytest.mark.parametrize("score", ["pseudo_label", "background"])
def test_mirror_images_have_mirrored_boxes(model: Method, few: Path, mirrored: Path, score: Score) -> None:
    """Which is what the second pass is for: without it they have not."""
    shares = []
    for mirror in (True, False):
        table, other = (table_of(model, folder, score=score, mirror=mirror, delta=0.5) for folder in (few, mirrored))
        expected = other.boxes.copy()
        expected[:, 0] = 1.0 - other.boxes[:, 0] - other.boxes[:, 2]
        shares.append(float(np.mean(np.abs(table.boxes - expected).max(1) < 0.5 / SIZE)))
    assert shares[0] > 0.95
    assert shares[1] < 0.5


def test_a_map_that_is_not_finite_has_no_box() -> None:
    looks = torch.randn(2, 6, 5, 5)
    looks[0, 0, 2, 2] = float("nan")
    maps = foreground_map([looks])
    _, found = attention_boxes_reference(maps.numpy(), np.ones((2, 1)), 0.5, SIZE, "minmax")
    assert found.tolist() == [False, True]
    constant = foreground_map([torch.ones(1, 6, 5, 5)])
    assert not attention_boxes_reference(constant.numpy(), np.ones((1, 1)), 0.5, SIZE, "minmax")[1].any()
