"""The points of each step: which ones, and what is drawn to change them.

Every step can be asked for by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from nfexp.flows.image.plan import Image
from nfexp.flows.layers import Batch
from nfexp.spec import Spec, Train, batch_points
from nfexp.streams import of_member, stream


class Passes:
    """Endless passes over `n` points, of which each step 1, 2, … takes the next `batch`.

    Each pass is drawn by itself, so that any step can be asked for. `member` is the position in an
    ensemble: the members of one seed draw differently.
    """

    def __init__(self, *, n: int, batch: int, seed: int, member: int = 0) -> None:
        self.n = n
        self.batch = batch
        self.seed = seed
        self.member = member
        self.known: dict[int, Tensor] = {}  # the passes of the last steps

    def drawn(self, k: int) -> Tensor:
        """What pass k = 0, 1, … draws for its points, shape (n, …), from a stream of its own."""
        raise NotImplementedError

    def generator(self, purpose: str) -> torch.Generator:
        """The member's own stream for one purpose."""
        return stream(self.seed, of_member(self.member, purpose))

    def of(self, steps: range) -> Tensor:
        """What each of these steps takes, shape (S, batch, …)."""
        begin = (steps[0] - 1) * self.batch
        end = steps[-1] * self.batch
        first_pass = begin // self.n
        last_pass = (end - 1) // self.n
        passes = {}
        for k in range(first_pass, last_pass + 1):
            passes[k] = self.known[k] if k in self.known else self.drawn(k)
        self.known = passes
        drawn = torch.cat(list(passes.values())) if len(passes) > 1 else passes[first_pass]
        offset = first_pass * self.n  # where what was drawn begins, as counted from step 1
        return drawn[begin - offset : end - offset].unflatten(0, (len(steps), self.batch))


class Order(Passes):
    """Which points each step learns from: every pass is in a random order of its own.

    >>> order = Order(n=4, batch=2, seed=0)
    >>> sorted(order.of(range(1, 3)).flatten().tolist())
    [0, 1, 2, 3]
    """

    def drawn(self, k: int) -> Tensor:
        return torch.randperm(self.n, generator=self.generator(f"batches/{k}"))


class Noise(Passes):
    """Normal noise with the sd of the training points, (D,); :func:`noise_share` of it is added.

    Noise on the data smooths what is learned as the kernel of a density estimate does (Rothfuss et
    al. 2019).
    """

    def __init__(self, *, n: int, batch: int, seed: int, sd: Tensor, member: int = 0) -> None:
        super().__init__(n=n, batch=batch, seed=seed, member=member)
        self.sd = sd

    def drawn(self, k: int) -> Tensor:
        draws = torch.randn(
            self.n, len(self.sd), generator=self.generator(f"noise/{k}"), dtype=torch.float64
        )
        return draws.to(self.sd) * self.sd


def noise_share(recipe: Train, step: int) -> float:
    """The sd of the noise on the points of step 1, 2, …, as a share of that of the training points.

    It goes in a straight line from `noise` at the first step to `noise_end` at the last.
    """
    passed = (step - 1) / max(recipe.steps - 1, 1)
    return recipe.noise + (recipe.noise_end - recipe.noise) * passed


def within_cells(shape: tuple[int, ...], levels: int, generator: Generator) -> Tensor:
    """Where in the cells of their levels points lie, uniform in (0, 1), float64.

    The draws are the middles of so many equal parts of a cell that level + draw is exact in
    float32: never is it rounded up into the next cell.

    >>> draws = within_cells((1000,), 256, torch.Generator().manual_seed(0))
    >>> bool(((255 + draws).float() < 256).all())
    True
    """
    bits = max(23 - (levels - 1).bit_length(), 1)
    parts = torch.randint(2**bits, shape, generator=generator)
    return (parts.double() + 0.5) / 2**bits


def flipped(images: Tensor, share: float, generator: Generator) -> Tensor:
    """Images (N, C, H, W), each mirrored, left to right, with probability `share`."""
    chosen = torch.rand(len(images), generator=generator) < share
    return torch.where(chosen.to(images.device)[:, None, None, None], images.flip(3), images)


def shifted(images: Tensor, share: float, generator: Generator) -> Tensor:
    """Images (N, C, H, W), each moved by at most a pixel up or down and left or right with probability `share`.

    Nothing is lost: where the line of pixels that would leave the picture is not empty (level 0),
    it stays.

    >>> corner = torch.zeros(100, 1, 3, 3)
    >>> corner[:, :, 0, 0] = 1.0
    >>> places = shifted(corner, 1.0, torch.Generator().manual_seed(0)).sum(0)[0]
    >>> places.count_nonzero().item(), places[2].sum().item()
    (4, 0.0)
    """
    n = len(images)
    chosen = torch.rand(n, generator=generator) < share
    for axis in (2, 3):
        step = torch.randint(-1, 2, (n,), generator=generator) * chosen
        for by in (-1, 1):
            leaving = images.select(axis, 0 if by == -1 else -1)
            free = (leaving == 0).flatten(1).all(1) & (step == by).to(images.device)
            images = torch.where(free[:, None, None, None], images.roll(by, axis), images)
    return images


