"""Two workers run the tests side by side, so each, and what it starts, computes with one thread."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, which is later
