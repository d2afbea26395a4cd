"""The targets of fuzzing: each makes a damaged input per case, and returns whether it was read.

A refused input raises the reader's documented error. Any other error is a finding, and so is an input that is read as
something other than what was written, although it has a checksum.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.torture.mutations import mutated, with_png_checksums
from saga_fast.checkpoint import read_checkpoint, save_checkpoint
from saga_fast.config_file import load_config
from saga_fast.errors import SagaError
from saga_fast.loaders import BadImages, BoxTable, ImageFolder, LoaderOptions, Shards, WholePlan, open_loader
from saga_fast.loaders.decode import DecodeError, decode_image
from saga_fast.models.encoder import Encoder, EncoderConfig

Case = Callable[[np.random.Generator], bool]
IMAGES_PER_FOLDER = 50


def _encoded() -> list[bytes]:
    """Small images of each kind that the readers distinguish."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    smooth = coarse.resize((61, 40), Image.Resampling.BICUBIC)
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("RGB", "JPEG", {"quality": 80}),
        ("RGB", "JPEG", {"progressive": True}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "JPEG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {"transparency": 3}),
        ("1", "PNG", {}),
        ("RGB", "WEBP", {"quality": 70}),
        ("RGBA", "WEBP", {"lossless": True}),
    ]
    encoded = []
    for mode, kind, options in kinds:
        buffer = io.BytesIO()
        smooth.convert(mode).save(buffer, kind, **options)
        encoded.append(buffer.getvalue())
    return encoded


def _damaged_image(originals: list[bytes], rng: np.random.Generator) -> bytes:
    data = mutated(originals[int(rng.integers(len(originals)))], rng)
    return with_png_checksums(data) if data[1:4] == b"PNG" and rng.random() < 0.8 else data


def decode(_: Path) -> Case:
    """``decode_image``, with a limit of pixels."""
    originals = _encoded()

    def case(rng: np.random.Generator) -> bool:
        data = _damaged_image(originals, rng)
        try:
            pixels = decode_image(data, max_pixels=2_000_000)
        except DecodeError as error:
            assert "\n" not in str(error)
            return False
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size <= 6_000_000
        return True

    return case


def folder(where: Path) -> Case:
    """The folder engine on 50 damaged files at a time: each image is yielded, or listed as bad, exactly once."""
    originals, root = _encoded(), where / "images"
    root.mkdir()

    def case(rng: np.random.Generator) -> bool:
        for number in range(IMAGES_PER_FOLDER):
            (root / f"{number:02}.jpg").write_bytes(_damaged_image(originals, rng))
        source = ImageFolder(root)
        bad = BadImages(source, max_fraction=1.0)
        loader = open_loader(
            "folder", source, WholePlan(size=8), LoaderOptions(threads=2, max_pixels=2_000_000), batch_size=8, bad=bad
        )
        good = [index for batch in loader for index in batch.index.tolist()]
        assert sorted({*good, *bad.indices.tolist()}) == list(range(IMAGES_PER_FOLDER))
        assert len(good) + len(bad) == IMAGES_PER_FOLDER
        return bool(good)

    return case


def table(where: Path) -> Case:
    """Box tables: refused, or equal to what was written."""
    rng, path, n = np.random.default_rng(0), where / "t.safetensors", 20
    boxes = rng.uniform(0.1, 0.5, (n, 4)).astype(np.float32)
    found, label = rng.random(n) < 0.5, rng.integers(0, 9, n).astype(np.int32)
    written = BoxTable(boxes, found, label, boxes[:, 0].copy(), {"dataset": "20-abc", "epoch": "3"})
    written.save(path)
    original = path.read_bytes()

    def case(rng: np.random.Generator) -> bool:
        path.write_bytes(mutated(original, rng))
        try:
            read = BoxTable.open(path)
        except SagaError as error:
            assert "\n" not in str(error)
            return False
        for name in ("boxes", "found", "pseudo_label", "score"):
            np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        return True

    return case


