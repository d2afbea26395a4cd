"""The quality of boxes by how they are made: CorLoc and IoU with the true boxes, against forward passes per image.

``python -m benchmarks.study.boxes --out FILE --runs DIR`` reads the study's plain checkpoints and adds a row per
maker; ``--outside`` those of benchmarks.study.claims, with boxes of all regions and of the largest one. Thresholds are
swept, and a row has the best one: it is chosen on the very images that it is scored on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.scaffold import benchmark_parser, read_rows, record
from benchmarks.study.arms import TINY, Run, Scale
from benchmarks.study.claims import CLAIM_SCALE, CLAIM_TINY, ClaimStudy
from benchmarks.study.runs import Study
from saga_fast.attention.channel_weights import Score, channel_weights
from saga_fast.attention.heatmap import (
    foreground_map,
    image_activations,
    largest_region,
    mean_activations,
    scaled_map,
)
from saga_fast.checkpoint import load_model
from saga_fast.demo.data import demo_boxes
from saga_fast.kernels import attention_boxes
from saga_fast.loaders import Loader, WholePlan
from saga_fast.loaders.boxes import box_iou
from saga_fast.methods import Method
from saga_fast.methods.moco import MoCo
from saga_fast.models.precision import normalize_views
from saga_fast.profile.figures import Row
from saga_fast.runtime.machine import commit

Boxes = npt.NDArray[np.float32]
DELTAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
Activations = list[Tensor]
"""Activations (N, C, u, v) of the images, and of their mirror images, mirrored back."""
Maker = Callable[[Method, Activations], Tensor]
"""A model and its activations, with or without the mirror images' -> maps (N, u, v)."""


def activations_of(model: Method, loader: Loader, *, channels_last: bool) -> Activations:
    """The activations of one pass over the images and one over their mirror images."""
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for batch in loader:
        images = normalize_views(batch.views, model.encoder, torch.device("cpu"), channels_last=channels_last)[:, 0]
        with torch.no_grad():
            for part, activations in zip(parts, image_activations(model.encoder, images, mirror=True), strict=True):
                part.append(activations.features.contiguous())
    return [torch.cat(part) for part in parts]


def grad_cam(score: Score) -> Maker:
    """Eq. 2 and 3 with the score's channel weights."""

    def maps(model: Method, activations: Activations) -> Tensor:
        features = mean_activations(activations)
        weights, _, _ = channel_weights(model.encoder, model.projector, features, score)
        coarse: Tensor = torch.einsum("ncuv,nc->nuv", features, weights).relu()
        return coarse

    return maps


def background(_: Method, activations: Activations) -> Tensor:
    """The score ``background``."""
    return foreground_map(activations)[:, 0]


def first_background(_: Method, activations: Activations) -> Tensor:
    """The score ``background`` of the first study: every cell's background is the mean of the border."""
    difference = _difference(activations).flatten(2)
    direction = (difference * difference.square().sum(1, keepdim=True).square()).sum(2)
    foreground: Tensor = torch.einsum("bcp,bc->bp", difference, direction).relu()
    return foreground.view(len(foreground), *activations[0].shape[2:])


def border_distance(_: Method, activations: Activations) -> Tensor:
    """Squared distance from the background: the score ``background`` without its direction."""
    return _difference(activations).square().sum(1)


def unscaled_border_distance(_: Method, activations: Activations) -> Tensor:
    """The squared distance from the background of cells that are not scaled to length 1."""
    cells = mean_activations(activations)
    squared: Tensor = (cells - _border(cells)).square().sum(1)
    return squared


def data_set_distance(_: Method, activations: Activations) -> Tensor:
    """Distance from the mean features of the data set."""
    cells = mean_activations(activations)
    distance: Tensor = torch.linalg.vector_norm(cells - cells.mean((0, 2, 3), keepdim=True), dim=1)
    return distance


def image_distance(_: Method, activations: Activations) -> Tensor:
    """Squared distance from the mean features of the image."""
    cells = mean_activations([F.normalize(features, dim=1) for features in activations])
    return (cells - cells.mean((2, 3), keepdim=True)).square().sum(1)


