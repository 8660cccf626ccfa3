"""Images damaged at random: each one is read, or refused by an error that names it.

HYBRID_MOBILENET_MUTATIONS sets the number of damaged images; 5,000 take a minute or two.
"""

from __future__ import annotations

import os
import random
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybrid_mobilenet.data.images import EXTENSIONS, FORMATS, DataError, read_image
from noise_images import encoded, noise, png_16

MUTATIONS = int(os.environ.get("HYBRID_MOBILENET_MUTATIONS", "300"))
#: Seconds of computing time for one image.
LIMIT = 5.0


def originals() -> list[bytes]:
    """Small images in every format, and in several modes and compressions."""
    colour = Image.fromarray(noise(5, 7)).resize((28, 20), Image.Resampling.BICUBIC)
    deep = np.random.default_rng(0).integers(0, 4096, (20, 28, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [encoded(colour, kind) for kind in FORMATS]
    files += [encoded(colour, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    files += [
        encoded(colour, "JPEG", progressive=True),
        encoded(colour.convert("CMYK"), "JPEG"),
        encoded(colour, "MPO"),
    ]
    files += [
        encoded(colour, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    ]
    files += [encoded(colour.convert("1"), "TIFF", compression="group4"), encoded(colour.convert("1"), "PPM")]
    files += [encoded(colour.quantize(9), kind) for kind in ("PNG", "GIF", "BMP", "TIFF")]
    files += [encoded(colour.quantize(9), "GIF", save_all=True, append_images=[colour.quantize(7)])]
    files += [encoded(colour.convert("RGBA"), kind) for kind in ("PNG", "WEBP", "TIFF", "JPEG2000")]
    files += [
        encoded(Image.fromarray(deep[..., 0].astype(np.uint16)), kind) for kind in ("PNG", "TIFF", "JPEG2000", "PPM")
    ]
    files += [png_16(deep[..., :channels]) for channels in (2, 3, 4)]
    return files


def mutated(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """The content of a file, damaged in one of the ways in which files are."""
    data = bytearray(content)
    start, stop = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    match rng.randrange(10):
        case 0:  # a few wrong bits
            for _ in range(rng.choice((1, 2, 8))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:  # a few wrong bits in the header
            for _ in range(rng.choice((1, 2, 8))):
                data[rng.randrange(min(64, len(data)))] ^= 1 << rng.randrange(8)
        case 2:  # cut off
            del data[start:]
        case 3:  # a part is missing
            del data[start:stop]
        case 4:  # zeros, as of a disk that was full or a transfer that stopped
            data[start:stop] = bytes(stop - start)
        case 5:  # garbage inside
            data[start:stop] = rng.randbytes(stop - start)
        case 6:  # garbage appended
            data += rng.randbytes(rng.randrange(1, 2000))
        case 7:  # two parts swapped
            middle = (start + stop) // 2
            data[start:stop] = data[middle:stop] + data[start:middle]
        case 8:  # the header of another file
            other = rng.choice(others)
            length = rng.randrange(4, 40)
            data[:length] = other[:length]
        case 9:  # an extreme number in a field
            width = rng.choice((2, 4))
            place = rng.randrange(max(1, min(200, len(data) - width)))
            data[place : place + width] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * width
    return bytes(data)


def error_of(file: Path, channels: int) -> DataError | None:
    """Read an image: its error, or None."""
    try:
        assert read_image(file, (12, 16), channels).shape == (channels, 12, 16)
    except DataError as error:
        return error
    return None


def test_a_damaged_image_is_read_or_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    files = originals()
    read = refused = 0
    for index in range(MUTATIONS):
        file = tmp_path / f"image {index}{rng.choice(EXTENSIONS)}"  # the name need not fit
        content = mutated(files[index % len(files)], files, rng)
        file.write_bytes(content)
        channels = rng.choice((1, 3))
        started = time.thread_time()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            error = error_of(file, channels)
        if error is None:
            read += 1
        else:
            refused += 1
            assert str(error).startswith(f"{file} ")
            assert "\n" not in str(error)
            assert error.images == (str(file),)
        # The command line hides Pillow's own warnings, of images that it can read all the same.
        assert not [each for each in seen if "/PIL/" not in each.filename], [str(each.message) for each in seen]
        assert time.thread_time() - started < LIMIT, file
        file.unlink()
    assert read > MUTATIONS // 10
    assert refused > MUTATIONS // 10
    assert capfd.readouterr().out == ""  # libtiff writes its own messages to standard error
    print(f"{read} read, {refused} refused")
