"""Layers of an image flow. Points are (E, N, D): the active part, (C, H, W) row by row, then what is factored out.

The first layer maps each cell of a level [k, k + 1) onto itself: it is the dequantisation, and its log-det is the term
that the bound owes to it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

from nfexp.flows.elementwise import Standardise
from nfexp.flows.image.maps import every_point, mixed, spread
from nfexp.flows.image.networks import EPSILON, ResidualNet, batch_moments, first_gains
from nfexp.flows.image.plan import Image, Shape, Stage, squeezed
from nfexp.flows.layers import INITIAL_SCALE, SQUASH, Batch, Layer, Points, Shapes, Tensors
from nfexp.spec import Flow


class ActiveLayer(Layer):
    """A layer of the active part of an image, of shape (C, H, W); what is factored out passes.

    Subclasses say what happens to x (E, N, C, H, W).
    """

    def __init__(self, name: str, image: Image, shape: Shape) -> None:
        super().__init__(name, image.dim)
        self.shape = shape
        self.n_active = math.prod(shape)

    def _per_channel(self, *keys: str) -> Shapes:
        shapes: Shapes = {}
        for key in keys:
            name = f"{self.name}.{key}"
            shapes[name] = {name: (1, self.shape[0])}
        return shapes

    def _active(self, x: Tensor) -> Tensor:
        return x[..., : self.n_active].unflatten(-1, self.shape)

    def _joined(self, active: Tensor, x: Tensor) -> Tensor:
        """The points x with another active part."""
        return torch.cat([active.flatten(2), x[..., self.n_active :]], -1)

    def inverse(self, p: Tensors, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        active, log_det = self.inverse_active(p, self._active(x), batch)
        return self._joined(active, x), log_det

    def forward(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        active, log_det = self.forward_active(p, z[..., : self.n_active])
        return self._joined(active, z), log_det

    def inverse_active(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward_active(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        """Of z (E, N, C · H · W): its shape is that after the layer, which may differ from `shape`."""
        raise NotImplementedError


# --- Cells and their scale --------------------------------------------------------------------------------------------


class _Lookup(torch.autograd.Function):
    """Entries of a table (E, L) at positions (E, M); each member's gradient is summed by itself."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, at: Tensor) -> Tensor:
        ctx.save_for_backward(at)
        ctx.length = table.shape[1]
        return table.gather(1, at)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (at,) = ctx.saved_tensors
        sums = grad.new_zeros(len(at), ctx.length)
        for e in range(len(at)):
            sums[e].index_add_(0, at[e], grad[e])
        return sums, None


def _log_slope_of_sigmoid(a: Tensor) -> Tensor:
    """log σ'(a), the log-density of a logistic."""
    return -a.abs() - 2 * torch.log1p(torch.exp(-a.abs()))


