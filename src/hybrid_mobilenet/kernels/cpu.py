"""Fractional max pooling on the CPU, compiled by numba.

Maps are read in channels-last order (N, H, W, C) as one flat array. Pooling is separable, so a row of regions is pooled
in two passes: down the rows, over W * C neighbouring numbers at once, then across the columns, over C at once. Each
inner loop stores to one place and its offsets are unsigned: numba vectorises nothing else. A narrow region reads its
last pixel twice instead of branching; "greater than" never lets the second reading win. Winners are coded as in
`reference`: backward then reads a byte per region instead of the whole input, which has left the cache by that time.
They are found for all pairs of neighbouring columns at once and copied in words of eight where C is a multiple of 8,
since loops over eight bytes are not vectorised.
"""

# ruff: noqa: PLR0124  a number that is not equal to itself is NaN

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, cast

import numba
import numpy as np
import torch
from torch import Tensor

#: Numbers below which a second thread costs more than it saves.
PARALLEL_FROM = 1 << 16

Kernel = Callable[..., None]
offset = np.uint64
_threads: ThreadPoolExecutor | None = None


def forward(x: Tensor, rows: Tensor, columns: Tensor, overlapping: bool) -> tuple[Tensor, Tensor]:
    """Maxima over regions, and their winners: (N, C, H, W) to two of (N, C, H_out, W_out), x's dtype and uint8."""
    _check(rows, x.shape[2], "rows")
    _check(columns, x.shape[3], "columns")
    shape = (*x.shape[:2], len(rows) - 1, len(columns) - 1)
    output = torch.empty(shape, dtype=_computed(x.dtype), memory_format=torch.channels_last)
    winners = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
    words = _flat(winners).view(np.uint64 if x.shape[1] % 8 == 0 else np.uint8)
    _run(_forward, (_flat(x), _flat(output), words, rows.numpy(), columns.numpy()), x.shape, overlapping)
    return output.to(x.dtype), winners


def backward(
    gradient: Tensor, winners: Tensor, rows: Tensor, columns: Tensor, overlapping: bool, height: int, width: int
) -> Tensor:
    """Gradient of the input, (N, C, height, width), from that of the output, each region's going to its winner."""
    shape = torch.Size((*winners.shape[:2], height, width))
    spread = torch.empty(shape, dtype=_computed(gradient.dtype), memory_format=torch.channels_last)
    if overlapping:
        spread.zero_()
    kernel = _backward_overlapping if overlapping else _backward_disjoint
    _run(kernel, (_flat(gradient), _flat(winners), _flat(spread), rows.numpy(), columns.numpy()), shape, overlapping)
    return spread.to(gradient.dtype)


def _computed(dtype: torch.dtype) -> torch.dtype:
    # numba knows no bfloat16. Going through float32 is exact: a maximum is one of its inputs.
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _flat(x: Tensor) -> np.ndarray[Any, Any]:
    nhwc = x.detach().to(_computed(x.dtype)).permute(0, 2, 3, 1)
    flat: np.ndarray[Any, Any] = nhwc.contiguous().view(-1).numpy()
    return flat


def _check(sequence: Tensor, size: int, name: str) -> None:
    # The kernels read where the sequences point, so a wrong one must not reach them.
    values = sequence.numpy()
    right = values.dtype == np.int64 and values.ndim == 1 and len(values) > 1 and values[0] == 0 and values[-1] == size
    if not right or not ((steps := values[1:] - values[:-1]).min() >= 1 and steps.max() <= 2):
        raise ValueError(
            f"{name} is {sequence.dtype} {values.tolist()}, but must be int64 and rise from 0 to {size} in steps of 1 "
            "or 2: make it with random_sequence or pseudorandom_sequence"
        )


def _run(kernel: Kernel, arrays: tuple[Any, ...], shape: torch.Size, overlapping: bool) -> None:
    """Run a kernel over slices of the batch, one per thread of torch's setting; numba releases the GIL."""
    batch, channels, height, width = shape

    def part(first: int, last: int) -> None:
        kernel(*arrays, height, width, channels, int(overlapping), first, last)

    threads = min(torch.get_num_threads(), batch) if shape.numel() >= PARALLEL_FROM else 1
    if threads <= 1:
        part(0, batch)
        return
    bounds = [batch * thread // threads for thread in range(threads + 1)]
    others = [_pool().submit(part, first, last) for first, last in pairwise(bounds[1:])]
    part(bounds[0], bounds[1])
    for other in others:
        other.result()


def _pool() -> ThreadPoolExecutor:
    global _threads  # noqa: PLW0603  one pool per process, made when first needed
    if _threads is None:
        _threads = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="fractional-max-pool")
    return _threads


def _forget_pool() -> None:
    global _threads  # noqa: PLW0603
    _threads = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # threads do not survive a fork


