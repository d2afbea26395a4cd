"""Golden results: what a change of the code must leave equal to the bit on one machine.

    python tools/golden.py record golden.json     # before the change
    python tools/golden.py compare golden.json    # after it: exit code 1 and a list where something differs

Everything is run through the command line and the documented Python calls, on one thread: the tiny demo, the boxes of
every score, the views of every engine that is installed, a loss trace per method, and the evaluations. A result is kept
as a SHA-256 of its numbers, so a difference is found and not described.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saga_fast.cli import main as saga_fast
from saga_fast.loaders import BoxTable, CropPlan, Plan, WholePlan, open_loader

METHODS = ("moco", "mocov2", "insdis", "pirl", "cmc", "invspread", "byol", "dino")
CLOCK = ("seconds", "images_per_second", "data_wait")
"""Figures of metrics.jsonl that a clock measured."""
SHORT = ("plain.epochs=1", "plain.warmup_epochs=0", "saga.epochs=2", "attention.period=1", "evaluate.k=[20]")


def digest(value: Any) -> str:
    """SHA-256 of nested mappings, lists, arrays, tensors, numbers and strings."""
    sha = hashlib.sha256()
    for name, leaf in _leaves(value):
        sha.update(f"{name}\0".encode())
        if isinstance(leaf, torch.Tensor):
            leaf = leaf.detach().cpu().contiguous()
            leaf = (leaf.view(torch.int16) if leaf.dtype == torch.bfloat16 else leaf).numpy()
        if isinstance(leaf, np.ndarray):
            sha.update(f"{leaf.dtype.str}{leaf.shape}".encode())
            sha.update(np.ascontiguousarray(leaf).tobytes())
        else:
            sha.update(repr(leaf).encode())
    return sha.hexdigest()


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _leaves(value[key], f"{prefix}/{key}")
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _leaves(item, f"{prefix}/{place}")
    else:
        yield prefix, value


def run(*arguments: object) -> None:
    """A saga-fast command, which must end with 0."""
    if (code := saga_fast([str(argument) for argument in arguments])) != 0:
        raise SystemExit(f"saga-fast {arguments[0]} ended with {code}")


def run_folder(folder: Path) -> Iterator[tuple[str, str]]:
    """Digests of a run's figures, of the tensors in last.pt and of its box tables."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"iou": round(row["iou"], 6)} if row.get("iou") else {}  # a mean whose last digits may change
    yield "metrics", digest([{key: row[key] for key in row if key not in CLOCK} for row in rows])
    state = torch.load(folder / "last.pt", weights_only=True)
    for part in ("model", "optimizer", "rng"):
        yield part, digest(state[part])
    for path in sorted((folder / "att").glob("*.safetensors")):
        yield path.stem, digest_table(path)


def digest_table(path: Path) -> str:
    """Digest of a box table's columns."""
    table = BoxTable.open(path)
    return digest([table.boxes, table.found, table.pseudo_label, table.score])


def demo(folder: Path) -> Iterator[tuple[str, str]]:
    """The tiny demo's three runs, and its images."""
    run("demo", "--tiny", "--out", folder)
    for name in ("plain", "finetune", "saga", "saga_plus"):
        yield from ((f"{name}/{part}", found) for part, found in run_folder(folder / name))
    yield "images", digest([path.read_bytes() for path in sorted((folder / "data").rglob("*.jpg"))])


def boxes(ckpt: Path, out: Path) -> Iterator[tuple[str, str]]:
    """A table per score, scaling and format of the pass."""
    ways = {
        **{score: ["--score", score] for score in ("pseudo_label", "activation", "background")},
        "mirror": ["--score", "background", "--mirror", "--delta", "0.55"],
        "max": ["--normalize", "max", "--size", "48"],
        "bf16": ["--precision", "bf16"],
        "compiled": ["--forward", "compiled"],
    }
    for name, options in ways.items():
        run("build-att", "--ckpt", ckpt, "--out", out, *options)
        yield name, digest_table(out)


