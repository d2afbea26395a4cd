"""Run folders for the tests of the report, and a parser of its page."""

import json
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from saga_fast.loaders.box_table import BoxTable
from saga_fast.report import write_report

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags and text of an HTML page; checks that the tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def make_images(root: Path, classes: Sequence[str] = ("cat", "dog"), per_class: int = 4) -> list[str]:
    """Write JPEG files of 24 x 16 pixels in ImageFolder layout, with true boxes; returns their relative paths."""
    rng = np.random.default_rng(0)
    paths = [f"{name}/{i}.jpg" for name in sorted(classes) for i in range(per_class)]
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 24, 3), dtype=np.uint8)).save(root / path)
    (root / "boxes.json").write_text(json.dumps({path: [0.25, 0.25, 0.5, 0.5] for path in paths}))
    return paths


def epoch(at: int, **changes: object) -> dict[str, Any]:
    record = {"kind": "epoch", "epoch": at, "phase": "plain", "loss": 2.5, "lr": 0.03, "images_per_second": 500.0}
    return {**record, "data_wait": 0.04, "positive_similarity": 0.7, "seconds": 3.0, **changes}


def knn(at: int, top1: float, layer: str = "backbone", k: int = 20) -> dict[str, Any]:
    return {"kind": "knn", "epoch": at, "layer": layer, "k": k, "top1": top1}


def online(at: int, top1: float, rank: float) -> list[dict[str, Any]]:
    """The rows of RankMe and of the online probe, in their order."""
    rankme = {"kind": "rankme", "epoch": at, "backbone": rank, "projector": rank / 2, "images": 1000}
    return [rankme, {"kind": "online", "epoch": at, "top1": top1, "images": 1000}]


def renewal(at: int, **changes: object) -> dict[str, Any]:
    record = {"kind": "renewal", "epoch": at, "table": f"att/epoch_{at:04d}.safetensors", "found_fraction": 0.97}
    rest = {"box_area": 0.31, "images_per_second": 400.0, "seconds": 5.0, "iou": 0.36, "corloc": 0.3}
    return {**record, **rest, **changes}


def make_run(folder: Path, records: Sequence[dict[str, Any]], **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def make_arm(folder: Path, records: Sequence[dict[str, Any]], arm: str = "SAGA", /, **config: object) -> Path:
    """Write a run of SimCLR that started from a checkpoint; ``config`` replaces values."""
    attention = {"views": "att"} if arm == "SAGA" else None
    phases = {"plain": {"epochs": 2}, "saga": {"epochs": 0 if arm == "plain" else 7}}
    return make_run(folder, records, **{"method": {"name": "simclr"}, "attention": attention, **phases, **config})


def make_table(path: Path, rows: int, box: Sequence[float] = (0.0, 0.25, 0.5, 0.5)) -> None:
    boxes = np.tile(np.asarray(box, np.float32), (rows, 1))
    replace(BoxTable.whole(rows), boxes=boxes, found=np.arange(rows) > 0).save(path)


def make_three(root: Path, classes: Sequence[str] = ("cat", "dog"), saga: str = "saga") -> list[Path]:
    """Write the folders of a plain, a fine-tuned and a SAGA run with two renewals."""
    images = make_images(root / "data" / "train", classes)
    data = {"train": str(root / "data" / "train"), "val": None}
    method, more = {"name": "simclr"}, {"saga": {"epochs": 2}}
    plain = make_run(
        root / "plain",
        [knn(0, 0.30), epoch(1), epoch(2), knn(2, 0.50)],
        data=data,
        method=method,
        seed=0,
        saga={"epochs": 0},
    )
    records = [knn(2, 0.50), epoch(3, phase="saga"), knn(3, 0.60)]
    tuned = make_run(root / "finetune", records, data=data, method=method, attention=None, **more)
    attention = {"views": "mixed", "score": "activation", "delta": 0.7, "period": 1}
    records = [knn(2, 0.50), renewal(2), epoch(3, phase="saga"), renewal(3, iou=0.5), epoch(4, phase="saga")]
    guided = make_run(root / saga, [*records, knn(4, 0.63)], data=data, method=method, attention=attention, **more)
    make_table(guided / "att" / "epoch_0002.safetensors", len(images))
    make_table(guided / "att" / "epoch_0003.safetensors", len(images), (0.25, 0.25, 0.5, 0.5))
    return [plain, tuned, guided]


def render(runs: Sequence[Path], out: Path, **options: str) -> str:
    write_report(runs, out, **options)
    return out.read_text(encoding="utf-8")
