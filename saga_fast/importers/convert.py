"""Conversion of another project's checkpoint: the config, and the model with the file's tensors."""

from __future__ import annotations

from collections import Counter
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
from saga_fast.importers.recipes import training_config
from saga_fast.loaders import BoxTable, Source
from saga_fast.methods import Method, build_method
from saga_fast.models.transformer import is_transformer
from saga_fast.runtime.strict_yaml import apply_override

NO_DATA = "(imported without --data: name the images)"
"""The config's folder of images without --data: a text that explains the error "no such image folder"."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A converted checkpoint.

    Attributes:
        format: a name in ``FORMATS``.
        config: the config of the model, and for its training.
        model: the model in eval mode.
        epoch: finished epochs.
        kept: number of the file's tensors by module of the model.
        dropped, fresh, notes: messages about unused tensors, about parts that start fresh, and others.
        boxes: the boxes of ContrastiveCrop.
    """

    format: str
    config: TrainConfig
    model: Method
    epoch: int
    kept: Mapping[str, int]
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
    """Convert another project's checkpoint.

    Args:
        path: the file.
        format: a name in ``FORMATS``; default: detected.
        source: images for training and evaluation: the config names their folder, and a memory bank has a row for each.
        overrides: ``key.sub=value`` for the config. ``method.name`` is the method of a file that does not determine it.
        fresh_memory: start with a new memory bank or queue instead of the file's; a bank has a row per image of
            ``source``.

    Raises:
        SagaError: a file that cannot be read or is of no known layout; missing or surplus tensors, or wrong shapes; a
            memory bank of another data set.
    """
    content = read_foreign(path)
    requested: dict[str, Any] = {}
    for override in overrides:
        apply_override(requested, override)
    encoder_name, method_name = _name(requested.get("encoder")), _name(requested.get("method"))
    name = format or ("timm" if encoder_name and _is_of_no_project(content) else detect(content, path))
    if name not in FORMATS:
        raise SagaError(f"no such format: {name!r}, have {', '.join(FORMATS)}")
    draft = Draft(
        path, content, requested_method=method_name, requested_encoder=encoder_name, fresh_memory=fresh_memory
    )
    FORMATS[name].read(draft)
    epoch = draft.entry("epoch")
    draft.epoch = epoch if type(epoch) is int else draft.epoch
    config = _config(draft, source, overrides)
    if config.method.name != "cmc":  # whose networks take no mean and std
        draft.notes.insert(0, _input_note(draft, config))
    model, kept, fresh = _model(draft, config, source)
    unused = draft.unused_entries()
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


def _name(section: Any) -> Any:
    """The ``name`` in a section of the overrides, None if there is none."""
    return section.get("name") if isinstance(section, dict) else None


def _is_of_no_project(content: Mapping[str, Any]) -> bool:
    """Whether only the formats of single networks may match a file."""
    networks = ("torchvision", "timm", "vit")
    return not any(layout.matches(content) for name, layout in FORMATS.items() if name not in networks)


def _config(draft: Draft, source: Source | None, overrides: Sequence[str]) -> TrainConfig:
    vit = is_transformer(draft.encoder["name"])
    config = training_config(draft.method["name"], draft.epoch, draft.size, vit=vit)
    config["method"] = dict(draft.method)
    config["encoder"] = {
        key: list(value) if isinstance(value, tuple) else value for key, value in draft.encoder.items()
    }
    config["data"] = {"train": NO_DATA if source is None else str(source.root)}
    for override in overrides:
        apply_override(config, override)
    return config_from_dict(config, where=str(draft.path))


def _input_note(draft: Draft, config: TrainConfig) -> str:
    """The line that says which input the network gets, and why."""
    encoder = config.encoder
    assumed = {"mean": encoder.mean, "std": encoder.std} | draft.encoder
    is_as_assumed = (assumed["mean"], assumed["std"], draft.size) == (encoder.mean, encoder.std, config.crop.size)
    mean, std = ("[" + ",".join(f"{value:g}" for value in values) + "]" for values in (encoder.mean, encoder.std))
    origin = draft.input_origin if is_as_assumed else "as given by --set"
    return f"input of {config.crop.size} px, mean {mean}, std {std}: {origin}"


