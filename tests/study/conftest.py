"""Sweeps for all tests of the study."""

from sweeps import finished, folders, large_batches  # noqa: F401  fixtures
