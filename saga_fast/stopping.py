"""SIGTERM, which a cluster sends before it takes a machine away: noted, and obeyed where nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
_asked = threading.Event()


@contextmanager
def stopping_in_order() -> Iterator[None]:
    """Within the block SIGTERM only makes :func:`asked_to_stop` true. In other threads than the main one: nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked.clear()
    before = signal.signal(signal.SIGTERM, _ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def asked_to_stop() -> bool:
    """Whether SIGTERM has come."""
    return _asked.is_set()


def stop() -> None:
    """End the process as SIGTERM ends one.

    Raises:
        SystemExit: with 143.
    """
    raise SystemExit(EXIT_CODE)


def _ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - what a handler is called with
    _asked.set()
