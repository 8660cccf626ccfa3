"""Images of all kinds become pixels of the requested size, or errors that name them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hybrid_mobilenet.data.images import DataError, image_files, read_image
from hybrid_mobilenet.data.splits import load_data
from noise_images import GOOD_PNG, encoded, image_folder, noise, png_16, png_chunk
from processes import run_python


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header declares an image of this size, without pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + struct.pack(">I", 1000) + b"IDAT"


def jpeg_header(width: int, height: int) -> bytes:
    """A JPEG whose header declares this size, with the pixels of an 8x8 image."""
    small = encoded(Image.new("RGB", (8, 8)), "JPEG")
    frame = small.index(b"\xff\xc0") + 5  # after the marker, the length and the bits per sample
    return small[:frame] + struct.pack(">HH", height, width) + small[frame + 4 :]


@pytest.mark.parametrize("form", ["path", "name", "bytes", "image"])
def test_image_of_right_size_keeps_its_pixels(form: str, tmp_path: Path) -> None:
    pixels = noise(5, 7)
    file = tmp_path / "image.png"
    file.write_bytes(encoded(Image.fromarray(pixels)))
    forms: dict[str, Path | str | bytes | Image.Image] = {
        "path": file,
        "name": str(file),
        "bytes": file.read_bytes(),
        "image": Image.fromarray(pixels),
    }
    read = read_image(forms[form], (5, 7), 3)
    assert read.shape == (3, 5, 7)
    assert read.dtype == torch.uint8
    assert np.array_equal(read.permute(1, 2, 0).numpy(), pixels)


def one_pixel(image: Image.Image | bytes, channels: int = 3) -> list[int]:
    """The top left pixel of an image 2 pixels wide and high."""
    return read_image(image, 2, channels)[:, 0, 0].tolist()


def test_modes() -> None:
    grey = Image.new("L", (2, 2), 77)
    assert one_pixel(grey) == [77, 77, 77]
    assert one_pixel(grey, channels=1) == [77]
    assert one_pixel(Image.new("1", (2, 2), 1)) == [255, 255, 255]
    assert one_pixel(encoded(Image.new("1", (2, 2), 1)), channels=1) == [255]
    colour = Image.new("RGB", (2, 2), (200, 100, 50))
    assert one_pixel(colour, channels=1) == [round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]
    # CMYK: cyan removes red, and yellow removes blue.
    assert one_pixel(encoded(Image.new("CMYK", (2, 2), (255, 0, 0, 0)), "TIFF")) == [0, 255, 255]
    assert one_pixel(Image.new("CMYK", (2, 2), (0, 0, 255, 0))) == [255, 255, 0]
    for channel, wanted in zip(one_pixel(encoded(colour.convert("CMYK"), "JPEG")), (200, 100, 50), strict=True):
        assert abs(channel - wanted) <= 3
    assert one_pixel(Image.new("LAB", (2, 2), (255, 128, 128)), channels=1)[0] > 250


def test_transparent_images_are_composited_on_white() -> None:
    assert one_pixel(Image.new("RGBA", (2, 2), (200, 0, 0, 0))) == [255, 255, 255]
    assert one_pixel(Image.new("RGBA", (2, 2), (200, 0, 0, 255))) == [200, 0, 0]
    assert one_pixel(Image.new("RGBA", (2, 2), (0, 0, 0, 51))) == [204, 204, 204]
    assert one_pixel(Image.new("LA", (2, 2), (0, 0)), channels=1) == [255]
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert one_pixel(encoded(palette)) == [10, 20, 30]
    assert one_pixel(encoded(palette, transparency=1)) == [255, 255, 255]
    assert one_pixel(encoded(palette, transparency=b"\xff\x00")) == [255, 255, 255]
    assert one_pixel(encoded(palette, "GIF")) == [10, 20, 30]
    assert one_pixel(encoded(Image.new("RGB", (2, 2), (9, 9, 9)), transparency=(9, 9, 9))) == [255, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 128, 129], [257, 32768, 65535]], np.uint16)
    read = read_image(encoded(Image.fromarray(values), kind), (2, 3), 1)
    assert read[0].tolist() == [[0, 0, 1], [1, 128, 255]]  # round(value / 257)


def test_the_largest_value_decides_which_bits_16_bit_images_use() -> None:
    for bits, largest in ((8, 255), (12, 256), (12, 4095), (14, 4096), (14, 16383), (16, 16384), (16, 65535)):
        values = np.array([[0, largest // 3], [largest // 2, largest]], np.uint16)
        wanted = np.rint(values / (2**bits - 1) * 255).astype(int).tolist()
        for content in (*(encoded(Image.fromarray(values), kind) for kind in ("PNG", "TIFF", "PPM")), png_16(values)):
            assert read_image(content, 2, 1)[0].tolist() == wanted, (bits, largest)
        assert read_image(Image.fromarray(values), 2, 1)[0].tolist() == wanted


def test_12_bit_images_of_one_camera_are_scaled_alike() -> None:
    dim, bright = (read_image(png_16(np.full((2, 2), value, np.uint16)), 2, 1) for value in (500, 4000))
    assert (dim[0, 0, 0].item(), bright[0, 0, 0].item()) == (31, 249)


def tiff_16(values: NDArray[np.uint16], order: str, compressed: bool) -> bytes:
    """A TIFF file of 16-bit RGB, which Pillow cannot write, in a byte order: "<" or ">"."""
    height, width, _ = values.shape
    # libtiff does not accept every compression of 16-bit colour, but Deflate is one.
    pixels = values.astype(f"{order}u2").tobytes()
    pixels = zlib.compress(pixels) if compressed else pixels
    tags = {
        256: width, 257: height, 258: 0, 259: 8 if compressed else 1, 262: 2, 273: 0, 277: 3, 278: height,
        279: len(pixels),
    }  # fmt: skip
    after = 8 + 2 + 12 * len(tags) + 4
    tags[258], tags[273] = after, after + 6
    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 3, 3, value) if tag == 258 else struct.pack(f"{order}HHII", tag, 4, 1, value)
        for tag, value in tags.items()
    )
    bits = struct.pack(f"{order}HHH", 16, 16, 16)
    return start + struct.pack(f"{order}H", len(tags)) + entries + b"\0" * 4 + bits + pixels


@pytest.mark.parametrize("bits", [8, 12, 14])
def test_16_bit_colour_that_uses_a_part_of_its_range(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, (5, 7, 3)).astype(np.uint16)
    values[0, 0, 0] = 2**bits - 1
    wanted = np.rint(values / (2**bits - 1) * 255).astype(int).tolist()
    files = {"PNG": png_16(values)}
    for order in "<>":
        files |= {f"TIFF {order} {packed}": tiff_16(values, order, packed) for packed in (False, True)}
    for kind, content in files.items():
        assert read_image(content, (5, 7), 3).permute(1, 2, 0).tolist() == wanted, kind
    full = values * 2 ** (16 - bits)
    for content in (png_16(full), tiff_16(full, "<", True)):
        assert np.array_equal(read_image(content, (5, 7), 3).permute(1, 2, 0).numpy(), full >> 8)


def test_16_bit_transparency() -> None:
    key = png_chunk(b"tRNS", struct.pack(">H", 65535))
    values = np.array([[0, 2048], [4095, 65535]], np.uint16)  # 12 bits, and a value for what is transparent
    assert read_image(png_16(values), 2, 1)[0].tolist() == [[0, 8], [16, 255]]
    assert read_image(png_16(values, key), 2, 1)[0].tolist() == [[0, 128], [255, 255]]
    colour = np.repeat(values[:, :, None], 3, 2)
    colour[1, 1] = 300
    key = png_chunk(b"tRNS", struct.pack(">HHH", 300, 300, 300))
    assert read_image(png_16(colour), 2, 3)[0].tolist() == [[0, 128], [255, 19]]
    assert read_image(png_16(colour, key), 2, 3)[0].tolist() == [[0, 128], [255, 255]]
    for opaque in (4095, 65535):
        alpha = np.array([[0, opaque], [opaque, opaque]], np.uint16)
        with_alpha = np.concatenate([colour, alpha[:, :, None]], 2)
        assert read_image(png_16(with_alpha), 2, 3)[0].tolist() == [[255, 128], [255, 19]]


def test_a_declared_range_is_used() -> None:
    values = np.array([[0, 100], [500, 1000]], np.uint16)
    grey = b"P5 2 2 4095\n" + values.astype(">u2").tobytes()
    assert read_image(grey, 2, 1)[0].tolist() == [[0, 6], [31, 62]]
    jpeg_2000 = encoded(Image.fromarray(values * 16), "JPEG2000")  # declares 16 bits
    assert read_image(jpeg_2000, 2, 1)[0].tolist() == [[0, 6], [31, 62]]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_32_bits_have_no_range(mode: str) -> None:
    with pytest.raises(
        DataError, match=r"the image cannot .* \(32-bit pixels have no defined range: save it with 8 or 16 bits\)"
    ):
        read_image(encoded(Image.new(mode, (2, 2), 70_000), "TIFF"), 2, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_exif_orientation_is_applied(dtype: type) -> None:
    upright: NDArray[Any] = np.arange(12).reshape(3, 4).astype(dtype) * (5461 if dtype is np.uint16 else 1)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left of upright
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    wanted = np.rint(upright / 257) if dtype is np.uint16 else upright
    assert read_image(encoded(stored, exif=exif), (3, 4), 1)[0].tolist() == wanted.tolist()


def test_centre_is_cropped_and_resized_with_antialiasing() -> None:
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 200
    wide[:, :8] = wide[:, 16:] = 50
    assert read_image(Image.fromarray(wide), 8, 1).flatten().tolist() == [200] * 64
    assert read_image(Image.fromarray(wide), (8, 4), 1).flatten().tolist() == [200] * 32
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    smaller = read_image(Image.fromarray(checks.astype(np.uint8)), 8, 1)  # without antialiasing all 0 or all 255
    assert smaller.min() >= 120
    assert smaller.max() <= 135


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_tiny_images_are_resized_up(size: tuple[int, int]) -> None:
    read = read_image(encoded(Image.new("RGB", size, (1, 2, 3))), (32, 16), 3)
    assert read.shape == (3, 32, 16)
    assert read.flatten(1).tolist() == [[value] * 512 for value in (1, 2, 3)]


def test_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    assert one_pixel(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [255, 0, 0]


def test_a_given_image_is_not_modified() -> None:
    image = Image.fromarray(noise(4, 4, 4))
    before = image.tobytes()
    read_image(image, 2, 1)
    assert (image.mode, image.size, image.tobytes()) == ("RGBA", (4, 4), before)


GOOD_JPEG = encoded(Image.fromarray(noise(64, 64)), "JPEG")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty or not in a supported format \(.*\): replace or remove it"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "is a HEIC picture, not JPEG: replace or remove it"),
        (b"no image at all", r"is empty or not in a supported format \(JPEG, PNG, WEBP"),
        (GOOD_JPEG[: len(GOOD_JPEG) // 2], "cannot be read as an image .*truncated"),
        (GOOD_PNG[: len(GOOD_PNG) // 2], "cannot be read as an image"),
        (GOOD_PNG[:60] + b"\0" * 40 + GOOD_PNG[100:], "cannot be read as an image"),
        (png_header(100, 100), "cannot be read as an image"),
        (
            png_header(50_000, 20_000),
            r"\(it has 50000x20000 pixels, but the limit is 89,478,485, .*\): replace or remove it",
        ),
        (
            png_header(10_000, 10_000),
            r"\(it has 10000x10000 pixels, but the limit is 89,478,485, .*\): replace or remove it",
        ),
        (
            jpeg_header(16_384, 16_384),
            r"\(it has 16384x16384 pixels, but .* or 268,435,455 for a JPEG\): replace or remove",
        ),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not in a supported format"),
    ],
    ids=[
        "empty",
        "heic",
        "text",
        "jpeg",
        "png",
        "damaged",
        "header only",
        "gigapixel",
        "100 megapixels",
        "jpeg bomb",
        "postscript",
    ],
)
def test_bad_images_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.png"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read_image(file, 8, 3)
    assert str(raised.value).startswith(f"{file} ")
    assert "\n" not in str(raised.value)


def test_a_jpeg_of_108_megapixels_is_decoded_at_half_size() -> None:
    half = Image.new("RGB", (6000, 4500), (200, 30, 30))
    half.paste((30, 30, 200), (3000, 0, 6000, 4500))
    half.paste((240, 240, 240), (0, 3000, 3000, 4500))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    photograph = encoded(half.resize((12_000, 9000), Image.Resampling.NEAREST), "JPEG", quality=90, exif=exif)
    expected = read_image(half.transpose(Image.Transpose.ROTATE_180), (9, 12), 3).int()
    assert (read_image(photograph, (9, 12), 3).int() - expected).abs().max() <= 2


def test_a_large_jpeg_is_not_decoded_below_the_requested_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(96, 64)
    for kind in ("JPEG", "MPO"):
        content = encoded(Image.fromarray(pixels), kind)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 64)
        whole = {side: read_image(content, side, 3) for side in (16, 40)}
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 64 // 2)
        assert torch.equal(read_image(content, 40, 3), whole[40])
        assert not torch.equal(read_image(content, 16, 3), whole[16])  # from half the pixels
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 64 // 4)
        with pytest.raises(DataError, match=r"it has 64x96 pixels, but the limit is 1,536, or 4,608 for a JPEG"):
            read_image(content, 40, 3)


def orientation_cut_off() -> bytes:
    """An EXIF block that declares five entries and ends within the first."""
    return b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow warns for JPEGs; the command line hides it
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"no TIFF header here", orientation_cut_off()], ids=["garbage", "cut off"])
def test_with_a_damaged_exif_block_only_the_orientation_is_lost(kind: str, exif: bytes) -> None:
    image = Image.fromarray(noise(12, 9))
    whole = read_image(encoded(image, kind, quality=90), (12, 9), 3)
    assert torch.equal(read_image(encoded(image, kind, quality=90, exif=exif), (12, 9), 3), whole)


def test_damaged_profiles_and_mpo_pages_are_ignored() -> None:
    image = Image.fromarray(noise(12, 9))
    text = PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n 4\nno hexadecimal digits\n")
    assert torch.equal(read_image(encoded(image, pnginfo=text), (12, 9), 3), read_image(image, (12, 9), 3))
    pages = encoded(image, "MPO", save_all=True, append_images=[image])
    start = pages.index(b"MPF\0") + 4
    damaged = pages[:start] + b"\xff" * 40 + pages[start + 40 :]
    assert torch.equal(read_image(damaged, (12, 9), 3), read_image(pages, (12, 9), 3))


@pytest.mark.slow
def test_reading_images_leaves_pillow_s_settings_alone(tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    file.write_bytes(png_header(10_000, 10_000))
    code = """