AUGMENTATIONS: dict[str, Callable[[Tensor, float, Generator], Tensor]] = {
    "shift": shifted,
    "flip": flipped,
}


def augmented(images: Tensor, recipe: Train, *, step: int, generator: Generator) -> Tensor:
    """The images of a step as `train.augment` changes them.

    Only in the first part of the steps, `augment_until`.
    """
    kind = recipe.augment or "none"
    share = 0.5 if recipe.augment_share is None else recipe.augment_share
    until = 1.0 if recipe.augment_until is None else recipe.augment_until
    if kind == "none" or step > until * recipe.steps:
        return images
    return AUGMENTATIONS[kind](images, share, generator)


def _one_after_the_other(positions: Tensor) -> Tensor:
    """Each member's positions of several steps in one row: (S, E, N) to (E, S N)."""
    return positions.transpose(0, 1).flatten(1)


class Batches:
    """The points that each member of a stack learns from at each step, with what is drawn to change them.

    Parameters
    ----------
    specs, positions
        The run of each member, and its position in the run's ensemble.
    sizes
        How many of its training points are real.
    train, context
        The training points, (E, N, D), and what is given at them, (E, N, C).
    image
        Shape and levels where points are images: whole levels, to be dequantised at each step.
    """

    def __init__(
        self,
        specs: Sequence[Spec],
        positions: Sequence[int],
        sizes: Sequence[int],
        train: Tensor,
        context: Tensor,
        image: Image | None,
    ) -> None:
        self.recipes = [spec.train for spec in specs]
        self.seeds = [spec.seed for spec in specs]
        self.members = positions
        self.train = train
        self.given = context
        self.image = image
        self.rows = torch.arange(len(specs), device=train.device)[:, None]
        self.orders = []
        self.noises: dict[int, Noise] = {}  # by row, of those that have any
        self.size = batch_points(specs[0])  # N
        for e, recipe in enumerate(self.recipes):
            n = sizes[e]
            seed = self.seeds[e]
            self.orders.append(Order(n=n, batch=self.size, seed=seed, member=positions[e]))
            if recipe.noise > 0 or recipe.noise_end > 0:
                sd = train[e, :n].std(0, correction=0)
                self.noises[e] = Noise(n=n, batch=self.size, seed=seed, sd=sd, member=positions[e])

    def positions(self, step: int) -> Tensor:
        """Which training points each member learns from at a step, (E, N)."""
        return self.positions_of(range(step, step + 1))[0]

    def positions_of(self, steps: range) -> Tensor:
        """Which training points each member learns from at each of these steps, (S, E, N)."""
        return torch.stack([order.of(steps) for order in self.orders], dim=1)

    def points(self, step: int, positions: Tensor) -> Tensor:
        """The points at these positions (E, N), with the noise of a step on them: (E, N, D).

        Images are changed and dequantised as the step says.
        """
        if self.image is None:
            return self.points_of(range(step, step + 1), positions.unsqueeze(0))
        x = self.train[self.rows, positions.to(self.rows.device)]
        return self._in_cells(x, self.image, step)

    def points_of(self, steps: range, positions: Tensor) -> Tensor:
        """The vectors at these positions (S, E, N), with the noise of their steps on them: (E, S N, D)."""
        x = self.train[self.rows, _one_after_the_other(positions).to(self.rows.device)]
        for e, noise in self.noises.items():
            by_step = x[e].unflatten(0, (len(steps), -1))  # a view
            for step, points, drawn in zip(steps, by_step, noise.of(steps), strict=True):
                points.add_(drawn, alpha=noise_share(self.recipes[e], step))
        return x

    def context(self, positions: Tensor) -> Tensor:
        """The context of the points at these positions (E, N); noise is on points alone."""
        return self.given[self.rows, positions.to(self.rows.device)]

    def context_of(self, positions: Tensor) -> Tensor:
        """The context of what :meth:`points_of` has at these positions (S, E, N): (E, S N, C)."""
        return self.context(_one_after_the_other(positions))

    def mode(self, step: int) -> Batch:
        """Tells layers that points are a training batch, and what this step's dropout is drawn from."""
        dropout = self.recipes[0].dropout
        if not dropout:
            return Batch()
        generators = [self._stream(e, f"dropout/{step}") for e in range(len(self.recipes))]
        return Batch(dropout=dropout, generators=generators)

    def _in_cells(self, x: Tensor, image: Image, step: int) -> Tensor:
        """The images of a step (E, N, D), changed and dequantised as this step of each member says."""
        shape = tuple(x.shape[1:])
        parts = []
        for e, images in enumerate(x.unflatten(2, image.shape)):
            changes = self._stream(e, f"augment/{step}")
            changed = augmented(images, self.recipes[e], step=step, generator=changes)
            draws = self._stream(e, f"dequantise/{step}")
            within = within_cells(shape, image.levels, draws)
            parts.append(changed.flatten(1) + within.to(x))
        return torch.stack(parts)

    def _stream(self, e: int, purpose: str) -> Generator:
        """The stream of row e for one purpose; those of an ensemble differ."""
        return stream(self.seeds[e], of_member(self.members[e], purpose))
