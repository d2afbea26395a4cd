"""How good boxes are, by how they are made: CorLoc and IoU with the true boxes, against forward passes per image.

``python -m benchmarks.study.boxes --out FILE --runs DIR`` reads the study's plain checkpoints and adds a row per
maker. Thresholds are swept, and a row tells of the best first: it is chosen on the very images it is scored on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.study.__main__ import rows_of
from benchmarks.study.arms import TINY, Run, Scale
from benchmarks.study.runs import Study
from saga_fast.activations import foreground_map, mean_of
from saga_fast.attention import box_iou
from saga_fast.channel_weights import Score, channel_weights
from saga_fast.checkpoint import load_model
from saga_fast.demo_data import read_true_boxes
from saga_fast.kernels import attention_boxes
from saga_fast.loaders import Loader, WholePlan
from saga_fast.methods import Method
from saga_fast.methods.moco import MoCo
from saga_fast.precision import normalized
from saga_fast.profile.figures import Row, commit, write

DELTAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
Looks = list[Tensor]
"""Activations (N, C, u, v) of the images, and of their mirror images, mirrored back."""
Maps = Callable[[Method, Looks], Tensor]


def look(model: Method, loader: Loader, channels_last: bool) -> Looks:
    """One pass over the images and one over their mirror images."""
    seen: tuple[list[Tensor], list[Tensor]] = ([], [])
    for batch in loader:
        images = normalized(batch.views, model.encoder, torch.device("cpu"), channels_last=channels_last)[:, 0]
        with torch.no_grad():
            seen[0].append(model.encoder.features(images).contiguous())
            seen[1].append(model.encoder.features(images.flip(3)).flip(3).contiguous())
    return [torch.cat(parts) for parts in seen]


def grad_cam(score: Score) -> Maps:
    """Eq. 2 and 3 with the score's channel weights."""

    def maps(model: Method, looks: Looks) -> Tensor:
        features = mean_of(looks)
        weights, _, _ = channel_weights(model.encoder, model.projector, features, score)
        coarse: Tensor = torch.einsum("ncuv,nc->nuv", features, weights).relu()
        return coarse

    return maps


def background(_: Method, looks: Looks) -> Tensor:
    """The score ``background``."""
    return foreground_map(looks)[:, 0]


def distance(_: Method, looks: Looks) -> Tensor:
    """Squared distance from the background: the score ``background`` without its direction."""
    return _difference(looks).square().sum(1)


def distance_plainly(_: Method, looks: Looks) -> Tensor:
    """The same without scaling each cell's features to length 1."""
    cells = mean_of(looks)
    squared: Tensor = (cells - _border(cells)).square().sum(1)
    return squared


def centred(_: Method, looks: Looks) -> Tensor:
    """Distance from the mean features of the data set."""
    cells = mean_of(looks)
    distance: Tensor = torch.linalg.vector_norm(cells - cells.mean((0, 2, 3), keepdim=True), dim=1)
    return distance


def image_centred(_: Method, looks: Looks) -> Tensor:
    """Distance from the mean features of the image."""
    cells = mean_of([F.normalize(features, dim=1) for features in looks])
    return (cells - cells.mean((2, 3), keepdim=True)).square().sum(1)


def principal(_: Method, looks: Looks) -> Tensor:
    """The first principal component of the cells' differences from the background, positive in their mean."""
    difference = _difference(looks)
    flat = difference.flatten(2)
    gram = flat.transpose(1, 2) @ flat
    direction = torch.linalg.eigh(gram).eigenvectors[..., -1]
    along = (direction[:, None] * gram).sum(2)
    foreground: Tensor = (along * along.mean(1, keepdim=True).sign()).relu()
    return foreground.view(len(flat), *difference.shape[2:])


def _difference(looks: Looks) -> Tensor:
    cells = mean_of([F.normalize(features, dim=1) for features in looks])
    return cells - _border(cells)


def _border(cells: Tensor) -> Tensor:
    edge = torch.zeros(cells.shape[2:], dtype=torch.bool)
    edge[[0, -1]], edge[:, [0, -1]] = True, True
    return cells[:, :, edge].mean(2)[..., None, None]


