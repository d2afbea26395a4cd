"""The attention pass: one forward pass over the data set, one box per image (SAGA, Algorithm 1)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from saga_fast.activations import activations, foreground_map, mean_of
from saga_fast.attention_parts import COLUMNS, Int64, Parts, rows_of
from saga_fast.channel_weights import Score, channel_weights
from saga_fast.compiled_encoder import Forward, chosen_forward, compiled, encoders_of
from saga_fast.distributed import agree, barrier, broadcast, check_same, gather_uneven, is_main, rank, world_size
from saga_fast.kernels import attention_boxes
from saga_fast.kernels.attention_boxes import Normalize
from saga_fast.loaders import Batch, BoxTable, Loader, Source
from saga_fast.methods import Method
from saga_fast.precision import Precision, autocast, normalized
from saga_fast.stopping import asked_to_stop, stop
from saga_fast.upload import uploaded


def build_box_table(
    model: Method,
    loader: Loader,
    *,
    delta: float = 0.7,
    size: int | None = None,
    normalize: Normalize = "minmax",
    score: Score = "pseudo_label",
    mirror: bool = False,
    precision: Precision = "fp32",
    channels_last: bool = False,
    forward: Forward = "auto",
    metadata: Mapping[str, str] | None = None,
    progress: bool = False,
    parts: Parts | None = None,
    resume: bool = False,
    others: BoxTable | None = None,
) -> BoxTable:
    """One box per image of the loader's data set, from the model's own attention (Eq. 2 to 4).

    A forward pass in eval mode; the model's mode is restored. Images that cannot be decoded keep the whole image.
    Processes that torchrun started together share the batches among them, and each gets the whole table: on the CPU the
    one that a process alone would make, bit for bit, if both use as many threads. At SIGTERM the pass ends with
    SystemExit 143, if the process that called it is :func:`saga_fast.stopping.stopping_in_order`.

    Args:
        model: has ``encoder`` and ``projector``; runs on the device where its parameters are.
        loader: whole images, not shuffled (:class:`saga_fast.loaders.WholePlan`), all of them in every process.
        delta: threshold on the scaled heatmap.
        size: side of the heatmap, pixels; default: the loader's image size.
        normalize: scaling of the coarse map, see :func:`saga_fast.kernels.attention_boxes`.
        score: what is differentiated, see :class:`~saga_fast.attention_config.AttentionConfig`.
        mirror: average the activations with those of the mirror images.
        precision: autocast type of the forward pass.
        channels_last: memory format of the input.
        forward: of whole batches, see :func:`saga_fast.compiled_encoder.chosen_forward`.
        metadata: strings for the table, ``checkpoint`` and ``epoch`` say.
        progress: show a progress bar with images/s on stderr.
        parts: where to keep what has been computed until the caller has saved the table and removes them.
        resume: take what ``parts`` holds of an earlier pass, and compute the rest.
        others: an earlier table, whose rows the images get that the loader leaves out (``loader.set_images``).

    Raises:
        SagaError: more undecodable images than the loader's list allows, or processes that see other files.
    """
    size = loader.plan.size if size is None else size
    how = {"delta": delta, "normalize": normalize, "score": score, "mirror": mirror}
    strings = {**described(loader.source, size, how), **(metadata or {})}
    images = len(loader.source) if loader.images is None else len(loader.images)
    passes = images * (2 if mirror else 1)
    forward = chosen_forward(forward, model, images=passes, size=loader.plan.size)
    same = {"the data set" if name == "dataset" else name: value for name, value in strings.items()}
    check_same(same | {"the forward pass": forward})
    agree(loader.bad)
    order = loader.order()
    device = next(model.parameters()).device
    # Processes with equal strings here compute equal rows, to the bit on the CPU.
    origin = {
        **strings,
        "precision": precision,
        "channels_last": str(channels_last),
        "forward": forward,
        "image_size": str(loader.plan.size),
        "loader": f"{type(loader).__name__} {loader.options.decode} {loader.options.crop}",
        "batch_size": str(loader.global_batch_size),
        "order": hashlib.sha256(order.tobytes()).hexdigest()[:16],
        "device": device.type,
    }
    table = BoxTable.whole(len(loader.source))
    if others is not None and loader.images is not None:
        _put(table, rows_of(others, np.setdiff1d(np.arange(len(table)), loader.images)))
    done = np.empty(0, np.int64)
    earlier = rows_of(table, done)
    if parts is not None:
        if is_main():
            parts.begin(keep=resume)
        barrier()  # nobody writes a part while old ones are removed
        if resume:
            earlier, done = broadcast(parts.read(origin) if is_main() else (earlier, done))
            _put(table, earlier)
    missing = np.setdiff1d(np.arange(len(loader)), done)
    was_training = model.training
    model.eval()
    bar = tqdm(total=len(order), desc="attention", unit="img", disable=None if progress and is_main() else True)
    try:
        own = _OwnShare(loader, order, missing, table, parts, origin)
        with bar, _running(model, loader, forward, precision):
            bar.update(len(order) - len(_images_of(order, missing, loader.global_batch_size)))
            for batch in uploaded(own.batches(), device):
                found_in_batch = boxes_of_batch(
                    model,
                    batch,
                    delta=delta,
                    size=size,
                    normalize=normalize,
                    score=score,
                    mirror=mirror,
                    precision=precision,
                    channels_last=channels_last,
                )
                own.take(batch.index, found_in_batch)
                bar.update(world_size() * len(batch.index))
    finally:
        model.train(was_training)
    own.share()
    agree(loader.bad)
    unreadable = earlier["index"][earlier["pseudo_label"] == -1]
    loader.bad.update(dict.fromkeys(unreadable.tolist(), "found by an earlier run"))
    return BoxTable(table.boxes, table.found, table.pseudo_label, table.score, strings)


def described(source: Source, size: int, looking: Mapping[str, object]) -> dict[str, str]:
    """A table's metadata that says of which images it is, and how they were looked at: see :func:`build_box_table`."""
    return {
        "dataset": source.fingerprint,
        "delta": repr(looking["delta"]),
        "size": str(size),
        "normalize": str(looking["normalize"]),
        "attention_score": str(looking["score"]),
        "mirror": str(looking["mirror"]),
    }


