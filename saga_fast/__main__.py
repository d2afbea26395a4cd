"""``saga-fast`` and ``python -m saga_fast``: the command line, also for ``torchrun -m saga_fast``."""

import os
import sys

from saga_fast.runtime.signals import handle_signals
from saga_fast.runtime.spinning import adapt_spinning
from saga_fast.runtime.terminal import flush, open_standard_streams
from saga_fast.runtime.threads import configure_threads


def main() -> int:
    """Run the command of ``sys.argv`` in this process, and return its exit code."""
    handle_signals()  # before the imports, which take seconds
    configure_threads()
    adapt_spinning()
    open_standard_streams()
    os.environ["MPLBACKEND"] = "agg"  # no command opens a window, and a notebook's back end may not be installed here
    from saga_fast.cli import main as run_command

    try:
        return run_command()
    finally:
        flush(sys.stdout)
        flush(sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
