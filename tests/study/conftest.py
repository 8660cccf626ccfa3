"""Sweeps and runs for all tests of the study."""

from cifar_runs import cifar_run  # noqa: F401  a fixture
from sweeps import finished, folders, large_batches  # noqa: F401  fixtures
