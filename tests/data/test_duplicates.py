"""Equal images and images that look alike are found; others are not."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from hybrid_mobilenet.data import duplicates
from hybrid_mobilenet.data.duplicates import Group, duplicate_groups, look, look_alikes

Pixels = NDArray[np.uint8]


def picture(seed: int, side: int = 96) -> Image.Image:
    """Coloured blobs with a little noise: like a photograph, most of its contrast is in large shapes."""
    draw = np.random.default_rng(seed)
    blobs = Image.fromarray(draw.integers(0, 256, (5, 5, 3), np.uint8))
    pixels = np.asarray(blobs.resize((side, side), Image.Resampling.BICUBIC)).astype(np.float64)
    return Image.fromarray((pixels + draw.normal(0, 5, pixels.shape)).clip(0, 255).astype(np.uint8))


def groups_of(images: list[Image.Image]) -> list[int]:
    looks = [look(np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC))) for image in images]
    hashes, thumbnails = (np.array(each) for each in zip(*looks, strict=True))
    groups: list[int] = look_alikes(hashes, thumbnails).tolist()
    return groups


def saved(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


def test_the_hash_has_a_bit_for_each_pair_of_neighbours_that_gets_brighter() -> None:
    ramp = np.repeat(np.arange(0, 180, 20, dtype=np.uint8), 8)  # 9 steps of 8 pixels
    brighter_to_the_right = np.broadcast_to(ramp[None, :, None], (72, 72, 3)).copy()
    everything = 2**64 - 1
    assert look(brighter_to_the_right)[0].tolist() == [everything, 0]
    assert look(brighter_to_the_right.transpose(1, 0, 2).copy())[0].tolist() == [0, everything]
    assert look(brighter_to_the_right[:, ::-1].copy())[0].tolist() == [0, 0]


def test_the_thumbnail_has_the_mean_colour_of_each_block() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:8, 8:16] = (10, 20, 30)
    thumbnail = look(pixels)[1].reshape(8, 8, 3)
    assert thumbnail[0, 1].tolist() == [10, 20, 30]
    assert thumbnail.sum() == 60


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG": lambda image: saved(image, 70),
    "smaller": lambda image: image.resize((86, 86)),
    "half": lambda image: image.resize((48, 48)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.1),
    "cropped": lambda image: image.crop((2, 2, 94, 94)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_look_alike_and_other_pictures_do_not(change: str) -> None:
    originals = [picture(seed) for seed in range(40)]
    copies = [CHANGES[change](image) for image in originals]
    assert groups_of([*originals, *copies]) == [*range(40), *range(40)]


def test_a_mirrored_picture_is_another() -> None:
    image = picture(0)
    assert groups_of([image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]) == [0, 1]


def test_the_same_shape_in_another_colour_is_another_picture() -> None:
    """Otherwise, red and blue circles would be one class."""
    disc = np.hypot(*np.mgrid[-32:32, -32:32]) < 20
    pictures = []
    for colour in ((230, 90, 90), (90, 90, 230), (110, 170, 90)):
        pixels = np.full((64, 64, 3), 250, np.uint8)
        pixels[disc] = colour
        pictures.append(Image.fromarray(pixels))
    assert groups_of(pictures) == [0, 1, 2]


def test_nearly_uniform_pictures_are_not_compared() -> None:
    draw = np.random.default_rng(0)
    uniform = [Image.new("RGB", (64, 64), (level, level, level)) for level in (0, 1, 2, 128, 255)]
    uniform += [Image.new("RGB", (64, 64), colour) for colour in ("red", "navy", "#00007f")]
    grainy = [Image.fromarray(draw.integers(120, 123, (64, 64, 3), np.uint8)) for _ in range(5)]
    assert groups_of([*uniform, *grainy]) == list(range(13))


def test_contrast_is_the_deviation_from_the_mean_colour() -> None:
    assert duplicates.contrast(np.full((4, 4, 3), (200, 0, 90), np.uint8)) == 0
    assert duplicates.contrast(np.array([(0, 0, 0), (10, 20, 20)], np.uint8)) == pytest.approx(
        ((25 + 100 + 100) / 3) ** 0.5
    )


def test_noise_is_unlike_other_noise() -> None:
    draw = np.random.default_rng(0)
    assert groups_of([Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(200)]) == list(
        range(200)
    )


def synthetic(count: int, seed: int = 0) -> tuple[NDArray[np.uint64], Pixels]:
    """Hashes and thumbnails of families of images, each a few bits and grey levels from another of its family."""
    draw = np.random.default_rng(seed)
    bits, thumbnails = draw.integers(0, 2, (count, 128)), draw.integers(0, 256, (count, 192))
    for image in range(10, count):
        parent = draw.integers(0, image)
        bits[image] = bits[parent] ^ (draw.random(128) < draw.uniform(0, 0.3))
        thumbnails[image] = thumbnails[parent] + draw.integers(-60, 61, 192) * (draw.random() < 0.5)
    hashes = np.packbits(bits.astype(np.uint8), axis=1).view(">u8").astype(np.uint64)
    return hashes, thumbnails.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(2))
def test_groups_are_those_of_comparing_every_pair(seed: int) -> None:
    hashes, thumbnails = synthetic(120, seed)
    expected = list(range(120))
    for first in range(120):
        for second in range(first + 1, 120):
            distance = sum((int(a) ^ int(b)).bit_count() for a, b in zip(hashes[first], hashes[second], strict=True))
            colours = thumbnails[[first, second]].reshape(2, 64, 3).astype(float)
            correlation = np.corrcoef((colours - colours.mean(1, keepdims=True)).reshape(2, -1))[0, 1]
            if distance <= duplicates.MAX_DISTANCE and correlation >= duplicates.MIN_CORRELATION:
                old, new = sorted((expected[first], expected[second]), reverse=True)
                expected = [new if each == old else each for each in expected]
    assert look_alikes(hashes, thumbnails).tolist() == expected
    assert 10 < len(set(expected)) < 120


def test_thousands_of_pictures_that_all_look_alike_take_no_longer() -> None:
    """Frames of a film: a picture that is in the group already is not compared again."""
    hashes, thumbnails = synthetic(1)
    assert not look_alikes(hashes.repeat(5000, 0), thumbnails.repeat(5000, 0)).any()


def test_progress_ends_at_the_total() -> None:
    hashes, thumbnails = synthetic(300)
    seen: list[tuple[int, int]] = []
    look_alikes(hashes, thumbnails, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 300), (256, 300), (300, 300)]
    assert look_alikes(hashes[:0], thumbnails[:0]).tolist() == []


def test_the_worst_groups_come_first() -> None:
    contents = np.array([1, 1, 2, 3, 4, 4, 5, 6, 7, 8], np.uint64)
    alike = np.array([0, 0, 2, 2, 4, 4, 4, 7, 7, 9])
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 1, 0, 1])
    splits = np.array([0, 0, 0, 0, 0, 2, 0, 0, 2, 0])
    assert duplicate_groups(contents, alike, labels, splits) == [
        Group((7, 8), is_exact=False, across_classes=True, across_splits=True),
        Group((4, 5), is_exact=True, across_classes=False, across_splits=True),
        Group((4, 5, 6), is_exact=False, across_classes=False, across_splits=True),
        Group((0, 1), is_exact=True, across_classes=False, across_splits=False),
        Group((2, 3), is_exact=False, across_classes=False, across_splits=False),
    ]
