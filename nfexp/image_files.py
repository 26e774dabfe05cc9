"""Images as they stand in files: IDX, CIFAR's binary batches, NPZ and NPY, folders of pictures.

No torch.

Every reader gives whole numbers (N, C, H, W) as they are in the files, row by row from the top.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nfexp.spec import SpecError, Words

# The first four bytes: unsigned bytes in three dimensions, or in one
IDX_IMAGES = 2051
IDX_LABELS = 2049
IDX_HEAD = 16  # bytes: magic number, images, rows, columns
CIFAR_SHAPE = (3, 32, 32)
CIFAR_CLASSES = 10
MOST_BYTES = 2**32  # that are read of a file, unpacked
MOST_CHANNELS = 4  # an axis so short holds channels
SUFFIXES = (".png", ".bmp", ".gif", ".jpg", ".jpeg", ".tif", ".tiff", ".ppm", ".pgm", ".webp")
NPY_BEGINS = b"\x93NUMPY"
ZIP_BEGINS = b"PK"
# What numpy and zipfile raise of a file that is damaged, asks for a password, or claims more than
# the memory holds
UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)
# In how many levels a mode of Pillow's counts: these alone have 256, others would be rounded
GREY_MODES = ("L", "1")
COLOUR_MODES = ("RGB", "P", "RGBA", "LA")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A standard set: where it is had, its files for training and for the test, and their MD5 sums unpacked."""

    place: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    sizes: dict[str, int]  # bytes, unpacked
    md5: dict[str, str]

    def file_of(self, md5: str) -> str | None:
        """The file that has this sum, None if none has."""
        for name, known in self.md5.items():
            if known == md5:
                return name
        return None


def _idx(source: str, train: str, test: str) -> Published:
    images = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
    counts = (60_000, 10_000)
    return Published(
        place=source,
        train=images[:1],
        test=images[1:],
        sizes={name: IDX_HEAD + n * 28 * 28 for name, n in zip(images, counts, strict=True)},
        md5=dict(zip(images, (train, test), strict=True)),
    )


_BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
PUBLISHED = {
    "cifar10": Published(
        place="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        train=_BATCHES,
        test=("test_batch.bin",),
        sizes=dict.fromkeys((*_BATCHES, "test_batch.bin"), 10_000 * 3073),
        md5={
            "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
            "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
            "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
            "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
            "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
            "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
        },
    ),
    "mnist": _idx(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "6bbc9ace898e44ae57da46a324031adb",
        "2646ac647ad5339dbf082846283269ea",
    ),
    "fashion_mnist": _idx(
        "https://github.com/zalandoresearch/fashion-mnist",
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "8181f5470baa50b63fa0f6fddb340f0a",
    ),
}


# --- Standard sets ---------------------------------------------------------------------------------------------------


def read_published(name: str, folder: str, *, check: str) -> tuple[np.ndarray, np.ndarray]:
    """Training and test images of a standard set, (N, C, H, W) bytes, from the folder that holds its files.

    Files may be packed by gzip. With `check` = "published" sizes and MD5 sums are those of the
    published files; with "format" any files of the format and these names will do.

    Raises
    ------
    SpecError
        For files that are missing, truncated, of another kind, or not the published ones.
    """
    known = PUBLISHED[name]
    source = Path(folder).expanduser()
    if not (source / known.train[0]).exists() and (source / "cifar-10-batches-bin").is_dir():
        source = source / "cifar-10-batches-bin"  # as the archive unpacks
    parts = []
    for files in (known.train, known.test):
        batches = []
        for file in files:
            path = _found(name, source, file)
            raw = _unpacked(path)
            if check == "published":
                _check_published(name, file, path, raw)
            batches.append(_cifar_batch(path, raw) if name == "cifar10" else _idx_images(path, raw))
        parts.append(_joined(source, batches))
    train, test = parts
    if train.shape[1:] != test.shape[1:]:
        got = f"{_size(train.shape)} and {_size(test.shape)}"
        raise SpecError(
            "data.path", f"training and test images of one size in {folder}", Words(got)
        )
    return train, test


def _joined(source: Path, batches: Sequence[np.ndarray]) -> np.ndarray:
    return batches[0] if len(batches) == 1 else np.concatenate(batches)


def _found(name: str, folder: Path, file: str) -> Path:
    """The file, or the file packed by gzip."""
    for path in (folder / file, folder / f"{file}.gz"):
        if path.is_file():
            return path
    got = f"{folder}, without it" if folder.is_dir() else f"{folder}, which is no folder"
    expected = f"a folder with {file} (or {file}.gz), from {PUBLISHED[name].place}"
    raise SpecError("data.path", expected, Words(got))


