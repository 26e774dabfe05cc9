"""What an image flow is made of, in data → base order: the stages of the multi-scale architecture.

No torch.

At every scale but the last there are `n_flows` couplings with checkerboard masks, a squeeze that
turns 2 x 2 pixels into four channels, `n_flows` couplings with masks of channels, and half of what
is there is factored out: it goes to the base as it is. The last scale has `n_flows` + 1 couplings
with checkerboards (Dinh et al. 2017, sec. 3.6 and 4.1): with one scale, masks of both kinds are
therefore checkerboards alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from nfexp.spec import Data, Flow

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Image:
    """The shape of an image and the number of values of a pixel: 0, 1, …, levels − 1."""

    channels: int
    height: int
    width: int
    levels: int

    @property
    def shape(self) -> Shape:
        return self.channels, self.height, self.width

    @property
    def dim(self) -> int:
        """D, the numbers in one image."""
        return self.channels * self.height * self.width


def image_of(data: Data) -> Image | None:
    """What is known of the images of a dataset once it is settled; None for vectors."""
    if data.channels is None or data.height is None or data.width is None or data.levels is None:
        return None
    return Image(data.channels, data.height, data.width, data.levels)


@dataclass(frozen=True)
class Stage:
    """One step of the architecture on the active part of an image, which has this shape before it.

    `kind` is "checkerboard" or "channel" (a coupling), "squeeze" or "reorder". `parity` says which
    half of the pixels or channels a coupling passes unchanged.
    """

    kind: str
    scale: int
    shape: Shape
    parity: int = 0

    @property
    def is_coupling(self) -> bool:
        return self.kind in ("checkerboard", "channel")


def squeezed(shape: Shape) -> Shape:
    """The shape after a squeeze.

    >>> squeezed((3, 32, 32))
    (12, 16, 16)
    """
    channels, height, width = shape
    return 4 * channels, height // 2, width // 2


def halved(shape: Shape) -> Shape:
    """What stays active where half of the channels are factored out."""
    channels, height, width = shape
    return channels // 2, height, width


def stages(flow: Flow, shape: Shape) -> list[Stage]:
    """The stages of an architecture for images (C, H, W), in data → base order."""
    found: list[Stage] = []
    for scale in range(flow.scales or 1):
        last = scale == (flow.scales or 1) - 1
        if last:
            found += _last_scale(flow, scale, shape)
        else:
            found += _inner_scale(flow, scale, shape)
            shape = halved(squeezed(shape))
    return found


def _couplings(kind: str, scale: int, shape: Shape, n: int) -> list[Stage]:
    return [Stage(kind, scale, shape, i % 2) for i in range(n)]


def _inner_scale(flow: Flow, scale: int, shape: Shape) -> list[Stage]:
    """2 `n_flows` couplings around a squeeze.

    Then the channels are put into the order that is factored out.
    """
    small = squeezed(shape)
    n = flow.n_flows
    squeeze = [Stage("squeeze", scale, shape)]
    reorder = [Stage("reorder", scale, small)]
    if flow.mask == "checkerboard":
        return _couplings("checkerboard", scale, shape, 2 * n) + squeeze + reorder
    if flow.mask == "channel":
        return squeeze + _couplings("channel", scale, small, 2 * n) + reorder
    checkerboards = _couplings("checkerboard", scale, shape, n)
    return checkerboards + squeeze + _couplings("channel", scale, small, n) + reorder


def _last_scale(flow: Flow, scale: int, shape: Shape) -> list[Stage]:
    """`n_flows` + 1 couplings.

    A single channel, which has no halves, is squeezed before its channels are split.
    """
    n = flow.n_flows + 1
    if flow.mask != "channel":
        return _couplings("checkerboard", scale, shape, n)
    if shape[0] > 1:
        return _couplings("channel", scale, shape, n)
    return [Stage("squeeze", scale, shape), *_couplings("channel", scale, squeezed(shape), n)]


def factored_out(flow: Flow, shape: Shape) -> list[int]:
    """How many of the D numbers of the base each scale holds, from the first scale to the last.

    In a base point they stand the other way round: first those of the last scale.
    """
    sizes = []
    channels, height, width = shape
    left = channels * height * width
    for _ in range((flow.scales or 1) - 1):
        sizes.append(left // 2)
        left -= left // 2
    return [*sizes, left]
