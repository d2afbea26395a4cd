"""Algorithm 1 of SAGA: one forward pass over the data set, one box per image."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from saga_fast.attention.config import AttentionPass
from saga_fast.attention.heatmap import attention_maps
from saga_fast.attention.parts import COLUMNS, Columns, Int64, Parts, put_rows, rows_of
from saga_fast.kernels import attention_boxes
from saga_fast.loaders import Batch, BoxTable, Loader, Source
from saga_fast.loaders.bad_images import FOUND_EARLIER
from saga_fast.loaders.upload import upload_ahead
from saga_fast.methods import Method
from saga_fast.models.compiled_features import choose_forward, compiled_features
from saga_fast.models.modes import eval_mode
from saga_fast.models.precision import normalize_views
from saga_fast.runtime.distributed import barrier, broadcast, check_same, gather_uneven, is_main, rank, world_size
from saga_fast.runtime.signals import stop, stop_requested

log = logging.getLogger(__name__)


def build_box_table(
    model: Method,
    loader: Loader,
    attention_pass: AttentionPass | None = None,
    *,
    delta: float | None = None,
    size: int | None = None,
    metadata: Mapping[str, str] | None = None,
    parts: Parts | None = None,
    progress: bool = False,
) -> BoxTable:
    """The box table of the loader's data set, from the model's attention (Eq. 2 to 4, Algorithm 1).

    A forward pass in eval mode; the model's mode is restored. Images that cannot be decoded, and those that the loader
    leaves out (``loader.set_images``), get the whole image as their box.

    Processes that torchrun started together share the batches, and each returns the whole table: on the CPU it is equal
    to that of one process, bit for bit, if all use as many threads. At SIGTERM the pass ends with SystemExit 143 if the
    caller is :func:`saga_fast.runtime.signals.deferring_sigterm`.

    Args:
        model: has ``encoder`` and ``projector``; runs on the device of its parameters.
        loader: whole images, not shuffled (:class:`saga_fast.loaders.WholePlan`), all of them in each process.
        attention_pass: the options; default: the paper's, at the loader's image size.
        delta, size: replace the options' values.
        metadata: strings for the table, such as ``checkpoint`` and ``epoch``.
        parts: where computed rows are kept until the caller has saved the table; with ``parts.resume`` the rows of an
            earlier pass are read from there and only the missing ones computed.
        progress: show a progress bar with images/s on stderr.

    Raises:
        SagaError: more undecodable images than the loader's list allows, processes that read different files, or what
            :func:`check_attention` refuses.
        ValueError: ``delta`` or ``size`` out of range.
    """
    options = attention_pass or AttentionPass(size=loader.plan.size)
    check_attention(model, replace(options, size=loader.plan.size))
    options = _with_forward(model, loader, _with_box(options, delta, size))
    strings = {**table_metadata(loader.source, options), **(metadata or {})}
    facts = {"the data set" if name == "dataset" else name: value for name, value in strings.items()}
    check_same(facts | {"the forward pass": options.forward})
    loader.bad.share()
    device = next(model.parameters()).device
    table = BoxTable.whole(len(loader.source))
    share = _RankShare(loader, table, parts, _origin(loader, options, strings, device))
    resumed = share.resume()
    bar = tqdm(total=len(share.order), desc="attention", unit="img", disable=None if progress and is_main() else True)
    with eval_mode(model), bar, _forward_pass(model, loader, options):
        bar.update(len(share.order) - len(share.images_of(share.missing)))
        for batch in upload_ahead(share.batches(), device):
            share.add(batch.index, boxes_of_batch(model, batch, options))
            bar.update(world_size() * len(batch.index))
    share.gather()
    loader.bad.share()
    undecodable = resumed["index"][resumed["pseudo_label"] == -1]
    loader.bad.update(dict.fromkeys(undecodable.tolist(), FOUND_EARLIER))
    if is_main() and len(share.order) and not table.found.any():
        log.warning("no box was found in any of %d images: is the model trained, and finite?", len(share.order))
    return replace(table, metadata=strings)


def _with_box(options: AttentionPass, delta: float | None, size: int | None) -> AttentionPass:
    """The options with another threshold or heatmap size, if given."""
    delta = options.delta if delta is None else delta
    return replace(options, delta=delta, size=options.size if size is None else size)


def _with_forward(model: Method, loader: Loader, options: AttentionPass) -> AttentionPass:
    """The options with a forward pass in place of ``auto``."""
    images = len(loader.source) if loader.images is None else len(loader.images)
    passes = images * (2 if options.mirror else 1)
    forward = choose_forward(options.forward, model.encoders, images=passes, size=loader.plan.size)
    return replace(options, forward=forward)


def boxes_of_batch(model: Method, batch: Batch, options: AttentionPass) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The columns of a box table for one batch of whole images, for a model in eval mode, on the model's device.

    Returns:
        boxes (B, 4) float32, found (B,) bool, pseudo label (B,) int64 and score (B,) float32.
    """
    device = next(model.parameters()).device
    images = normalize_views(
        batch.views, model.encoder, device, channels_last=options.channels_last, precision=options.precision
    )[:, 0]
    maps = attention_maps(model, images, options)
    boxes, found = attention_boxes(
        maps.features, maps.weights, delta=options.delta, size=options.size, normalize=options.normalize
    )
    return boxes, found, maps.label, maps.score


