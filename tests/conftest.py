"""One thread for all tests: beside another busy process, OpenMP's threads wait for each other by spinning."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also of the processes that tests start; torch reads it when imported
