"""Inputs of the kernels' benchmarks, and their peers: the usual torch, NumPy, torchvision or Pillow code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torchvision import transforms

from saga_fast.kernels import sample_windows
from saga_fast.profile.kernels import MEAN, STD

NDArray = npt.NDArray[Any]
Boxes = npt.NDArray[np.float32]
Heatmaps = npt.NDArray[np.float32]
JITTER: dict[str, float] = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
"""MoCo v2's, as torchvision's arguments."""
SCALE, RATIO = (0.2, 1.0), (3.0 / 4.0, 4.0 / 3.0)
"""Of MoCo's RandomResizedCrop."""
DELTA = 0.7
HEIGHT, WIDTH, VIEW = 375, 500, 224
"""The usual photograph of ImageNet, and its view."""


def pictures(count: int, height: int, width: int) -> NDArray:
    """(count, height, width, 3) uint8: coloured clouds with some noise, all levels and hues."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 12, 16, 3), np.uint8)
    clouds = np.stack(
        [np.asarray(Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC)) for c in coarse]
    )
    noise = rng.integers(-20, 21, clouds.shape, np.int16)
    levels: NDArray = np.clip(clouds + noise, 0, 255)
    return levels.astype(np.uint8)


def whole_boxes(count: int) -> Boxes:
    """(count, 4): the whole image."""
    return np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1))


def two_windows(
    sizes: NDArray,
    boxes: Boxes | None = None,
    *,
    seed: int = 0,
    epoch: int = 0,
    scale: tuple[float, float] = SCALE,
) -> NDArray:
    """The windows of two random crops per image, of its box or of the whole image: sizes (B, 2) -> (B, 2, 4) int32."""
    windows: NDArray = sample_windows(
        whole_boxes(len(sizes)) if boxes is None else boxes,
        sizes,
        seed=seed,
        epoch=epoch,
        indices=np.arange(len(sizes)),
        num_views=2,
        scale=scale,
        ratio=RATIO,
    )
    return windows


def peaks(batch: int, generator: torch.Generator) -> torch.Tensor:
    """(batch, 1, 7, 7): one soft peak per image. A flat map would have no pixel below every threshold."""
    y, x = torch.rand(2, batch, 1, 1, 1, generator=generator) * 7
    grid = torch.arange(7) + 0.5
    return torch.exp(-((grid[:, None] - y) ** 2 + (grid - x) ** 2) / 8)


def peaked_features(batch: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A ResNet's last map (batch, channels, 7, 7) with a peak per image, and channel weights (batch, channels)."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(batch, channels, 7, 7, generator=generator) * peaks(batch, generator)
    return features, torch.rand(batch, channels, generator=generator)


def upsampled(coarse: torch.Tensor, size: int) -> torch.Tensor:
    """Channel sums (B, u, v) -> ReLU, scaled per image to [0, 1], bicubic: (B, size, size)."""
    maps = coarse.relu().flatten(1)
    maps = maps - maps.min(1, keepdim=True)[0]
    maps = (maps / maps.max(1, keepdim=True)[0]).view(coarse.shape)
    return F.interpolate(maps[:, None], size=(size, size), mode="bicubic", align_corners=False)[:, 0]


def boxes_as_contrastive_crop(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """ContrastiveCrop's update_box, with the channel sum weighted (Eq. 3) and the interpolation bicubic."""
    boxes = []
    for heatmap in upsampled(torch.einsum("bc,bcuv->buv", weights, features), VIEW):
        rows = torch.nonzero((heatmap.max(1)[0] > DELTA).int()).view(-1)[[0, -1]] / VIEW
        columns = torch.nonzero((heatmap.max(0)[0] > DELTA).int()).view(-1)[[0, -1]] / VIEW
        boxes.append(torch.tensor([columns[0], rows[0], columns[1], rows[1]]))
    return torch.stack(boxes)


def boxes_as_grad_cam(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The channel sum as pytorch-grad-cam writes it, and each mask's pixels listed by nonzero."""
    boxes = []
    for heatmap in upsampled((weights[:, :, None, None] * features).sum(1), VIEW):
        pixels = torch.nonzero(heatmap > DELTA)
        boxes.append(torch.cat([pixels.min(0)[0], pixels.max(0)[0]]) / VIEW)
    return torch.stack(boxes)


def boxes_of_heatmaps(heatmaps: Heatmaps) -> Boxes:
    """The rectangle around the pixels above DELTA, image by image: heatmaps (B, S, S) -> (B, 4) normalised."""
    boxes = whole_boxes(len(heatmaps))
    for box, heatmap in zip(boxes, heatmaps, strict=True):
        mask = heatmap > DELTA
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        if len(rows):
            near, far = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]]) + 1
            box[:] = np.concatenate([near, far - near]) / len(heatmap)
    return boxes


def windows_by_torchvision(sizes: NDArray, views: int) -> None:
    """RandomResizedCrop's draws."""
    for height, width in sizes:
        image = torch.empty(3, height, width, device="meta")
        for _ in range(views):
            transforms.RandomResizedCrop.get_params(image, list(SCALE), list(RATIO))


def photometrics_by_torchvision(views: int) -> None:
    """The draws of MoCo v2's recipe."""
    around = (0.6, 1.4)
    for _ in range(views):
        transforms.ColorJitter.get_params(around, around, around, (-0.1, 0.1))
        transforms.GaussianBlur.get_params(0.1, 2.0)
        for _ in ("flip", "jitter", "grayscale", "blur"):
            torch.rand(1).item()


def resize_by_pillow(images: list[Image.Image], windows: NDArray) -> None:
    """Antialiased bilinear crops of VIEW px."""
    for image, views in zip(images, windows, strict=True):
        for top, left, height, width in views.tolist():
            image.resize((VIEW, VIEW), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))


class PillowBlur:
    """The blur of MoCo v2's own code: a Pillow filter, which approximates the Gaussian by three box blurs."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(np.random.default_rng().uniform(0.1, 2.0)))


def augment_by_torchvision(views: list[Image.Image], blur: Callable[[Any], Any]) -> torch.Tensor:
    """MoCo v2's recipe on PIL images that are already cropped."""
    recipe = transforms.Compose(
        [
            transforms.RandomApply([transforms.ColorJitter(**JITTER)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([blur], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return torch.stack([recipe(view) for view in views])


def logits_by_bmm(features: torch.Tensor, bank: torch.Tensor, idx: torch.Tensor) -> torch.Tensor:
    """bank_logits with the rows gathered first."""
    rows = bank.index_select(0, idx.flatten()).view(*idx.shape, -1)
    return torch.bmm(rows, features[:, :, None])[:, :, 0]