MAKERS: dict[str, Maps] = {
    "pseudo_label": grad_cam("pseudo_label"),
    "norm": grad_cam("norm"),
    "activation": grad_cam("activation"),
    "distance from the data set's mean": centred,
    "distance from the image's mean": image_centred,
    "distance from the border's mean, activations as they are": distance_plainly,
    "distance from the border's mean": distance,
    "principal component of the differences from it": principal,
    "background": background,
}


def scores(maps: Tensor, true: np.ndarray, delta: float, size: int) -> dict[str, float]:
    """CorLoc, mean IoU and mean area of the boxes at a threshold."""
    boxes, found = attention_boxes(maps[:, None].float().contiguous(), torch.ones(len(maps), 1), delta=delta, size=size)
    return _scores(boxes.numpy(), true) | {"found_fraction": float(found.float().mean())}


def _scores(boxes: np.ndarray, true: np.ndarray) -> dict[str, float]:
    overlap = box_iou(boxes, true)
    area = float((boxes[:, 2] * boxes[:, 3]).mean())
    return {"corloc": float(np.mean(overlap >= 0.5)), "iou": float(overlap.mean()), "box_area": area}


def otsu(maps: Tensor, true: np.ndarray, size: int) -> dict[str, float]:
    """Scores with a threshold per image that best parts its cells in two (Otsu 1979).

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


def rows_for(study: Study, run: Run) -> list[Row]:
    """A row per maker, number of looks and input size."""
    plain, config = study.plain(run), study.config(run, "plain")
    models: Mapping[str, Method] = {"": load_model(plain)}
    if run.method == "mocov2":
        key = load_model(plain)
        assert isinstance(key, MoCo)
        key.encoder, key.projector = key.key_encoder, key.key_projector
        models = {**models, "key encoder, ": key}
    rows = []
    for prefix, model in models.items():
        for size in (config.crop.size, config.crop.size * 3 // 2):
            loader = study.open(config, "train", WholePlan(size=size))
            true = read_true_boxes(loader.source.root, loader.source.paths)
            both = look(model.eval(), loader, config.channels_last)
            for name, make in MAKERS.items():
                for looks in (both[:1], both):
                    maps = make(model, looks)
                    swept = {str(delta): scores(maps, true, delta, size) for delta in DELTAS}
                    best = max(swept, key=lambda delta: swept[delta]["corloc"])
                    forwards = len(looks) * (size / config.crop.size) ** 2
                    facts = {"stage": "boxes", "data": run.data, "method": run.method, "seed": run.seed}
                    maker = f"{prefix}{name}" + (", mirror" if len(looks) == 2 else "") + f", {size} px"
                    rows.append(
                        {
                            "name": f"boxes {run.data}/{run.method}-{run.seed}: {maker}",
                            "accuracy": swept[best]["corloc"],
                            **facts,
                            "maker": maker,
                            "forwards": forwards,
                            "delta": float(best),
                            "iou": swept[best]["iou"],
                            "deltas": swept,
                            "otsu": otsu(maps, true, size),
                            "commit": commit(),
                        }
                    )
    return rows


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the rows; those in it are kept")
    parser.add_argument("--runs", type=Path, required=True, help="the study's folder")
    parser.add_argument("--tiny", action="store_true", help="seconds, to see that it runs")
    parser.add_argument("--networks", type=int, help="the first so many of the study's plain checkpoints")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    study = Study(arguments.runs, TINY if arguments.tiny else Scale())
    bases = [("middle", "simclr", 0)]
    bases += [("middle", "mocov2", 1), ("middle", "invspread", 1), ("small", "simclr", 1), ("large", "simclr", 1)]
    bases += [("middle+distractor", "simclr", 1)]
    for data, method, seed in bases[: arguments.networks]:
        new = rows_for(study, Run(stage="boxes", data=data, method=method, seed=seed, arm="plain"))
        names = {row["name"] for row in new}
        write(arguments.out, [*(row for row in rows_of(arguments.out) if row["name"] not in names), *new])
        for row in new:
            print(f"{row['name']:100} {row['forwards']:5.2f} forwards, delta {row['delta']}: {row['accuracy']:.3f}")


if __name__ == "__main__":
    main()
