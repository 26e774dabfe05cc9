"""Deals what is asked of the kernel to threads: some members to each or, of few members, some points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from nfexp.flows.kernels.member import GRADIENT, STEPS, Results, Steps
from nfexp.flows.kernels.plan import (
    Plan,
    Tiles,
    make_tiles,
    make_transposed,
    make_weights,
)
from nfexp.flows.kernels.threads import share_of, side_by_side, split_points


class Room:
    """The memory that a thread works in: the weights of a member, their gradients, tiles of points.

    Tiles to learn from keep what each coupling leaves for the way back; others keep nothing.
    """

    def __init__(self, plan: Plan, tile: int) -> None:
        self.plan = plan
        self.tile = tile
        # at a batch norm all tiles of a batch wait for one another, so that all are kept
        self.waits = len(plan.stops) > 2
        self.weights = make_weights(plan)
        self.transposed = make_transposed(self.weights)
        self.grads = make_weights(plan, summing=True)
        self.learning = make_tiles(plan, tile, kept=plan.n_couplings)
        self.evaluating = make_tiles(plan, tile, kept=1)

    def another(self) -> Room:
        """As much memory for another thread."""
        return Room(self.plan, self.tile)

    def arguments(self, tiles: Tiles) -> tuple[Any, ...]:
        """The kernel's first arguments, with these tiles."""
        return self.plan, self.weights, self.transposed, self.grads, tiles

    def tiles(self, n_points: int, *, learns: bool) -> Tiles:
        """Tiles for batches of so many points, made anew where those of before are too few."""
        if not learns:
            return self.evaluating
        n_tiles = math.ceil(n_points / self.tile) if self.waits else 1
        if n_tiles > len(self.learning.z):
            kept = self.plan.n_couplings
            self.learning = make_tiles(self.plan, self.tile, kept=kept, tiles=n_tiles)
        return self.learning

    def share(self, n_points: int) -> int:
        """How many points of a batch make a share: all of them where they wait for one another."""
        return max(1, n_points) if self.waits else share_of(n_points)


@dataclass(frozen=True)
class Job:
    """What is asked of the kernel, whichever threads it is dealt to: `task` is one of `member`'s.

    `inputs` are theta, the fixed numbers, points and context, as :func:`work` has them.
    """

    inputs: Sequence[np.ndarray]
    results: Results
    task: int

    @property
    def learns(self) -> bool:
        return self.task in (GRADIENT, STEPS)


class Crew:
    """As many threads as torch has, each with a room of its own. One caller at a time.

    What they find has the same bits for any number of them.
    """

    def __init__(self, work: Callable[..., None], room: Room) -> None:
        self.work = work
        self.rooms = [room]

    def do(self, job: Job, steps: Steps) -> None:
        """A job: its members are dealt to threads or, member after member, its points.

        The members, unless the points go to more threads.
        """
        members = steps.members
        threads = torch.get_num_threads()
        # a share is summed up by one thread
        unit = steps.share if job.learns else self.rooms[0].tile
        parts = split_points(steps.to_point, unit, threads)
        if len(members) >= len(parts):
            self._call(job, _by_members(steps, min(threads, len(members))))
            return
        for e in members:
            one = steps._replace(members=np.array([e]))
            if job.learns:
                self._learn_in_parts(job, one, parts)
            else:
                self._call(job, [_with_points(one, part) for part in parts])

    def _learn_in_parts(self, job: Job, steps: Steps, parts: Sequence[range]) -> None:
        """The steps of one member: each thread has some shares of a batch, then one thread ends the step.

        All write into one `grad`, each the rows of its own shares.
        """
        (e,) = steps.members
        for i in range(steps.to_step):
            step = steps._replace(from_step=i, to_step=i + 1)
            self._call(job, [_with_points(step, part)._replace(ends=False) for part in parts])
            self._call(job, [_with_points(step, range(0))])
            is_lost = job.results.made[e] != i + 1  # its loss or gradient is not finite
            if is_lost:
                return

    def _call(self, job: Job, dealt: Sequence[Steps]) -> None:
        """Call the kernel once for each of `dealt`, side by side."""
        while len(self.rooms) < len(dealt):
            self.rooms.append(self.rooms[0].another())
        calls = []
        for room, steps in zip(self.rooms, dealt, strict=False):
            tiles = room.tiles(steps.order.shape[2], learns=job.learns)
            arguments = room.arguments(tiles)
            calls.append(partial(self.work, *arguments, *job.inputs, steps, job.results, job.task))
        side_by_side(calls, torch.get_num_threads())


def _by_members(steps: Steps, n: int) -> list[Steps]:
    """Steps of `n` groups of their members: the first group keeps `grad`, others have their own."""
    groups = [steps._replace(members=steps.members[::n].copy())]
    for k in range(1, n):
        members = steps.members[k::n].copy()
        groups.append(steps._replace(members=members, grad=np.empty_like(steps.grad)))
    return groups


def _with_points(steps: Steps, points: range) -> Steps:
    """The same steps for these points of each batch alone."""
    return steps._replace(from_point=points.start, to_point=points.stop)