def principal(_: Method, activations: Activations) -> Tensor:
    """The first principal component of the cells' differences from the background, positive in their mean."""
    difference = _difference(activations)
    flat = difference.flatten(2)
    gram = flat.transpose(1, 2) @ flat
    direction = torch.linalg.eigh(gram).eigenvectors[..., -1]
    along = (direction[:, None] * gram).sum(2)
    foreground: Tensor = (along * along.mean(1, keepdim=True).sign()).relu()
    return foreground.view(len(flat), *difference.shape[2:])


def _difference(activations: Activations) -> Tensor:
    cells = mean_activations([F.normalize(features, dim=1) for features in activations])
    return cells - _border(cells)


def _border(cells: Tensor) -> Tensor:
    edge = torch.zeros(cells.shape[2:], dtype=torch.bool)
    edge[[0, -1]], edge[:, [0, -1]] = True, True
    return cells[:, :, edge].mean(2)[..., None, None]


MAKERS: dict[str, Maker] = {
    "pseudo_label": grad_cam("pseudo_label"),
    "activation": grad_cam("activation"),
    "distance from the data set's mean": data_set_distance,
    "distance from the image's mean": image_distance,
    "distance from the border's mean, activations as they are": unscaled_border_distance,
    "distance from the border's mean": border_distance,
    "principal component of the differences from it": principal,
    "background, first study": first_background,
    "background": background,
}


def scores(maps: Tensor, true: Boxes, delta: float, size: int) -> dict[str, float]:
    """CorLoc, mean IoU and mean area of the boxes at a threshold."""
    boxes, found = attention_boxes(maps[:, None].float().contiguous(), torch.ones(len(maps), 1), delta=delta, size=size)
    return _scores(boxes.numpy(), true) | {"found_fraction": float(found.float().mean())}


def _scores(boxes: Boxes, true: Boxes) -> dict[str, float]:
    overlap = box_iou(boxes, true)
    area = float((boxes[:, 2] * boxes[:, 3]).mean())
    return {"corloc": float(np.mean(overlap >= 0.5)), "iou": float(overlap.mean()), "box_area": area}


def otsu(maps: Tensor, true: Boxes, size: int) -> dict[str, float]:
    """Scores with a threshold per image that best separates its cells into two classes (Otsu 1979).

    A shift of the map, clipped at 0 and divided by its maximum, moves the threshold to one half.
    """
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    scaled = (maps - low) / (high - low)
    values = scaled.flatten(1).sort(1).values.double()
    count = values.shape[1]
    below = torch.arange(1, count)
    sums = values.cumsum(1)
    means = sums[:, :-1] / below, (sums[:, -1:] - sums[:, :-1]) / (count - below)
    best = (below * (count - below) * (means[1] - means[0]).square()).argmax(1, keepdim=True)
    threshold = (0.5 * (values.gather(1, best) + values.gather(1, best + 1))).float()[..., None]
    shifted = (scaled - (2 * threshold - 1)).relu()
    ones = torch.ones(len(maps), 1)
    boxes, _ = attention_boxes(shifted[:, None].contiguous(), ones, delta=0.5, size=size, normalize="max")
    return _scores(boxes.numpy(), true)


def networks_of(run: Run, plain: Path) -> dict[str, Method]:
    """The networks of a plain checkpoint, in eval mode: the encoder, and the key encoder of MoCo v2."""
    networks = {"": load_model(plain).eval()}
    if run.method == "mocov2":
        key = load_model(plain).eval()
        assert isinstance(key, MoCo)
        key.encoder, key.projector = key.key_encoder, key.key_projector
        networks["key encoder, "] = key
    return networks


