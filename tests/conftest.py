"""What all tests share."""

import os

# Test problems are small: a second thread would only wait for the first. Subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
