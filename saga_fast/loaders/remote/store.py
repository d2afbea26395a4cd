"""Files at addresses of one scheme, through fsspec: many requests at once, with retries, and one kind of error."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import cache
from threading import Event
from typing import Any, TypeVar

import aiohttp
import fsspec

from saga_fast.loaders.decode import EXHAUSTED
from saga_fast.runtime.address import public_address, redact, scheme_of

T = TypeVar("T")

CONNECTIONS = 32
"""Requests at once, of a process and a scheme."""
TRIES, READ_TRIES = 5, 10
"""Of a question about a file, in 1.5 s if errors come at once; of reading bytes, in 40 s, so that a server may restart:
an image that is not read then is a bad image for good. s3fs and gcsfs try again themselves, 8 s long: TRIES is 40 s.
"""
FIRST_WAIT, LONGEST_WAIT = 0.1, 15.0
"""Seconds before the second try; each further wait is twice as long, times 0.5 to 1.5 so that processes spread out."""
PATIENCE, SLOWEST = 30.0, 2**15
"""Seconds until an answer counts as lost, and bytes per second that it may take longer for."""
VERSIONS = ("ETag", "etag", "md5Hash", "LastModified", "Last-Modified", "mtime", "updated")
"""Names that the file systems have for what changes with a file's content."""


@dataclass(frozen=True)
class Stat:
    """What a server says about a file.

    Attributes:
        size: bytes.
        version: its ETag or time of modification, "" if the server names none.
    """

    size: int
    version: str


class ShortAnswerError(OSError):
    """An answer that is shorter than asked for."""


class RangeIgnoredError(OSError):
    """An answer that is longer than asked for."""


