"""The command line: ``saga-fast COMMAND``."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

from saga_fast.errors import SagaError
from saga_fast.runtime import signals
from saga_fast.runtime.address import redact
from saga_fast.runtime.exhausted import is_out_of_memory
from saga_fast.runtime.terminal import LineFormatter, say
from saga_fast.version import __version__

COMMANDS = [
    *("demo", "train", "configs", "build_att", "evaluate", "show_att"),
    *("report", "reproduce", "pack", "profile", "import_", "export"),
]
"""Modules of this package, imported by :func:`parse`: they take seconds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    An error that the user can correct is one line on stderr and exit code 2.
    """
    try:
        if arguments is None and sys.argv[1:] == ["--version"]:
            say(f"saga-fast {__version__}")
            return 0
        options = parse(arguments)
        _start_logging()
        with signals.unwinding():
            return _run(options)
    except SagaError as error:
        return _fail(str(error))
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror}{where}")
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit:
        _leave_group(signals.received())
        raise
    except Exception as error:
        # A library may make another exception of the one that a signal raised in its callback.
        if (code := signals.received()) is not None:
            return _interrupted() if code == signals.INTERRUPTED else code
        if is_out_of_memory(error):
            return _fail_of_memory()
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            return _fail("cannot start another thread: lower --threads or data.threads, or raise the limit (ulimit -u)")
        raise


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command, whose ``run`` is the command's function; None: of ``sys.argv``."""
    commands: list[Any] = [importlib.import_module(f"saga_fast.cli.{name}") for name in COMMANDS]
    parser = _Parser(
        prog="saga-fast",
        description="Contrastive learning with crops from the network's own attention (SAGA).",
    )
    parser.add_argument("--version", action="version", version=f"saga-fast {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in commands:
        command.add_parser(subparsers)
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    from saga_fast.runtime import distributed

    if distributed.launched() and not getattr(options, "distributed", False):
        name = " ".join(filter(None, (options.command, getattr(options, "evaluation", None))))
        return _fail(f"{name} runs in one process: start it without torchrun")
    with distributed.session():
        options.run(options)
    return 0


def _start_logging() -> None:
    """Log to stderr, one line per record: rank 0 messages, the other ranks only warnings, with their number.

    Raises:
        SagaError: RANK is not a number.
    """
    from saga_fast.runtime.distributed import launched_rank

    number = launched_rank()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(f"rank {number}: %(message)s" if number else "%(message)s"))
    logging.basicConfig(level=logging.WARNING if number else logging.INFO, handlers=[handler])
    threading.excepthook = _report_thread_error


def _interrupted() -> int:
    if os.environ.get("RANK", "0") == "0":
        say("saga-fast: interrupted", error=True)
    _leave_group(signals.INTERRUPTED)
    return signals.INTERRUPTED


def _leave_group(code: int | None) -> None:
    """End a process of several at a signal: a normal exit would abort in threads that still wait for the others."""
    if code is not None and os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        os._exit(code)


def _fail(message: str) -> int:
    say(f"saga-fast: error: {redact(message)}", error=True)
    return 2


def _fail_of_memory() -> int:
    return _fail("out of memory: lower the batch size, --threads or data.prefetch, or use a machine with more memory")


def _report_thread_error(error: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread, except for errors of the operating system and of memory.

    Those come from TensorBoard's writer thread, which raises them again in the main thread.
    """
    if not isinstance(error.exc_value, OSError | MemoryError):
        threading.__excepthook__(error)


class _Parser(argparse.ArgumentParser):
    """A parser that escapes what it repeats of the command line, and leaves out the secrets of addresses."""

    def _print_message(self, message: str, file: Any = None) -> None:
        say(*redact(message).removesuffix("\n").split("\n"), error=file is not sys.stdout)