def _running(model: Method, loader: Loader, forward: Forward, precision: Precision) -> AbstractContextManager[None]:
    if forward == "eager":
        return nullcontext()
    encoders = encoders_of(model, loader.plan.size)
    return compiled(encoders, batch_size=loader.global_batch_size, precision=precision)


class _OwnShare:
    """What a process computes of a pass: every so many of the missing batches, and with others what all computed."""

    def __init__(
        self,
        loader: Loader,
        order: Int64,
        missing: Int64,
        table: BoxTable,
        parts: Parts | None,
        origin: Mapping[str, str],
    ) -> None:
        self._loader, self._order, self._table, self._parts, self._origin = loader, order, table, parts, origin
        self._missing = missing
        self._numbers = missing[rank() :: world_size()]
        self._written, self._since = 0, time.perf_counter()
        self._taken: list[tuple[Tensor, ...]] = []  # index and columns, not yet in the table

    def batches(self) -> Iterator[Batch]:
        """The batches. The caller may ask for the next one before it has taken the rows of this one."""
        self._loader.set_batches(self._numbers)
        try:
            for batch in self._loader:
                self._write_part()
                yield batch
        finally:
            self._loader.set_batches(None)

    def take(self, index: Tensor, columns: tuple[Tensor, ...]) -> None:
        """A batch's rows, which stay on the device until a part is written or the pass ends: no batch waits for one."""
        self._taken.append((index, *columns))

    def _settle(self) -> None:
        """Put what has been taken into the table: a copy from the device per column."""
        if self._taken:
            index, *columns = (torch.cat(parts).cpu().numpy() for parts in zip(*self._taken, strict=True))
            _put(self._table, {"index": index, **dict(zip(COLUMNS, columns, strict=True))})
            self._taken.clear()

    def _write_part(self) -> None:
        """Write the rows that have been taken and that no part has yet, when it is time to."""
        due = asked_to_stop() or (self._parts and time.perf_counter() - self._since >= self._parts.seconds)
        if self._parts and due and self._taken:
            number = int(np.searchsorted(self._order, int(self._taken[-1][0][0]))) // self._loader.global_batch_size
            # Batches in which nothing could be decoded do not come at all.
            done = int(np.searchsorted(self._numbers, number)) + 1
            self._settle()
            numbers = self._numbers[self._written : done]
            index = _images_of(self._order, numbers, self._loader.global_batch_size)
            self._parts.write(rows_of(self._table, index), numbers, self._origin)
            self._written, self._since = done, time.perf_counter()
        if asked_to_stop():
            stop()

    def share(self) -> None:
        """Put the rows into the table, and let every process have those that any has computed.

        Raises:
            RuntimeError: an index was computed twice, or not at all.
        """
        self._settle()
        if world_size() == 1:
            return
        size = self._loader.global_batch_size
        own = rows_of(self._table, _images_of(self._order, self._numbers, size))
        every = {name: gather_uneven([torch.from_numpy(rows)]).numpy() for name, rows in own.items()}
        expected = _images_of(self._order, self._missing, size)
        if not np.array_equal(np.sort(every["index"]), expected):
            raise RuntimeError(f"{len(every['index'])} rows of {len(expected)} were computed, or not the right ones")
        _put(self._table, every)