def _compiled(function: Kernel) -> Kernel:
    try:
        return cast(Kernel, numba.njit(function, nogil=True, error_model="numpy", cache=True))
    except RuntimeError:  # no folder to cache in can be written to: compile anew in every process
        return cast(Kernel, numba.njit(function, nogil=True, error_model="numpy"))


@_compiled
def _forward(x, y, words, rows, columns, height, width, channels, overlap, first, last):  # type: ignore[no-untyped-def]
    channel_count, row, per_word = offset(channels), offset(width * channels), offset(words.itemsize)
    winners = words.view(np.uint8)
    # One pixel more than a row: the last column has no neighbour.
    pooled, row_won_words = (
        np.zeros(row + channel_count, x.dtype),
        np.zeros((row + channel_count) // per_word, words.dtype),
    )
    pair_won_words = np.empty(row // per_word, words.dtype)
    row_won, pair_won = row_won_words.view(np.uint8), pair_won_words.view(np.uint8)
    o = offset(first * (len(rows) - 1) * (len(columns) - 1)) * channel_count
    for n in range(first, last):
        for i in range(len(rows) - 1):
            a = offset(n * height + rows[i]) * row
            c = offset(n * height + min(rows[i + 1] - 1 + overlap, height - 1)) * row
            b = min(a + row, c)
            for k in range(row):
                m, v = x[a + k], x[b + k]
                pooled[k] = v if (v > m) | (v != v) else m
            for k in range(row):
                row_won[k] = x[b + k] > x[a + k]
            if c > b:
                for k in range(row):
                    row_won[k] = np.uint8(2) if x[c + k] > pooled[k] else row_won[k]
                for k in range(row):
                    m, v = pooled[k], x[c + k]
                    pooled[k] = v if (v > m) | (v != v) else m
            for k in range(row):
                won = pooled[k + channel_count] > pooled[k]
                pair_won[k] = np.uint8(3) + row_won[k + channel_count] if won else row_won[k]
            for j in range(len(columns) - 1):
                a = offset(columns[j]) * channel_count
                c = offset(min(columns[j + 1] - 1 + overlap, width - 1)) * channel_count
                b = min(a + channel_count, c)
                for k in range(channel_count):
                    m, v = pooled[a + k], pooled[b + k]
                    y[o + k] = v if (v > m) | (v != v) else m
                if b > a:
                    for k in range(channel_count // per_word):
                        words[o // per_word + k] = pair_won_words[a // per_word + k]
                else:
                    for k in range(channel_count // per_word):
                        words[o // per_word + k] = row_won_words[a // per_word + k]
                if c > b:
                    for k in range(channel_count):
                        won = pooled[c + k] > y[o + k]
                        winners[o + k] = np.uint8(6) + row_won[c + k] if won else winners[o + k]
                    for k in range(channel_count):
                        m, v = y[o + k], pooled[c + k]
                        y[o + k] = v if (v > m) | (v != v) else m
                o += channel_count


@_compiled
def _backward_disjoint(g, winners, dx, rows, columns, height, width, channels, _overlap, first, last):  # type: ignore[no-untyped-def]
    channel_count, zero = offset(channels), g.dtype.type(0)
    o = offset(first * (len(rows) - 1) * (len(columns) - 1)) * channel_count
    for n in range(first, last):
        for i in range(len(rows) - 1):
            top, low = (n * height + rows[i]) * width, (n * height + rows[i + 1] - 1) * width
            for j in range(len(columns) - 1):
                left, right = columns[j], columns[j + 1] - 1
                a, b = offset(top + left) * channel_count, offset(low + left) * channel_count
                c, d = offset(top + right) * channel_count, offset(low + right) * channel_count
                for k in range(channel_count):
                    dx[a + k] = g[o + k] if winners[o + k] == 0 else zero
                if low > top:
                    for k in range(channel_count):
                        dx[b + k] = g[o + k] if winners[o + k] == 1 else zero
                if right > left:
                    for k in range(channel_count):
                        dx[c + k] = g[o + k] if winners[o + k] == 3 else zero
                    if low > top:
                        for k in range(channel_count):
                            dx[d + k] = g[o + k] if winners[o + k] == 4 else zero
                o += channel_count


@_compiled
def _backward_overlapping(g, winners, dx, rows, columns, height, width, channels, overlap, first, last):  # type: ignore[no-untyped-def]
    channel_count, zero = offset(channels), g.dtype.type(0)
    o = offset(first * (len(rows) - 1) * (len(columns) - 1)) * channel_count
    for n in range(first, last):
        for i in range(len(rows) - 1):
            for j in range(len(columns) - 1):
                for h in range(rows[i], min(rows[i + 1] + overlap, height)):
                    for w in range(columns[j], min(columns[j + 1] + overlap, width)):
                        place = offset((n * height + h) * width + w) * channel_count
                        code = np.uint8(3 * (w - columns[j]) + h - rows[i])
                        # The regions of an image come one after the other: a thread owns whole images.
                        for k in range(channel_count):
                            dx[place + k] += g[o + k] if winners[o + k] == code else zero
                o += channel_count
