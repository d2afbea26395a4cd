"""Heatmaps (SAGA, Eq. 3) of a few images, from the checkpoints that a run kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from saga_fast.attention import look, scaled_map
from saga_fast.attention_config import AttentionConfig
from saga_fast.checkpoint import checkpoint_config, load_model, read_checkpoint
from saga_fast.errors import SagaError
from saga_fast.kernels import crop_resize
from saga_fast.methods import Method
from saga_fast.precision import normalized
from saga_fast.report.runs import Run

OPACITY = 0.6  # of the heat over the picture


@dataclass(frozen=True, kw_only=True)
class Heat:
    """What one checkpoint looked at: its ``words`` and the coarse maps (N, u, v) in [0, 1] of the images."""

    words: str
    maps: Tensor


def heats(run: Run, epochs: Sequence[int], pictures: Sequence[npt.NDArray[np.uint8]]) -> tuple[Heat, ...]:
    """Heatmaps at those of ``epochs`` whose ``epoch_NNNN.pt`` the run kept, and those of its ``last.pt``.

    Where a classifier's attention made the boxes, its heatmaps alone: it does not change. What cannot be read is left
    out, as the figures of a run outlive its checkpoints.

    Args:
        run: the run.
        epochs: of the renewals that are shown.
        pictures: N stored images (H, W, 3), each of its own size.
    """
    provider = run.setting("attention.provider_ckpt")
    if isinstance(provider, str):
        found = [("the classifier", Path(provider))]
    else:
        kept = [(f"epoch {epoch}", run.folder / f"epoch_{epoch:04d}.pt") for epoch in epochs]
        found = [*kept, ("", run.folder / "last.pt")]
    drawn: dict[str, Heat] = {}
    for words, path in found:
        if not path.is_file() or not pictures:
            continue
        try:
            content = read_checkpoint(path)
            config = checkpoint_config(content, path)
            maps = coarse_maps(load_model(path), pictures, config.attention_size, config.attention or AttentionConfig())
        except SagaError:
            continue
        words = words or f"epoch {content['epoch']}"
        drawn.setdefault(words, Heat(words=words, maps=maps))
    return tuple(drawn.values())


def coarse_maps(
    model: Method, pictures: Sequence[npt.NDArray[np.uint8]], size: int, attention: AttentionConfig
) -> Tensor:
    """The maps that boxes are made of, before upsampling: (N, u, v) float32 in [0, 1].

    Args:
        model: in eval mode; of several branches (CMC) the mean of their maps counts, scaled again.
        pictures: N images (H, W, 3) uint8, each squashed to ``size``.
        size: side of the network's input, pixels.
        attention: what is differentiated, and how maps are scaled.
    """
    views = [crop_resize(image, np.array([[0, 0, *image.shape[:2]]], np.int32), size) for image in pictures]
    images = normalized(torch.from_numpy(np.stack(views)), model.encoder, torch.device("cpu"))[:, 0]
    features, weights, _, _ = look(model, images, "fp32", attention.score, attention.normalize, mirror=attention.mirror)
    return scaled_map(features, weights, attention.normalize)


def overlay(picture: Image.Image, coarse: Tensor) -> Image.Image:
    """A picture under its heatmap (u, v), bicubic as for the boxes: dark where it is 0, yellow where it is 1."""
    fine = F.interpolate(coarse[None, None], size=(picture.height, picture.width), mode="bicubic", align_corners=False)
    colours = colormaps["inferno"](fine[0, 0].clamp(0.0, 1.0).numpy(), bytes=True)[:, :, :3]
    return Image.blend(picture, Image.fromarray(np.ascontiguousarray(colours)), OPACITY)
