"""D^att of a run: when it is renewed, from what, and how its tables are kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from saga_fast.attention import box_iou, build_box_table, described
from saga_fast.attention_config import AttentionConfig
from saga_fast.attention_parts import Parts, parts_of
from saga_fast.demo_data import read_true_boxes
from saga_fast.distributed import barrier, broadcast, is_main
from saga_fast.errors import SagaError
from saga_fast.files import sha256
from saga_fast.incremental import images_to_renew
from saga_fast.loaders import BoxTable, Loader, Source, WholePlan
from saga_fast.methods import Method
from saga_fast.streaming import StreamedMaps
from saga_fast.train.config import TrainConfig
from saga_fast.train.provider import classifier, given_table

WATCHED = 5
"""Epochs before the first renewal from which streaming looks on, at least. After one epoch 14 % of the demo's images
had no map: their views had not shown the border, or the epoch had left them out with its last batch; after three 0.2 %.
"""


class Renewals:
    """The box tables of a run folder, the last of which training crops with.

    Args:
        config: the experiment.
        model: the network in training, on its device.
        source: the training images.
        open_whole: a loader of them for the attention pass.

    Attributes:
        table: D^att, or None before the first renewal.
    """

    def __init__(
        self, config: TrainConfig, model: Method, source: Source, open_whole: Callable[[WholePlan], Loader]
    ) -> None:
        self._config, self._model, self._source, self._open_whole = config, model, source, open_whole
        self._folder = Path(config.out)
        self._entries: list[dict[str, str]] = []  # names and hashes of the last two tables
        self._before: BoxTable | None = None  # the last table but one
        self.table: BoxTable | None = None
        a = config.attention
        self._stream: StreamedMaps | None = None
        if a is not None and a.renew == "streaming" and config.saga.epochs > 0:
            self._stream = StreamedMaps(model, len(source), size=config.attention_size, attention=a)

    def is_due(self, phase_epoch: int) -> bool:
        """Whether D^att is renewed before this epoch of the SAGA phase; what does not change makes it once."""
        a = self._config.attention
        if a is None or phase_epoch % a.period != 0:
            return False
        return a.provider == "self" or self.table is None

    def stream(self, epoch: int) -> StreamedMaps | None:
        """What takes the views of this epoch, counted over the run: from some epochs before the first renewal on."""
        a = self._config.attention
        return self._stream if a is not None and epoch >= self._config.plain.epochs - max(a.period, WATCHED) else None

    def renew(self, epoch: int, *, progress: bool) -> dict[str, Any]:
        """Algorithm 1: a new D^att from the network as it is now.

        Args:
            epoch: finished epochs of the run.
            progress: show a progress bar.

        Returns:
            Figures of the renewal: ``computed`` images went through an attention pass, ``images_per_second`` of them,
            ``seconds`` all of it took, ``agreement`` is the mean IoU with the boxes before.
        """
        start, latest = time.perf_counter(), self.table
        name = f"att/epoch_{epoch:04d}.safetensors"
        table, computed = self._new_table(epoch, name, progress=progress)
        self._before, self.table = latest, table
        seconds = time.perf_counter() - start
        if is_main():
            self.table.save(self._folder / name)
            Parts(parts_of(self._folder / name)).remove()
        barrier()
        digest = broadcast(sha256(self._folder / name) if is_main() else "")
        self._entries = [*self._entries, {"name": name, "sha256": digest}][-2:]
        figures: dict[str, Any] = {
            "table": name,
            "found_fraction": self.table.found_fraction,
            "box_area": self.table.mean_area,
            "images_per_second": computed / seconds,
            "seconds": seconds,
            "computed": computed,
            "agreement": None if latest is None else float(box_iou(self.table.boxes, latest.boxes).mean()),
            "iou": None,
            "corloc": None,
        }
        if self._config.data.true_boxes:
            overlap = box_iou(self.table.boxes, read_true_boxes(self._source.root, self._source.paths))
            figures |= {"iou": float(overlap.mean()), "corloc": float(np.mean(overlap >= 0.5))}
        return figures

    def _new_table(self, epoch: int, name: str, *, progress: bool) -> tuple[BoxTable, int]:
        """The table, and how many images a pass has computed for it."""
        a, looking = self._config.attention, self._config.looking
        assert a is not None
        if (given := given_table(a, self._source)) is not None:
            return given, 0
        looked_at = Path(a.provider_ckpt or self._folder / "last.pt")
        metadata = {"checkpoint": broadcast(sha256(looked_at) if is_main() else ""), "epoch": str(epoch)}
        if a.renew != "all":
            metadata["renew"] = a.renew
        if self._stream is not None and self._stream.seen.any():
            own = described(self._source, self._config.attention_size, looking | {"mirror": False})
            return self._stream.table(own | metadata, others=self.table), 0
        model = self._model
        if a.provider_ckpt is not None:
            model = classifier(
                a.provider_ckpt, next(model.parameters()).device, channels_last=self._config.channels_last
            )
        loader = self._open_whole(WholePlan(size=self._config.attention_size))
        loader.set_images(self._images(a, epoch))
        # Of a renewal that was interrupted, parts are left; they name the checkpoint, so those of others are not taken.
        table = build_box_table(
            model,
            loader,
            **looking,
            metadata=metadata,
            progress=progress,
            parts=Parts(parts_of(self._folder / name)),
            resume=True,
            others=self.table,
        )
        return table, len(table) if loader.images is None else len(loader.images)

    def _images(self, a: AttentionConfig, epoch: int) -> np.ndarray | None:
        """The images to look at; None: all of them."""
        if self.table is None or a.renew not in ("changed", "fraction"):
            return None
        return images_to_renew(
            a.renew,
            self.table,
            self._before,
            fraction=a.fraction,
            renewal=(epoch - self._config.plain.epochs) // a.period,
            seed=self._config.seed,
        )

    def state(self) -> dict[str, Any]:
        """For a checkpoint. Processes first share what their streams have seen: all call it at the same steps."""
        state: dict[str, Any] = {"box_table": self._entries[-1] if self._entries else None}
        a = self._config.attention
        if a is not None and a.renew == "changed":
            state["box_table_before"] = self._entries[0] if len(self._entries) == 2 else None
        if self._stream is not None:
            self._stream.share()
            state["attention_maps"] = self._stream.state() if is_main() else {}
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """The counterpart.

        Raises:
            SagaError: a table that the checkpoint names is missing, or another.
        """
        self._entries = [entry for entry in (state.get("box_table_before"), state["box_table"]) if entry is not None]
        self._before, self.table = ([None, None] + [self._opened(entry) for entry in self._entries])[-2:]
        if self._stream is not None:
            self._stream.load_state(state["attention_maps"])

    def _opened(self, entry: dict[str, str]) -> BoxTable:
        path = self._folder / entry["name"]
        if not path.is_file() or sha256(path) != entry["sha256"]:
            raise SagaError(f"cannot resume {self._folder}: {path} is missing or not the table of last.pt")
        return BoxTable.open(path)