def checkpoint(where: Path) -> Case:
    """Checkpoints, cut and damaged anywhere: refused, or equal to what was written."""
    path = where / "c.pt"
    state = {"a": torch.arange(500.0), "b": torch.ones(3, dtype=torch.int64)}
    save_checkpoint(path, {"model": state, "epoch": 3, "box_table": None, "config": {"seed": 0}})
    original, written = path.read_bytes(), read_checkpoint(path)

    def case(rng: np.random.Generator) -> bool:
        cut = rng.random() < 0.2
        path.write_bytes(original[: int(rng.integers(len(original)))] if cut else mutated(original, rng))
        try:
            read = read_checkpoint(path)
        except SagaError as error:
            assert "\n" not in str(error)
            return False
        model = read.pop("model")
        assert {key: written[key] for key in written if key != "model"} == read
        assert model.keys() == state.keys() and all(torch.equal(model[key], state[key]) for key in state)
        return True

    return case


def config(where: Path) -> Case:
    """Config files: refused in one line, or a config."""
    path = where / "c.yaml"
    values = {
        "out": "runs/x",
        "method": {"name": "mocov2", "temperature": 0.2, "queue_size": 20},
        "data": {"train": "images", "generate": None, "max_bad_fraction": 1e-2},
        "crop": {"size": 16, "scale": [0.2, 1.0]},
        "batch_size": 8,
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "plain": {"epochs": 1, "lr": 0.03},
        "attention": {"period": 2, "views": "mixed"},
        "evaluate": {"every": 2, "k": [5]},
    }
    original = yaml.safe_dump(values).encode()
    words: tuple[bytes, ...] = (
        b"&a [*a, *a]",
        b"!!python/object:os.system x",
        b"{",
        b"[" * 300,
        b"1e999",
        b"9" * 5000,
        b"2020-99-99",
    )
    words += (b"null", b"-1", b"[]", b"'", b"\xff", b"!!binary x", b"? [1]: 2", b"\t", b"0x", b".nan", b"<<: {a: 1}")

    def case(rng: np.random.Generator) -> bool:
        content = original
        for _ in range(int(rng.integers(3))):
            at = int(rng.integers(len(content)))
            content = content[:at] + words[int(rng.integers(len(words)))] + content[at + int(rng.integers(6)) :]
        path.write_bytes(mutated(content, rng) if rng.random() < 0.5 else content)
        try:
            load_config(path)
        except SagaError as error:
            assert "\n" not in str(error) and len(str(error)) < 100_000
            return False
        return True

    return case


