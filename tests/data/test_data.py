"""Data: preprocessing of all kinds of images, all kinds of sources, splits, and errors in each."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sklearn.datasets import load_digits

from hybrid_mobilenet.data import dataset as data
from hybrid_mobilenet.data.dataset import ImageDataset, Splits, load_data, load_test, normalisation
from hybrid_mobilenet.data.images import DataError, Item, image_files, read_image
from hybrid_mobilenet.data.sources import Source
from processes import run_python

real_data = pytest.mark.skipif(
    "HYBRID_MOBILENET_DATA" not in os.environ, reason="HYBRID_MOBILENET_DATA, a folder with real CIFAR data, is not set"
)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


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


def image_folder(root: Path, counts: dict[str, int], size: int = 8) -> Path:
    """A folder with `counts[name]` different noise images of each class."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(noise(size, size, seed=1000 * label + i)).save(root / name / f"{i:03}.png")
    return root


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet(
    path: Path,
    labels: list[Any],
    *,
    names: list[str] | None = None,
    image_column: str = "image",
    label_column: str = "label",
    seed: int = 0,
    **more: list[Any],
) -> Path:
    """A table of 8x8 noise images in the Hub's layout. `names` declares the label column as a ClassLabel."""
    images = [{"bytes": encoded(Image.fromarray(noise(8, 8, seed=seed + i))), "path": None} for i in range(len(labels))]
    table = pa.table({image_column: pa.array(images, IMAGE), label_column: labels, **more})
    if names is not None:
        features = {image_column: {"_type": "Image"}, label_column: {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def all_pixels(dataset: ImageDataset) -> torch.Tensor:
    return dataset.batch(torch.arange(len(dataset)))


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


# Preprocessing


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


def test_16_bit_transparency() -> None:
    content = encoded(Image.fromarray(np.full((2, 2), 300, np.uint16)))
    key = b"tRNS" + struct.pack(">H", 300)
    chunk = struct.pack(">I", 2) + key + struct.pack(">I", zlib.crc32(key))
    assert one_pixel(content) == [1, 1, 1]
    assert one_pixel(content[:33] + chunk + content[33:]) == [255, 255, 255]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_32_bits_have_no_range(mode: str) -> None:
    with pytest.raises(
        DataError, match=r"the image cannot .* \(32-bit pixels have no defined range: save it with 8 or 16 bits\)"
    ):
        read_image(encoded(Image.new(mode, (2, 2), 70_000), "TIFF"), 2, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_exif_orientation_is_applied(dtype: type) -> None:
    upright: NDArray[Any] = np.arange(12).reshape(3, 4).astype(dtype) * (257 if dtype is np.uint16 else 1)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left of upright
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    assert read_image(encoded(stored, exif=exif), (3, 4), 1)[0].tolist() == np.arange(12).reshape(3, 4).tolist()


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
GOOD_PNG = encoded(Image.fromarray(noise(64, 64)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty or not in a supported format \(.*\): replace or remove it"),
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


def test_reading_images_leaves_pillow_s_settings_alone(tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    file.write_bytes(png_header(10_000, 10_000))
    code = """
import warnings
from PIL import Image
before = Image.MAX_IMAGE_PIXELS
import hybrid_mobilenet.data.images
from hybrid_mobilenet.data.dataset import load_data
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


# digits


def test_digits() -> None:
    splits = load_data("digits", image_size=(24, 20), validation=0.1, seed=3)
    assert splits.name == "digits"
    assert splits.validation is not None
    every = (splits.train, splits.validation, splits.test)
    counts = np.bincount(load_digits().target)
    train, validation, test = (part.labels.bincount().numpy() for part in every)
    assert (test + validation + train).tolist() == counts.tolist()
    assert len(splits.test) == 359  # a fifth
    assert (np.abs(test - counts / 5) <= 8).all()
    assert len(splits.validation) == pytest.approx(1438 / 10, rel=0.25)
    for each in every:
        assert each.class_names == tuple("0123456789")
        assert each.labels.dtype == torch.int64
        assert (each.image_size, each.channels) == ((24, 20), 3)
        images = each.batch(torch.tensor([5, 0]))
        assert images.shape == (2, 3, 24, 20)
        assert images.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_digits_pixels_are_scaled_to_255() -> None:
    splits = load_data("digits", image_size=8, channels=1)
    ours = {image.numpy().tobytes() for each in (splits.train, splits.test) for image in all_pixels(each)}
    theirs = {np.floor(image * 255 / 16 + 0.5).astype(np.uint8).tobytes() for image in load_digits().images}
    assert ours == theirs


def test_the_digits_are_those_of_scikit_learn_in_the_same_order() -> None:
    # Which ones are held out depends on the order. Made by: np.savez_compressed(file, images=..., labels=...), as uint8
    with np.load(Path(data.__file__).with_name("digits.npz")) as ours:
        theirs = load_digits()
        assert (ours["images"] == theirs.images).all()
        assert (ours["labels"] == theirs.target).all()


# Splits


def contents(dataset: ImageDataset) -> list[bytes]:
    return [image.numpy().tobytes() for image in all_pixels(dataset)]


def class_labels(dataset: ImageDataset) -> list[int]:
    return sorted(set(dataset.labels.tolist()))


def three_parts(root: Path) -> list[set[bytes]]:
    """Contents of the training, validation and test images of a folder; checks that the three sets are disjoint."""
    splits = load_data(str(root), image_size=8, validation=0.25)
    assert splits.validation is not None
    parts = [set(contents(each)) for each in (splits.train, splits.validation, splits.test)]
    train, validation, test = parts
    assert len(train | validation | test) == sum(map(len, parts))
    return parts


def test_every_class_is_split(tmp_path: Path) -> None:
    for draw in range(5):
        root = image_folder(tmp_path / f"pets{draw}", {"ant": 3, "bee": 10, "cat": 200 + draw})
        splits = load_data(str(root), image_size=8, validation=0.25)
        assert splits.name == f"pets{draw}"
        assert splits.validation is not None
        ant, bee, cat = splits.test.labels.bincount().tolist()
        assert ant == 1
        assert 1 <= bee <= 6
        assert 20 <= cat <= 60
        assert class_labels(splits.validation) == class_labels(splits.train) == [0, 1, 2]


def test_adding_or_removing_an_image_moves_no_other_between_splits(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets", {"bee": 60, "cat": 60})
    before = three_parts(root)
    Image.fromarray(noise(8, 8, seed=999)).save(root / "bee" / "0000.png")  # sorts before all others
    (root / "cat" / "030.png").unlink()
    after = three_parts(root)
    assert sum(map(len, after)) == 120
    stayed = set[bytes]().union(*before) & set[bytes]().union(*after)
    assert len(stayed) == 119
    assert [part & stayed for part in before] == [part & stayed for part in after]


def test_moving_and_renaming_a_folder_keeps_its_splits(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets", {"bee": 20, "cat": 20})
    before = three_parts(root)
    moved = root.rename(tmp_path / "moved")
    (moved / "bee").rename(moved / "wasp")  # now sorts after the cats
    for index, file in enumerate(sorted((moved / "cat").iterdir())):
        file.rename(moved / "cat" / f"{(index * 7) % 20:02d} renamed.png")
    assert three_parts(moved) == before


def test_duplicates_are_in_the_same_split(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"bee": 20, "cat": 20})
    for file in [*root.rglob("*.png")]:
        shutil.copy(file, file.with_name(f"again {file.name}"))
        shutil.copy(file, root / ("cat" if file.parent.name == "bee" else "bee") / f"other {file.name}")
    train, validation, test = three_parts(root)
    assert len(train) + len(validation) + len(test) == 40
    assert min(map(len, (train, validation, test))) > 0


def test_splits_depend_only_on_seeds(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"a": 20, "b": 20})

    def fingerprints(seed: int) -> list[str]:
        splits = load_data(str(root), image_size=8, validation=0.25, seed=seed)
        assert splits.validation is not None
        return [splits.train.fingerprint, splits.validation.fingerprint, splits.test.fingerprint]

    first = fingerprints(0)
    assert fingerprints(0) == first
    other = fingerprints(1)
    assert other[:2] != first[:2]
    assert other[2] == first[2]  # the test images never depend on the seed
    script = (
        "import sys; from hybrid_mobilenet.data.dataset import load_data\n"
        "s = load_data(sys.argv[1], image_size=8, validation=0.25)\n"
        "print(s.train.fingerprint, s.validation.fingerprint, s.test.fingerprint)"
    )
    ran = run_python("-c", script, root, environment={"PYTHONHASHSEED": "7", "LC_ALL": "C"})
    assert (ran.returncode, ran.stdout.split()) == (0, first), ran.stderr


@pytest.mark.parametrize("validation", [-0.1, 1.0, 2, float("nan")])
def test_validation_must_be_a_fraction(validation: float) -> None:
    with pytest.raises(ValueError, match=r"validation is .*, but must be a fraction: 0 or more, and less than 1"):
        load_data("digits", validation=validation)


def test_class_with_one_image_cannot_be_split(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"ant": 5, "bee": 1})
    with pytest.raises(DataError, match="test split needs two or more different images of every class, but 'bee'"):
        load_data(str(root))
    image_folder(tmp_path / "both/train", {"ant": 5, "bee": 1})
    image_folder(tmp_path / "both/test", {"ant": 1, "bee": 1})
    assert len(load_data(str(tmp_path / "both")).train) == 6
    with pytest.raises(
        DataError, match=r"validation split needs two or more different images of every class.*--validation 0"
    ):
        load_data(str(tmp_path / "both"), validation=0.1)


# Image folders


@pytest.mark.parametrize("held_out", ["test", "val", "valid", "validation"])
def test_folder_with_its_own_splits(held_out: str, tmp_path: Path) -> None:
    image_folder(tmp_path / "train", {"b": 3, "a": 2})
    image_folder(tmp_path / held_out, {"a": 1, "b": 1})
    splits = load_data(str(tmp_path), image_size=8, channels=1)
    assert splits.train.class_names == splits.test.class_names == ("a", "b")
    assert splits.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert splits.test.labels.tolist() == [0, 1]
    assert splits.validation is None
    wanted = np.array(Image.open(tmp_path / "train/b/001.png").convert("L"))
    assert np.array_equal(splits.train.batch(torch.tensor([3]))[0, 0].numpy(), wanted)


def test_test_folder_is_preferred_to_validation(tmp_path: Path) -> None:
    for name, count in (("train", 2), ("val", 3), ("test", 4)):
        image_folder(tmp_path / name, {"a": count, "b": count})
    assert len(load_data(str(tmp_path)).test) == 8


def test_folders_are_searched_to_any_depth_and_junk_is_skipped(tmp_path: Path) -> None:
    image_folder(tmp_path, {"a": 2, "b": 2, "b/deep/deeper": 2, ".hidden": 1, "__MACOSX": 1, "a/.cache": 1})
    for junk in (".DS_Store", "Thumbs.db", "notes.txt", "._000.png", "README"):
        (tmp_path / "a" / junk).write_bytes(b"junk")
    (tmp_path / "top.txt").write_bytes(b"junk")
    (tmp_path / "b" / "loop").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "b" / "self").symlink_to(tmp_path / "b" / "self")
    splits = load_data(str(tmp_path))
    assert splits.train.class_names == ("a", "b")
    assert len(splits.train) + len(splits.test) == 6
    assert load_data(str(tmp_path / ".hidden/..")).train.fingerprint == splits.train.fingerprint


def test_linked_class_folder(tmp_path: Path) -> None:
    image_folder(tmp_path / "elsewhere", {"b": 3})
    image_folder(tmp_path / "root", {"a": 3})
    (tmp_path / "root/b").symlink_to(tmp_path / "elsewhere/b", target_is_directory=True)
    assert load_data(str(tmp_path / "root")).train.class_names == ("a", "b")


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no subfolders: put the images of each class into a folder named after"):
        load_data(str(tmp_path))
    image_folder(tmp_path, {"ant": 3})
    with pytest.raises(DataError, match=r"of one class only \(ant\), but a classifier needs two or more"):
        load_data(str(tmp_path))
    (tmp_path / "bee").mkdir()
    (tmp_path / "bee" / "notes.txt").write_text("no image")
    with pytest.raises(
        DataError, match=r"class folder .*bee contains no images: add files such as .*, or remove the folder"
    ):
        load_data(str(tmp_path))
    with pytest.raises(DataError, match=r"notes.txt is a file, but must be a .parquet file, or a folder with one"):
        load_data(str(tmp_path / "bee" / "notes.txt"))


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_images_must_be_regular_files(kind: str, tmp_path: Path) -> None:
    image_folder(tmp_path, {"a": 3, "b": 3})
    if kind == "link":
        (tmp_path / "b" / "odd.png").symlink_to(tmp_path / "gone.png")
    else:
        os.mkfifo(tmp_path / "b" / "odd.png")
    with pytest.raises(DataError, match=r"odd.png is not a regular file \(a broken link\?\): repair or remove it"):
        load_data(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read every file")
def test_file_without_permission(tmp_path: Path) -> None:
    image_folder(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "b" / "001.png").chmod(0)
    with pytest.raises(DataError, match=r"001.png cannot be read as an image \(Permission denied\)"):
        load_data(str(tmp_path))


def test_different_classes_in_train_and_test(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", {"ant": 2, "bee": 2})
    image_folder(tmp_path / "test", {"ant": 2, "cat": 2})
    with pytest.raises(DataError, match=r"different classes \(only in training: bee; only in test: cat\)"):
        load_data(str(tmp_path))


def test_damaged_images_are_named_and_counted(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", {"a": 5, "b": 5})
    image_folder(tmp_path / "test", {"a": 1, "b": 1})
    for name in ("a/003.png", "b/000.png", "b/004.png"):
        file = tmp_path / "train" / name
        file.write_bytes(file.read_bytes()[:80])
    with pytest.raises(
        DataError, match=r"^.*a/003.png cannot .* \(2 more of 10 training images cannot be read either\)$"
    ):
        load_data(str(tmp_path))
    streamed = load_data(str(tmp_path), memory_bound=0).train
    with pytest.raises(DataError, match=r"\.png cannot be read as an image"):
        all_pixels(streamed)


# Parquet


def test_single_parquet_file_is_split(tmp_path: Path) -> None:
    file = parquet(tmp_path / "birds.parquet", [0, 1] * 10, names=["owl", "wren"])
    splits = load_data(str(file), image_size=8)
    assert splits.name == "birds.parquet"
    assert splits.train.class_names == ("owl", "wren")
    counts = splits.test.labels.bincount()
    assert (splits.train.labels.bincount() + counts).tolist() == [10, 10]
    assert 1 <= counts.min() <= counts.max() <= 6


@pytest.mark.parametrize("inside", ["", "data"])
def test_parquet_folder_in_the_hub_layout(inside: str, tmp_path: Path) -> None:
    folder = tmp_path / inside
    parquet(folder / "train-00001-of-00002.parquet", [1, 1, 0], names=["x", "y"], seed=50)
    parquet(folder / "train-00000-of-00002.parquet", [0, 0, 1], names=["x", "y"])
    parquet(folder / "test-00000-of-00001.parquet", [1, 0], names=["x", "y"], seed=90)
    parquet(folder / "validation-00000-of-00001.parquet", [1, 0, 1], names=["x", "y"], seed=99)
    splits = load_data(str(tmp_path), image_size=8)
    assert splits.train.labels.tolist() == [0, 0, 1, 1, 1, 0]
    assert splits.test.labels.tolist() == [1, 0]
    wanted = [noise(8, 8, seed=seed) for seed in (0, 1, 2, 50, 51, 52)]
    assert np.array_equal(all_pixels(splits.train).permute(0, 2, 3, 1).numpy(), np.stack(wanted))


def test_parquet_without_the_hubs_metadata(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", ["wren", "owl", "owl"], image_column="photo", label_column="species")
    parquet(tmp_path / "test.parquet", ["owl"], image_column="photo", label_column="species")
    splits = load_data(str(tmp_path))
    assert splits.train.class_names == splits.test.class_names == ("owl", "wren")
    assert (splits.train.labels.tolist(), splits.test.labels.tolist()) == ([1, 0, 0], [0])

    numbers = load_data(str(parquet(tmp_path / "numbers.parquet", [10, 9, 10, 9]))).train
    assert numbers.class_names == ("9", "10")

    pictures = [encoded(Image.fromarray(noise(8, 8, seed=seed))) for seed in range(4)]
    plain = pa.table({"raw": pictures, "kind": pa.array(["a", "b", "a", "b"]).dictionary_encode()})
    pq.write_table(plain, tmp_path / "plain.parquet")
    assert load_data(str(tmp_path / "plain.parquet")).train.class_names == ("a", "b")


def test_parquet_with_paths_instead_of_bytes(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", {"a": 2, "b": 2})
    rows = [{"bytes": None, "path": f"images/{name}/00{i}.png"} for name in "ab" for i in range(2)]
    pq.write_table(pa.table({"image": pa.array(rows, IMAGE), "label": list("aabb")}), tmp_path / "train.parquet")
    splits = load_data(str(tmp_path / "train.parquet"), image_size=8)
    found = {image.numpy().tobytes() for each in (splits.train, splits.test) for image in all_pixels(each)}
    assert found == {
        read_image(tmp_path / "images" / name / f"00{i}.png", 8, 3).numpy().tobytes() for name in "ab" for i in range(2)
    }


def test_columns_are_chosen_by_name_where_several_fit(tmp_path: Path) -> None:
    file = parquet(
        tmp_path / "a.parquet", [0, 1, 0, 1], label_column="fine_label", coarse_label=[0, 0, 0, 0], id=[1, 2, 3, 4]
    )
    assert load_data(str(file)).train.class_names == ("0", "1")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"image": [b"", b""], "kind": [0, 1], "id": [0, 1]},
            "several columns that could be the label among image, kind, id: .*'label'",
        ),
        (
            {"front": [b"", b""], "back": [b"", b""], "label": [0, 1]},
            "could be the image among front, back, label: .* 'image'",
        ),
        ({"label": [0, 1], "text": ["a", "b"]}, "has no image column among label, text: "),
        ({"image": [b"", b""], "score": [0.5, 0.7]}, "has no label column among image, score: "),
        (
            {"image": [b"", b""], "label": [0, None]},
            "row 1: 'label' is None, but must be one of the 1 training classes",
        ),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "corresponds to no data"),
        (
            {"image": [b"", b""] * 2, "label": [0, 1] * 2},
            r"a.parquet, row \d is empty or .* \(1 more of 2 training images",
        ),
        ({"image": [None] * 4, "label": [0, 1] * 2}, "has no image column"),
        (
            {"image": [GOOD_PNG[:end] for end in range(96, 100)], "label": [0, 1] * 2},
            r"a.parquet, row \d cannot be read as an image",
        ),
        ({"image": [GOOD_PNG] * 4, "label": [3] * 4}, r"of one class only \(3\)"),
    ],
    ids=["labels", "images", "no image", "no label", "missing", "rows", "empty", "null", "truncated", "one class"],
)
def test_bad_tables(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        load_data(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_outside_the_class_names(label: int, tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", [0, 1, label], names=["owl", "wren"])
    with pytest.raises(DataError, match=f"row 2: 'label' is {label}, but must be one of the 2 training classes: label"):
        load_data(str(file))


def test_bad_parquet_folders(tmp_path: Path) -> None:
    parquet(tmp_path / "test.parquet", [0, 1])
    with pytest.raises(DataError, match=r"none named train\*.parquet: add the training images"):
        load_data(str(tmp_path))
    parquet(tmp_path / "train-0.parquet", [1, 2])
    with pytest.raises(
        DataError, match=r"test.parquet, row 0: 'label' is 0, but must be one of the 2 training classes"
    ):
        load_data(str(tmp_path))
    parquet(tmp_path / "train-1.parquet", [1, 2], label_column="kind")
    with pytest.raises(
        DataError,
        match=r"train-1.parquet cannot be read as Parquet \(.*\): .*give the files of a split the same columns",
    ):
        load_data(str(tmp_path))


def test_damaged_parquet(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", [0, 1] * 4)
    content = file.read_bytes()
    for damaged in (content[:-20], b"", content[:100] + bytes(400) + content[500:]):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a.parquet.*: (download it again|replace or remove it)") as raised:
            load_data(str(file))
        assert "\n" not in str(raised.value)


# The Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, list[int]]], None]:
    """Replaces the network: every requested name gives a data set built here, with these labels in each split."""
    import datasets

    def serve(splits: dict[str, list[int]]) -> None:
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["owl", "wren"])})
        built = {
            name: datasets.Dataset.from_dict(
                {"img": [Image.fromarray(noise(8, 8, seed=i)) for i in range(len(labels))], "label": labels}, features
            )
            for name, labels in splits.items()
        }
        monkeypatch.setattr(datasets, "load_dataset", lambda _name: datasets.DatasetDict(built))

    return serve


@pytest.mark.parametrize("memory_bound", [data.MEMORY_BOUND, 0])
def test_hub_data_set(hub: Callable[[dict[str, list[int]]], None], memory_bound: int) -> None:
    hub({"train": [0, 1, 1], "test": [1], "validation": [0, 0]})
    splits = load_data("someone/birds", image_size=8, memory_bound=memory_bound)
    assert splits.name == "someone/birds"
    assert splits.train.class_names == ("owl", "wren")
    assert (splits.train.labels.tolist(), splits.test.labels.tolist()) == ([0, 1, 1], [1])
    wanted = np.stack([noise(8, 8, seed=2), noise(8, 8, seed=0)])
    assert np.array_equal(splits.train.batch(torch.tensor([2, 0])).permute(0, 2, 3, 1).numpy(), wanted)
    assert len(splits.train.fingerprint) == 64


def test_hub_splits(hub: Callable[[dict[str, list[int]]], None]) -> None:
    hub({"train": [0, 1], "test": [-1, -1], "validation": [1]})
    assert load_data("someone/competition").test.labels.tolist() == [1]
    hub({"train": [0, 1] * 5, "test": [-1, -1]})
    assert class_labels(load_data("someone/competition").test) == [0, 1]
    hub({"all": [0, 1] * 5})
    assert class_labels(load_data("someone/single").test) == [0, 1]
    hub({"train": [0, 1], "test": []})
    with pytest.raises(DataError, match=r"someone/empty \(test\) has no rows: give a table with images"):
        load_data("someone/empty")
    hub({"a": [0, 1], "b": [0, 1]})
    with pytest.raises(DataError, match="has the splits a, b, but none is 'train'"):
        load_data("someone/odd")


def test_cifar_comes_from_the_hub_without_the_variable(
    hub: Callable[[dict[str, list[int]]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYBRID_MOBILENET_DATA", raising=False)
    hub({"train": [0, 1, 1], "test": [1]})
    splits = load_data("cifar100")
    assert splits.name == "cifar100"
    assert splits.train.labels.tolist() == [0, 1, 1]


def test_hub_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(_name: str) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        DataError, match=r"^a/b is not an existing path, and cannot be loaded .* \(no route\): check the name"
    ):
        load_data("a/b")


# Names


def test_unknown_names() -> None:
    with pytest.raises(
        DataError, match=r"no data 'cifar-10' \(did you mean 'cifar10'\?\): give digits, cifar10, cifar100"
    ):
        load_data("cifar-10")
    with pytest.raises(DataError, match=r"no data '': give .*folder .*Parquet .*Hugging Face Hub, owner/name"):
        load_data("")


def test_near_match_of_a_path(tmp_path: Path) -> None:
    image_folder(tmp_path / "flowers", {"a": 2, "b": 2})
    with pytest.raises(DataError, match=r"did you mean '.*/flowers'"):
        load_data(str(tmp_path / "flovers"))


def test_existing_path_comes_before_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "owner/name", {"a": 2, "b": 2})
    assert load_data("owner/name").train.class_names == ("a", "b")


def test_variable_with_a_folder_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_MOBILENET_DATA", str(tmp_path))
    with pytest.raises(
        DataError, match=r"HYBRID_MOBILENET_DATA is .*cifar10/train.parquet is not a file: correct the variable"
    ):
        load_data("cifar10")


# Memory, fingerprints, normalisation


def make_folder(root: Path) -> str:
    return str(image_folder(root / "folder", {"a": 12, "b": 11}, size=9))


def make_parquet(root: Path) -> str:
    parquet(root / "train-0.parquet", [0, 1] * 5, names=["a", "b"])
    parquet(root / "train-1.parquet", [0, 1] * 3, names=["a", "b"], seed=50)
    parquet(root / "test.parquet", [0, 1], names=["a", "b"], seed=90)
    return str(root)


@pytest.mark.parametrize(
    "make", [make_folder, make_parquet, lambda _root: "digits"], ids=["folder", "parquet", "digits"]
)
def test_streaming_equals_memory_bit_for_bit(make: Callable[[Path], str], tmp_path: Path) -> None:
    source = make(tmp_path)
    in_memory = load_data(source, image_size=(7, 8), validation=0.3)
    images = len(in_memory.train) + len(in_memory.test) + len(in_memory.validation or ())
    fits = load_data(source, image_size=(7, 8), validation=0.3, memory_bound=images * 7 * 8 * 3)
    streamed = load_data(source, image_size=(7, 8), validation=0.3, memory_bound=images * 7 * 8 * 3 - 1)
    for name in ("train", "validation", "test"):
        kept, also_kept, other = getattr(in_memory, name), getattr(fits, name), getattr(streamed, name)
        assert kept.pixels is not None
        assert also_kept.pixels is not None
        assert other.pixels is None
        assert torch.equal(kept.labels, other.labels)
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))
        assert torch.equal(kept.batch(order), other.batch(order))
        assert other.batch(order).is_contiguous(memory_format=torch.channels_last)
        assert other.batch(order[:0]).shape == kept.batch(order[:0]).shape == (0, 3, 7, 8)
        assert (kept.class_names, kept.image_size, kept.channels) == (
            other.class_names,
            other.image_size,
            other.channels,
        )
    assert normalisation(in_memory.train) == normalisation(streamed.train)


class Pictures(Source):
    """A source of the images in an array, uint8 (n, height, width, 3)."""

    def __init__(self, pixels: NDArray[np.uint8], labels: list[int]) -> None:
        self._pixels = pixels
        self.labels = torch.tensor(labels)
        self.class_names = ("a", "b")

    def fetch(self, rows: Sequence[int]) -> list[Item]:
        return [(f"picture {row}", Image.fromarray(self._pixels[row])) for row in rows]


def pictures(pixels: NDArray[np.uint8], labels: list[int], rows: list[int]) -> ImageDataset:
    height, width = pixels.shape[1:3]
    dataset = ImageDataset(Pictures(pixels, labels), torch.tensor(rows), (height, width), 3)
    dataset.read("training", None)
    return dataset


def test_fingerprint_changes_with_a_pixel_a_label_and_a_row() -> None:
    pixels = noise(4 * 5, 6).reshape(4, 5, 6, 3)
    labels, rows = [0, 1, 1, 0], [2, 0, 3]
    changed, changed_outside = pixels.copy(), pixels.copy()
    changed[3, 4, 5, 2] ^= 1
    changed_outside[1] ^= 1  # not one of the rows
    first = pictures(pixels, labels, rows).fingerprint
    assert pictures(pixels, labels, rows).fingerprint == pictures(changed_outside, labels, rows).fingerprint == first
    different = {first, pictures(changed, labels, rows).fingerprint, pictures(pixels, labels, [0, 2, 3]).fingerprint}
    different.add(pictures(pixels, [1, 0, 0, 1], rows).fingerprint)
    assert len(different) == 4


def test_fingerprint_changes_with_size_and_class_name(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"a": 4, "b": 4})
    before = load_data(str(root), image_size=8)
    assert load_data(str(root), image_size=8).train.fingerprint == before.train.fingerprint
    assert load_data(str(root), image_size=9).train.fingerprint != before.train.fingerprint

    (root / "b").rename(root / "c")
    assert load_data(str(root), image_size=8).train.fingerprint != before.train.fingerprint


def test_fingerprint_of_streamed_files(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"a": 4, "b": 4})

    def fingerprint() -> str:
        return load_data(str(root), memory_bound=0).train.fingerprint

    before = fingerprint()
    assert fingerprint() == before
    for file in root.glob("a/*.png"):
        file.write_bytes(file.read_bytes() + b"x")
    longer = fingerprint()
    assert longer != before
    for file in root.glob("a/*.png"):
        file.rename(file.with_name("x" + file.name))
    assert fingerprint() not in (before, longer)


def test_normalisation() -> None:
    pixels = np.zeros((4, 1, 1, 3), np.uint8)
    pixels[:, 0, 0, 0] = [0, 255, 0, 255]
    pixels[:, 0, 0, 1] = [51, 51, 51, 255]
    mean, std = normalisation(pictures(pixels, [0, 1, 0, 1], [0, 1, 2, 3]))
    assert mean == pytest.approx((0.5, 0.4, 0))
    assert std == pytest.approx((0.5, 0.12**0.5, 1 / 255))  # the last channel never changes
    # Only the rows that belong to the data set count.
    mean, _ = normalisation(pictures(pixels, [0, 1, 0, 1], [1, 3]))
    assert mean == pytest.approx((1, 0.6, 0))


def test_normalisation_is_computed_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = load_data("digits", image_size=8, memory_bound=0).train
    monkeypatch.setattr(data, "NORMALISATION_SAMPLE", 100)
    mean, std = normalisation(streamed)
    chosen = streamed.batch(torch.arange(100) * len(streamed) // 100)[:, 0].double() / 255
    assert mean == pytest.approx((chosen.mean().item(),) * 3)
    assert std == pytest.approx((chosen.std(correction=0).item(),) * 3)


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_READ_AT_ONCE", 1000)
    calls: list[tuple[str, int, int]] = []
    splits = load_data("digits", image_size=8, validation=0.1, progress=lambda *call: calls.append(call))
    assert splits.validation is not None
    train, validation = len(splits.train), len(splits.validation)
    assert calls == [
        ("comparing images", 1000, 1797),
        ("comparing images", 1797, 1797),
        ("reading training images", 1000, train),
        ("reading training images", train, train),
        ("reading validation images", validation, validation),
        ("reading test images", 359, 359),
    ]


def test_load_test_reads_only_test_images(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", {"a": 3, "b": 3})
    image_folder(tmp_path / "test", {"a": 1, "b": 1})
    (tmp_path / "train/a/000.png").write_bytes(b"damaged")
    calls: list[tuple[str, int, int]] = []
    test = load_test(str(tmp_path), image_size=(7, 8), channels=1, progress=lambda *call: calls.append(call))
    assert calls == [("reading test images", 2, 2)]
    with pytest.raises(DataError, match=r"train/a/000.png is empty or not in a supported format"):
        load_data(str(tmp_path))
    assert (test.labels.tolist(), test.image_size, test.channels) == ([0, 1], (7, 8), 1)

    assert load_test("digits", image_size=8).fingerprint == load_data("digits", image_size=8).test.fingerprint


# A DataLoader


@pytest.mark.parametrize("memory_bound", [data.MEMORY_BOUND, 0], ids=["in memory", "streamed"])
def test_items_are_images_with_their_labels(memory_bound: int) -> None:
    digits = load_data("digits", image_size=8, channels=1, memory_bound=memory_bound).test
    images = digits.batch(torch.arange(len(digits)))
    for index in (0, 358, -1, -359):
        image, label = digits[index]
        assert (image.dtype, type(label), label) == (torch.uint8, int, int(digits.labels[index]))
        assert torch.equal(image, images[index])
    for index in (359, -360):
        with pytest.raises(IndexError, match=f"^index is {index}, but the data set has 359 images"):
            digits[index]
    assert [label for _, label in digits] == digits.labels.tolist()  # type: ignore[attr-defined]  # ends at an IndexError
    assert digits.__getitems__([]) == []


def test_a_data_loader_fetches_a_batch_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_data("digits", image_size=8, channels=1).test
    calls: list[int] = []
    batch = ImageDataset.batch

    def counted(dataset: ImageDataset, indices: torch.Tensor) -> torch.Tensor:
        calls.append(len(indices))
        return batch(dataset, indices)

    monkeypatch.setattr(ImageDataset, "batch", counted)
    batches = list(torch.utils.data.DataLoader(digits, batch_size=100))
    assert calls == [100, 100, 100, 59]
    assert torch.equal(torch.cat([images for images, _ in batches]), digits.batch(torch.arange(359)))
    assert torch.equal(torch.cat([labels for _, labels in batches]), digits.labels)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, in Python 3.12
@pytest.mark.parametrize(
    ("method", "make", "memory_bound"),
    [
        ("fork", make_folder, 0),
        ("fork", make_folder, data.MEMORY_BOUND),
        ("fork", lambda _root: "digits", data.MEMORY_BOUND),
        ("spawn", make_folder, 0),
        ("spawn", lambda _root: "digits", data.MEMORY_BOUND),
    ],
    ids=["fork, streamed", "fork, in memory", "fork, digits", "spawn, streamed", "spawn, digits"],
)
@pytest.mark.slow
def test_a_data_loader_with_workers(
    method: str, make: Callable[[Path], str], memory_bound: int, tmp_path: Path
) -> None:
    part = load_data(make(tmp_path), image_size=8, memory_bound=memory_bound).train
    expected = part.batch(torch.arange(len(part)))  # starts the threads that decode, which a forked process lacks
    loader = torch.utils.data.DataLoader(part, batch_size=8, num_workers=2, multiprocessing_context=method, timeout=120)
    batches = list(loader)
    assert torch.equal(torch.cat([images for images, _ in batches]), expected)
    assert torch.equal(torch.cat([labels for _, labels in batches]), part.labels)


def test_a_streamed_table_is_sent_to_workers(tmp_path: Path) -> None:
    part = load_data(make_parquet(tmp_path), image_size=8, memory_bound=0).train
    copy = pickle.loads(pickle.dumps(part))
    everything = torch.arange(len(part))
    assert torch.equal(copy.batch(everything), part.batch(everything))


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
    with pytest.raises(DataError, match="empty contains no images: give a folder with files such as"):
        image_files([root / "empty"])


# Real data


def official_digest(splits: Splits) -> str:
    """MD5 of all pixels in the order of the official files: channel, row, column."""
    digest = hashlib.md5(all_pixels(splits.train).contiguous().numpy().tobytes(), usedforsecurity=False)
    digest.update(all_pixels(splits.test).contiguous().numpy().tobytes())
    return digest.hexdigest()


@real_data
@pytest.mark.parametrize(
    ("source", "classes", "some_names", "first_labels", "per_class", "digest"),
    [
        (
            "cifar10",
            10,
            ("airplane", "automobile", "bird"),
            ([6, 9, 9], [3, 8, 8]),
            (5000, 1000),
            "fc5173ca52a4702ea67b79f536bb8ae2",
        ),
        (
            "cifar100",
            100,
            ("apple", "aquarium_fish", "baby"),
            ([19, 29, 0], [49, 33, 72]),
            (500, 100),
            "86dce5cdade4f31999f10b51fb7199b9",
        ),
    ],
)
def test_cifar(
    source: str,
    classes: int,
    some_names: tuple[str, ...],
    first_labels: tuple[list[int], list[int]],
    per_class: tuple[int, int],
    digest: str,
) -> None:
    splits = load_data(source)
    assert len(splits.train.class_names) == classes
    assert splits.train.class_names[:3] == some_names
    for dataset, labels, count in zip((splits.train, splits.test), first_labels, per_class, strict=True):
        assert dataset.pixels is not None
        assert dataset.labels[:3].tolist() == labels
        assert dataset.labels.bincount().tolist() == [count] * classes
    assert official_digest(splits) == digest


def test_images_are_moved_to_a_device_if_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    meta = torch.device("meta")  # stands for a GPU; its tensors have no values
    train = load_data("digits", image_size=8).train
    assert train.pixels is not None
    assert train.to(torch.device("cpu")) is train
    assert train.to(meta) is train  # its free memory is unknown
    size = train.pixels.nbytes
    for free, fits in ((2 * size - 2, False), (2 * size, True)):
        monkeypatch.setattr(data, "_free_memory", lambda _device, free=free: free)
        there = train.to(meta)
        assert (there is not train) == fits
    assert there.labels.device == meta
    assert (len(there), there.class_names) == (len(train), train.class_names)
    batch = there.batch(torch.tensor([3, 1], device=meta))
    here = train.batch(torch.tensor([3, 1]))
    assert (batch.device, batch.dtype, batch.shape, batch.stride()) == (meta, here.dtype, here.shape, here.stride())
    streamed = load_data("digits", image_size=8, memory_bound=0).train
    assert streamed.to(meta) is streamed
