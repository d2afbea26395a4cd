"""A folder of images, in a fixed order of relative paths."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from saga_fast.errors import SagaError
from saga_fast.loaders.decode import MAX_BYTES
from saga_fast.loaders.encoded import FileRange
from saga_fast.loaders.listing import Columns, Rows, make_listing
from saga_fast.loaders.source import fingerprint
from saga_fast.runtime.files import read_file

EXTENSIONS = (*(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"),)
OTHER_IMAGES = (".avif", ".heic", ".heif", ".jxl", ".jp2", ".tga", ".svg", ".dng", ".cr2", ".nef", ".exr", ".hdr")
"""Endings of images that are not read; files of these endings, and files without one, are counted and left out."""

log = logging.getLogger(__name__)


class ImageFolder:
    """Images under ``root`` in torchvision's ImageFolder order: classes sorted, files sorted within the class.

    ``root/CLASS/.../file.jpg`` are labelled images. If no class folder has images, the images in ``root`` itself are
    used without labels (label -1): attention, training and crops need none. Hidden files are left out; a warning counts
    images next to the class folders, and files of endings that are not read. Links are followed, because data sets are
    often made of links, except links to a folder that contains them.

    Attributes:
        root: the folder.
        paths: N relative posix paths; position i is image index i.
        labels: (N,) int64, position in ``classes``, or -1.
        classes: sorted names of the class folders, () for unlabelled images.

    Args:
        root: the folder.
        classes: a text file whose lines begin with the class folders to use (ImageNet-100's list); None: all.

    Raises:
        SagaError: the folder does not exist or holds no image, or a listed class has no folder in it.
        OSError: a folder in it cannot be listed.
    """

    def __init__(self, root: Path | str, *, classes: Path | str | None = None) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise SagaError(f"no such image folder: {self.root}")
        self.classes = tuple(sorted(_read_classes(Path(classes)))) if classes else _class_folders(self.root)
        for name in self.classes:
            if not (self.root / name).is_dir():
                raise SagaError(f"class {name!r} of {classes} has no folder in {self.root}")
        files = [entry.name for entry in os.scandir(self.root) if not _is_folder(entry)]
        outside = sorted(file for file in files if _is_image(file))
        left_out = Counter[str]()
        listing = make_listing(f"folder {self.root.resolve()} {self.classes}", self._rows(left_out), self._finish)
        if outside and (len(listing) or classes):
            log.warning("%d images next to the class folders of %s are left out", len(outside), self.root)
        if not len(listing) and not classes:
            self.classes = ()
            unlabelled = {"label": np.full(len(outside), -1, np.int64)}
            listing = make_listing(f"images in {self.root.resolve()}", [(outside, unlabelled)], self._finish)
            left_out.update(_unread_ending(file) for file in files)
        if not listing.listed_elsewhere:
            self._warn_of(left_out)
        if not len(listing):
            tars = next((f", or tar files such as {name} alone" for name in files if name.endswith(".tar")), "")
            raise SagaError(
                f"no image in {self.root}: expected {self.root}/CLASS/*.jpg or {self.root}/*.jpg"
                f" ({', '.join(EXTENSIONS)}){tars}"
            )
        self.paths: Sequence[str] = listing.names
        self.labels: npt.NDArray[np.int64] = listing.columns["label"]

    def _rows(self, left_out: Counter[str]) -> Iterator[Rows]:
        """The images of each folder in the class folders; the endings of other files are counted."""
        for label, name in enumerate(self.classes):
            for folder, files in sorted(_folders(self.root, name)):
                images = [f"{folder}/{file}" for file in sorted(files) if _is_image(file)]
                left_out.update(_unread_ending(file) for file in files)
                yield images, {"label": np.full(len(images), label, np.int64)}

    def _finish(self, columns: Columns) -> tuple[str, ...]:  # noqa: ARG002
        return self.classes

    def _warn_of(self, left_out: Counter[str]) -> None:
        del left_out[""]
        if left_out:
            endings = ", ".join(f"{count} {ending}" for ending, count in sorted(left_out.items()))
            log.warning(
                "%d files of %s are left out (%s): images end in %s",
                left_out.total(),
                self.root,
                endings,
                ", ".join(EXTENSIONS),
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"ImageFolder({str(self.root)!r}: {len(self)} images, {len(self.classes)} classes)"

    def read(self, index: int) -> bytes:
        """See :meth:`saga_fast.loaders.source.Source.read`."""
        return read_file(self.root / self.paths[index], MAX_BYTES)

    def file_range(self, index: int) -> FileRange:
        """See :meth:`saga_fast.loaders.encoded.InLocalFiles.file_range`."""
        return FileRange(f"{self.root}/{self.paths[index]}")

    @cached_property
    def fingerprint(self) -> str:
        """See :func:`saga_fast.loaders.source.fingerprint`."""
        return fingerprint(self.paths)


def _is_image(path: str) -> bool:
    return path.lower().endswith(EXTENSIONS) and not path.rpartition("/")[2].startswith(".")


def _unread_ending(path: str) -> str:
    """The ending of a file that may be an image and is not read, "without an ending", or "" for any other file."""
    name = path.rpartition("/")[2].lower()
    if name.startswith("."):
        return ""
    return "without an ending" if "." not in name else next(filter(name.endswith, OTHER_IMAGES), "")


def _class_folders(root: Path) -> tuple[str, ...]:
    names = (entry.name for entry in os.scandir(root) if _is_folder(entry) and not entry.name.startswith("."))
    return tuple(sorted(names))


def _read_classes(path: Path) -> set[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SagaError(f"cannot read the class list {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SagaError(f"the class list {path} is not text: {error.reason}") from error
    names = {line.split()[0] for line in lines if line.strip()}
    for name in names:
        if "/" in name or "\0" in name or name.startswith("."):
            raise SagaError(f"the class list {path} holds {name!r}: expected names of folders in the data set's folder")
    return names


def _folders(root: Path, name: str) -> Iterator[tuple[str, list[str]]]:
    """Class folder ``name`` and the folders in it, as paths relative to ``root``, with the names of their files."""
    # With the identities of the folders above: a link back to one of them would be followed 40 times, or for days.
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(name, (_identity(root),))]
    while waiting:
        folder, above = waiting.pop()
        identity = _identity(root / folder)
        if identity in above:
            log.warning("%s is a link to a folder that contains it: left out", root / folder)
            continue
        with os.scandir(root / folder) as entries:
            kinds = {entry.name: _is_folder(entry) for entry in entries}
        yield folder, [entry for entry, is_folder in kinds.items() if not is_folder]
        below = [entry for entry, is_folder in kinds.items() if is_folder and not entry.startswith(".")]
        waiting.extend((f"{folder}/{entry}", (*above, identity)) for entry in below)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: listed, and undecodable like any file that cannot be read
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