def shards(where: Path) -> Case:
    """Tar files: refused, or images that can be read or raise OSError."""
    path = where / "s.tar"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, data in enumerate(_encoded()):
            long = "d" * 120 if number == 3 else f"a{number % 2}"
            for name, content in ((f"{long}/{number}.jpg", data[:600]), (f"{long}/{number}.cls", b"%d" % number)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                member.pax_headers = {"comment": "x" * 30} if number == 5 else {}
                tar.addfile(member, io.BytesIO(content))
    original = buffer.getvalue()

    def case(rng: np.random.Generator) -> bool:
        content = bytearray(original)
        # Headers are 512 bytes in every few thousand: they are damaged, and then get valid checksums.
        headers = [at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"]
        for at in rng.choice(headers, 2):
            header = bytearray(mutated(bytes(content[at : at + 512]), rng)[:512].ljust(512, b"\0"))
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            content[at : at + 512] = header
        path.write_bytes(mutated(bytes(content), rng) if rng.random() < 0.3 else content)
        try:
            source = Shards(path)
        except SagaError as error:
            assert "\n" not in str(error)
            return False
        for index in range(len(source)):
            try:
                assert len(source.read(index)) <= len(content)
            except OSError:
                continue
        return True

    return case


def beton(where: Path) -> Case:
    """FFCV files and their lists, half of the time with valid digests: refused, or an epoch without a crash."""
    from ffcv.types import HeaderType

    from saga_fast.loaders.ffcv import beton as format_
    from saga_fast.loaders.ffcv.pack import PackOptions, pack

    root, path = where / "images", where / "x.beton"
    (root / "a").mkdir(parents=True)
    for number, data in enumerate(_encoded()):
        (root / "a" / f"{number:02}.jpg").write_bytes(data)
    pack(ImageFolder(root), path, PackOptions(mode="proportion"), workers=1)
    listing = format_.sidecar_path(path)
    original, about = path.read_bytes(), json.loads(listing.read_text())
    records_end = format_.RECORDS_BEGIN + len(about["paths"]) * format_.RECORD.itemsize
    table_begin = int(np.frombuffer(original, HeaderType, 1)[0]["alloc_table_ptr"])

    def case(rng: np.random.Generator) -> bool:
        content, listed = _damaged_beton(original, records_end, table_begin, rng), json.dumps(about).encode()
        if rng.random() < 0.2:
            content, listed = original, mutated(listed, rng)
        elif rng.random() < 0.7:
            records = np.frombuffer(content[format_.RECORDS_BEGIN : records_end], format_.RECORD)
            digest = {"bytes": len(content), "records_sha256": format_.records_digest(records)}
            listed = json.dumps(about | {"beton": digest}).encode()
        path.unlink()  # a new file: the old one may still be mapped
        path.write_bytes(content)
        listing.write_bytes(listed)
        try:
            source = format_.Beton(path)
            bad = BadImages(source, max_fraction=1.0)
            loader = open_loader("ffcv", source, WholePlan(size=8), LoaderOptions(threads=1), batch_size=4, bad=bad)
            indices = [index for batch in loader for index in batch.index.tolist()]
        except SagaError as error:
            assert "\n" not in str(error)
            return False
        assert len(indices) + len(bad) == len(source)
        return True

    return case


def _damaged_beton(original: bytes, records_end: int, table_begin: int, rng: np.random.Generator) -> bytes:
    """Damage in the header and the records, in the images, or in the table behind them; the length stays."""
    parts = ((0, records_end), (records_end, table_begin), (table_begin, len(original)))
    begin, end = parts[int(rng.integers(3))]
    damaged = mutated(original[begin:end], rng)[: end - begin].ljust(end - begin, b"\0")
    return original[:begin] + damaged + original[end:]


def encoder(where: Path) -> Case:
    """Strangers' ``encoder.args``: refused, or a network; nothing is fetched, read or written."""
    (where / "site").mkdir()
    payload = where / "payload.pth"
    payload.write_bytes(b"import os")
    names: tuple[str, ...] = (
        "pretrained",
        "cache_dir",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "checkpoint_path",
        "features_only",
    )
    names += ("scriptable", "exportable", "out_indices", "block", "layers", "channels", "act_layer", "norm_layer")
    names += ("base_width", "cardinality", "stem_type", "global_pool", "drop_rate", "output_stride", "num_classes")
    values: tuple[Any, ...] = (True, None, -1, 0, 3, 10**9, 1e300, float("nan"), "", "relu", "os.system", "hf-hub:a/b")
    values += (str(payload), str(where / "site"), payload.as_uri(), [1] * 4, [8] * 4, [0], [10**6] * 4, "deep", "max")
    values += ({"url": payload.as_uri()}, {"file": str(payload)}, {"url": "http://127.0.0.1:9/x.pth"}, {"a": {}})
    forbidden: list[str] = []
    is_active = False

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if is_active and event == "open" and str(where) in str(arguments[0]):
            forbidden.append(f"opened {arguments[0]}")
        elif is_active and event in ("socket.connect", "socket.getaddrinfo", "urllib.Request", "subprocess.Popen"):
            forbidden.append(event)

    sys.addaudithook(audit)  # for the rest of the process

    def case(rng: np.random.Generator) -> bool:
        nonlocal is_active
        args: dict[str, Any] = {"layers": [1] * 4, "channels": [16] * 4}
        for _ in range(int(rng.integers(3))):
            args[names[int(rng.integers(len(names)))]] = values[int(rng.integers(len(values)))]
        is_active = True
        try:
            Encoder(EncoderConfig(name="resnet18", args=args))
        except SagaError as error:
            assert "\n" not in str(error)
            return False
        finally:
            is_active = False
            assert not forbidden, (args, forbidden)
            assert not any((where / "site").iterdir()), args
        return True

    return case


TARGETS: dict[str, Callable[[Path], Case]] = {
    "decode": decode,
    "folder": folder,
    "table": table,
    "checkpoint": checkpoint,
    "config": config,
    "shards": shards,
    "beton": beton,
    "encoder": encoder,
}