def check_attention(model: Method, options: AttentionPass) -> None:
    """Check that a model's encoders can encode whole images of the pass's size, and have a map for its score.

    Raises:
        SagaError: they cannot, or have not.
    """
    for encoder in model.encoders:
        encoder.check_size(options.size)
        if options.score == "token":
            encoder.check_class_attention()


def table_metadata(source: Source, options: AttentionPass) -> dict[str, str]:
    """The metadata strings of a table that say which images it belongs to and how it was computed."""
    return {
        "dataset": source.fingerprint,
        "delta": repr(options.delta),
        "size": str(options.size),
        "normalize": options.normalize,
        "attention_score": options.score,
        "region": options.region,
        "mirror": str(options.mirror),
    }


def _origin(loader: Loader, options: AttentionPass, strings: Mapping[str, str], device: torch.device) -> dict[str, str]:
    """Strings that are equal for processes whose rows are equal: on the CPU to the bit."""
    return {
        **strings,
        "precision": options.precision,
        "channels_last": str(options.channels_last),
        "forward": options.forward,
        "image_size": str(loader.plan.size),
        "loader": f"{type(loader).__name__} {loader.options.decode} {loader.options.crop}",
        "batch_size": str(loader.global_batch_size),
        "order": loader.epoch_order().digest()[:16],
        "device": device.type,
    }


def _forward_pass(model: Method, loader: Loader, options: AttentionPass) -> AbstractContextManager[None]:
    if options.forward == "eager":
        return nullcontext()
    return compiled_features(model.encoders, batch_size=loader.global_batch_size, precision=options.precision)


class _RankShare:
    """This rank's share of the attention pass: every world_size-th missing batch.

    Attributes:
        order: the images in the order of the pass, all ranks'.
        missing: numbers of the batches that no part holds, all ranks'.
    """

    def __init__(self, loader: Loader, table: BoxTable, parts: Parts | None, origin: Mapping[str, str]) -> None:
        self._loader, self._table, self._parts, self._origin = loader, table, parts, origin
        self.order = loader.epoch_order()
        self.missing = np.arange(len(loader))
        self._numbers = self.missing[rank() :: world_size()]
        self._num_written, self._last_write = 0, time.perf_counter()
        self._computed: list[tuple[Tensor, ...]] = []  # index and columns of batches that are not in the table yet

    def resume(self) -> Columns:
        """Put the rows of an earlier pass's parts into the table; these rows."""
        nothing = np.empty(0, np.int64)
        rows, done = rows_of(self._table, nothing), nothing
        if self._parts is not None:
            if is_main():
                self._parts.begin()
            barrier()  # no rank writes a part while rank 0 removes old ones
            if self._parts.resume:
                rows, done = broadcast(self._parts.read(self._origin) if is_main() else (rows, done))
                put_rows(self._table, rows)
        self.missing = np.setdiff1d(self.missing, done)
        self._numbers = self.missing[rank() :: world_size()]
        return rows

    def images_of(self, numbers: Int64) -> Int64:
        """The images of these batches, including the undecodable ones: (n,) int64."""
        size = self._loader.global_batch_size
        places = (numbers[:, None] * size + np.arange(size)).ravel()
        return self.order.at(places[places < len(self.order)])

    def batches(self) -> Iterator[Batch]:
        """The batches of this rank. The caller may ask for the next batch before it has added the rows of this one."""
        self._loader.set_batches(self._numbers)
        try:
            for batch in self._loader:
                self._write_part()
                yield batch
        finally:
            self._loader.set_batches(None)

    def add(self, index: Tensor, columns: tuple[Tensor, ...]) -> None:
        """Add a batch's rows. They stay on the device until a part is written or the pass ends: no batch waits."""
        self._computed.append((index, *columns))

    def _move_to_table(self) -> None:
        if self._computed:
            index, *columns = (torch.cat(batches).cpu().numpy() for batches in zip(*self._computed, strict=True))
            put_rows(self._table, {"index": index, **dict(zip(COLUMNS, columns, strict=True))})
            self._computed.clear()

    def _write_part(self) -> None:
        """Write a part with the rows that no part has yet, if one is due; then stop if SIGTERM was received."""
        due = stop_requested() or (self._parts and time.perf_counter() - self._last_write >= self._parts.seconds)
        if self._parts and due and self._computed:
            last = int(self._computed[-1][0][0])
            number = self.order.position(last) // self._loader.global_batch_size
            # Batches whose images are all undecodable are not yielded.
            done = int(np.searchsorted(self._numbers, number)) + 1
            self._move_to_table()
            numbers = self._numbers[self._num_written : done]
            self._parts.write(rows_of(self._table, self.images_of(numbers)), numbers, self._origin)
            self._num_written, self._last_write = done, time.perf_counter()
        if stop_requested():
            stop()

    def gather(self) -> None:
        """Put the rows of all ranks into the table.

        Raises:
            RuntimeError: an index was computed twice, or not at all.
        """
        self._move_to_table()
        if world_size() == 1:
            return
        local = rows_of(self._table, self.images_of(self._numbers))
        gathered = {name: gather_uneven([torch.from_numpy(rows)]).numpy() for name, rows in local.items()}
        expected = self.images_of(self.missing)
        if not np.array_equal(np.sort(gathered["index"]), expected):
            raise RuntimeError(f"{len(gathered['index'])} rows of {len(expected)} were computed, or not the right ones")
        put_rows(self._table, gathered)
