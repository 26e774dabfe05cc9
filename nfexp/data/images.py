"""Images as the dataset of a run.

Which of a set it trains on, or fresh draws of a law that is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from nfexp.image_sets import Album
from nfexp.images import album_of, mesh_in, split_images
from nfexp.mesh import Mesh
from nfexp.spec import Data, SpecError, Words


def checked_album(data: Data) -> Album:
    """The images that `data` names, once they are known to be those that the run was planned with."""
    album = album_of(data)
    if data.digest is not None and album.digest != data.digest:
        expected = f"{album.place} as it was when the run was planned"
        raise SpecError("data.path", expected, Words("another content"))
    return album


def image_parts(data: Data, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images for training, validation and test, (N, C, H, W) of whole levels in float64.

    Raises
    ------
    SpecError
        For files that changed since the run was planned.
    """
    album = checked_album(data)
    split = split_images(data, seed, album)
    _, n_val, n_test = data.points
    train = album.main[split.train]
    val = album.main[split.val] if album.val is None else album.val[:n_val]
    test = album.main[split.test] if album.test is None else album.test[:n_test]
    return _tensor(train), _tensor(val), _tensor(test)


def _tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float64))


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Fresh images of a law for each split, and its log-probability."""

    mesh: Mesh
    train: Tensor
    val: Tensor
    test: Tensor

    def log_prob(self, images: Tensor) -> Tensor:
        """log P of images (N, C, H, W) of whole levels, (N,), nats."""
        return torch.from_numpy(self.mesh.log_prob(images.cpu().numpy()))


def drawn_images(data: Data, seed: int) -> Drawn:
    """The same images for every run with this seed, law and sizes."""
    return _drawn(mesh_in(data), seed, data.points)


@lru_cache(maxsize=64)
def _drawn(mesh: Mesh, seed: int, sizes: tuple[int, int, int]) -> Drawn:
    parts = {}
    for number, (name, n) in enumerate(zip(("train", "val", "test"), sizes, strict=True)):
        parts[name] = _tensor(mesh.sample(n, np.random.default_rng([seed, number])))
    return Drawn(mesh=mesh, **parts)