import warnings
from PIL import Image
before = Image.MAX_IMAGE_PIXELS
import hybrid_mobilenet.data.images
from hybrid_mobilenet.data.splits import load_data
assert Image.MAX_IMAGE_PIXELS == before
named = [entry for entry in warnings.filters if entry[2] is Image.DecompressionBombWarning]
assert not named, named
with warnings.catch_warnings(record=True) as seen:
    Image.open(PATH)
assert [entry.category for entry in seen] == [Image.DecompressionBombWarning]
"""
    ran = run_python("-c", f"PATH = {str(file)!r}\n{code}")
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("name", ["missing.png", "."])
def test_unreadable_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read as an image \((No such file|Is a directory)"):
        read_image(tmp_path / name, 8, 3)


@pytest.mark.parametrize("image_size", [0, (8, 0), (8,), 8.5, (1, 2, 3), "8"])
def test_bad_image_size(image_size: Any) -> None:
    with pytest.raises(ValueError, match=r"image_size is .*, but must be 1 or more pixels, or \(height, width\)"):
        read_image(Image.new("L", (2, 2)), image_size, 3)


def test_bad_channels() -> None:
    with pytest.raises(ValueError, match="channels is 4, but must be 3 for RGB or 1 for greyscale"):
        load_data("digits", channels=4)


# Files to predict


def test_image_files(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"b": 2, "a/deep": 1})
    (root / "b" / "notes.txt").write_text("no image")
    (root / "odd.name").write_bytes(GOOD_PNG)
    assert image_files([root / "odd.name", root, root / "b/001.png"]) == [
        root / "odd.name",
        root / "a/deep/000.png",
        root / "b/000.png",
        root / "b/001.png",
        root / "b/001.png",
    ]
    with pytest.raises(
        DataError, match=r"b/0011.png does not exist \(did you mean .*b/001.png.*\): give an image or a folder"
    ):
        image_files([root / "b/0011.png"])
    (root / "empty").mkdir()
    with pytest.raises(DataError, match="empty contains no images: give a folder with images such as"):
        image_files([root / "empty"])
