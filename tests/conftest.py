"""Settings of the whole suite."""

import os

# two workers on two cores: more threads than that wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
