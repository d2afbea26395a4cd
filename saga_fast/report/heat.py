"""Heatmaps (SAGA, Eq. 3) of a few images, from the checkpoints in a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from saga_fast.attention import AttentionPass
from saga_fast.attention.heatmap import attention_maps, scaled_map
from saga_fast.checkpoint import open_checkpoint
from saga_fast.errors import SagaError
from saga_fast.kernels import crop_resize
from saga_fast.methods import Method
from saga_fast.models.precision import normalize_views
from saga_fast.report.runs import Run

OPACITY = 0.6  # of the heatmap over the picture


@dataclass(frozen=True, kw_only=True)
class Heatmaps:
    """The heatmaps of one checkpoint: its label, and maps (N, u, v) in [0, 1] before upsampling."""

    label: str
    maps: Tensor


def checkpoint_heatmaps(
    run: Run, epochs: Sequence[int], pictures: Sequence[npt.NDArray[np.uint8]]
) -> tuple[Heatmaps, ...]:
    """Heatmaps from the ``epoch_NNNN.pt`` files of ``epochs`` and from ``last.pt``.

    If a classifier provided the boxes, its heatmaps alone: its weights do not change. Missing and unreadable
    checkpoints are left out, because the rest of the report is valid without them.

    Args:
        run: the run.
        epochs: epochs of the renewals that the gallery shows.
        pictures: N stored images (H, W, 3) uint8, each of its own size.
    """
    by_label: dict[str, Heatmaps] = {}
    for label, path in _checkpoints(run, epochs) if pictures else []:
        try:
            checkpoint = open_checkpoint(path)
            maps = coarse_maps(checkpoint.model(), pictures, checkpoint.config.attention_pass)
            label = label or f"epoch {checkpoint.epoch}"
        except SagaError:
            continue
        by_label.setdefault(label, Heatmaps(label=label, maps=maps))
    return tuple(by_label.values())


def _checkpoints(run: Run, epochs: Sequence[int]) -> list[tuple[str, Path]]:
    """(label, path) of the checkpoint files that exist; the label of ``last.pt`` is empty."""
    classifier = run.setting("attention.provider_ckpt")
    if isinstance(classifier, str):
        labelled = [("the classifier", Path(classifier))]
    else:
        kept = [(f"epoch {epoch}", run.folder / f"epoch_{epoch:04d}.pt") for epoch in epochs]
        labelled = [*kept, ("", run.folder / "last.pt")]
    return [(label, path) for label, path in labelled if path.is_file()]


def coarse_maps(model: Method, pictures: Sequence[npt.NDArray[np.uint8]], options: AttentionPass) -> Tensor:
    """Attention maps before upsampling, scaled to [0, 1]: (N, u, v) float32, computed in float32.

    Args:
        model: in eval mode; with several branches (CMC) the mean of their maps, scaled again.
        pictures: N images (H, W, 3) uint8, each resized to a square of the pass's size.
        options: options of the pass that made the boxes.
    """
    options = replace(options, precision="fp32")
    views = [crop_resize(image, np.array([[0, 0, *image.shape[:2]]], np.int32), options.size) for image in pictures]
    images = normalize_views(torch.from_numpy(np.stack(views)), model.encoder, torch.device("cpu"))[:, 0]
    maps = attention_maps(model, images, options)
    return scaled_map(maps.features, maps.weights, options.normalize)


def overlay(picture: Image.Image, coarse: Tensor) -> Image.Image:
    """A picture blended with its heatmap (u, v): dark where the map is 0, yellow where it is 1.

    The map is upsampled bicubically, as for the boxes.
    """
    from matplotlib import colormaps

    fine = F.interpolate(coarse[None, None], size=(picture.height, picture.width), mode="bicubic", align_corners=False)
    colours = colormaps["inferno"](fine[0, 0].clamp(0.0, 1.0).numpy(), bytes=True)[:, :, :3]
    return Image.blend(picture, Image.fromarray(np.ascontiguousarray(colours)), OPACITY)
