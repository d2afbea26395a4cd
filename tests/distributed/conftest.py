"""Nothing here uses more than one thread, in whatever process."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