def views(data: Path, tables: Path, out: Path) -> Iterator[tuple[str, str]]:
    """Two epochs of every engine and plan."""
    att = BoxTable.open(sorted(tables.glob("*"))[-1])
    plans: dict[str, Plan] = {
        "plain": CropPlan(size=32, seed=3),
        "att": CropPlan(size=32, seed=3, table=att, min_side=0.3),
        "mixed": CropPlan(size=32, seed=3, table=att, views="mixed"),
        "union": CropPlan(size=32, seed=3, table=att, views="union"),
        "centred": CropPlan(size=32, seed=3, table=att, crop="centred"),
        "whole": WholePlan(size=32),
    }
    sources = {"folder": data, "dali": data}
    for mode in ("raw", "jpg"):
        sources[f"ffcv {mode}"] = out / f"{mode}.beton"
        run("pack", data, sources[f"ffcv {mode}"], "--mode", mode)
    for engine, source in sources.items():
        for name, plan in plans.items():
            loader = open_loader(engine.split()[0], source, plan, batch_size=20, shuffle=name != "whole")
            batches = []
            for epoch in range(2):
                loader.set_epoch(epoch)
                batches += [[batch.views, batch.index, batch.label] for batch in loader]
            yield f"{engine} {name}", digest(batches)


def methods(folder: Path, data: Path) -> Iterator[tuple[str, str]]:
    """A short run of every method's demo config."""
    configs = Path(__file__).parent.parent / "saga_fast" / "configs"
    paths = (f"data.train={data / 'train'}", f"data.val={data / 'val'}", "data.generate=null")
    for name in METHODS:
        sizes = ("crop.size=32", "batch_size=32", *SHORT)
        config = configs / f"demo_{name}.yaml"
        run("train", "--config", config, "--out", folder / name, "--set", *paths, *sizes)
        yield from ((f"{name}/{part}", found) for part, found in run_folder(folder / name))
    changed = ("attention.renew=changed", "attention.score=background", "saga.epochs=4", "precision=bf16")
    config = configs / "demo_plus.yaml"
    run("train", "--config", config, "--out", folder / "plus", "--set", *paths, "crop.size=32", *SHORT, *changed)
    yield from ((f"plus/{part}", found) for part, found in run_folder(folder / "plus"))


def evaluations(ckpt: Path, data: Path, out: Path) -> Iterator[tuple[str, str]]:
    """The rows of every evaluation."""
    table = sorted(ckpt.parent.glob("att/*.safetensors"))
    tables = ("--table", *table)
    probe = ("linear", "--ckpt", ckpt, "--data", data, "--protocol", "lightly", "--epochs", "3", "--batch-size", "32")
    commands = {
        "knn": ("knn", "--ckpt", ckpt, "--data", data, "--k", "5", "20"),
        "knn both": ("knn", "--ckpt", ckpt, "--data", data, "--views", "both", "--k", "5"),
        "linear": (*probe, "--views", "att"),
        "linear cached": (*probe, "--cached"),
        "pairs": ("pairs", "--ckpt", ckpt, "--data", data / "train"),
        "boxes": ("boxes", *tables, "--data", data / "train"),
    }
    for name, arguments in commands.items():
        run("eval", *arguments, "--json", out)
        yield name, digest(json.loads(out.read_text())["rows"])


def record() -> dict[str, str]:
    """Every golden result by name."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, ckpt = folder / "demo" / "data", folder / "demo" / "saga" / "last.pt"
        parts: dict[str, Iterator[tuple[str, str]]] = {
            "demo": demo(folder / "demo"),
            "boxes": boxes(ckpt, folder / "t.safetensors"),
            "views": views(data / "train", ckpt.parent / "att", folder),
            "methods": methods(folder / "methods", data),
            "evaluations": evaluations(ckpt, data, folder / "rows.json"),
        }
        for part, results in parts.items():
            found |= {f"{part}: {name}": value for name, value in results}
    return found


def main() -> int:
    """Record, or compare with a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = record()
    if options.action == "record":
        options.file.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{options.file}: {len(found)} results")
        return 0
    expected = json.loads(options.file.read_text())
    names = sorted(found.keys() | expected.keys())
    different = [name for name in names if found.get(name) != expected.get(name)]
    print(f"{len(names) - len(different)} of {len(names)} results are equal")
    print("".join(f"different: {name}\n" for name in different), end="")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
