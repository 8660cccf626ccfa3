"""Batches: every image is used, and fetched in time."""

from __future__ import annotations
