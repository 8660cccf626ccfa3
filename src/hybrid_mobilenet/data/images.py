"""Find image files, read an image and preprocess it. Training and prediction share this."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from ..common.messages import near, reason
from ..layers.sizes import Size

Image.init()  # Pillow's table of formats

#: Formats that are read, whatever the file name says. Some of Pillow's other formats start programs (EPS), have no
#: signature (TGA) or have no decoder (HDF5). AVIF is optional in builds of Pillow.
_SUPPORTED = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
FORMATS = tuple(name for name in _SUPPORTED if name in Image.OPEN)
EXTENSIONS = tuple(sorted(extension for extension, name in Image.registered_extensions().items() if name in FORMATS))

#: A JPEG may have this many times the pixels of other formats, since it can be decoded at half its size. Phones take
#: pictures of 200 million pixels.
JPEG_MARGIN = 3

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
    """Unusable data. The message names the file, folder or argument, the rule and the remedy."""


def read_image(image: Path | str | bytes | Image.Image, image_size: int | Size, channels: int) -> Tensor:
    """Read an image and preprocess it for a network.

    The EXIF orientation is applied, unless the EXIF block is damaged. Transparent images are composited on white.
    16-bit greyscale is scaled to 8 bits. The image is converted to RGB or greyscale, cropped at the centre to the
    requested aspect ratio, and resized with antialiased bicubic interpolation. An image that already has the requested
    size keeps its pixels. Animations give their first frame.

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
    try:
        with ExitStack() as opened:
            if isinstance(raw, Image.Image):
                original = raw
            else:
                stream: BinaryIO = io.BytesIO(raw) if isinstance(raw, bytes) else raw.open("rb")
                opened.enter_context(stream)
                original = opened.enter_context(open_image(stream, "" if isinstance(raw, bytes) else str(raw)))
                _check_pixels(original, max(size))
            original.load()
            transposition = _transposition(original)
            image = _to_8_bits(original if transposition is None else original.transpose(transposition))
            image = _to_mode(image, "RGB" if channels == 3 else "L")
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
            return np.array(image).reshape(height, width, channels)
    except UnidentifiedImageError:
        raise DataError(
            f"{name} is empty or not in a supported format ({', '.join(FORMATS)}): replace or remove it"
        ) from None
    except Exception as error:  # on damaged data, Pillow's decoders raise almost any exception
        raise DataError(f"{name} cannot be read as an image ({reason(error)}): replace or remove it") from None


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
    raise UnidentifiedImageError


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


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Convert an image to mode L or RGB."""
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow would clip 16-bit greyscale to 0..255. Some formats store it in 32 bits.
        values = np.asarray(image).astype(np.float64)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels have no defined range: save it with 8 or 16 bits")
        if "transparency" in image.info:
            values[values == image.info["transparency"]] = 65535
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "L" else _to_mode(image, "RGB")


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # convert would copy it


Report = Callable[[DataError | OSError], None]
"""Receives the error of an unusable path, so that the search goes on with the others."""


def _raise(error: DataError | OSError) -> None:
    raise error


def image_files(paths: Sequence[Path], report: Report = _raise) -> list[Path]:
    """List the given files, and the image files in the given folders and their subfolders.

    Files in folders are chosen by extension and sorted by name.

    Args:
        paths: files and folders.
        report: called with each of the errors below instead of raising it.

    Raises:
        DataError: if a path does not exist, or a folder contains no images; also as `files_below`.
        OSError: if a folder cannot be listed.
    """
    files: list[Path] = []
    for path in paths:
        try:
            found = list(files_below(path, report)) if path.is_dir() else [path]
            if not found:
                raise DataError(f"{path} contains no images: give a folder with images such as .jpg or .png files")
            if not path.exists() and not path.is_symlink():
                raise DataError(f"{path} does not exist{near(str(path))}: give an image or a folder of images")
            if not path.is_dir() and not path.is_file():  # reading a pipe would block forever
                raise DataError(f"{path} is not a regular file (a broken link?): repair or remove it")
        except (DataError, OSError) as error:
            report(error)
        else:
            files += found
    return files


def files_below(folder: Path, report: Report = _raise) -> Iterator[Path]:
    """Find the image files below a folder, to any depth, by extension, in the order of their names.

    Hidden entries and __MACOSX are skipped. Links to folders are skipped too: they could lead back up.

    Args:
        folder: where to look.
        report: called with each of the errors below instead of raising it.

    Raises:
        DataError: if an entry with the extension of an image is not a regular file.
        OSError: if a folder cannot be listed.
    """
    try:
        entries = sorted(filter(is_visible, folder.iterdir()))
    except OSError as error:
        report(error)
        return
    for entry in entries:
        if entry.is_dir():
            if not entry.is_symlink():
                yield from files_below(entry, report)
        elif entry.suffix.lower() in EXTENSIONS:
            if entry.is_file():  # reading a pipe would block forever
                yield entry
            else:
                report(DataError(f"{entry} is not a regular file (a broken link?): repair or remove it"))


def is_visible(entry: Path) -> bool:
    return not entry.name.startswith(".") and entry.name != "__MACOSX"
