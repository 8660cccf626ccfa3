"""Augmentation against plain operations: cropping of padded images, flips, colour in a loop, and areas."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from hybrid_mobilenet import Augmentation, augment
from hybrid_mobilenet.training.augmentation import DRAWS, draw

MIDDLE = torch.full((DRAWS,), 0.5)  # no shift, no change of size or colour; with flips, not mirrored


def photographs(count: int = 6, channels: int = 3, height: int = 20, width: int = 28) -> torch.Tensor:
    """Noise in channels-last memory format, as a data set gives it."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, height, width, channels), generator=generator, dtype=torch.uint8)
    return pixels.permute(0, 3, 1, 2)


def augmented(images: torch.Tensor, draws: torch.Tensor, **settings: object) -> torch.Tensor:
    labels = torch.zeros(len(images), dtype=torch.int64)
    return augment(images, labels, Augmentation(**settings), 2, draws)[0]  # type: ignore[arg-type]


def draws_with(**values: float) -> torch.Tensor:
    """Draws that change nothing, but for the given columns, written as c0=0.9."""
    draws = MIDDLE.repeat(6, 1)
    for column, value in values.items():
        draws[:, int(column[1:])] = value
    return draws


def test_without_settings_a_batch_is_returned_as_it_is() -> None:
    images, labels = photographs(), torch.arange(6)
    same = augment(images, labels, Augmentation(), 6)
    assert same[0] is images
    assert same[1] is labels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("draws", [(0.0, 0.0), (1.0, 0.25), (0.6, 0.9)])
def test_a_shift_is_a_crop_of_the_reflected_image(channels: int, draws: tuple[float, float]) -> None:
    images = photographs(channels=channels)
    moved = augmented(images, draws_with(c0=draws[0], c1=draws[1]), shift=0.25)
    down, across = round((2 * draws[0] - 1) * 0.25 * 20), round((2 * draws[1] - 1) * 0.25 * 28)
    padded = F.pad(images.float() / 255, (7, 7, 7, 7), mode="reflect")
    expected = padded[:, :, 7 + down : 27 + down, 7 + across : 35 + across]
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize(
    ("flips", "down", "across", "dims"),
    [
        ("horizontal", 0.9, 0.9, (3,)),
        ("horizontal", 0.9, 0.1, ()),
        ("vertical", 0.9, 0.9, (2,)),
        ("vertical", 0.1, 0.9, ()),
        ("both", 0.9, 0.9, (2, 3)),
        ("both", 0.1, 0.9, (3,)),
    ],
)
def test_flips(flips: str, down: float, across: float, dims: tuple[int, ...]) -> None:
    images = photographs()
    flipped = augmented(images, draws_with(c3=down, c4=across), flips=flips)
    torch.testing.assert_close(flipped, images.flip(dims).float() / 255)


def test_half_of_the_images_are_mirrored() -> None:
    images = photographs(1).repeat(2000, 1, 1, 1)
    flipped = augmented(images, draw(2000, generator=torch.Generator().manual_seed(0)), flips="horizontal")
    mirrored = (flipped - images.flip(3) / 255).abs().amax((1, 2, 3)) < 1e-5
    assert 900 < mirrored.sum() < 1100


def test_scale_is_a_linear_interpolation_about_the_middle() -> None:
    ramp = torch.linspace(0, 255, 21).round().to(torch.uint8).expand(1, 3, 21, 21)
    enlarged = augmented(ramp, MIDDLE[None].clone().index_fill(1, torch.tensor([2]), 1.0), scale=1.0)
    # Twice as large: the middle half of the ramp.
    expected = ramp[0, 0, 0].float().div(255)
    between = torch.stack([expected[5:16], (expected[5:16] + expected[6:17]) / 2], 1).flatten()[:21]
    torch.testing.assert_close(enlarged, between.expand(1, 3, 21, 21), atol=1e-5, rtol=0)


def test_colour_changes_brightness_contrast_and_saturation() -> None:
    images = photographs()
    changed = augmented(images, draws_with(c5=0.8, c6=0.3, c7=0.9), colour=0.5)
    brightness, contrast, saturation = (1 + (2 * draw - 1) * 0.5 for draw in (0.8, 0.3, 0.9))
    for image, result in zip(images.float() / 255, changed, strict=True):
        mean = image.mean()
        grey = image.mean(0, keepdim=True)
        saturated = saturation * (image - grey) + grey
        torch.testing.assert_close(result, (contrast * (saturated - mean) + brightness * mean).clamp(0, 1))


def test_grey_images_have_no_saturation() -> None:
    images = photographs(channels=1)
    changed = augmented(images, draws_with(c7=0.9), colour=0.5)
    torch.testing.assert_close(changed, images.float() / 255)


def test_cutout_fills_a_square_with_the_mean() -> None:
    images = photographs()
    cut = augmented(images, draws_with(c8=0.5, c9=0.0), cutout=0.5)
    expected = images.float() / 255
    mean = expected.mean((2, 3), keepdim=True)
    expected[:, :, 5:15, :7] = mean  # 10 rows about the middle; half of 14 columns, since its centre is at the edge
    torch.testing.assert_close(cut, expected)


def test_combined_images_have_labels_by_area() -> None:
    images = torch.stack([torch.full((3, 16, 16), 20 * number, dtype=torch.uint8) for number in range(8)])
    labels = torch.arange(8)
    generator = torch.Generator().manual_seed(1)
    met = 0
    for _ in range(50):
        combined, shares = augment(images, labels, Augmentation(combined=1), 8, draw(8, generator=generator))
        torch.testing.assert_close(shares.sum(1), torch.ones(8))
        for image, share in zip(combined, shares, strict=True):
            values, counts = (image[0] * 255 / 20).round().unique(return_counts=True)
            expected = torch.zeros(8)
            expected[values.long()] = counts / 256
            torch.testing.assert_close(share, expected)
            met += len(values) == 4
    assert met > 200


def test_combined_is_the_share_of_the_batches() -> None:
    images, labels = photographs(8), torch.arange(8)
    generator = torch.Generator().manual_seed(2)
    whole = 0
    for _ in range(400):
        shares = augment(images, labels, Augmentation(combined=0.25), 8, draw(8, generator=generator))[1]
        whole += bool((shares.amax(1) == 1).all())
    assert 270 < whole < 340  # of the combined ones, a few meet at an edge


def test_the_random_numbers_decide_everything() -> None:
    images, labels = photographs(8), torch.arange(8)
    settings = Augmentation(shift=0.2, scale=0.3, flips="both", colour=0.3, cutout=0.4, combined=0.5)
    generator = torch.Generator().manual_seed(3)
    first, second = draw(8, generator=generator), draw(8, generator=generator)
    results = [augment(images, labels, settings, 8, draws)[0] for draws in (first, first, second)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[1], results[2])
    assert results[0].amin() >= 0
    assert results[0].amax() <= 1
    # Each image has its own: the distances between shifted copies of one image are not zero.
    same = images[:1].expand(8, -1, -1, -1)
    varied = augment(same, labels, Augmentation(shift=0.2, flips="both"), 8, first)[0]
    assert all(not torch.equal(one, other) for one, other in pairwise(varied))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shift": 1.5}, "shift is 1.5, but must be from 0 to 1"),
        ({"colour": -0.1}, "colour is -0.1"),
        ({"flips": "left"}, "flips is 'left', but must be one of none, horizontal, vertical, both"),
        ({"combined": float("nan")}, "combined is nan"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)  # type: ignore[arg-type]
