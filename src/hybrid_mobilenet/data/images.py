"""Find image files, read an image and preprocess it. Training and prediction share this."""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from ..common.messages import near, printable, reason
from ..layers.sizes import Size
from .listing import Skipped, Tree, read_tree

Image.init()  # Pillow's table of formats

#: Formats that are read, whatever the file name says. Some of Pillow's other formats start programs (EPS), have no
#: signature (TGA) or have no decoder (HDF5). AVIF is optional in builds of Pillow.
_SUPPORTED = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
FORMATS = tuple(name for name in _SUPPORTED if name in Image.OPEN)
EXTENSIONS = tuple(sorted(extension for extension, name in Image.registered_extensions().items() if name in FORMATS))

#: A JPEG may have this many times the pixels of other formats, since it can be decoded at half its size. Phones take
#: pictures of 200 million pixels.
JPEG_MARGIN = 3

#: The ranges that 16-bit pixels may use, by their largest value: 8, 12, 14 and 16 bits. 10 bits is left out, since dim
#: images of 12-bit cameras would be scaled unlike the others.
RANGES = (255, 4095, 16383, 65535)

#: What a HEIC picture begins with after its first eight bytes. Phones sometimes call it .jpg.
_HEIC = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")

#: The transposition that turns an image upright, by EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Item = tuple[str, Path | bytes | Image.Image]
"""The name of an image in error messages, and the image: a file, encoded bytes or Pillow's image."""


class DataError(ValueError):
    """Unusable data. The message names the file, folder or argument, the rule and the remedy, in one line.

    Attributes:
        images: the names of the images that cannot be read, if that is the error.
    """

    images: tuple[str, ...] = ()

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def read_image(image: Path | str | bytes | Image.Image, image_size: int | Size, channels: int) -> Tensor:
    """Read an image and preprocess it for a network.

    The EXIF orientation is applied, unless the EXIF block is damaged. Transparent images are composited on white. The
    image is converted to RGB or greyscale, cropped at the centre to the requested aspect ratio, and resized with
    antialiased bicubic interpolation. An image that already has the requested size keeps its pixels. Animations give
    their first frame.

    16-bit pixels are scaled to 8 bits. Cameras and scanners often store 12 bits in 16, and no common format says so.
    Therefore the largest value of the image decides: the range is the smallest of 8, 12, 14 and 16 bits that contains
    it. The rule depends on nothing but the image, so training and prediction agree; a true 16-bit image whose largest
    value is below a quarter of the range becomes brighter. Where the file declares a range, that range is used: 12-bit
    TIFF, JPEG 2000, and PGM or PPM with another maximum than 65535. Pillow keeps only the upper 8 bits of 16-bit
    greyscale with an alpha channel and of 16-bit CMYK, so these are not scaled. PNG's sBIT chunk and TIFF's
    MaxSampleValue are ignored: the first describes values that already fill the range, the second is often wrong.

    The limit is `PIL.Image.MAX_IMAGE_PIXELS` (89 million) pixels, checked before decoding. A JPEG may have
    `JPEG_MARGIN` times as many. Above the limit it is decoded at half its width and height, but not below the requested
    size.

    Args:
        image: file, encoded bytes, or Pillow's image (not modified).
        image_size: side in pixels, or (height, width).
        channels: 3 for RGB, 1 for greyscale.

    Returns:
        uint8 (channels, height, width), a channels-last view.

    Raises:
        DataError: if the file is not an image, is damaged, has too many pixels, or has 32-bit pixels of unknown range.
            The message names the file.
        ValueError: if `image_size` or `channels` is invalid.
    """
    size = checked_shape(image_size, channels)
    name = str(image) if isinstance(image, (Path, str)) else "the image"
    item = name, Path(image) if isinstance(image, str) else image
    return torch.from_numpy(decode(item, size, channels)).permute(2, 0, 1)


def checked_shape(image_size: int | Size, channels: int) -> Size:
    """Check the arguments of `read_image`, and return height and width in pixels.

    Raises:
        ValueError: if `image_size` or `channels` is invalid.
    """
    sides = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"image_size is {image_size!r}, but must be 1 or more pixels, or (height, width)")
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels!r}, but must be 3 for RGB or 1 for greyscale")
    return sides[0], sides[1]


