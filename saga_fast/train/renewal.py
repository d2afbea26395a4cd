"""D^att of a run: when it is renewed, from what, and how its tables are kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saga_fast.attention import AttentionConfig, build_box_table
from saga_fast.attention.incremental import changed_images
from saga_fast.attention.parts import Parts, parts_folder
from saga_fast.config import TrainConfig
from saga_fast.errors import SagaError
from saga_fast.evaluate.boxes import box_quality, chance_agreement
from saga_fast.loaders import BoxTable, Loader, Source, WholePlan
from saga_fast.loaders.boxes import box_iou
from saga_fast.loaders.true_boxes import TrueBoxes, read_true_boxes, true_boxes_file
from saga_fast.methods import Method
from saga_fast.runtime.distributed import barrier, broadcast, is_main
from saga_fast.runtime.files import sha256
from saga_fast.train.provider import classifier, given_table


@dataclass(frozen=True, kw_only=True)
class RenewalFigures:
    """Figures of a renewal, as metrics.jsonl has them."""

    table: str
    """The table's path in the run folder."""
    found_fraction: float
    box_area: float
    images_per_second: float
    """Computed images per second of the whole renewal."""
    seconds: float
    computed: int
    """Images that went through the attention pass."""
    agreement: float | None
    """Mean IoU with the boxes of the renewal before; None for the first one."""
    chance_agreement: float
    """Mean IoU with the boxes of other images."""
    iou: float | None
    """Mean IoU with the true boxes, where ``data.true_boxes`` is set."""
    corloc: float | None
    """Fraction of the images whose IoU with a true box is at least 0.5."""


class Renewals:
    """The box tables of a run folder; training crops with the last one.

    Args:
        config: the experiment.
        model: the network in training, on its device.
        source: the training images.
        open_whole: opens a loader of them for the attention pass.

    Attributes:
        table: D^att, or None before the first renewal.

    Raises:
        SagaError: ``data.true_boxes``, and there are none, or none that can be read.
    """

    def __init__(
        self, config: TrainConfig, model: Method, source: Source, open_whole: Callable[[WholePlan], Loader]
    ) -> None:
        self._config, self._model, self._source, self._open_whole = config, model, source, open_whole
        self._folder = Path(config.out)
        self._entries: list[dict[str, str]] = []  # names and hashes of the last two tables
        self._before: BoxTable | None = None  # the table before the last one
        self.table: BoxTable | None = None
        if config.attention is not None:
            self._true_boxes()  # a missing file is an error now, and not after all plain epochs

    def _true_boxes(self) -> TrueBoxes | None:
        if not self._config.data.true_boxes:
            return None
        return read_true_boxes(true_boxes_file(self._source.root), self._source.paths)

    def is_due(self, phase_epoch: int) -> bool:
        """Whether D^att is renewed before this epoch of the SAGA phase; boxes that never change are made once."""
        attention = self._config.attention
        if attention is None or phase_epoch % attention.period != 0:
            return False
        return attention.provider == "self" or self.table is None

    def renew(self, epoch: int, *, progress: bool) -> RenewalFigures:
        """Algorithm 1: make a new D^att from the network's current weights, save it, and return its figures.

        Args:
            epoch: finished epochs of the run.
            progress: show a progress bar.
        """
        start, latest = time.perf_counter(), self.table
        name = f"att/epoch_{epoch:04d}.safetensors"
        table, computed = self._new_table(epoch, name, progress=progress)
        self._before, self.table = latest, table
        seconds = time.perf_counter() - start
        if is_main():
            table.save(self._folder / name)
            Parts(parts_folder(self._folder / name)).remove()
        barrier()
        digest = broadcast(sha256(self._folder / name) if is_main() else "")
        self._entries = [*self._entries, {"name": name, "sha256": digest}][-2:]
        truths = self._true_boxes()
        quality: dict[str, Any] = {} if truths is None else box_quality(table, self._source.paths, truths)
        return RenewalFigures(
            table=name,
            found_fraction=table.found_fraction,
            box_area=table.mean_area,
            images_per_second=computed / seconds,
            seconds=seconds,
            computed=computed,
            agreement=None if latest is None else float(box_iou(table.boxes, latest.boxes).mean()),
            chance_agreement=chance_agreement(table),
            iou=quality.get("iou"),
            corloc=quality.get("corloc"),
        )

    def _new_table(self, epoch: int, name: str, *, progress: bool) -> tuple[BoxTable, int]:
        """The new table, and the number of images that the attention pass computed for it."""
        attention, options = self._config.attention, self._config.attention_pass
        assert attention is not None
        if (given := given_table(attention, self._source)) is not None:
            return given, 0
        checkpoint = Path(attention.provider_ckpt or self._folder / "last.pt")
        metadata = {"checkpoint": broadcast(sha256(checkpoint) if is_main() else ""), "epoch": str(epoch)}
        if attention.renew != "all":
            metadata["renew"] = attention.renew
        model = self._model
        if attention.provider_ckpt is not None:
            device = next(model.parameters()).device
            model = classifier(attention.provider_ckpt, device, channels_last=self._config.channels_last)
        loader = self._open_whole(WholePlan(size=options.size))
        images = self._images_to_compute(attention, epoch)
        loader.set_images(images)
        # An interrupted renewal leaves parts. They name the checkpoint, so parts of another one are not read.
        parts = Parts(parts_folder(self._folder / name), resume=True)
        table = build_box_table(model, loader, options, metadata=metadata, parts=parts, progress=progress)
        if self.table is None or images is None:
            return table, len(table)
        return self.table.updated(table, images), len(images)

    def _images_to_compute(self, attention: AttentionConfig, epoch: int) -> npt.NDArray[np.int64] | None:
        """The images that the attention pass computes; None: all of them."""
        if self.table is None or attention.renew == "all":
            return None
        renewal = (epoch - self._config.plain.epochs) // attention.period
        return changed_images(self.table, self._before, renewal=renewal)

    def state(self) -> dict[str, Any]:
        """The entries of a checkpoint: names and hashes of the tables that a resumed run opens."""
        state: dict[str, Any] = {"box_table": self._entries[-1] if self._entries else None}
        attention = self._config.attention
        if attention is not None and attention.renew == "changed":
            state["box_table_before"] = self._entries[0] if len(self._entries) == 2 else None
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            SagaError: a table that the checkpoint names is missing, or has another hash.
        """
        self._entries = [entry for entry in (state.get("box_table_before"), state["box_table"]) if entry is not None]
        self._before, self.table = ([None, None] + [self._open(entry) for entry in self._entries])[-2:]

    def _open(self, entry: dict[str, str]) -> BoxTable:
        path = self._folder / entry["name"]
        if not path.is_file() or sha256(path) != entry["sha256"]:
            raise SagaError(f"cannot resume {self._folder}: {path} is missing or not the table of last.pt")
        return BoxTable.open(path)