def _images_of(order: Int64, numbers: Int64, size: int) -> Int64:
    """The images of these batches, those among them that cannot be decoded too."""
    places = (numbers[:, None] * size + np.arange(size)).ravel()
    images: Int64 = order[places[places < len(order)]]
    return images


def _put(table: BoxTable, rows: Mapping[str, npt.NDArray[np.generic]]) -> None:
    for name in COLUMNS:
        getattr(table, name)[rows["index"]] = rows[name]


def boxes_of_batch(
    model: Method,
    batch: Batch,
    *,
    delta: float,
    size: int,
    normalize: Normalize,
    score: Score,
    mirror: bool,
    precision: Precision,
    channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The attention pass of one batch of whole images, for a model in eval mode; arguments as above.

    Returns:
        boxes (B, 4) float32, found (B,) bool, pseudo label (B,) int64 and score (B,) float32, on the model's device.
    """
    device = next(model.parameters()).device
    images = normalized(batch.views, model.encoder, device, channels_last=channels_last)[:, 0]
    features, weights, label, value = look(model, images, precision, score, normalize, mirror=mirror)
    boxes, found = attention_boxes(features, weights, delta=delta, size=size, normalize=normalize)
    return boxes, found, label, value


def look(
    model: Method, images: Tensor, precision: Precision, score: Score, normalize: Normalize, *, mirror: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the boxes are made of: activations (B, C, u, v) and weights (B, C), pseudo label and score (B,).

    The score ``background`` is no weighted sum of channels: it comes as the only channel, of weight 1.

    Of several branches (CMC) each one's map, scaled to [0, 1], becomes a channel, and all weigh the same: the weighted
    sum is their average, which ``attention_boxes`` scales like any other map. The pseudo label is then the strongest
    dimension of all branches' z side by side, ``model.projector``'s output, while each map is its own branch's
    strongest dimension's.
    """
    looks = []
    for branch in model.branches(images):
        with torch.no_grad(), autocast(images.device, precision):
            seen = activations(branch.encoder, branch.images, mirror=mirror)
        features = mean_of(seen)
        weights, label, value = channel_weights(branch.encoder, branch.projector, features, score)
        if score == "background":
            features = foreground_map(seen)
            weights = features.new_ones(len(features), 1)
        looks.append((features, weights, label + branch.first_dim, value))
    if len(looks) == 1:
        return looks[0]
    maps = torch.stack([scaled_map(features, weights, normalize) for features, weights, _, _ in looks], 1)
    value, strongest = torch.stack([look[3] for look in looks], 1).max(1)
    label = torch.stack([look[2] for look in looks], 1).gather(1, strongest[:, None])[:, 0]
    return maps, torch.full_like(maps[:, :, 0, 0], 1.0 / len(looks)), label, value


def scaled_map(features: Tensor, weights: Tensor, normalize: Normalize) -> Tensor:
    """The coarse heatmap (Eq. 3) scaled to [0, 1]: (B, C, u, v), (B, C) -> (B, u, v) float32.

    A map that could not be scaled, because it is constant or not finite, is zero and has no vote in an average.
    """
    coarse = torch.einsum("bcuv,bc->buv", features.float(), weights).relu()
    low = coarse.amin((1, 2), keepdim=True) if normalize == "minmax" else torch.zeros_like(coarse[:, :1, :1])
    span = coarse.amax((1, 2), keepdim=True) - low
    return torch.where(span.isfinite() & (span > 0.0), (coarse - low) / span, 0.0)


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [x_min, y_min, w, h], row by row: (N, 4), (N, 4) -> (N,)."""
    near = np.maximum(boxes[:, :2], others[:, :2])
    far = np.minimum(boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:])
    shared = np.prod(np.maximum(far - near, 0.0), axis=1)
    iou: np.ndarray = shared / (np.prod(boxes[:, 2:], axis=1) + np.prod(others[:, 2:], axis=1) - shared)
    return iou