class Store:
    """Files at addresses of one scheme. Coroutines run in fsspec's thread, :meth:`run` waits for one in the caller's.

    All errors are OSErrors whose message is one line without secrets. They have an ``errno`` only if this machine is
    short of file descriptors or memory.
    """

    def __init__(self, scheme: str) -> None:
        self._files = fsspec.filesystem(scheme)
        self._is_web = scheme in ("http", "https")
        self._connections = asyncio.Semaphore(CONNECTIONS)

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine; cancelling its future ends its requests."""
        return asyncio.run_coroutine_threadsafe(work, self._files.loop)

    def run(self, work: Coroutine[Any, Any, T], stopped: Event | None = None) -> T:
        """Run a coroutine and return its result.

        Raises:
            CancelledError: ``stopped`` is set; the coroutine's requests are ended.
        """
        future = self.submit(work)
        while stopped is not None and not future.done():
            if stopped.is_set():
                future.cancel()
            else:
                wait([future], timeout=0.1)
        return future.result()

    async def find(self, pattern: str) -> list[str]:
        """The sorted addresses of the files that a pattern with ``*``, ``?`` or ``[]`` matches.

        Raises:
            OSError: they cannot be listed.
        """
        names = await self._retrying(lambda: self._files._glob(pattern), public_address(pattern))
        return sorted(str(self._files.unstrip_protocol(name)) for name in names)

    async def stat(self, address: str) -> Stat:
        """
        Raises:
            OSError: no such file, one that may not be read, or one of unknown size.
        """
        info = await self._retrying(lambda: self._files._info(address), public_address(address))
        if info.get("size") is None:
            raise OSError(f"{public_address(address)}: the server does not say its size")
        return Stat(int(info["size"]), next((str(info[name]) for name in VERSIONS if info.get(name)), ""))

    async def stats(self, addresses: Sequence[str]) -> list[Stat]:
        """:meth:`stat` of many files.

        Raises:
            OSError: see :meth:`stat`, of the first file that fails; the remaining requests are ended.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.stat(address)) for address in addresses]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def fetch(self, address: str, begin: int, end: int) -> bytes:
        """The bytes from ``begin`` up to ``end`` of a file.

        Raises:
            OSError: they cannot be read.
        """
        if begin == end:
            return b""

        read_range = self._read_web if self._is_web else self._files._cat_file

        async def read() -> bytes:
            data: bytes = await read_range(address, start=begin, end=end)
            if len(data) > end - begin:
                raise _range_ignored(str(len(data)), end - begin)
            if len(data) < end - begin:
                raise ShortAnswerError(f"{len(data)} bytes in place of {end - begin}")
            return data

        what = f"{public_address(address)}, bytes {begin} to {end}"
        limit = READ_TRIES if self._is_web else TRIES
        return await self._retrying(read, what, PATIENCE + (end - begin) / SLOWEST, limit=limit)

    async def _read_web(self, address: str, start: int, end: int) -> bytes:
        # fsspec reads an answer before it checks any of it: all of a tar, if the server ignores ranges.
        options = dict(self._files.kwargs)
        headers = options.pop("headers", {}) | {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        session = await self._files.set_session()
        async with session.get(self._files.encode_url(address), headers=headers, **options) as answer:
            answer.raise_for_status()
            length = answer.content_length
            is_range = answer.status == 206 or (start == 0 and length == end - start)  # 200 if it is the whole file
            if not is_range or (length or 0) > end - start:
                raise _range_ignored("all" if length is None else str(length), end - start)
            content: bytes = await answer.read()
            return content

    async def _retrying(
        self, call: Callable[[], Awaitable[T]], what: str, timeout: float = PATIENCE, *, limit: int = TRIES
    ) -> T:
        for tries in range(1, limit + 1):
            try:
                async with self._connections:
                    return await asyncio.wait_for(call(), timeout)
            except MemoryError:
                raise
            except Exception as raised:  # file systems raise what their libraries trip over; callers need one kind
                error = _cause(raised)
                if tries == limit or not _may_pass(error):
                    raise _as_oserror(error, what, tries, timeout) from None  # its address may hold secrets
            pause = min(FIRST_WAIT * 2 ** (tries - 1), LONGEST_WAIT)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        raise AssertionError("the last try returns or raises")


@cache
def store_of(address: str) -> Store:
    """The store of an address's scheme, one per process."""
    return _store(scheme_of(address))


@cache
def _store(scheme: str) -> Store:
    return Store(scheme)


# The thread that runs the coroutines stays behind when a process forks.
os.register_at_fork(after_in_child=store_of.cache_clear)
os.register_at_fork(after_in_child=_store.cache_clear)


def _range_ignored(length: str, expected: int) -> RangeIgnoredError:
    return RangeIgnoredError(f"{length} bytes in place of {expected}: the server ignores ranges")


def _cause(error: Exception) -> Exception:
    """The error itself; fsspec's web files make "file not found" of any error of a first request."""
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error


def _may_pass(error: Exception) -> bool:
    """Whether another try may succeed: lost connections, timeouts, short answers, a server that is overloaded."""
    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    if isinstance(
        error, RangeIgnoredError | aiohttp.InvalidURL | FileNotFoundError | PermissionError | IsADirectoryError
    ):
        return False
    return isinstance(error, OSError | aiohttp.ClientError)  # a TimeoutError is an OSError


def _status(error: Exception) -> int | None:
    """The HTTP status that a file system's error holds."""
    status = error.status if isinstance(error, aiohttp.ClientResponseError) else getattr(error, "code", None)
    return status if isinstance(status, int) else None


def _as_oserror(error: Exception, what: str, tries: int, timeout: float) -> OSError:
    status, number = _status(error), error.errno if isinstance(error, OSError) else None
    if isinstance(error, aiohttp.ClientResponseError):
        reason = f"{status} {error.message}"
    elif isinstance(error, FileNotFoundError):
        reason = "no such file"
    elif isinstance(error, ShortAnswerError | RangeIgnoredError):
        reason = str(error)
    elif isinstance(error, TimeoutError) and not str(error):
        reason = f"no answer in {timeout:.0f} s"
    else:
        reason = redact(f"{type(error).__name__}: {error}".splitlines()[0])
    text = f"{what}: {reason}" + (f", after {tries} tries" if tries > 1 else "")
    # EAGAIN comes from a socket and says nothing about this machine.
    return OSError(number, text) if number in EXHAUSTED - {errno.EAGAIN} else OSError(text)
