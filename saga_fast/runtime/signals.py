"""Ctrl-C and SIGTERM, which a cluster sends before it takes a machine away: obeyed where no work is lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
INTERRUPTED = 128 + signal.SIGINT
AGAIN_SECONDS = 0.05
_requested = threading.Event()
_received: list[int] = []
_unwinds = False


def handle_signals() -> None:
    """From now on Ctrl-C and SIGTERM end the process with exit code 130 or 143, at any moment and without a traceback.

    At once outside of :func:`unwinding`, where nothing is written and modules are imported: many libraries catch every
    exception of an import.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup, or a shell's "&"
            signal.signal(number, _end)
    sys.unraisablehook = _again


@contextmanager
def unwinding() -> Iterator[None]:
    """Within the block, a signal of :func:`handle_signals` raises, so that temporary files go.

    Raises:
        KeyboardInterrupt: at Ctrl-C.
        SystemExit: with 143, at SIGTERM.
    """
    global _unwinds
    _received.clear()
    _unwinds = True
    try:
        yield
    finally:
        _unwinds = False


def received() -> int | None:
    """The exit code of the first signal in the last :func:`unwinding`; None if there was none."""
    return 128 + _received[0] if _received else None


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - what a handler is called with
    first = not _received
    _received.append(number)
    if _unwinds:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(EXIT_CODE)
    if number == signal.SIGINT and first:
        os.write(2, b"saga-fast: interrupted\n")
    os._exit(128 + number)


def _again(unraisable: sys.UnraisableHookArgs) -> None:
    """Send the signal again if its exception was raised where Python drops exceptions: a callback or a ``__del__``."""
    if _received and isinstance(unraisable.exc_value, KeyboardInterrupt | SystemExit):
        timer = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), _received[-1]))
        timer.daemon = True
        timer.start()
    else:
        sys.__unraisablehook__(unraisable)


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
