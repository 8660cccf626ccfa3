"""One image: found, read, and made what a network is given. Training and prediction share it."""

from __future__ import annotations

import difflib
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

from ..layers.sizes import Size

Image.init()  # Pillow's table of formats

#: Formats read, whatever a file's name says. Others of Pillow's start programs (EPS), have no signature (TGA) or cannot
#: be decoded at all (HDF5). AVIF is optional in builds of Pillow.
_WANTED = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)
EXTENSIONS = tuple(sorted(extension for extension, name in Image.registered_extensions().items() if name in FORMATS))

#: Times as many pixels as of other formats are read of a JPEG, since it can be decoded at half its size: 268 million.
#: Phones take pictures of 200 million.
JPEG_MARGIN = 3

#: What turns an image upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Item = tuple[str, Path | bytes | Image.Image]
"""What errors call an image, and where it is."""


class DataError(ValueError):
    """Data that cannot be used as it is. The message names the file, folder or argument, the rule and the remedy."""


def read_image(image: Path | str | bytes | Image.Image, image_size: int | Size, channels: int) -> Tensor:
    """One image, as a network is given it.

    The EXIF orientation is applied, where the EXIF block can be read; transparency is laid on white; 16-bit grey is
    scaled to 8 bits; then the image becomes RGB or greyscale, and its centre, cropped to the wanted shape, is resized
    by antialiased bicubic interpolation. An image that already has the size keeps its pixels. Of an animation the first
    frame is read.

    An image of more than `PIL.Image.MAX_IMAGE_PIXELS` (89 million) pixels is an error, which is found out before
    decoding. A JPEG may have `JPEG_MARGIN` times as many: above the bound it is decoded at half its width and height,
    if that is not below the wanted size.

    Args:
        image: file, encoded bytes, or Pillow's image (not modified).
        image_size: side in pixels or (height, width).
        channels: 3 for RGB, 1 for greyscale.

    Returns:
        uint8 (channels, height, width), a channels-last view.

    Raises:
        DataError: where it is no image, is damaged, has too many pixels, or 32-bit pixels of unknown range; naming the
            file.
        ValueError: where `image_size` or `channels` is unusable.
    """
    size = checked_shape(image_size, channels)
    name = str(image) if isinstance(image, (Path, str)) else "the image"
    item = name, Path(image) if isinstance(image, str) else image
    return torch.from_numpy(decode(item, size, channels)).permute(2, 0, 1)


def checked_shape(image_size: int | Size, channels: int) -> Size:
    """Height and width in pixels.

    Raises:
        ValueError: where they, or the channels, are unusable.
    """
    sides = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"image_size is {image_size!r}, but must be 1 or more pixels, or (height, width)")
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels!r}, but must be 3 for RGB or 1 for greyscale")
    return sides[0], sides[1]


