"""SIGTERM, which a cluster sends before it takes a machine away: recorded, and obeyed where no work is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
_requested = threading.Event()


@contextmanager
def deferring_sigterm() -> Iterator[None]:
    """Within the block SIGTERM only makes :func:`stop_requested` true. Outside the main thread this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _requested.clear()
    before = signal.signal(signal.SIGTERM, _record)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stop_requested() -> bool:
    """Whether SIGTERM was received."""
    return _requested.is_set()


def stop() -> None:
    """End the process as SIGTERM ends one.

    Raises:
        SystemExit: with 143.
    """
    raise SystemExit(EXIT_CODE)


def _record(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - what a handler is called with
    _requested.set()
