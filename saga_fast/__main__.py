"""``python -m saga_fast``: the command line, also for ``torchrun -m saga_fast``."""

import sys

from saga_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