def _unpacked(path: Path) -> bytes:
    """The bytes of a file, unpacked where its name ends in .gz."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            raw: bytes = file.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        said = (
            getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        )
        raise SpecError(
            "data.path", "a file that can be read to its end", Words(f"{path}: {said}")
        ) from None
    if len(raw) > MOST_BYTES:
        raise SpecError(
            "data.path", f"a file of at most {MOST_BYTES:,} bytes", Words(f"{path}, which has more")
        )
    return raw


def _check_published(name: str, file: str, path: Path, raw: bytes) -> None:
    """Raise unless the bytes are those that were published as `file` of the set `name`."""
    known = PUBLISHED[name]
    remedy = "data.check=format takes other files of the format"
    if len(raw) != known.sizes[file]:
        expected = f"{known.sizes[file]:,} bytes in {file} of {name}, from {known.place} ({remedy})"
        raise SpecError("data.path", expected, Words(f"{len(raw):,} in {path}"))
    md5 = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if md5 == known.md5[file]:
        return
    what = f"{md5} in {path}"
    for other, published in PUBLISHED.items():
        is_of = published.file_of(md5)
        if is_of is not None:
            what += f", which is {is_of} of {other}"
    expected = f"the MD5 sum {known.md5[file]} of {file} of {name}, from {known.place} ({remedy})"
    raise SpecError("data.path", expected, Words(what))


def _idx_images(path: Path, raw: bytes) -> np.ndarray:
    """Images of an IDX file (LeCun, Cortes, Burges 1998), (N, 1, H, W) bytes."""
    if len(raw) < IDX_HEAD:
        raise SpecError("data.path", f"an IDX file of images in {path}", Words(f"{len(raw)} bytes"))
    magic, n, height, width = struct.unpack(">4I", raw[:IDX_HEAD])
    if magic != IDX_IMAGES:
        got = (
            "an IDX file of labels"
            if magic == IDX_LABELS
            else f"a file that begins with {raw[:4].hex(' ')}"
        )
        raise SpecError(
            "data.path", f"an IDX file of images (it begins with 00 00 08 03) in {path}", Words(got)
        )
    if 0 in (n, height, width):
        raise SpecError("data.path", f"images in {path}", Words(f"{n} of {height} × {width}"))
    expected = IDX_HEAD + n * height * width
    if len(raw) != expected:
        what = f"{n:,} images of {height} × {width}, {expected:,} bytes, as {path} says itself"
        raise SpecError("data.path", what, Words(f"{len(raw):,} bytes"))
    return np.frombuffer(raw, np.uint8, offset=IDX_HEAD).reshape(n, 1, height, width)


def _cifar_batch(path: Path, raw: bytes) -> np.ndarray:
    """Images of a binary batch of CIFAR-10 (Krizhevsky 2009), (N, 3, 32, 32) bytes.

    Labels are left out.
    """
    record = 1 + int(np.prod(CIFAR_SHAPE))  # a label, then the red, green and blue planes
    if not raw or len(raw) % record:
        expected = f"records of {record:,} bytes (a label and 3 × 32 × 32 pixels) in {path}"
        whole, rest = divmod(len(raw), record)
        raise SpecError(
            "data.path", expected, Words(f"{len(raw):,} bytes, {whole} records and {rest:,} bytes")
        )
    records = np.frombuffer(raw, np.uint8).reshape(-1, record)
    highest = int(records[:, 0].max())
    if highest >= CIFAR_CLASSES:
        at = int(records[:, 0].argmax())
        what = f"{highest} in record {at + 1}: no binary batch of CIFAR-10"
        raise SpecError("data.path", f"labels from 0 to {CIFAR_CLASSES - 1} in {path}", Words(what))
    return records[:, 1:].reshape(-1, *CIFAR_SHAPE)


# --- One's own -------------------------------------------------------------------------------------------------------


def read_array(key: str, path: str) -> np.ndarray:
    """Images of an NPY file or of an NPZ archive, (N, C, H, W).

    Its array `images`, or the only one it has.

    Arrays are (N, H, W), (N, H, W, C) or (N, C, H, W); an axis of at most 4 holds channels, the
    last one if both could: (N, C, H, W) with W at most 4 is taken for (N, H, W, C). Whole numbers,
    also as floats.
    """
    source = Path(path).expanduser()
    try:
        with source.open("rb") as file:
            if not file.peek(len(NPY_BEGINS)).startswith((NPY_BEGINS, ZIP_BEGINS)):
                # numpy would take it for pickled objects
                raise ValueError("a file of another kind")
            loaded = np.load(file, allow_pickle=False)
            values = _only_array(loaded) if hasattr(loaded, "files") else loaded
    except UNREADABLE as error:
        said = (
            getattr(error, "strerror", None)
            or " ".join(str(error).split())[:200]
            or type(error).__name__
        )
        raise SpecError(key, "an NPZ or NPY file of images", Words(f"{path}: {said}")) from None
    return _whole(key, path, _channels_first(key, path, values))


def _only_array(archive: np.lib.npyio.NpzFile) -> np.ndarray:
    names = list(archive.files)
    if "images" in names:
        values: np.ndarray = archive["images"]
        return values
    if len(names) == 1:
        return archive[names[0]]
    raise ValueError(f"no array 'images' among {', '.join(names[:8]) or 'none'}")


def _channels_first(key: str, path: str, values: np.ndarray) -> np.ndarray:
    """An array of images as (N, C, H, W)."""
    if values.ndim == 3 and 0 not in values.shape:
        return values[:, None]
    if values.ndim == 4 and 0 not in values.shape:
        if values.shape[3] <= MOST_CHANNELS:
            return np.moveaxis(values, 3, 1)
        if values.shape[1] <= MOST_CHANNELS:
            return values
    shapes = "(N, H, W), (N, H, W, C) or (N, C, H, W)"
    expected = f"images of shape {shapes} with C at most {MOST_CHANNELS}, the last axis if two are so short, in {path}"
    raise SpecError(key, expected, Words(str(values.shape)))


def _whole(key: str, path: str, values: np.ndarray) -> np.ndarray:
    """Whole numbers >= 0, in the smallest unsigned type that holds them."""
    if values.dtype.kind not in "uifb":
        raise SpecError(key, f"numbers in {path}", Words(f"the type {values.dtype}"))
    if values.dtype.kind == "f":
        strange = ~np.isfinite(values) | (values != np.floor(values))
        if strange.any():
            got = f"{values[strange][0]:g} (no whole number in {int(strange.sum()):,} of {values.size:,} pixels)"
            raise SpecError(key, f"whole levels 0, 1, … in {path}", Words(got))
    lowest = values.min()
    highest = values.max()
    if lowest < 0 or highest >= 65_536:
        got = f"{lowest:g} to {highest:g}"
        raise SpecError(key, f"levels from 0 to at most 65,535 in {path}", Words(got))
    return values.astype(np.uint8 if highest < 256 else np.uint16)


def read_folder(key: str, folder: str, *, channels: int | None) -> np.ndarray:
    """The pictures of a folder in the order of their names, (N, C, H, W) bytes.

    Sub-folders are left out.

    `channels` 1 makes them grey, 3 coloured; None leaves grey ones grey where all are. Transparency
    is left out.
    """
    from PIL import Image

    source = Path(folder).expanduser()
    if not source.is_dir():
        raise SpecError(key, "a folder of images", Words(f"{folder}, which is none"))
    paths = sorted(
        path for path in source.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not paths:
        raise SpecError(key, f"images ({', '.join(SUFFIXES)}) in {folder}", Words("none"))
    pictures: list[Image.Image] = []
    modes = set()
    for path in paths:
        try:
            with Image.open(path) as picture:
                picture.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            said = " ".join(str(error).split())[:200]
            raise SpecError(key, "images that can be read", Words(f"{path.name}: {said}")) from None
        if picture.mode not in (*GREY_MODES, *COLOUR_MODES):
            got = f"{path.name} of Pillow's mode {picture.mode}"
            raise SpecError(key, f"pictures of 8 bits a channel in {folder}", Words(got))
        if pictures and picture.size != pictures[0].size:
            shown = [
                f"{a.name} {b[0]} × {b[1]}"
                for a, b in ((paths[0], pictures[0].size), (path, picture.size))
            ]
            raise SpecError(key, f"images of one size in {folder}", Words(", ".join(shown)))
        modes.add(picture.mode)
        pictures.append(picture)
    is_grey = channels == 1 if channels is not None else modes <= set(GREY_MODES)
    mode = "L" if is_grey else "RGB"
    values = np.stack([np.asarray(picture.convert(mode)) for picture in pictures])
    return values[:, None] if is_grey else np.moveaxis(values, 3, 1)


def _size(shape: Sequence[int]) -> str:
    """Channels, height and width of images (N, C, H, W) as people write them."""
    return " × ".join(str(n) for n in shape[1:])