class Dequantise(Layer):
    """Where in its cell a level is put: k + ε ↦ k + u with logit u = exp(a) logit ε + b, and outside all cells nothing.

    For uniform dequantisation u = ε. Otherwise a and b are learned. "table": a pair for each level; "net": to this pair
    a small network adds, for each pixel, what it makes of the levels of the whole image. With ε uniform in the cell,
    the flow's log-density at k + ε is the single-sample bound on log P(k) (Ho et al. 2019, eq. 12).
    """

    maps = 16
    blocks = 1

    def __init__(self, flow: Flow, image: Image) -> None:
        super().__init__("dequantise", image.dim)
        self.image = image
        self.learned = flow.dequantisation != "uniform"
        self.net: ResidualNet | None = None
        if flow.dequantisation == "net":
            n = image.channels
            self.net = ResidualNet("dequantise.net", flow, n, 2 * n, maps=self.maps, blocks=self.blocks)

    def learned_shapes(self) -> Shapes:
        shapes: Shapes = {}
        if self.learned:
            for key in ("log_slope", "shift"):
                name = f"{self.name}.{key}"
                shapes[name] = {name: (1, self.image.levels)}
        if self.net is not None:
            shapes |= self.net.learned_shapes()
        return shapes

    def fixed_shapes(self) -> Shapes:
        return {} if self.net is None else self.net.fixed_shapes()

    def initialise(self, own: Tensors, points: Points, draws: Generator) -> None:
        if self.net is not None:
            self.net.initialise(own, draws)

    def _coefficients(self, p: Tensors, level: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        """a and b at every pixel, (E, N, D)."""
        at = level.long().flatten(1)
        a = _Lookup.apply(p[f"{self.name}.log_slope"], at).view_as(level)
        b = _Lookup.apply(p[f"{self.name}.shift"], at).view_as(level)
        if self.net is not None:
            centred = 2 * level / (self.image.levels - 1) - 1
            of_a, of_b = self.net(p, centred.unflatten(-1, self.image.shape), batch).chunk(2, 2)
            a = a + of_a.flatten(2)
            b = b + of_b.flatten(2)
        return a, b

    def _cells(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which points lie in a cell, the level below each, and the logit of where in the cell it lies."""
        levels = self.image.levels
        inside = (x >= 0) & (x < levels)
        safe = torch.where(inside, x, 0.0)
        level = safe.floor()
        # As near to the edge of a cell as the precision of a point can tell.
        nearest = levels * torch.finfo(x.dtype).eps
        return inside, level, torch.logit((safe - level).clamp(nearest, 1 - nearest))

    def inverse(self, p: Tensors, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        if not self.learned:
            return x, x.new_zeros(())
        inside, level, logit = self._cells(x)
        a, b = self._coefficients(p, level, batch)
        moved = torch.exp(a) * logit + b
        return self._placed(x, inside, level, moved, a + _log_slope_of_sigmoid(moved) - _log_slope_of_sigmoid(logit))

    def forward(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        if not self.learned:
            return z, z.new_zeros(())
        inside, level, moved = self._cells(z)
        a, b = self._coefficients(p, level, None)
        logit = (moved - b) * torch.exp(-a)
        return self._placed(z, inside, level, logit, _log_slope_of_sigmoid(logit) - a - _log_slope_of_sigmoid(moved))

    def _placed(
        self, x: Tensor, inside: Tensor, level: Tensor, logit: Tensor, log_slope: Tensor
    ) -> tuple[Tensor, Tensor]:
        nearest = self.image.levels * torch.finfo(x.dtype).eps
        moved = level + torch.sigmoid(logit).clamp(nearest, 1 - nearest)
        log_det = torch.where(inside, log_slope, 0.0).sum(-1)
        return torch.where(inside, moved, x), log_det


class Logit(Layer):
    """z = logit(α + (1 − 2 α) v / L) for v in [0, L]: from the cells of L levels to the line.

    Source: Dinh et al. 2017, sec. 4.1, which prints α + (1 − α) v / L. That runs to infinity at the top
    level; the released code, and this, keep away from both ends. On the way back v may lie a little outside [0, L].
    """

    def __init__(self, flow: Flow, image: Image) -> None:
        super().__init__("logit", image.dim)
        self.alpha = float(flow.alpha or 0.0)
        self.slope = (1 - 2 * self.alpha) / image.levels

    def inverse(self, p: Tensors, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        z = torch.logit(self.alpha + self.slope * x)
        return z, (math.log(self.slope) - _log_slope_of_sigmoid(z)).sum(-1)

    def forward(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        x = (torch.sigmoid(z) - self.alpha) / self.slope
        return x, (_log_slope_of_sigmoid(z) - math.log(self.slope)).sum(-1)


class PixelStandardise(Standardise):
    """z = (x − m) / σ by each pixel's moments over the training images, or the identity; points are (E, N, D)."""

    def _own(self, p: Tensors, key: str) -> Tensor:
        """A tensor of this layer as (E, 1, D)."""
        return p[f"{self.name}.{key}"].unsqueeze(1)

    def inverse(self, p: Tensors, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        var = self._own(p, "var")
        return (x - self._own(p, "mean")) * var.rsqrt(), -0.5 * var.log().sum(-1)

    def forward(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        var = self._own(p, "var")
        return z * var.sqrt() + self._own(p, "mean"), 0.5 * var.log().sum(-1)


def level_counts(points: Tensor, levels: int) -> Tensor:
    """In how many images each pixel has each level: points in their cells, (N, D), to (D, levels).

    >>> level_counts(torch.tensor([[0.5, 2.5], [0.1, 1.5]]), 3).tolist()
    [[2, 0, 0], [0, 1, 1]]
    """
    dim = points.shape[1]
    own_bins = levels * torch.arange(dim) + points.long()
    return torch.bincount(own_bins.flatten(), minlength=dim * levels).view(dim, levels)


class Marginals(Layer):
    """z = Φ⁻¹(F(v)): each pixel goes through its own distribution to the normal law (Chen, Gopinath 2000).

    F is that of the training images, one straight line in each cell [k, k + 1): it rises by the share π_k of the images
    that have level k there, counted as if one image more had been seen with all levels in equal parts. So
    dz/dv = π_k / φ(z). Outside all cells the density is zero.
    """

    def __init__(self, image: Image) -> None:
        super().__init__("marginals", image.dim)
        self.levels = image.levels

    def fixed_shapes(self) -> Shapes:
        name = f"{self.name}.share"
        return {name: {name: (self.dim, self.levels)}}

    def initialise(self, own: Tensors, points: Points, draws: Generator) -> None:
        if points.counts is None:
            raise ValueError("points: expected the counts of their levels; got moments alone")
        counts = points.counts.double()
        n_seen = counts.sum(1, keepdim=True)
        own[f"{self.name}.share"].copy_((counts + 1 / self.levels) / (n_seen + 1))

    def _shares(self, p: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        """The share of each level, and of all levels below and above it, (E, D, L) each."""
        share = p[f"{self.name}.share"].unflatten(1, (self.dim, self.levels))
        below = share.cumsum(-1) - share
        above = share.flip(-1).cumsum(-1).flip(-1) - share
        return share, below.clamp(min=0), above.clamp(min=0)

    def inverse(self, p: Tensors, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        inside = (x >= 0) & (x < self.levels)
        level = torch.where(inside, x, 0.0).detach().floor()
        nearest = self.levels * torch.finfo(x.dtype).eps
        place = (x - level).clamp(nearest, 1 - nearest)
        share, below, above = (_at(part, level) for part in self._shares(p))
        # Each half by the mass of its own tail, which is small: Φ⁻¹ of a number near 1 would lose its digits.
        lower = below + share * place
        upper = above + share * (1 - place)
        is_low = lower < upper
        tail = torch.special.ndtri(torch.where(is_low, lower, upper))
        z = torch.where(is_low, tail, -tail)
        log_slope = torch.log(share) + _minus_log_normal(z)
        return z, torch.where(inside, log_slope, -math.inf).sum(-1)

    def forward(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        of_levels = self._shares(p)
        is_low = z < 0
        tail = torch.special.ndtr(-z.abs())
        from_below = _first_cell(of_levels[0], tail)
        from_above = self.levels - 1 - _first_cell(of_levels[0].flip(-1), tail)
        level = torch.where(is_low, from_below, from_above)
        share, below, above = (_at(part, level) for part in of_levels)
        place = torch.where(is_low, (tail - below) / share, 1 - (tail - above) / share)
        nearest = self.levels * torch.finfo(z.dtype).eps
        log_slope = torch.log(share) + _minus_log_normal(z)
        return level + place.clamp(nearest, 1 - nearest), -log_slope.sum(-1)


def _minus_log_normal(z: Tensor) -> Tensor:
    return 0.5 * z.square() + 0.5 * math.log(2 * math.pi)


def _at(table: Tensor, level: Tensor) -> Tensor:
    """What a table (E, D, L) says of the level of each pixel: (E, N, D)."""
    return table.gather(2, level.long().mT).mT


def _first_cell(share: Tensor, mass: Tensor) -> Tensor:
    """The first cell at whose end more than this mass (E, N, D) is reached, by shares (E, D, L)."""
    ends = share.cumsum(-1)[..., :-1].contiguous()  # nothing reaches beyond the last
    return torch.searchsorted(ends, mass.mT.contiguous(), right=True).mT.to(mass)


class PixelScale(Layer):
    """z = x exp(γ) with a learned γ per number: what additive couplings, which cannot scale, end with (NICE)."""

    def learned_shapes(self) -> Shapes:
        return self._per_coordinate("log_gain")

    def _log_gain(self, p: Tensors, x: Tensor) -> Tensor:
        return spread(p[f"{self.name}.log_gain"], x[..., None, None])[..., 0, 0]

    def inverse(self, p: Tensors, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        log_gain = self._log_gain(p, x)
        return x * torch.exp(log_gain), log_gain.sum(-1)

    def forward(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        log_gain = self._log_gain(p, z)
        return z * torch.exp(-log_gain), -log_gain.sum(-1)


# --- Shapes -----------------------------------------------------------------------------------------------------------

CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # of 2 x 2 pixels, in the order of the channels that they become
DIAGONALS = (0, 3, 1, 2)  # those on one diagonal first: half of the channels is then a checkerboard of pixels


def squeeze(x: Tensor) -> Tensor:
    """(…, C, H, W) to (…, 4 C, H/2, W/2): each channel's 2 x 2 pixels become four channels in a row."""
    corners = [x[..., i::2, j::2] for i, j in CORNERS]
    return torch.stack(corners, -3).flatten(-4, -3)


def unsqueeze(x: Tensor) -> Tensor:
    """The inverse of :func:`squeeze`."""
    *lead, channels, height, width = x.shape
    corners = x.reshape(*lead, channels // 4, 2, 2, height, width)  # (…, C, i, j, h, w)
    rows = corners.movedim(-2, -4)  # (…, C, h, i, j, w)
    pixels = rows.movedim(-1, -2)  # (…, C, h, i, w, j)
    return pixels.reshape(*lead, channels // 4, 2 * height, 2 * width)


class Squeeze(ActiveLayer):
    """2 x 2 pixels become four channels; nothing is computed, so the log-det is 0."""

    def inverse_active(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        return squeeze(x), x.new_zeros(())

    def forward_active(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        return unsqueeze(z.unflatten(-1, squeezed(self.shape))), z.new_zeros(())


class Reorder(ActiveLayer):
    """Squeezed channels in the order in which half is factored out.

    First the two pixels on one diagonal of every 2 x 2, of all channels, then the others, as in the released code of
    Dinh et al. 2017: what stays active are the pixels of a checkerboard.
    """

    def inverse_active(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        corners = x.unflatten(2, (-1, 4))
        return torch.cat([corners[:, :, :, k] for k in DIAGONALS], 2), x.new_zeros(())

    def forward_active(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        by_corner = z.unflatten(-1, self.shape).unflatten(2, (4, -1))
        corners = [by_corner[:, :, DIAGONALS.index(k)] for k in range(4)]
        return torch.stack(corners, 3).flatten(2, 3), z.new_zeros(())


# --- Couplings --------------------------------------------------------------------------------------------------------


class ImageCoupling(ActiveLayer):
    """z = x exp(s) + t where pixels or channels move, z = x where they pass; s and t by a network of what passes.

    s is bounded as in a coupling of vectors, by a learned factor per channel where `scale` is "learned".
    """

    def __init__(self, flow: Flow, index: int, image: Image, stage: Stage) -> None:
        super().__init__(f"coupling.{index}", image, stage.shape)
        self.flow = flow
        self.heads = flow.heads
        self.stage = stage
        self.learned_scale = self.heads == 2 and flow.scale == "learned"
        n_in, self.n_moved = self._channels()
        self.net = ResidualNet(f"{self.name}.net", flow, n_in, self.heads * self.n_moved)

    def _channels(self) -> tuple[int, int]:
        """How many channels the network sees, and for how many it gives s and t."""
        raise NotImplementedError

    def _conditioned(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor | None, Tensor]:
        """s (None if additive) and t of all pixels that may move."""
        raise NotImplementedError

    def learned_shapes(self) -> Shapes:
        shapes = self.net.learned_shapes()
        if self.learned_scale:
            name = f"{self.name}.log_scale"
            shapes[name] = {name: (1, self.n_moved)}
        return shapes

    def fixed_shapes(self) -> Shapes:
        return self.net.fixed_shapes()

    def initialise(self, own: Tensors, points: Points, draws: Generator) -> None:
        self.net.initialise(own, draws)
        if self.learned_scale:
            own[f"{self.name}.log_scale"].fill_(math.log(INITIAL_SCALE))

    def _scale_and_shift(self, p: Tensors, passing: Tensor, batch: Batch | None) -> tuple[Tensor | None, Tensor]:
        raw = self.net(p, passing, batch)
        if self.heads == 1:
            return None, raw
        raw_s, t = raw.chunk(2, 2)
        squash, _ = SQUASH[self.flow.scale]
        s = squash(raw_s)
        if self.learned_scale:
            s = s * spread(torch.exp(p[f"{self.name}.log_scale"]), s)
        return s, t


def moved_by(x: Tensor, s: Tensor | None, t: Tensor) -> tuple[Tensor, Tensor]:
    """x exp(s) + t, and the log-det Σ s."""
    if s is None:
        return x + t, x.new_zeros(())
    return x * torch.exp(s) + t, s.flatten(2).sum(-1)


def moved_back(z: Tensor, s: Tensor | None, t: Tensor) -> tuple[Tensor, Tensor]:
    """(z − t) exp(−s), and the log-det −Σ s."""
    if s is None:
        return z - t, z.new_zeros(())
    return (z - t) * torch.exp(-s), -s.flatten(2).sum(-1)


def checkerboard(height: int, width: int, parity: int) -> Tensor:
    """1 where a pixel passes, 0 where it moves, (H, W): row + column is even, or odd where the parity is 1.

    >>> checkerboard(2, 3, 0).tolist()
    [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    row = torch.arange(height)[:, None]
    column = torch.arange(width)
    return ((row + column) % 2 == parity).float()


class CheckerboardCoupling(ImageCoupling):
    """Every second pixel moves, by s and t that a network makes of the others."""

    def _channels(self) -> tuple[int, int]:
        return self.shape[0], self.shape[0]

    def _conditioned(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor | None, Tensor]:
        passes = checkerboard(self.shape[1], self.shape[2], self.stage.parity).to(x)
        s, t = self._scale_and_shift(p, x * passes, batch)
        moves = 1 - passes
        return None if s is None else s * moves, t * moves

    def inverse_active(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        return moved_by(x, *self._conditioned(p, x, batch))

    def forward_active(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.unflatten(-1, self.shape)
        return moved_back(z, *self._conditioned(p, z, None))


class ChannelCoupling(ImageCoupling):
    """Half of the channels move, by s and t that a network makes of the other half."""

    def _channels(self) -> tuple[int, int]:
        half = self.shape[0] // 2
        first = self.shape[0] - half
        return (first, half) if self.stage.parity == 0 else (half, first)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What passes and what moves."""
        first, second = x.tensor_split([self.shape[0] - self.shape[0] // 2], 2)
        return (first, second) if self.stage.parity == 0 else (second, first)

    def _whole(self, passing: Tensor, moving: Tensor) -> Tensor:
        parts = [passing, moving] if self.stage.parity == 0 else [moving, passing]
        return torch.cat(parts, 2)

    def inverse_active(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        passing, moving = self._parts(x)
        moved, log_det = moved_by(moving, *self._scale_and_shift(p, passing, batch))
        return self._whole(passing, moved), log_det

    def forward_active(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        passing, moving = self._parts(z.unflatten(-1, self.shape))
        back, log_det = moved_back(moving, *self._scale_and_shift(p, passing, None))
        return self._whole(passing, back), log_det


# --- Between couplings ------------------------------------------------------------------------------------------------


class ChannelNorm(ActiveLayer):
    """z = (x − m) exp(l) + h, channel by channel; subclasses say what m, l and h are, (E, C) each."""

    def _coefficients(self, p: Tensors) -> tuple[Tensor | None, Tensor, Tensor]:
        raise NotImplementedError

    def inverse_active(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        m, log_gain, h = self._coefficients(p)
        if m is not None:
            x = x - spread(m, x)
        z = x * spread(torch.exp(log_gain), x) + spread(h, x)
        return z, every_point(self._log_det(log_gain), x)

    def forward_active(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.unflatten(-1, self.shape)
        m, log_gain, h = self._coefficients(p)
        x = (z - spread(h, z)) * spread(torch.exp(-log_gain), z)
        if m is not None:
            x = x + spread(m, z)
        return x, -every_point(self._log_det(log_gain), x)

    def _log_det(self, log_gain: Tensor) -> Tensor:
        """The same for all points: (E,). Each channel's gain acts on H · W numbers."""
        return self.shape[1] * self.shape[2] * log_gain.sum(-1)


class ChannelActNorm(ChannelNorm):
    """l and h are learned, m is 0; the first batch sets them and comes out standardised (Kingma, Dhariwal 2018)."""

    def learned_shapes(self) -> Shapes:
        return self._per_channel("log_gain", "shift")

    def inverse_active(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        if batch is not None and batch.initialise:
            log_gain, shift = first_gains(self.name, x, batch)
            p = {**p, f"{self.name}.log_gain": log_gain, f"{self.name}.shift": shift}
        return super().inverse_active(p, x, batch)

    def _coefficients(self, p: Tensors) -> tuple[Tensor | None, Tensor, Tensor]:
        return None, p[f"{self.name}.log_gain"], p[f"{self.name}.shift"]


class ChannelBatchNorm(ChannelNorm):
    """By the moments of the batch while training, by running averages otherwise, with learned gain and shift.

    Statistics are taken over all pixels of the active part after the coupling, never over masked zeros. Source: Dinh
    et al. 2017, sec. 3.7.
    """

    def learned_shapes(self) -> Shapes:
        return self._per_channel("log_gain", "shift")

    def fixed_shapes(self) -> Shapes:
        return self._per_channel("mean", "var")

    def initialise(self, own: Tensors, points: Points, draws: Generator) -> None:
        own[f"{self.name}.var"].fill_(1.0)

    def inverse_active(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        if batch is not None:
            mean, var = batch_moments(p, self.name, x, batch)
            p = {**p, f"{self.name}.mean": mean, f"{self.name}.var": var}
        return super().inverse_active(p, x, batch)

    def _coefficients(self, p: Tensors) -> tuple[Tensor | None, Tensor, Tensor]:
        log_gain = p[f"{self.name}.log_gain"] - 0.5 * torch.log(p[f"{self.name}.var"] + EPSILON)
        return p[f"{self.name}.mean"], log_gain, p[f"{self.name}.shift"]


CHANNEL_NORMS: dict[str, type[ChannelNorm]] = {"actnorm": ChannelActNorm, "batchnorm": ChannelBatchNorm}


class Mixing(ActiveLayer):
    """An invertible 1 x 1 convolution: the channels of each pixel times a matrix W (Kingma, Dhariwal 2018, sec. 3.2).

    log-det H · W · log|det W|; W starts as a random rotation.
    """

    def learned_shapes(self) -> Shapes:
        name = f"{self.name}.matrix"
        return {name: {name: (self.shape[0], self.shape[0])}}

    def initialise(self, own: Tensors, points: Points, draws: Generator) -> None:
        n = self.shape[0]
        square = torch.randn(n, n, generator=draws, dtype=torch.float64)
        own[f"{self.name}.matrix"].copy_(torch.linalg.qr(square)[0])

    def _matrix(self, p: Tensors) -> Tensor:
        return p[f"{self.name}.matrix"].unflatten(1, (self.shape[0], self.shape[0]))

    def _log_det(self, matrix: Tensor) -> Tensor:
        # One by one: a batch of decompositions has other bits than each alone.
        of_members = [torch.linalg.slogdet(own).logabsdet for own in matrix.unbind(0)]
        return self.shape[1] * self.shape[2] * torch.stack(of_members)

    def inverse_active(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        matrix = self._matrix(p)
        return mixed(x, matrix), every_point(self._log_det(matrix), x)

    def forward_active(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        matrix = self._matrix(p)
        x = mixed(z.unflatten(-1, self.shape), torch.stack([torch.linalg.inv(own) for own in matrix.unbind(0)]))
        return x, -every_point(self._log_det(matrix), x)


def image_layers(flow: Flow, image: Image, plan: list[Stage]) -> list[Layer]:
    """All layers in data → base order."""
    layers: list[Layer] = [Dequantise(flow, image)]
    if flow.standardise == "marginals":
        layers.append(Marginals(image))
    else:
        layers += [Logit(flow, image), PixelStandardise(flow, image.dim)]
    n_couplings = 0
    for stage in plan:
        if stage.kind == "squeeze":
            layers.append(Squeeze(f"squeeze.{stage.scale}", image, stage.shape))
        elif stage.kind == "reorder":
            layers.append(Reorder(f"reorder.{stage.scale}", image, stage.shape))
        else:
            if flow.mixing == "conv" and stage.shape[0] > 1:
                layers.append(Mixing(f"mixing.{n_couplings}", image, stage.shape))
            kind = CheckerboardCoupling if stage.kind == "checkerboard" else ChannelCoupling
            layers.append(kind(flow, n_couplings, image, stage))
            n_couplings += 1
            if flow.norm != "none" and n_couplings % flow.norm_every == 0:
                layers.append(CHANNEL_NORMS[flow.norm](f"norm.{n_couplings - 1}", image, stage.shape))
    if flow.coupling == "additive":
        layers.append(PixelScale("diagonal", image.dim))
    return layers
