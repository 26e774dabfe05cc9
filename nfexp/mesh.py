"""Synthetic images whose probability is known exactly: a mixture of two Markov meshes. No torch.

Bits/dim of a flow can be held against the truth there.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

PULL = 0.85  # how far a pixel follows its neighbours; the rest is its component's own shade
SPREAD = 0.09  # standard deviation of a pixel given its neighbours, in the width of all levels
SHADES = (0.32, 0.68)  # of the two components, in the width of all levels
WEIGHTS = (0.4, 0.6)


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """A law of images (C, H, W) of levels 0 … L − 1, after Abend, Harley and Kanal (1965).

    An image is dark or bright, with probability 0.4 and 0.6. Its pixels then come row by row. Each
    is

        P(x = l) ∝ exp(−(l − m)² / 2 s²),   m = r · (mean of its neighbours) + (1 − r) · shade,

    over the levels; neighbours are the pixels above and to the left, and the channel before at the
    same place. P of an image is the weighted sum, over dark and bright, of the products over
    pixels.

    >>> mesh = mesh_of(1, 2, 2, 3)
    >>> levels = np.stack(np.meshgrid(*[np.arange(3)] * 4), -1).reshape(-1, 1, 2, 2)
    >>> print(f"{np.exp(mesh.log_prob(levels)).sum():.12f}")  # over all 81 images
    1.000000000000
    """

    channels: int
    height: int
    width: int
    levels: int

    @property
    def dim(self) -> int:
        """Pixels times channels."""
        return self.channels * self.height * self.width

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name the law."""
        numbers = (
            self.channels,
            self.height,
            self.width,
            self.levels,
            PULL,
            SPREAD,
            SHADES,
            WEIGHTS,
        )
        return hashlib.sha256(repr(("mesh", numbers)).encode()).hexdigest()[:16]

    def _law(self, images: np.ndarray, at: tuple[int, int, int], shade: np.ndarray) -> np.ndarray:
        """log P of every level of the pixel `at`, (N, L), given those before it in images (N, C, H, W)."""
        c, i, j = at
        neighbours = []
        if i > 0:
            neighbours.append(images[:, c, i - 1, j])
        if j > 0:
            neighbours.append(images[:, c, i, j - 1])
        if c > 0:
            neighbours.append(images[:, c - 1, i, j])
        middle = np.asarray(shade, dtype=float)
        if neighbours:
            middle = PULL * np.mean(neighbours, axis=0) + (1 - PULL) * middle
        sd = SPREAD * self.levels
        logits = -((np.arange(self.levels) - middle[:, None]) ** 2) / (2 * sd**2)
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    def _places(self) -> list[tuple[int, int, int]]:
        """Every pixel in the order in which they come.

        Row by row, and at each place channel by channel.
        """
        grid = np.ndindex(self.height, self.width, self.channels)
        return [(c, i, j) for i, j, c in grid]

    def _shade(self, component: np.ndarray) -> np.ndarray:
        return np.array(SHADES)[component] * (self.levels - 1)

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """`n` independent images, (n, C, H, W)."""
        shade = self._shade(rng.choice(2, size=n, p=WEIGHTS))
        images = np.zeros((n, self.channels, self.height, self.width))
        for c, i, j in self._places():
            shares = np.exp(self._law(images, (c, i, j), shade)).cumsum(axis=1)
            drawn = (rng.random((n, 1)) > shares).sum(axis=1)
            images[:, c, i, j] = np.minimum(drawn, self.levels - 1)
        return images

    def log_prob(self, images: np.ndarray) -> np.ndarray:
        """log P of images (N, C, H, W), (N,), nats."""
        n = len(images)
        rows = np.arange(n)
        parts = []
        for component, weight in enumerate(WEIGHTS):
            shade = self._shade(np.full(n, component))
            total = np.full(n, math.log(weight))
            for c, i, j in self._places():
                law = self._law(images, (c, i, j), shade)
                total += law[rows, images[:, c, i, j].astype(int)]
            parts.append(total)
        log_p: np.ndarray = np.logaddexp.reduce(parts, axis=0)
        return log_p


def mesh_of(channels: int, height: int, width: int, levels: int) -> Mesh:
    """The law for images of this shape and so many levels."""
    return Mesh(channels=channels, height=height, width=width, levels=levels)
