"""The command line: ``saga-fast COMMAND``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from collections.abc import Sequence

from saga_fast.cli import build_att, demo, evaluate, export, import_, pack, profile, report, show_att, train
from saga_fast.errors import SagaError
from saga_fast.runtime import distributed
from saga_fast.version import __version__

COMMANDS = (demo, train, build_att, evaluate, show_att, report, pack, profile, import_, export)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    An error that the user can correct is one line on stderr and exit code 2.
    """
    parser = argparse.ArgumentParser(
        prog="saga-fast",
        description="Contrastive learning with crops from the network's own attention (SAGA).",
    )
    parser.add_argument("--version", action="version", version=f"saga-fast {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    options = parser.parse_args(arguments)
    is_rank_0 = int(os.environ.get("RANK", "0")) == 0
    log_format = "%(message)s" if is_rank_0 else f"rank {os.environ['RANK']}: %(message)s"
    threading.excepthook = _report_thread_error
    logging.basicConfig(level=logging.INFO if is_rank_0 else logging.WARNING, format=log_format, stream=sys.stderr)
    try:
        if distributed.launched() and not getattr(options, "distributed", False):
            return _fail(f"{options.command} runs in one process: start it without torchrun")
        with distributed.session():
            options.run(options)
    except SagaError as error:
        return _fail(str(error))
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror}{where}")
    except KeyboardInterrupt:
        if is_rank_0:
            print("saga-fast: interrupted", file=sys.stderr)
        if distributed.launched():
            sys.stdout.flush()
            os._exit(130)  # a normal exit would abort in threads that still wait for other processes
        return 130
    return 0


def _fail(message: str) -> int:
    print(f"saga-fast: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _report_thread_error(error: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread, except for errors of the operating system.

    Those come from TensorBoard's writer thread, which raises them again in the main thread.
    """
    if not isinstance(error.exc_value, OSError):
        threading.__excepthook__(error)
