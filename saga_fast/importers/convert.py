"""From another project's checkpoint to saga-fast's: the config, and every tensor accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saga_fast.checkpoint import save_checkpoint
from saga_fast.config import TrainConfig
from saga_fast.config_file import config_from_dict, config_to_dict
from saga_fast.errors import SagaError
from saga_fast.importers import FORMATS, detect
from saga_fast.importers.draft import Draft
from saga_fast.importers.reading import read_foreign
from saga_fast.importers.recipes import training_values
from saga_fast.loaders import BoxTable, Source
from saga_fast.methods import Method, build_method
from saga_fast.runtime.strict_yaml import apply_override

NO_DATA = "(imported without --data: name the images)"
"""Stands for the folder of images: a path that is no folder, so that using it is an error that says why."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was made of a file."""

    format: str
    config: TrainConfig
    model: Method
    epoch: int
    kept: Mapping[str, int]
    """Our modules -> tensors that came from the file."""
    dropped: Sequence[str]
    fresh: Sequence[str]
    notes: Sequence[str]
    boxes: BoxTable | None

    def save(self, path: Path) -> None:
        """Write a checkpoint that ``load_model`` and ``saga-fast train --ckpt`` read."""
        content = {"config": config_to_dict(self.config), "epoch": self.epoch, "model": self.model.state_dict()}
        save_checkpoint(path, content | {"imported_from": self.format})


def import_checkpoint(
    path: Path,
    *,
    format: str | None = None,
    source: Source | None = None,
    overrides: Sequence[str] = (),
    fresh_memory: bool = False,
) -> Imported:
    """Read another project's checkpoint.

    Args:
        path: the file.
        format: a name in ``FORMATS``; default: what the file looks like.
        source: the images that it will be used with: its folder enters the config, and a memory bank needs its size.
        overrides: ``key.sub=value`` for the config. ``method.name`` picks the method where a file leaves that open.
        fresh_memory: leave out the file's memory bank or queue and start a new one; a bank has a row per image of
            ``source``.

    Raises:
        SagaError: a file that cannot be read, is of no known layout, or has a tensor too many, too few or of another
            shape than its network; a memory bank of another data set.
    """
    content = read_foreign(path)
    wanted: dict[str, Any] = {}
    for override in overrides:
        apply_override(wanted, override)
    encoder = wanted.get("encoder")
    wanted_encoder = encoder.get("name") if isinstance(encoder, dict) else None
    method = wanted.get("method")
    name = format or ("timm" if wanted_encoder and _plain(content) else detect(content, path))
    if name not in FORMATS:
        raise SagaError(f"no such format: {name!r}, have {', '.join(FORMATS)}")
    draft = Draft(
        path,
        content,
        wanted=method.get("name") if isinstance(method, dict) else None,
        wanted_encoder=wanted_encoder,
        fresh_memory=fresh_memory,
    )
    FORMATS[name].read(draft)
    epoch = draft.use("epoch")
    draft.epoch = epoch if isinstance(epoch, int) else draft.epoch
    config = _config(draft, source, overrides)
    model, kept, fresh = _model(draft, config, source)
    unused = draft.unused()
    return Imported(
        format=name,
        config=config,
        model=model,
        epoch=draft.epoch,
        kept=kept,
        dropped=[*draft.dropped, *([f"not needed: {', '.join(map(str, unused))}"] if unused else [])],
        fresh=fresh,
        notes=draft.notes,
        boxes=_boxes(draft, config, source) if draft.boxes is not None and source is not None else None,
    )


def _plain(content: Mapping[str, Any]) -> bool:
    """Whether a file is bare tensors, or a state dict that is not of another format."""
    return all(not kind.matches(content) for name, kind in FORMATS.items() if name not in ("torchvision", "timm"))


def _config(draft: Draft, source: Source | None, overrides: Sequence[str]) -> TrainConfig:
    values = training_values(draft.method["name"], draft.epoch, draft.size)
    values["method"] = dict(draft.method)
    values["encoder"] = {
        key: list(value) if isinstance(value, tuple) else value for key, value in draft.encoder.items()
    }
    values["data"] = {"train": NO_DATA if source is None else str(source.root)}
    for override in overrides:
        apply_override(values, override)
    return config_from_dict(values, where=str(draft.path))


def _model(draft: Draft, config: TrainConfig, source: Source | None) -> tuple[Method, dict[str, int], list[str]]:
    """The model with the file's tensors; how many by module; and what started fresh."""
    banks = [piece for name, piece in draft.pieces.items() if name.endswith("bank.rows")]
    rows = len(banks[0].tensor) if banks else 1 if source is None else len(source)
    if banks and source is not None and rows != len(source):
        raise SagaError(
            f"{draft.path}: {banks[0].origin} has {rows} rows, {source.root} {len(source)} images:"
            " give the images it was trained on, or start a new bank with --fresh-memory"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build_method(config.method, config.encoder, num_images=rows)
    own = model.state_dict()
    untracked = not any(name.endswith("num_batches_tracked") for name in draft.pieces)
    kept: dict[str, int] = {}
    fresh: dict[str, None] = {}
    loaded: dict[str, Tensor] = {}
    for name, tensor in own.items():
        piece = draft.pieces.get(name)
        if piece is None:
            loaded[name] = tensor
            started = next((text for prefix, text in draft.fresh.items() if name.startswith(prefix)), None)
            if started is not None:
                fresh[started] = None
            elif not (untracked and name.endswith("num_batches_tracked")):  # which torch has had since 0.4.1
                raise SagaError(f"{draft.path} lacks {draft.origin(name)}")
            continue
        if piece.tensor.shape != tensor.shape:
            raise SagaError(
                f"{draft.path}: {piece.origin} has shape {tuple(piece.tensor.shape)}, here it is {tuple(tensor.shape)}"
            )
        loaded[name] = piece.tensor
        module = name.partition(".")[0]
        kept[module] = kept.get(module, 0) + 1
    for name, piece in draft.pieces.items():
        if name not in own:
            raise SagaError(f"{draft.path} has a tensor that its network lacks: {piece.origin}")
    model.load_state_dict(loaded)
    if any(name.startswith("key_") for name in own) and "key_" in draft.fresh:
        fresh[draft.fresh["key_"]] = None
    if any(text.endswith("random rows") for text in fresh) and source is None:
        draft.notes.append("without --data the bank has one row: enough for build-att and eval, not for training")
    return model.eval(), kept, list(fresh)


def _boxes(draft: Draft, config: TrainConfig, source: Source) -> BoxTable:
    """ContrastiveCrop's boxes as a table.

    Its far edges are the last pixels inside, in images of the size that the network sees, so that one pixel is added.
    """
    assert draft.boxes is not None
    if len(draft.boxes) != len(source):
        raise SagaError(f"{draft.path}: boxes has {len(draft.boxes)} rows, {source.root} {len(source)} images")
    h_min, w_min, h_max, w_max = draft.boxes.T
    near = np.stack([w_min, h_min], axis=1)
    far = np.minimum(np.stack([w_max, h_max], axis=1) + np.float32(1.0 / config.crop.size), np.float32(1.0))
    whole = (draft.boxes == np.array([0, 0, 1, 1], np.float32)).all(axis=1)
    table = BoxTable.whole(len(source))
    metadata = {"dataset": source.fingerprint, "epoch": str(draft.epoch), "size": str(config.crop.size)}
    return BoxTable(
        np.concatenate([near, far - near], axis=1).astype(np.float32),
        ~whole,
        table.pseudo_label,
        table.score,
        metadata | {"imported_from": "contrastivecrop"},
    )
