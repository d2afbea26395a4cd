"""The checkpoint, images and boxes of an ``eval`` command, their options, and the file of results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from saga_fast.attention import AttentionConfig, build_box_table
from saga_fast.checkpoint import Checkpoint, load_model, open_checkpoint
from saga_fast.cli.options import add_loading, check_outputs, chosen_engine, loader_options, user_location, user_path
from saga_fast.config import TrainConfig
from saga_fast.errors import SagaError
from saga_fast.evaluate.features import FrozenModel
from saga_fast.loaders import BadImages, BoxPlan, BoxTable, Loader, Plan, Source, WholePlan, open_loader, open_source
from saga_fast.loaders.boxes import widen_boxes
from saga_fast.methods import Method
from saga_fast.models.modes import place_model
from saga_fast.runtime.device import choose_device
from saga_fast.runtime.distributed import check_same
from saga_fast.runtime.files import write_text
from saga_fast.runtime.machine import provenance

TestViews = Literal["whole", "att", "both"]


def add_subject(parser: argparse.ArgumentParser, *, batch_size: int | None = 64) -> None:
    """Add ``--ckpt``, the images, the loader's options, ``--views`` and ``--json``."""
    parser.add_argument("--ckpt", type=user_path, required=True, metavar="CKPT", help="a saga-fast checkpoint")
    parser.add_argument("--data", type=user_location, required=True, metavar="SRC", help="labelled images, CLASS/*.jpg")
    text = "validation images, if SRC is the training images"
    parser.add_argument("--val", type=user_location, metavar="DIR", help=text)
    parser.add_argument(
        "--classes", type=user_path, metavar="TXT", help="file with one class folder per line: use only these"
    )
    parser.add_argument(
        "--views",
        choices=get_args(TestViews),
        default="whole",
        help="input of the encoder: whole images (default), attention boxes, or both, their features concatenated",
    )
    parser.add_argument(
        "--table", type=user_path, metavar="T", help="box table for --views; default: computed as in training"
    )
    parser.add_argument("--val-table", type=user_path, metavar="T", help="box table of the validation images")
    add_loading(parser, batch_size=batch_size)
    add_json(parser)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    text = "write the results to this file; `saga-fast report` shows files in RUN/eval/"
    parser.add_argument("--json", type=user_path, metavar="F", help=text)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A checkpoint and the images that it is evaluated on."""

    checkpoint: Checkpoint
    config: TrainConfig
    model: Method
    engine: str
    train: Source
    val: Source | None
    options: argparse.Namespace

    def loader(self, source: Source, plan: Plan, *, bad: BadImages | None = None, **changes: Any) -> Loader:
        """A loader of training or validation images; ``changes`` replace loader options."""
        return open_loader(self.engine, source, plan, replace(loader_options(self.options), **changes), bad=bad)

    @property
    def frozen(self) -> FrozenModel:
        """The model with its precision and memory format."""
        return FrozenModel(model=self.model, precision=self.config.precision, channels_last=self.config.channels_last)

    def table(self, source: Source) -> BoxTable:
        """The boxes of the training or validation images, from ``--table`` or ``--val-table``.

        Without the option they are computed with the checkpoint.
        """
        path: Path | None = self.options.table if source is self.train else self.options.val_table
        if path is not None:
            table = BoxTable.open(path)
            table.check(source.fingerprint, len(source))
            return table
        whole = WholePlan(size=self.config.attention_pass.size)
        return make_table(self.model, self.loader(source, whole), self.config)

    def plan(self, source: Source, whole: Plan) -> Plan:
        """The views of ``--views``: ``whole``, the attention box of each image, or both."""
        views: TestViews = self.options.views
        if views == "whole":
            return whole
        table = self.table(source)
        min_side = (self.config.attention or AttentionConfig()).min_side
        boxes = replace(table, boxes=widen_boxes(table.boxes, min_side))  # as in training
        return BoxPlan(size=whole.size, table=boxes, first=whole if views == "both" else None)


def make_table(model: Method, loader: Loader, config: TrainConfig) -> BoxTable:
    """The box table D^att of the loader's images, with the config's ``attention`` or its defaults.

    If the boxes in training came from a classifier, these do too.

    Raises:
        SagaError: the classifier's checkpoint cannot be read.
    """
    attention = config.attention or AttentionConfig()
    if attention.provider_ckpt is not None:
        device = next(model.parameters()).device
        model = place_model(load_model(attention.provider_ckpt), device, channels_last=config.channels_last)
    return build_box_table(model, loader, config.attention_pass, progress=True)


def open_subject(options: argparse.Namespace, *outputs: Path) -> Subject:
    """The subject of the options of :func:`add_subject`; ``outputs`` are the command's files other than ``--json``.

    Raises:
        SagaError: options that do not fit together, a file that cannot be read, or processes that read different ones.
        OSError: ``--json`` or another output cannot be written.
    """
    train, val = options.data, options.val
    if val is None and isinstance(train, Path) and (train / "train").is_dir() and (train / "val").is_dir():
        train, val = train / "train", train / "val"
    if options.views == "whole" and (options.table or options.val_table):
        raise SagaError("--table and --val-table are for --views att or both")
    tables = (options.table, options.val_table)
    check_outputs([options.json, *outputs], [options.ckpt, options.classes, train, val, *tables])
    engine = chosen_engine(options, train)
    checkpoint = open_checkpoint(options.ckpt)
    device, channels_last = choose_device(options.device), checkpoint.config.channels_last
    subject = Subject(
        checkpoint=checkpoint,
        config=checkpoint.config,
        model=place_model(checkpoint.model(), device, channels_last=channels_last),
        engine=engine,
        train=open_source(engine, train, classes=options.classes, cache=options.cache),
        val=open_source(engine, val, classes=options.classes, cache=options.cache) if val is not None else None,
        options=options,
    )
    images = "none" if subject.val is None else subject.val.fingerprint
    facts = {"the checkpoint": checkpoint.sha256, "the data set": subject.train.fingerprint}
    check_same(facts | {"the validation set": images})
    return subject


def write_rows(path: Path | None, rows: Sequence[Mapping[str, Any]], **facts: Any) -> None:
    """Write rows with hardware, versions, commit, command and ``facts`` to a JSON file.

    Nothing is written if ``path`` is None.
    """
    if path is not None:
        document = {**provenance(), **facts, "rows": list(rows)}
        write_text(path, json.dumps(document, indent=1) + "\n")
