"""Find images that are equal or look alike, by the hash of their content and by a perceptual hash.

The perceptual hash is the difference hash of Krawetz (2013), from the library `dhash`: for each pair of neighbours in a
thumbnail of 9x9 grey levels, whether it gets brighter to the right (64 bits) and downwards (64 bits). Images whose
hashes are close are then compared by the colours of a thumbnail, since the hash knows neither contrast nor colour.
docs/DECISIONS.md says how the limits below were chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import dhash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Largest number of differing bits, of 128, between the hashes of two images that look alike.
MAX_DISTANCE = 20
#: Least correlation between the thumbnails of two images that look alike.
MIN_CORRELATION = 0.95
#: A thumbnail with less `contrast` than this shows nothing that could be compared.
MIN_CONTRAST = 4.0
#: Side of the thumbnails in pixels.
THUMBNAIL = 8
#: A smaller image has hardly more detail than its thumbnail: many handwritten digits of 8x8 pixels would look alike.
MIN_SIDE = 16

_HASH_SIDE = 8
_REPORT_EVERY = 256


def look(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """What is compared of an image: its perceptual hash, uint64 (2,), and its thumbnail, uint8 (8 * 8 * 3,).

    Args:
        pixels: uint8 (height, width, 3), at least 9 pixels each way.
    """
    image = Image.fromarray(pixels)
    side = _HASH_SIDE + 1
    greys = image.convert("L").resize((side, side), Image.Resampling.LANCZOS).tobytes()
    thumbnail = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.array(dhash.dhash_row_col(list(greys), _HASH_SIDE), np.uint64), np.asarray(thumbnail).ravel()


def look_alikes(
    hashes: NDArray[np.uint64],
    thumbnails: NDArray[np.uint8],
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.int64]:
    """Group images that look alike. An image is in a group if it looks like any other of the group.

    Every pair is compared, in time quadratic in the number of images. Memory is linear.

    Args:
        hashes: uint64 (n, 2), from `look`.
        thumbnails: uint8 (n, t), from `look`. One without contrast is in a group of its own.
        progress: called with the number of images compared with all others, and their total.

    Returns:
        int64 (n,): the number of the first image of each one's group.
    """
    group = np.arange(len(hashes))
    order = np.flatnonzero([contrast(thumbnail) >= MIN_CONTRAST for thumbnail in thumbnails])
    rows, columns = np.ascontiguousarray(hashes[order, 0]), np.ascontiguousarray(hashes[order, 1])
    differing, distance = np.empty(len(order), np.uint64), np.empty(len(order), np.uint8)
    for place, image in enumerate(order.tolist()):
        if progress is not None and place % _REPORT_EVERY == 0:
            progress(place, len(order))
        later = slice(place + 1, None)
        np.bitwise_xor(rows[later], rows[place], out=differing[later])
        np.bitwise_count(differing[later], out=distance[later])
        near = np.flatnonzero(distance[later] <= MAX_DISTANCE) + place + 1  # by half of the hash: few are left
        if len(near):
            total = distance[near] + np.bitwise_count(columns[near] ^ columns[place])
            others = order[near[total <= MAX_DISTANCE]]
            others = others[group[others] != group[image]]
            if len(others):
                compared = _normalised(thumbnails[np.append(others, image)])
                alike = others[compared[:-1] @ compared[-1] >= MIN_CORRELATION]
                joined = np.unique(group[np.append(alike, image)])
                if len(joined) > 1:
                    group[np.isin(group, joined)] = joined[0]
    if progress is not None and len(order):
        progress(len(order), len(order))
    return group


def contrast(pixels: NDArray[np.uint8]) -> float:
    """Standard deviation from the mean colour, in grey levels. `pixels` are RGB values of any shape."""
    colours = pixels.reshape(-1, 3).astype(np.float32)
    return float((colours - colours.mean(0)).std())


def _normalised(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Differences from each thumbnail's mean colour, scaled to length 1: the product of two is their correlation."""
    colours = thumbnails.reshape(len(thumbnails), -1, 3).astype(np.float32)
    colours -= colours.mean(1, keepdims=True)
    values: NDArray[np.float32] = colours.reshape(len(thumbnails), -1)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values


@dataclass(frozen=True)
class Group:
    """Images that are equal or look alike.

    Attributes:
        members: their numbers, ascending.
        is_exact: whether their files have the same content.
        across_classes: whether they are in different classes; at least one label is then wrong.
        across_splits: whether some are for training and others are held out; accuracy is then overestimated.
    """

    members: tuple[int, ...]
    is_exact: bool
    across_classes: bool
    across_splits: bool


def duplicate_groups(
    contents: NDArray[np.uint64],
    alike: NDArray[np.int64],
    labels: NDArray[np.int64],
    splits: NDArray[np.int64],
) -> list[Group]:
    """The groups of equal images and of images that look alike, the worst first.

    Images across classes come first, then images across splits, then equal images, then large groups.

    Args:
        contents: uint64 (n,), `ImageDataset.contents`.
        alike: int64 (n,), the group of each image; equal images must be in the same.
        labels: int64 (n,), the class of each image.
        splits: int64 (n,), the split of each image.
    """

    def group(members: NDArray[np.int64], is_exact: bool) -> Group:
        return Group(
            tuple(members.tolist()),
            is_exact,
            len(np.unique(labels[members])) > 1,
            len(np.unique(splits[members])) > 1,
        )

    groups = [group(members, True) for members in _equal(contents)]
    groups += [group(members, False) for members in _equal(alike) if len(np.unique(contents[members])) > 1]
    return sorted(
        groups,
        key=lambda each: (
            not each.across_classes,
            not each.across_splits,
            not each.is_exact,
            -len(each.members),
            each.members,
        ),
    )


def _equal(values: NDArray[np.uint64] | NDArray[np.int64]) -> Sequence[NDArray[np.int64]]:
    """The positions of each value that occurs more than once."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order])) + 1
    return [part for part in np.split(order, starts) if len(part) > 1]
