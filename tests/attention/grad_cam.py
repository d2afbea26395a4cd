"""Grad-CAM boxes as the paper defines them, in float64 by autograd through the whole network: the oracle of the pass.

Shapes: B images, C channels, (u, v) the last convolutional map, S the image's side.
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from saga_fast.attention.channel_weights import Score
from saga_fast.kernels.attention_boxes import Normalize
from saga_fast.loaders import BadImages, BoxTable, ImageFolder, Loader, LoaderOptions, WholePlan, open_loader
from saga_fast.methods import METHODS, Method, build_method
from saga_fast.models.encoder import EncoderConfig

SIZE = 40
RESNET: dict[str, Any] = {"name": "resnet18", "args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24]}}
SMALL_RESNET: dict[str, Any] = {**RESNET, "stem": "small"}  # 5 x 5 maps of 40 px
SCORES: tuple[Score, ...] = tuple(score for score in get_args(Score) if score != "token")  # of any encoder
CHANNEL_SCORES = tuple(score for score in SCORES if score != "background")  # a weighted sum of channels: Eq. 3


def make_model(encoder: dict[str, Any], *, linear: bool = False, seed: int = 0) -> Method:
    """A random network in train mode whose batch-norm statistics are not the initial zeros and ones."""
    torch.manual_seed(seed)
    model = build_method(METHODS["simclr"].Config(name="simclr"), EncoderConfig(**encoder))
    if linear:
        model.projector = nn.Linear(model.encoder.dim, 128)
    with torch.no_grad():
        for _ in range(3):
            model.encoder(torch.randn(16, 3, 32, 32))
    return model


def open_images(root: Path, *, size: int = SIZE, batch_size: int = 32, threads: int = 2) -> Loader:
    source = ImageFolder(root)
    bad = BadImages(source, max_fraction=0.5)
    plan = WholePlan(size=size)
    return open_loader("folder", source, plan, LoaderOptions(threads=threads), batch_size=batch_size, bad=bad)


def read_pixels(root: Path) -> Tensor:
    """The images of ``root`` in ImageFolder order, read by Pillow and normalised as the encoder's defaults say."""
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(root.rglob("*.png"))])
    x = torch.from_numpy(pixels).double().permute(0, 3, 1, 2) / 255.0
    mean, std = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
    return (x - mean[:, None, None]) / std[:, None, None]


def autograd_weights(
    model: Method, layer: str, x: Tensor, score: Score, *, prefix: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A and alpha (Eq. 2) by a hook on the layer and a backward pass through all that follows it; and z.

    In float64, image by image, so that nothing rests on the rows of a batch being independent. ``prefix`` is the number
    of tokens before those of the patches, for a layer whose output is tokens (1, N, C).
    """
    model = copy.deepcopy(model).double().eval()
    kept: list[Tensor] = []
    model.encoder.backbone.get_submodule(layer).register_forward_hook(lambda *arguments: kept.append(arguments[2]))
    maps, alphas, outputs = [], [], []
    for image in x.double():
        kept.clear()
        z = model.projector(model.encoder(image[None]))[0]
        (a,) = kept
        if score == "activation":
            alpha = torch.ones(len(as_map(a, prefix)), dtype=torch.float64)
        else:
            target = z[z.argmax()]
            (gradient,) = torch.autograd.grad(target, a)
            alpha = as_map(gradient, prefix).mean((1, 2))
        maps.append(as_map(a, prefix).detach())
        alphas.append(alpha)
        outputs.append(z.detach())
    return torch.stack(maps), torch.stack(alphas), torch.stack(outputs)


def as_map(a: Tensor, prefix: int | None) -> Tensor:
    """(C, u, v) of one square image: of a map (1, C, u, u), of timm's NHWC families (1, u, u, C), or of tokens."""
    if prefix is not None:
        side = math.isqrt(a.shape[1] - prefix)
        return a[0, prefix:].reshape(side, side, -1).permute(2, 0, 1)
    return a[0].permute((2, 0, 1) if a.shape[2] != a.shape[3] else (0, 1, 2))


def grad_cam_edges(
    maps: Tensor, alphas: Tensor, size: int, delta: float, normalize: Normalize
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Eq. 3 and 4: box edges [x0, y0, x1, y1] (B, 4) in pixels of the upsampled map, and which were found (B,)."""
    edges, found = [], []
    for a, alpha in zip(maps, alphas, strict=True):
        coarse = torch.relu((alpha[:, None, None] * a).sum(0))
        low = coarse.min() if normalize == "minmax" else torch.zeros(())
        scaled = (coarse - low) / (coarse.max() - low)
        fine = F.interpolate(scaled[None, None], size=(size, size), mode="bicubic", align_corners=False)[0, 0]
        inside = (fine > delta).nonzero()
        found.append(len(inside) > 0)
        box = [*inside.min(0).values.flip(0), *(inside.max(0).values + 1).flip(0)] if found[-1] else [0, 0, size, size]
        edges.append([int(edge) for edge in box])
    return np.array(edges), np.array(found)


def table_edges(table: BoxTable, size: int) -> npt.NDArray[np.int64]:
    """The boxes' edges in pixels, which have to lie on the pixel grid."""
    edges = np.concatenate([table.boxes[:, :2], table.boxes[:, :2] + table.boxes[:, 2:]], 1) * size
    rounded: npt.NDArray[np.int64] = np.rint(edges).astype(np.int64)
    np.testing.assert_allclose(edges, rounded, atol=1e-4)
    return rounded


def assert_edges(edges: npt.NDArray[np.int64], expected: npt.NDArray[np.int64], *, exact: float = 0.9) -> None:
    """Exact on a share of the images and nowhere off by more than one pixel."""
    assert (edges == expected).all(1).mean() >= exact
    assert np.abs(edges - expected).max() <= 1


def copy_images(root: Path, target: Path, *, spoil: Sequence[int]) -> Path:
    """Copy a folder; the images of these indices lose their second half."""
    source = ImageFolder(root)
    for index, path in enumerate(source.paths):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        data = (root / path).read_bytes()
        (target / path).write_bytes(data[: len(data) // 2] if index in spoil else data)
    return target