def decode(item: Item, size: Size, channels: int) -> NDArray[np.uint8]:
    """Preprocess an image as `read_image` does, to uint8 (height, width, channels).

    Raises:
        DataError: as `read_image`.
    """
    name, raw = item
    height, width = size
    mode = "RGB" if channels == 3 else "L"
    try:
        with ExitStack() as opened:
            stream: BinaryIO | None = None
            if isinstance(raw, Image.Image):
                original = raw
            else:
                stream = io.BytesIO(raw) if isinstance(raw, bytes) else raw.open("rb")
                opened.enter_context(stream)
                original = opened.enter_context(open_image(stream, "" if isinstance(raw, bytes) else str(raw)))
                _check_pixels(original, max(size))
            image = _to_8_bits(original, stream)
            transposition = _transposition(original)
            image = _to_mode(image if transposition is None else image.transpose(transposition), mode)
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
            return np.array(image).reshape(height, width, channels)
    except UnidentifiedImageError as error:
        problem = f"is empty or not in a supported format ({', '.join(FORMATS)})"
        raise _unreadable(name, "is a HEIC picture, not JPEG" if str(error) == "HEIC" else problem) from None
    except Exception as error:  # on damaged data, Pillow's decoders raise almost any exception
        raise _unreadable(name, f"cannot be read as an image ({reason(error)})") from None


def _unreadable(image: str, problem: str) -> DataError:
    error = DataError(f"{image} {problem}: replace or remove it")
    error.images = (image,)
    return error


def open_image(stream: BinaryIO, name: str) -> Image.Image:
    """Open an image without decoding it, as `Image.open` does, but without its check of the size.

    Whether that check warns or fails depends on settings of the whole process, and images are read in several threads.
    """
    start = stream.read(16)
    for kind in FORMATS:
        factory, accepts = Image.OPEN[kind]
        try:
            accepted = accepts is None or accepts(start)
            if accepted and not isinstance(accepted, str):  # a string says why the format is not accepted
                stream.seek(0)
                # Pillow's JPEG factory would look for more pictures in the file, and warn if they are damaged.
                return JpegImageFile(stream, name) if kind == "JPEG" else factory(stream, name)
        except (SyntaxError, IndexError, TypeError, struct.error):  # another format; Image.open catches the same
            continue
    raise UnidentifiedImageError("HEIC" if start[4:8] == b"ftyp" and start[8:12] in _HEIC else "unknown")


