"""Who does what of a task: one thread all of it, or several a part of the members or of the points each."""

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
from nfexp.flows.kernels.threads import TILE, share_of, side_by_side, split_points


class Room:
    """The memory that a thread works in: the weights of a member, their gradients, tiles of points."""

    def __init__(self, plan: Plan, tile: int) -> None:
        self.plan = plan
        self.tile = tile
        # where tiles wait for one another, all of a batch are kept
        self.waits = len(plan.stops) > 2
        self.weights = make_weights(plan)
        self.transposed = make_transposed(self.weights)
        self.grads = make_weights(plan, summing=True)
        self.kept = make_tiles(plan, tile, kept=plan.n_couplings)
        self.passing = make_tiles(plan, tile, kept=1)

    def another(self) -> Room:
        """As much memory for another thread."""
        return Room(self.plan, self.tile)

    def given(self, tiles: Tiles) -> tuple[Any, ...]:
        """What of its memory the kernel is given, with these tiles."""
        return self.plan, self.weights, self.transposed, self.grads, tiles

    def keeping(self, n_points: int) -> Tiles:
        """Tiles to learn from so many points with."""
        tiles = math.ceil(n_points / self.tile) if self.waits else 1
        if tiles > len(self.kept.z):
            kept = self.plan.n_couplings
            self.kept = make_tiles(self.plan, self.tile, kept=kept, tiles=tiles)
        return self.kept

    def share(self, n_points: int) -> int:
        """How many points of a batch have one sum of gradients: all where they wait for one another."""
        return max(1, n_points) if self.waits else share_of(n_points)


@dataclass(frozen=True)
class Job:
    """What the kernel is called with, whichever thread calls it: matrices, where results go, the task."""

    numbers: Sequence[np.ndarray]
    results: Results
    task: int

    @property
    def learns(self) -> bool:
        return self.task in (GRADIENT, STEPS)


class Crew:
    """As many threads as torch has, each with a room of its own; what they find has the same bits for any number.

    One caller at a time.
    """

    def __init__(self, work: Callable[..., None], room: Room) -> None:
        self.work = work
        self.rooms = [room]

    def do(self, job: Job, steps: Steps) -> None:
        """A job: its members are dealt to threads or, where they are fewer, the points of each."""
        members = steps.members
        threads = torch.get_num_threads()
        parts = split_points(steps.to_point, steps.share if job.learns else TILE, threads)
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
        """The steps of one member: each thread has a part of the batch, then one adds the shares up and moves."""
        (e,) = steps.members
        shares = [_with_points(steps, part)._replace(ends=False) for part in parts]
        end = _with_points(steps, range(0))
        for i in range(steps.to_step):
            self._call(job, [share._replace(from_step=i, to_step=i + 1) for share in shares])
            self._call(job, [end._replace(from_step=i, to_step=i + 1)])
            if job.results.made[e] != i + 1:
                return

    def _call(self, job: Job, dealt: Sequence[Steps]) -> None:
        """Call the kernel once for each of `dealt`, side by side."""
        while len(self.rooms) < len(dealt):
            self.rooms.append(self.rooms[0].another())
        calls = []
        for room, steps in zip(self.rooms, dealt, strict=False):
            tiles = room.keeping(steps.order.shape[2]) if job.learns else room.passing
            arguments = *room.given(tiles), *job.numbers, steps, job.results, job.task
            calls.append(partial(self.work, *arguments))
        side_by_side(calls, torch.get_num_threads())


def _by_members(steps: Steps, n: int) -> list[Steps]:
    """Steps of `n` groups of their members; all but the first group need other room for gradients."""
    groups = [steps._replace(members=steps.members[::n].copy())]
    for k in range(1, n):
        members = steps.members[k::n].copy()
        groups.append(steps._replace(members=members, grad=np.empty_like(steps.grad)))
    return groups


def _with_points(steps: Steps, points: range) -> Steps:
    """What these points of each batch have to do with steps."""
    return steps._replace(from_point=points.start, to_point=points.stop)
