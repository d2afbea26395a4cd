"""What the ``eval`` commands share: a checkpoint, its labelled images, their boxes, and the file of results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from saga_fast.attention import build_box_table
from saga_fast.attention_config import AttentionConfig
from saga_fast.checkpoint import checkpoint_config, load_model, read_checkpoint
from saga_fast.cli.options import add_loading, chosen_engine, loading
from saga_fast.device import choose_device
from saga_fast.errors import SagaError
from saga_fast.files import check_writable, write_text
from saga_fast.loaders import BoxPlan, BoxTable, Loader, Plan, Source, WholePlan, open_loader, open_source
from saga_fast.loaders.plan import widen_boxes
from saga_fast.methods import Method
from saga_fast.profile.figures import command, commit, hardware, versions
from saga_fast.train.config import TrainConfig

TestViews = Literal["whole", "att", "both"]


def add_subject(parser: argparse.ArgumentParser, *, batch_size: int | None = 64) -> None:
    """``--ckpt``, the images, how they are read, ``--views`` and ``--json``."""
    parser.add_argument("--ckpt", type=Path, required=True, metavar="CKPT", help="a saga-fast checkpoint")
    parser.add_argument("--data", type=Path, required=True, metavar="SRC", help="labelled images, CLASS/*.jpg")
    parser.add_argument("--val", type=Path, metavar="DIR", help="validation images, when SRC is the training images")
    parser.add_argument("--classes", type=Path, metavar="TXT", help="take only the class folders that its lines name")
    parser.add_argument(
        "--views",
        choices=get_args(TestViews),
        default="whole",
        help="what the encoder sees of an image: all of it (default), its attention box, or both side by side",
    )
    parser.add_argument("--table", type=Path, metavar="T", help="boxes for --views; default: made as in training")
    parser.add_argument("--val-table", type=Path, metavar="T", help="those of the validation images")
    add_loading(parser, batch_size=batch_size)
    add_json(parser)


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    text = "write the rows to this file; `saga-fast report` shows those in RUN/eval/"
    parser.add_argument("--json", type=Path, metavar="F", help=text)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A checkpoint and the images that it is evaluated on."""

    ckpt: Path
    epoch: int
    config: TrainConfig
    model: Method
    engine: str
    train: Source
    val: Source | None
    options: argparse.Namespace

    def loader(self, source: Source, plan: Plan, **more: Any) -> Loader:
        """A loader of some of the images."""
        return open_loader(self.engine, source, plan, **(loading(self.options) | more))

    @property
    def running(self) -> dict[str, Any]:
        """How the model runs, as arguments."""
        return {"precision": self.config.precision, "channels_last": self.config.channels_last}

    def table(self, source: Source) -> BoxTable:
        """The boxes of the training or validation images: the file's, or made now as the checkpoint's config says."""
        given: Path | None = self.options.table if source is self.train else self.options.val_table
        if given is not None:
            table = BoxTable.open(given)
            table.check(source.fingerprint, len(source))
            return table
        whole = WholePlan(size=self.config.attention_size)
        return make_table(self.model, self.loader(source, whole), self.config)

    def seen(self, source: Source, whole: Plan) -> Plan:
        """What ``--views`` says of an image, where ``whole`` is the plan of the whole of it."""
        views: TestViews = self.options.views
        if views == "whole":
            return whole
        boxes = widened(self.table(source), self.config.attention or AttentionConfig())
        return BoxPlan(size=whole.size, table=boxes, beside=whole if views == "both" else None)


def widened(table: BoxTable, attention: AttentionConfig) -> BoxTable:
    """The table with its boxes as training crops with them: with ``margin``, and at least ``min_side`` wide."""
    return replace(table, boxes=widen_boxes(table.boxes, margin=attention.margin, min_side=attention.min_side))


def make_table(model: Method, loader: Loader, config: TrainConfig) -> BoxTable:
    """D^att of the loader's images, as the config's ``attention`` says (or its defaults, where training used none).

    Where a classifier's attention made the boxes in training, it makes these.

    Raises:
        SagaError: the classifier's checkpoint cannot be read.
    """
    attention = config.attention or AttentionConfig()
    if attention.provider_ckpt is not None:
        model = load_model(attention.provider_ckpt).to(next(model.parameters()).device)
    return build_box_table(model, loader, **config.looking, progress=True)


def open_subject(options: argparse.Namespace) -> Subject:
    """What :func:`add_subject` gave; a results file that cannot be written is refused before the work."""
    train, val = options.data, options.val
    if val is None and (options.data / "train").is_dir() and (options.data / "val").is_dir():
        train, val = options.data / "train", options.data / "val"
    if options.views == "whole" and (options.table or options.val_table):
        raise SagaError("--table and --val-table are for --views att or both")
    if options.json:
        check_writable(options.json)
    engine = chosen_engine(options, train)
    content = read_checkpoint(options.ckpt)
    return Subject(
        ckpt=options.ckpt,
        epoch=content["epoch"],
        config=checkpoint_config(content, options.ckpt),
        model=load_model(options.ckpt).to(choose_device(options.device)),
        engine=engine,
        train=open_source(engine, train, classes=options.classes),
        val=open_source(engine, val, classes=options.classes) if val is not None else None,
        options=options,
    )


def write_rows(path: Path | None, rows: Sequence[Mapping[str, Any]], **facts: Any) -> None:
    """Write rows with hardware, versions, commit, command and further facts; nothing where no file is named."""
    if path is None:
        return
    document = {
        "hardware": hardware(),
        "versions": versions(),
        "commit": commit(),
        "command": command().replace("python", "", 1).strip(),
        **facts,
        "rows": list(rows),
    }
    write_text(path, json.dumps(document, indent=1) + "\n")