def decode(item: Item, size: Size, channels: int) -> NDArray[np.uint8]:
    """The image as `read_image` describes it, uint8 (height, width, channels).

    Raises:
        DataError: as `read_image` does.
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
                original = opened.enter_context(_open(stream, "" if isinstance(raw, bytes) else str(raw)))
                _check_pixels(original, max(size))
            original.load()
            turn = _turn(original)
            image = _eight_bits(original if turn is None else original.transpose(turn))
            image = _in_mode(image, "RGB" if channels == 3 else "L")
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
            return np.array(image).reshape(height, width, channels)
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise DataError(f"{name} is empty or of no known format ({known}): replace or remove it") from None
    except Exception as error:  # Pillow's decoders raise nearly every kind on damaged data
        raise DataError(f"{name} cannot be read as an image ({reason(error)}): replace or remove it") from None


def _open(stream: BinaryIO, name: str) -> Image.Image:
    """Pillow's image of a file, not yet decoded, as `Image.open` gives it but for the check of its size.

    That check warns, or refuses, by settings of the whole process, and images are read in several threads.
    """
    start = stream.read(16)
    for kind in FORMATS:
        factory, accepts = Image.OPEN[kind]
        try:
            accepted = accepts is None or accepts(start)
            if accepted and not isinstance(accepted, str):  # which says why not
                stream.seek(0)
                # The usual factory of JPEGs would look for further pictures in the file, and warn of damaged ones.
                return JpegImageFile(stream, name) if kind == "JPEG" else factory(stream, name)
        except (SyntaxError, IndexError, TypeError, struct.error):  # as in Image.open: of another format
            continue
    raise UnidentifiedImageError


def _check_pixels(image: Image.Image, side: int) -> None:
    """Refuse an image of too many pixels, or have half its width and height decoded, but `side` at least."""
    bound = Image.MAX_IMAGE_PIXELS
    pixels = image.width * image.height
    if bound is None or pixels <= bound:
        return
    if not isinstance(image, JpegImageFile) or pixels > JPEG_MARGIN * bound:
        raise ValueError(
            f"it has {image.width}x{image.height} pixels, but at most {bound:,} can be read, of a JPEG "
            f"{JPEG_MARGIN * bound:,}"
        )
    image.draft(None, (max(image.width // 2, side), max(image.height // 2, side)))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What turns an image upright, None where it is, or where its EXIF block is damaged."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # nearly every kind, as from decoders; the pixels are whole all the same
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode == "F" or image.mode.startswith("I"):
        # 16-bit grey: Pillow itself would clip it to 0..255. Some formats deliver it in 32 bits.
        values = np.asarray(image).astype(np.float64)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels have no set range: save it with 8 or 16 bits")
        if "transparency" in image.info:
            values[values == image.info["transparency"]] = 65535
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "L" else _in_mode(image, "RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # convert copies even then


Report = Callable[[DataError | OSError], None]
"""Told of a path that is of no use, where the others are wanted all the same."""


def _raise(error: DataError | OSError) -> None:
    raise error


def image_files(paths: Sequence[Path], report: Report = _raise) -> list[Path]:
    """The files given, and the image files (by their extension) in the folders given and in their subfolders, sorted.

    Args:
        paths: files and folders.
        report: told of each of the errors below, which then are not raised.

    Raises:
        DataError: where a path does not exist, a folder holds no image, or as `files_below` does.
        OSError: where a folder cannot be listed.
    """
    files: list[Path] = []
    for path in paths:
        try:
            found = list(files_below(path, report)) if path.is_dir() else [path]
            if not found:
                raise DataError(f"{path} holds no image: name a folder with files such as {listed(EXTENSIONS)}")
            if not path.exists() and not path.is_symlink():
                raise DataError(f"{path} does not exist{near(str(path))}: name an image or a folder of them")
            if not path.is_dir() and not path.is_file():  # reading a pipe would wait for ever
                raise DataError(f"{path} is no regular file (a broken link?): repair or remove it")
        except (DataError, OSError) as error:
            report(error)
        else:
            files += found
    return files


def files_below(folder: Path, report: Report = _raise) -> Iterator[Path]:
    """Image files by their extension, to any depth, in the order of their names.

    Hidden entries and __MACOSX are left out, as are links to folders, which could lead back up.

    Args:
        folder: where to look.
        report: told of each of the errors below, which then are not raised.

    Raises:
        DataError: where a name promises an image, but stands for no regular file.
        OSError: where a folder cannot be listed.
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
            if entry.is_file():  # reading a pipe would wait for ever
                yield entry
            else:
                report(DataError(f"{entry} is no regular file (a broken link?): repair or remove it"))


def is_visible(entry: Path) -> bool:
    return not entry.name.startswith(".") and entry.name != "__MACOSX"


def near(name: str, known: Sequence[str] = ()) -> str:
    """A hint for a message: the known name or existing path that was perhaps meant."""
    folder = Path(name).parent
    siblings = sorted(str(folder / entry.name) for entry in folder.iterdir()) if folder.is_dir() else []
    matches = difflib.get_close_matches(name, [*known, *siblings], n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def listed(things: Sequence[object]) -> str:
    """The first few, for a message."""
    return ", ".join(map(str, things[:4])) + (f" and {len(things) - 4} more" if len(things) > 4 else "") or "none"


def reason(error: Exception) -> str:
    """Why, for a message: one line."""
    return getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
