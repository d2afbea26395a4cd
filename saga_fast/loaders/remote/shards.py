"""Tar files at addresses, whose images are read over the network when a batch needs them."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from contextlib import closing
from functools import cached_property

import numpy as np
import numpy.typing as npt

from saga_fast.errors import SagaError
from saga_fast.loaders.decode import MAX_BYTES
from saga_fast.loaders.image_folder import EXTENSIONS
from saga_fast.loaders.listing import make_listing
from saga_fast.loaders.remote.index import members_of_all
from saga_fast.loaders.remote.signed import unsigned
from saga_fast.loaders.remote.store import Stat, store_of
from saga_fast.loaders.shards import classes_of, rows_of
from saga_fast.loaders.source import fingerprint
from saga_fast.runtime.address import Location

MAX_GAP = 2**16
"""Images of a shard that lie nearer to each other than this many bytes are one request."""
MAX_RUN = 2**22
"""Bytes of a request for several images: more of them at once are faster as several requests."""

Contents = dict[int, bytes | OSError]
"""Images by index: what was read, or why it could not be."""
Int64 = npt.NDArray[np.int64]


class RemoteShards:
    """The images of tar files at addresses, in the order and with the labels of :class:`Shards`.

    Args:
        root: the address that the user gave, without secrets.
        addresses: the tar files' addresses.
        stats: what their servers say about them.

    Attributes:
        root, paths, labels, classes: see :class:`Shards`.

    Raises:
        SagaError: see :func:`members_of_all`, or no image.
    """

    def __init__(self, root: str, addresses: Sequence[str], stats: Sequence[Stat]) -> None:
        self.root: Location = root
        self._addresses = addresses
        folders: dict[str, int] = {}
        files = list(zip(addresses, stats, strict=True))
        identity = f"tars {[unsigned(address) if stat.version else address for address, stat in files]}"
        version = hashlib.sha256(repr([(stat.size, stat.version) for stat in stats]).encode()).hexdigest()
        with closing(members_of_all(addresses, stats)) as shards:
            rows = (rows_of(shard, file, folders) for file, shard in enumerate(shards))
            listing = make_listing(identity, rows, lambda columns: classes_of(columns, folders), version=version)
        if not len(listing):
            raise SagaError(f"no image in {self.root}: expected tar files with {', '.join(EXTENSIONS)} in them")
        self.paths: Sequence[str] = listing.names
        self.labels: Int64 = listing.columns["label"]
        self.classes = listing.classes
        self._columns = listing.columns

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return (
            f"RemoteShards({self.root!r}: {len(self)} images in {len(self._addresses)} files,"
            f" {len(self.classes)} classes)"
        )

    @cached_property
    def fingerprint(self) -> str:
        """See :func:`saga_fast.loaders.source.fingerprint`."""
        return fingerprint(self.paths)

    def read(self, index: int) -> bytes:
        """See :meth:`saga_fast.loaders.source.Source.read`."""
        content = self.fetch([index]).result()[index]
        if isinstance(content, OSError):
            raise content
        return content

    def started_reads(self) -> _StartedReads:
        """See :meth:`saga_fast.loaders.read_ahead.ReadsEarly.started_reads`."""
        return _StartedReads(self)

    def fetch(self, run: Sequence[int]) -> Future[Contents]:
        """Start to read images that lie near each other in one file; cancelling the future ends the request."""
        return store_of(self._addresses[0]).submit(self._contents(run))

    def _places(self, indices: Sequence[int]) -> Int64:
        """File, offset and size of images: (n, 3)."""
        rows = [self._columns[name][list(indices)] for name in ("file", "offset", "size")]
        return np.stack(rows, 1).astype(np.int64)

    async def _contents(self, run: Sequence[int]) -> Contents:
        places = self._places(run)
        address, (begin, end) = self._addresses[places[0, 0]], (places[:, 1].min(), places[:, 1:].sum(1).max())
        if len(run) == 1 and places[0, 2] > MAX_BYTES:
            return {run[0]: OSError(f"{places[0, 2]} bytes are more than {MAX_BYTES}")}
        try:
            data = await store_of(address).fetch(address, int(begin), int(end))
        except OSError as error:
            if len(run) == 1:
                return {run[0]: error}
            # One bad range must not make its neighbours bad images.
            parts = await asyncio.gather(*(self._contents([index]) for index in run))
            return {index: content for part in parts for index, content in part.items()}
        starts, sizes = (places[:, 1] - begin).tolist(), places[:, 2].tolist()
        return {index: data[at : at + size] for index, at, size in zip(run, starts, sizes, strict=True)}

    def runs(self, indices: Sequence[int]) -> list[list[int]]:
        """The images grouped for one request each: neighbours of a file that are at most MAX_GAP bytes apart.

        The group of the first image comes first: it is waited for first.
        """
        places = self._places(indices)
        runs: list[list[int]] = []  # positions in ``indices``
        file, begin, end = -1, 0, 0
        for n in np.lexsort((places[:, 1], places[:, 0])).tolist():
            in_file, at, size = places[n].tolist()
            if runs and in_file == file and at - end <= MAX_GAP and max(end, at + size) - begin <= MAX_RUN:
                runs[-1].append(n)
                end = max(end, at + size)
            else:
                runs.append([n])
                file, begin, end = in_file, at, at + size
        return [[indices[n] for n in run] for run in sorted(runs, key=min)]


class _StartedReads:
    """See :class:`saga_fast.loaders.read_ahead.StartedReads`: what was started and not read is in memory."""

    def __init__(self, shards: RemoteShards) -> None:
        self.root, self.paths, self.labels, self.classes = shards.root, shards.paths, shards.labels, shards.classes
        self._shards = shards
        self._fetches: dict[int, Future[Contents]] = {}
        self._lock = threading.Lock()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._shards)

    @property
    def fingerprint(self) -> str:
        return self._shards.fingerprint

    def start(self, indices: Int64) -> None:
        with self._lock:
            if self._stopped:
                raise CancelledError
            waiting = [index for index in indices.tolist() if index not in self._fetches]
            for run in self._shards.runs(waiting):
                self._fetches.update(dict.fromkeys(run, self._shards.fetch(run)))

    def read(self, index: int) -> bytes:
        while True:
            fetch = self._fetches.get(index)
            if fetch is None:
                self.start(np.array([index]))
                continue
            content = fetch.result().pop(index, None)
            self._fetches.pop(index, None)
            if isinstance(content, OSError):
                raise content
            if content is not None:  # None: another thread read the same image meanwhile
                return content

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for fetch in set(self._fetches.values()):
                fetch.cancel()
            self._fetches.clear()
