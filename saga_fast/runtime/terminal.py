"""Text for a terminal: names cannot steer it, and a stream that fails does not end the work."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import TextIO


def printable(text: str) -> str:
    """The text in one line, what does not print escaped as in Python's strings: ``\\x1b``, ``\\u202e``, ``\\udcff``.

    That is control characters, line ends, marks of direction, bytes of a file name that are not UTF-8, and spaces other
    than the ordinary one.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def say(*lines: str, error: bool = False) -> None:
    """Print lines to stdout, or to stderr; a closed or full stream loses it."""
    stream = sys.stderr if error else sys.stdout
    try:
        encoding = stream.encoding or "utf-8"
        text = "".join(f"{printable(line)}\n" for line in lines)
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    except (OSError, ValueError):  # ValueError: closed
        pass
    flush(stream)


def flush(stream: TextIO) -> None:
    """Flush; a stream that cannot be written is led to /dev/null, where the interpreter's last flush succeeds."""
    try:
        stream.flush()
    except (OSError, ValueError):
        try:
            handle = stream.fileno()
        except (OSError, ValueError):  # a test's stream, or closed
            return
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, handle)
        os.close(null)


class LineFormatter(logging.Formatter):
    """Log records as lines without control characters; tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The record's line."""
        return printable(super().formatMessage(record))


def open_standard_streams() -> None:
    """Make stdout and stderr streams that any text can be written to.

    Handles that the caller closed are opened on /dev/null: otherwise the next files would get their numbers. Characters
    that the encoding lacks are escaped.
    """
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - for the process's life
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.raiseExceptions = False  # a log line that cannot be written is lost, without a traceback