def _model(draft: Draft, config: TrainConfig, source: Source | None) -> tuple[Method, dict[str, int], list[str]]:
    """The model with the file's tensors.

    Returns:
        The model in eval mode, the number of the file's tensors by module, and messages about what starts fresh.

    Raises:
        SagaError: missing or surplus tensors, or wrong shapes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build_method(config.method, config.encoder, num_images=_bank_rows(draft, source))
    initial = model.state_dict()
    model.load_state_dict(_merge(draft, initial))
    kept = Counter(name.partition(".")[0] for name in initial if name in draft.tensors)
    fresh = _fresh_messages(draft, initial)
    if any(message.endswith("random rows") for message in fresh) and source is None:
        draft.notes.append("without --data the bank has one row: enough for build-att and eval, not for training")
    return model.eval(), dict(kept), fresh


def _bank_rows(draft: Draft, source: Source | None) -> int:
    """The number of rows of a memory bank: as in the file, else one per image.

    Raises:
        SagaError: the file's bank belongs to another data set than ``source``.
    """
    banks = [named for name, named in draft.tensors.items() if name.endswith("bank.rows")]
    if not banks:
        return 1 if source is None else len(source)
    rows = len(banks[0].tensor)
    if source is not None and rows != len(source):
        raise SagaError(
            f"{draft.path}: {banks[0].origin} has {rows} rows, {source.root} {len(source)} images:"
            " give the images of the training, or start a new bank with --fresh-memory"
        )
    return rows


def _merge(draft: Draft, initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors, and the initial ones of what starts fresh."""
    merged: dict[str, Tensor] = {}
    # torch has num_batches_tracked since 0.4.1: older files have none.
    has_counters = any(name.endswith("num_batches_tracked") for name in draft.tensors)
    for name, tensor in initial.items():
        named = draft.tensors.get(name)
        if named is None:
            is_old_counter = name.endswith("num_batches_tracked") and not has_counters
            if _fresh_message(draft, name) is None and not is_old_counter:
                raise SagaError(f"{draft.path} lacks {draft.origin(name)}")
            merged[name] = tensor
            continue
        if named.tensor.shape != tensor.shape:
            raise SagaError(
                f"{draft.path}: {named.origin} has shape {tuple(named.tensor.shape)}, expected {tuple(tensor.shape)}"
            )
        if named.tensor.is_floating_point() != tensor.is_floating_point():
            raise SagaError(f"{draft.path}: {named.origin} holds {named.tensor.dtype}, expected {tensor.dtype}")
        merged[name] = named.tensor
    for name, named in draft.tensors.items():
        if name not in initial:
            raise SagaError(f"{draft.path} has a tensor that its network lacks: {named.origin}")
    return merged


def _fresh_message(draft: Draft, name: str) -> str | None:
    """The message about a tensor that may start fresh, None for any other tensor."""
    return next((message for prefix, message in draft.fresh.items() if name.startswith(prefix)), None)


def _fresh_messages(draft: Draft, initial: Mapping[str, Tensor]) -> list[str]:
    """Messages about what starts fresh, each once."""
    missing = (name for name in initial if name not in draft.tensors)
    messages = dict.fromkeys(message for name in missing if (message := _fresh_message(draft, name)) is not None)
    if any(name.startswith("key_") for name in initial) and "key_" in draft.fresh:
        messages[draft.fresh["key_"]] = None
    return list(messages)


def _boxes(draft: Draft, config: TrainConfig, source: Source) -> BoxTable:
    """The boxes of ContrastiveCrop as a box table.

    Their far edges are the last pixels inside the box, at the network's input size: one pixel is added.
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
