"""What is learned: a `Dataset` of points in three splits, with their exact density where one is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from nfexp.data.densities import Target, make_target
from nfexp.data.images import drawn_images, image_parts
from nfexp.data.own import OwnTarget, check_target, own_target
from nfexp.data.tables import checked_source, load_parts
from nfexp.spec import Data, Spec, SpecError, Words, event_shape
from nfexp.streams import stream


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """What is given at each point of a dataset, (N, C) for each split, float64, data units."""

    train: Tensor
    val: Tensor
    test: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """The points of one run, (N, *event_shape) in float64, data units, and what is known of where they come from.

    `density` is the exact law where it is known: it can draw fresh points, too, and `true_log_prob`
    gives its log-density at the test points, (N,), nats; it is None without one. `levels` is the
    number of values of a pixel, None where points are not images, and `names` are those of a
    table's columns, or of coordinates beyond the plane. Images hold whole levels; where their law
    is known, `law` and `true_log_prob` are its log-probabilities. With a `context` c the density is
    p(x | c), of each point at its own c. Nothing that works with a dataset asks where its points
    come from.
    """

    event_shape: tuple[int, ...]
    train: Tensor
    val: Tensor
    test: Tensor
    density: Target | OwnTarget | None = None
    law: Callable[[Tensor], Tensor] | None = None
    true_log_prob: Callable[[], Tensor | None] = lambda: None
    levels: int | None = None
    names: tuple[str, ...] | None = None
    context: Context | None = None

    def context_of(self, part: str) -> Tensor:
        """The context at the points of "train", "val" or "test", (N, C).

        C = 0 where nothing is given.
        """
        if self.context is None:
            points: Tensor = getattr(self, part)
            return points.new_empty(len(points), 0)
        context: Tensor = getattr(self.context, part)
        return context

    def context_of_draws(self, n: int) -> Tensor:
        """The context that `n` samples are drawn at, (n, C).

        That of the test rows, again from the first if they end.

        A dataset without test rows has no samples drawn: n = 0.
        """
        context = self.context_of("test")
        rows = torch.arange(n) % max(len(context), 1)
        return context[rows]

    @property
    def log_prob(self) -> Callable[[Tensor], Tensor] | None:
        """The exact log-density, (N, *event_shape) to (N,), nats; None where it is not known."""
        return self.law if self.density is None else self.density.log_prob


def density_of(data: Data) -> Target | OwnTarget:
    """The target that points are drawn from.

    A built-in one, or the user's own, whose source is executed.

    Raises
    ------
    ValueError
        For an unknown name, a noise that is too small, a text that cannot be drawn, or a density of
        the user's own that is none; the message names the key.
    """
    if data.kind == "own":
        return own_target(data.law)
    if data.noise is None:
        raise SpecError("data.noise", f"a number for data.name={data.name}", None)
    return make_target(data.name, noise=data.noise, text=data.text, **dict(data.parameters))


def check_density(data: Data) -> None:
    """Raise what is wrong with the target that points are drawn from.

    One of the user's own is tried out.
    """
    target = density_of(data)
    if isinstance(target, OwnTarget):
        check_target(target)


@lru_cache(maxsize=1024)
def _draw(law: Data, seed: int, split: str, n: int) -> Tensor:
    return density_of(law).sample(n, stream(seed, split))


@lru_cache(maxsize=1024)
def _log_prob_of_test(law: Data, seed: int, n: int) -> Tensor:
    return density_of(law).log_prob(_draw(law, seed, "test", n))


def load_data(data: Data, seed: int) -> Dataset:
    """Fresh draws of a target, or the rows of a table, for each split.

    The same for every run with this seed.
    """
    if data.kind == "array":
        raise SpecError(
            "data.kind", "points that can be drawn or read", Words("an array, which no run keeps")
        )
    if data.kind == "image":
        return _load_images(data, seed)
    if data.is_table:
        return _load_table(data, seed)
    density = density_of(data)
    law = data.law
    # in the plane a target has figures of its own, elsewhere those of a table, which name
    # coordinates
    coordinates = tuple(f"x{d}" for d in range(1, density.dim + 1))
    names = None if density.dim == 2 else coordinates
    n_train, n_val, n_test = data.points
    return Dataset(
        event_shape=(density.dim,),
        train=_draw(law, seed, "train", n_train),
        val=_draw(law, seed, "val", n_val),
        test=_draw(law, seed, "test", n_test),
        density=density,
        names=names,
        true_log_prob=lambda: _log_prob_of_test(law, seed, n_test),
    )


def _load_table(data: Data, seed: int) -> Dataset:
    """The rows of a table; its last columns may be given, not learned."""
    train, val, test = load_parts(data, seed)
    dim = data.dim
    context = None
    if data.context_dim:
        context = Context(train=train[:, dim:], val=val[:, dim:], test=test[:, dim:])
    return Dataset(
        event_shape=(dim,),
        train=train[:, :dim].contiguous(),
        val=val[:, :dim].contiguous(),
        test=test[:, :dim].contiguous(),
        names=checked_source(data).main.learned,
        context=context,
    )


def _load_images(data: Data, seed: int) -> Dataset:
    """Images of whole levels: read, or drawn from a law whose log-probability is known."""
    if data.images != "mesh":
        train, val, test = image_parts(data, seed)
        return Dataset(
            event_shape=event_shape(data), train=train, val=val, test=test, levels=data.levels
        )
    drawn = drawn_images(data, seed)
    return Dataset(
        event_shape=event_shape(data),
        train=drawn.train,
        val=drawn.val,
        test=drawn.test,
        law=drawn.log_prob,
        true_log_prob=lambda: drawn.log_prob(drawn.test),
        levels=data.levels,
    )


def load(spec: Spec) -> Dataset:
    """The dataset of a run."""
    return load_data(spec.data, spec.seed)
