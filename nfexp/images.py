"""Image sets: which pictures a run learns from, checked where a configuration is composed.

No torch.

As a table is (:mod:`nfexp.tables`), a set is read when a run is planned: its shape decides what can
stack, and a digest of its pixels, not its path, is part of the run's identity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from nfexp.files import signature_of
from nfexp.image_sets import BYTE, SETS, Album
from nfexp.mesh import Mesh, mesh_of
from nfexp.spec import Data, SpecError, Words, counted

FEWEST_IMAGES = 10
MOST_DRAWN = 2**30  # pixels of all images of a law, 8 GB


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which images of :attr:`Album.main` a run trains, validates and tests on."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def shared_reading(data: Data) -> Data:
    """`data` without what is made of its examples once they are read: their split, what follows from them.

    Runs that differ in that alone share one reading of the files.
    """
    return replace(
        data,
        n_samples=None,
        n_val=None,
        n_test=None,
        val_share=None,
        test_share=None,
        split=None,
        dim=2,
        digest=None,
    )


def album_of(data: Data) -> Album:
    """The images that `data` names, read and checked; once, while the files stay as they are.

    Raises
    ------
    SpecError
        For files that are missing or not what they should be, and for pixels outside the levels.
    """
    is_cut = data.images in ("photographs", "pictures")
    is_own = data.images in ("npz", "folder")
    reading = replace(
        shared_reading(data),
        name="images",
        height=data.height if is_cut else None,
        width=data.width if is_cut else None,
        channels=data.channels if data.images == "folder" else None,
        levels=data.levels or BYTE if is_own else None,
    )
    paths = (data.path, data.val_path, data.test_path)
    return _album(reading, tuple(signature_of(path) for path in paths))


@lru_cache(maxsize=4)
def _album(data: Data, signatures: tuple[object, ...]) -> Album:
    album = SETS[str(data.images)](data)
    n = len(album.main)
    if n < FEWEST_IMAGES:
        raise SpecError(
            "data.path", f"at least {FEWEST_IMAGES} images", Words(f"{n} in {album.place}")
        )
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
        expected = f"at least 2 of the {counted(len(main), 'image')} left for training"
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
        raise SpecError(
            "data",
            f"at most {MOST_DRAWN:,} pixels in all images that are drawn",
            Words(f"{n_drawn:,}"),
        )
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
    """Images for validation or test.

    As many as asked for, all of a set's own, or a share of the n.
    """
    asked = getattr(data, f"n_{key}")
    share = getattr(data, f"{key}_share")
    if given is not None:
        if asked is not None and asked > len(given):
            raise SpecError(
                f"data.n_{key}",
                f"at most {len(given)}, all that the set has, or null for them",
                asked,
            )
        return int(asked or len(given))
    if asked is not None:
        return int(asked)
    if share is None:
        raise SpecError(f"data.{key}_share", f"a share of the images, or data.n_{key}", None)
    return max(2, round(share * n))


def split_images(data: Data, seed: int, album: Album) -> Split:
    """Which images of `main` are for what, by ``default_rng(seed).permutation``.

    Training, validation, test.

    `seed` is the run's; `data.split`, where given, makes one split serve all seeds. With fewer
    images for training (`data.n_samples`) those for validation and test stay the same.
    """
    by = seed if data.split is None else data.split
    order = np.random.default_rng(by).permutation(len(album.main))
    n_train, n_val, n_test = data.points
    left = _left(album, n_val, n_test)
    val_end = left + (n_val if album.val is None else 0)
    return Split(train=order[:n_train], val=order[left:val_end], test=order[val_end:])


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
        parts.append(counted(repeats, "duplicate"))
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
