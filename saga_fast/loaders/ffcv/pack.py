"""Packing of images into a .beton file and its list."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from ffcv.fields.rgb_image import encode_jpeg
from tqdm import tqdm

from saga_fast.errors import SagaError
from saga_fast.loaders.bad_images import BadImages
from saga_fast.loaders.decode import MAX_PIXELS, DecodeError, Pixels, check_scans, decode_image, read_bytes
from saga_fast.loaders.ffcv.beton import (
    FORMAT,
    SUFFIX,
    VERSIONS,
    contents_digest,
    records_digest,
    sidecar_path,
)
from saga_fast.loaders.ffcv.decoder import JPEG, PLANES, RAW, decodes
from saga_fast.loaders.ffcv.writer import BetonWriter
from saga_fast.loaders.ffcv.yuv420 import planes_of_jpeg, planes_of_pixels
from saga_fast.loaders.read_ahead import ReadAhead
from saga_fast.loaders.source import Source, fingerprint
from saga_fast.runtime.files import replacing
from saga_fast.version import __version__

Mode = Literal["raw", "jpg", "yuv420", "smart", "proportion"]
MAX_SIDE = 65_500
"""Largest side of a JPEG; that of FFCV's records is 65,535."""


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How images are stored, with the names and meaning of FFCV's ``RGBImageField``.

    Args:
        mode: ``raw`` pixels; ``jpg``; ``yuv420``: planes (:mod:`saga_fast.loaders.ffcv.yuv420`), which FFCV does not
            have; ``smart``: JPEG for images of more than ``smart_threshold`` bytes of pixels; ``proportion``: JPEG with
            probability ``compress_probability``, drawn by index.
        max_resolution: larger images are shrunk to this longest side (OpenCV's INTER_AREA, as FFCV does).
        quality: of images that have to be encoded. A JPEG that keeps its size is stored as it is.
        compress_probability: see ``proportion``.
        smart_threshold: see ``smart``.

    Raises:
        SagaError: a value out of its range.
    """

    mode: Mode = "jpg"
    max_resolution: int | None = None
    quality: int = 90
    compress_probability: float = 0.5
    smart_threshold: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise SagaError(f"mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}")
        if self.max_resolution is not None and self.max_resolution < 1:
            raise SagaError(f"max_resolution must be at least 1, got {self.max_resolution}")
        if not 1 <= self.quality <= 100:
            raise SagaError(f"quality must be in 1 to 100, got {self.quality}")
        if not 0.0 <= self.compress_probability <= 1.0:
            raise SagaError(f"compress_probability must be in [0, 1], got {self.compress_probability}")
        if (self.smart_threshold is None) == (self.mode == "smart") or (self.smart_threshold or 0) < 0:
            raise SagaError(f"mode smart, and no other, needs a smart_threshold in bytes, got {self.smart_threshold}")

    def compresses(self, index: int, height: int, width: int) -> bool:
        """Whether an image of this size is stored as JPEG."""
        if self.mode == "proportion":
            return bool(np.random.default_rng([0, index]).random() < self.compress_probability)
        if self.smart_threshold is not None:
            return height * width * 3 > self.smart_threshold
        return self.mode == "jpg"


@dataclass(frozen=True)
class _Stored:
    """An image as the file holds it."""

    mode: int
    height: int
    width: int
    data: bytes


@dataclass(frozen=True, kw_only=True)
class PackedImages:
    """All images that were packed.

    Attributes:
        paths, labels, classes: as :class:`Source` has them.
        bad: why images have no record, by index.
        options: how the images were stored, for the reader's information.
        dataset: the data set's fingerprint; None: that of ``paths``.
    """

    paths: Sequence[str]
    labels: list[int]
    classes: Sequence[str]
    bad: Mapping[int, str]
    options: Mapping[str, object]
    dataset: str | None = None


def pack(
    source: Source,
    out: Path,
    options: PackOptions,
    *,
    workers: int,
    chunk_size: int = 16,
    max_bad_fraction: float = 0.01,
    force: bool = False,
    progress: bool = False,
) -> BadImages:
    """Pack images into a .beton file and its list, both whole or not at all, and return the bad images.

    Args:
        source: the images.
        out: the .beton file.
        options: how images are stored.
        workers: threads that read, decode and encode.
        chunk_size: images that a thread takes at a time.
        max_bad_fraction: undecodable images allowed; they are in the list, with the reason, and not in the file.
        force: replace an existing file.
        progress: show a bar.

    Returns:
        The undecodable images.

    Raises:
        SagaError: ``out`` is no .beton name or exists, no or too few images can be decoded.
        OSError: ``out`` cannot be written; an existing file is as it was.
    """
    sidecar = sidecar_path(out)
    _check(out, sidecar, workers=workers, chunk_size=chunk_size, force=force)
    bad, reasons = BadImages(source, max_fraction=max_bad_fraction), {}
    with replacing(out) as temporary, replacing(sidecar) as temporary_sidecar:
        with (
            BetonWriter(temporary, len(source)) as writer,
            tqdm(total=len(source), desc="pack", unit=" images", disable=None if progress else True) as bar,
        ):
            for index, stored in _stored_images(source, options, workers, chunk_size):
                if isinstance(stored, _Stored):
                    writer.add(index=index, label=int(source.labels[index]), **asdict(stored))
                else:
                    reasons[index] = stored
                    bad.add(index, stored)
                bar.update()
            if len(bad) == len(source):
                raise SagaError(f"none of the {len(source)} images in {source.root} can be decoded: {reasons[0]}")
            records = writer.finish()
        images = PackedImages(
            paths=source.paths,
            labels=source.labels.tolist(),
            classes=source.classes,
            bad=reasons,
            options=asdict(options),
            dataset=source.fingerprint,
        )
        write_sidecar(temporary_sidecar, temporary, records, images)
    return bad


def _check(out: Path, sidecar: Path, *, workers: int, chunk_size: int, force: bool) -> None:
    """
    Raises:
        SagaError: a file that cannot be written, or a number below 1.
    """
    if out.suffix != SUFFIX or out.is_dir():
        raise SagaError(f"the file to write must be named OUT{SUFFIX}, got {out}")
    if not force and (found := [path for path in (out, sidecar) if path.exists()]):
        raise SagaError(f"{found[0]} exists: remove it, name another file, or add --force")
    for name, value in (("workers", workers), ("chunk_size", chunk_size)):
        if value < 1:
            raise SagaError(f"{name} must be at least 1, got {value}")


def write_sidecar(path: Path, beton: Path, records: npt.NDArray[Any], images: PackedImages) -> None:
    """Write the list ``path`` of the complete file ``beton``, which :class:`Beton` reads.

    Args:
        records: what :meth:`BetonWriter.finish` gave.
    """
    bad = sorted(images.bad.items())
    about = {
        "format": FORMAT,
        "version": VERSIONS[bool((records["f0"]["mode"] == PLANES).any())],
        "created_by": f"saga-fast {__version__}",
        "fingerprint": fingerprint(images.paths),
        "beton": {"bytes": beton.stat().st_size, "records_sha256": records_digest(records)},
        "contents_sha256": contents_digest(images.labels, images.classes, bad),
        "options": images.options,
        "bad": bad,
        "classes": images.classes,
        "labels": images.labels,
        "paths": list(images.paths),
    }
    if images.dataset not in (None, about["fingerprint"]):
        about["dataset"] = images.dataset
    # ASCII only: names that are not UTF-8 arrive as lone surrogates, which JSON can escape and UTF-8 cannot hold.
    path.write_text(json.dumps(about), encoding="ascii")


def _stored_images(
    source: Source, options: PackOptions, workers: int, chunk_size: int
) -> Iterator[tuple[int, _Stored | str]]:
    """Each index in order, with its stored image or the reason for none; at most two chunks per worker in memory."""

    reads = ReadAhead(source)

    def read(indices: Sequence[int]) -> list[_Stored | str]:
        return [_read(reads.source, index, options) for index in indices]

    chunks = iter([range(i, min(i + chunk_size, len(source))) for i in range(0, len(source), chunk_size)])
    pool = ThreadPoolExecutor(workers, thread_name_prefix="saga-fast-pack")
    ahead: deque[tuple[Sequence[int], Future[list[_Stored | str]]]] = deque()
    try:
        while True:
            for chunk in islice(chunks, 2 * workers - len(ahead)):
                reads.start(np.array(chunk))
                ahead.append((chunk, pool.submit(read, chunk)))
            if not ahead:
                return
            indices, stored = ahead.popleft()
            yield from zip(indices, stored.result(), strict=True)
    finally:
        reads.stop()
        pool.shutdown(wait=True, cancel_futures=True)


def _read(source: Source, index: int, options: PackOptions) -> _Stored | str:
    try:
        return _store(read_bytes(source, index), index, options)
    except DecodeError as error:
        return str(error)


def _store(data: bytes, index: int, options: PackOptions) -> _Stored:
    """
    Raises:
        DecodeError: not an image that can be decoded and stored.
    """
    if header := _jpeg_header(data):
        height, width, is_420 = header
        check_scans(data, height * width)
        if (options.max_resolution is None or max(height, width) <= options.max_resolution) and decodes(
            data, height, width
        ):
            if options.compresses(index, height, width):
                return _Stored(JPEG, height, width, data)
            if options.mode == "yuv420" and is_420:
                return _Stored(PLANES, height, width, planes_of_jpeg(data, height, width))
    pixels = _shrink(decode_image(data), options.max_resolution)
    height, width = pixels.shape[:2]
    if max(height, width) > MAX_SIDE:
        raise DecodeError(f"{width} x {height} pixels: a .beton file holds sides up to {MAX_SIDE}")
    if options.compresses(index, height, width):
        return _Stored(JPEG, height, width, encode_jpeg(pixels, options.quality).tobytes())
    if options.mode == "yuv420":
        return _Stored(PLANES, height, width, planes_of_pixels(pixels))
    return _Stored(RAW, height, width, pixels.tobytes())


def _jpeg_header(data: bytes) -> tuple[int, int, bool] | None:
    """Height, width and whether colours are 4:2:0, of a JPEG that may be stored unchanged; None for any other file."""
    if data[:2] != b"\xff\xd8":
        return None
    try:
        height, width, colours, subsampling = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        return None
    return height, width, colours == "YCbCr" and subsampling == "420"


def _shrink(pixels: Pixels, max_resolution: int | None) -> Pixels:
    """The image shrunk by FFCV's rule, but with no side below one pixel."""
    height, width = pixels.shape[:2]
    if max_resolution is None or max(height, width) <= max_resolution:
        return pixels
    ratio = max_resolution / max(height, width)
    shape = max(int(ratio * width), 1), max(int(ratio * height), 1)
    shrunk: Pixels = np.asarray(cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA), np.uint8)
    return shrunk