def _check_pixels(image: Image.Image, side: int) -> None:
    """Raise a ValueError if an image has too many pixels. Decode a large JPEG at half its size, at least `side`."""
    limit = Image.MAX_IMAGE_PIXELS
    pixels = image.width * image.height
    if limit is None or pixels <= limit:
        return
    if not isinstance(image, JpegImageFile) or pixels > JPEG_MARGIN * limit:
        raise ValueError(
            f"it has {image.width}x{image.height} pixels, but the limit is {limit:,}, or {JPEG_MARGIN * limit:,} for "
            "a JPEG"
        )
    image.draft(None, (max(image.width // 2, side), max(image.height // 2, side)))


def _transposition(image: Image.Image) -> Image.Transpose | None:
    """The transposition that turns an image upright. None if it is upright, or if its EXIF block is damaged."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # on damaged data, Pillow raises almost any exception; the pixels can still be read
        return None


def _to_8_bits(image: Image.Image, stream: BinaryIO | None) -> Image.Image:
    """Decode an image from its file, if it has one, and convert it to mode L or RGB."""
    tiles = list(getattr(image, "tile", ()))  # how the file is decoded; decoding empties the list
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow would clip 16-bit greyscale to 0..255. Some formats store it in 32 bits.
        values = np.asarray(image).astype(np.float64)
        if image.mode == "F" or values.min() < 0 or values.max() > RANGES[-1]:
            raise ValueError("32-bit pixels have no defined range: save it with 8 or 16 bits")
        is_visible = values != image.info.get("transparency", -1)
        pixels = _scaled(values, _declared_range(tiles) or _range(values[is_visible]))
        pixels[~is_visible] = 255
        return Image.fromarray(pixels)
    is_16_bit = bool(tiles) and _rawmode(tiles[0]) in _COLOUR_16
    if stream is not None and is_16_bit and np.asarray(image)[..., :3].max() <= RANGES[-2] >> 8:
        image = _dark_colour(image, stream, tiles)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "L" else _to_mode(image, "RGB")


def _rawmode(tile: Any) -> str:
    """Pillow's name for the layout of the pixels in a file."""
    return str(tile.args if isinstance(tile.args, str) else tile.args[0])


#: The layouts of 16-bit colour, of which Pillow keeps the high bytes, and the same layouts in the other byte order.
_COLOUR_16 = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}


def _dark_colour(image: Image.Image, stream: BinaryIO, tiles: Sequence[Any]) -> Image.Image:
    """Scale a 16-bit RGB or RGBA image that uses 14 bits or less to 8 bits. `image` has the high bytes of its values.

    Decoded in the other byte order, the file gives the low bytes.
    """
    stream.seek(0)
    again = open_image(stream, "")
    assert isinstance(again, ImageFile.ImageFile)
    again.tile = [
        tile._replace(args=(_COLOUR_16[_rawmode(tile)], *(() if isinstance(tile.args, str) else tile.args[1:])))
        for tile in tiles
    ]
    again.load()
    values = np.asarray(image).astype(np.float64) * 256 + np.asarray(again)
    is_visible = (values[..., :3] != image.info.get("transparency", -1)).any(-1)
    pixels = _scaled(values[..., :3], _range(values[..., :3][is_visible]))
    pixels[~is_visible] = 255
    if image.mode == "RGBA":
        alpha = values[..., 3:]
        pixels = np.concatenate([pixels, _scaled(alpha, _range(alpha))], -1)
    return Image.fromarray(pixels)


def _range(values: NDArray[np.float64]) -> int:
    """The smallest of `RANGES` that contains all values."""
    largest = values.max(initial=0)
    return next(limit for limit in RANGES if largest <= limit)


def _declared_range(tiles: Sequence[Any]) -> int | None:
    """The range that a file declares for its 16-bit greyscale, after Pillow's conversion; None if it declares none."""
    if tiles and tiles[0].codec_name in ("jpeg2k", "ppm", "ppm_plain"):  # Pillow scales the declared range to 16 bits
        return RANGES[-1]
    return 4095 if tiles and _rawmode(tiles[0]) == "I;12" else None


def _scaled(values: NDArray[np.float64], limit: int) -> NDArray[np.uint8]:
    """Scale 0..limit to 0..255."""
    return np.rint(values * (255 / limit)).astype(np.uint8)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # convert would copy it


Report = Callable[[DataError | OSError], None]
"""Receives the error of an unusable path, so that the search goes on with the others."""


def _raise(error: DataError | OSError) -> None:
    raise error


def image_files(paths: Sequence[Path], report: Report = _raise, skipped: Skipped | None = None) -> list[Path]:
    """List the given files, and the image files in the given folders and their subfolders.

    Files in folders are chosen by extension, in the natural order of their names.

    Args:
        paths: files and folders.
        report: called with each of the errors below instead of raising it.
        skipped: receives what is left out of folders with images.

    Raises:
        DataError: if a path does not exist, or a folder contains no images; also as `tree_below`.
        OSError: if a folder cannot be listed.
    """
    files: list[Path] = []
    for path in paths:
        others = Skipped()
        try:
            found = list(tree_below(path, report, others).files()) if path.is_dir() else [path]
            if not found:
                raise DataError(
                    f"{path} contains no images{others.in_brackets()}: give a folder with images such as .jpg or .png "
                    "files"
                )
            if not path.exists() and not path.is_symlink():
                raise DataError(f"{path} does not exist{near(str(path))}: give an image or a folder of images")
            if not path.is_dir() and not path.is_file():  # reading a pipe would block forever
                raise DataError(f"{path} is not a regular file (a broken link?): repair or remove it")
        except (DataError, OSError) as error:
            report(error)
        else:
            files += found
            if skipped is not None:
                skipped.add(others)
    return files


def tree_below(folder: Path, report: Report = _raise, skipped: Skipped | None = None) -> Tree:
    """The image files below a folder, to any depth, chosen by extension. See `listing` for what is left out.

    Args:
        folder: where to look.
        report: called with each of the errors below instead of raising it.
        skipped: receives what is left out.

    Raises:
        DataError: if an entry with the extension of an image is not a regular file.
        OSError: if a folder cannot be listed.
    """

    def irregular(path: Path) -> None:
        report(DataError(f"{path} is not a regular file (a broken link?): repair or remove it"))

    return read_tree(folder, frozenset(EXTENSIONS), Skipped() if skipped is None else skipped, irregular, report)