def rows_for(study: Study, run: Run) -> Iterator[Row]:
    """A row per network, input size and maker, with and without mirror images."""
    plain, config = study.plain(run), study.config(run, "plain")
    for prefix, model in networks_of(run, plain).items():
        for size in (config.crop.size, config.crop.size * 3 // 2):
            loader = study.open(run.data, "train", WholePlan(size=size))
            true = demo_boxes(loader.source.root, loader.source.paths)
            both = activations_of(model, loader, channels_last=config.channels_last)
            for name, maker in MAKERS.items():
                for activations in (both[:1], both):
                    title = f"{prefix}{name}" + (", mirror" if len(activations) == 2 else "") + f", {size} px"
                    facts: Row = {
                        "stage": "boxes",
                        "data": run.data,
                        "method": run.method,
                        "seed": run.seed,
                        "maker": title,
                        "forwards": len(activations) * (size / config.crop.size) ** 2,
                    }
                    row: Row = {"name": f"boxes {run.data}/{run.method}-{run.seed}: {title}"}
                    yield row | facts | swept_scores(maker(model, activations), true, size) | {"commit": commit()}


def swept_scores(maps: Tensor, true: Boxes, size: int) -> Row:
    """The scores of each threshold, and those of the best one and of Otsu's."""
    swept = {str(delta): scores(maps, true, delta, size) for delta in DELTAS}
    best = max(swept, key=lambda delta: swept[delta]["corloc"])
    return {
        "accuracy": swept[best]["corloc"],
        "delta": float(best),
        "iou": swept[best]["iou"],
        "deltas": swept,
        "otsu": otsu(maps, true, size),
    }


def outside_rows(study: Study, run: Run) -> Iterator[Row]:
    """A row per score and region, at the recipe's size; one pass."""
    plain, config = study.plain(run), study.config(run, "plain")
    size, model = config.crop.size * 3 // 2, load_model(plain).eval()
    loader = study.open(run.data, "train", WholePlan(size=size))
    true = demo_boxes(loader.source.root, loader.source.paths)
    activations = activations_of(model, loader, channels_last=config.channels_last)[:1]
    for name in ("pseudo_label", "activation", "background, first study", "background"):
        maps = MAKERS[name](model, activations)
        scaled = scaled_map(maps[:, None], torch.ones(len(maps), 1), "minmax")
        for region in ("all", "largest"):
            swept = {
                str(delta): scores(scaled if region == "all" else largest_region(scaled, delta), true, delta, size)
                for delta in DELTAS
            }
            best = max(swept, key=lambda delta: swept[delta]["corloc"])
            row: Row = {"name": f"boxes {run.data}/{run.method}-{run.seed}: {name}, {region}", "stage": "boxes"}
            row |= {"data": run.data, "method": run.method, "seed": run.seed, "arm": "boxes"}
            row |= {"maker": name, "region": region, "forwards": 2.25, "delta": float(best), "deltas": swept}
            yield row | {"accuracy": swept[best]["corloc"], "iou": swept[best]["iou"], "commit": commit()}


def show(row: Row) -> str:
    """A row's line."""
    return f"{row['name']:100} {row['forwards']:5.2f} forwards, delta {row['delta']}: {row['accuracy']:.3f}"


NETWORKS = (
    ("middle", "simclr", 0),
    ("middle", "mocov2", 1),
    ("middle", "invspread", 1),
    ("small", "simclr", 1),
    ("large", "simclr", 1),
    ("middle+distractor", "simclr", 1),
)
"""Data, method and seed of the plain checkpoints."""
OUTSIDE_NETWORKS = (
    ("fashion", "simclr", 1),
    ("fashion", "mocov2", 1),
    ("stamps", "simclr", 1),
    ("stamps", "mocov2", 1),
    ("middle", "simclr", 1),
)
"""Likewise, of the study of the recipe."""


def main(words: Sequence[str] | None = None) -> None:
    parser = benchmark_parser(__doc__, out="JSON file for the rows; those in it are kept")
    parser.add_argument("--runs", type=Path, required=True, help="the study's folder")
    parser.add_argument("--tiny", action="store_true", help="seconds: shows that the study runs")
    parser.add_argument("--networks", type=int, help="only the first so many of the study's plain checkpoints")
    parser.add_argument("--outside", action="store_true", help="the networks of benchmarks.study.claims")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    networks: Sequence[tuple[str, str, int]] = OUTSIDE_NETWORKS if options.outside else NETWORKS
    make = outside_rows if options.outside else rows_for
    if options.outside:
        study: Study = ClaimStudy(options.runs, CLAIM_TINY if options.tiny else CLAIM_SCALE)
    else:
        study = Study(options.runs, TINY if options.tiny else Scale())
    for data, method, seed in networks[: options.networks]:
        rows = list(make(study, Run(stage="boxes", data=data, method=method, seed=seed, arm="plain")))
        names = {row["name"] for row in rows}
        record(options.out, rows, kept=[r for r in read_rows(options.out) if r["name"] not in names], show=show)


if __name__ == "__main__":
    main()
