"""Parts of a stack or of a batch side by side, in threads: machine code does not hold Python's lock.

The bits are the same with any number of threads. What is summed over a batch is summed share by
share, and how a batch is cut into shares depends on the number of its points alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import zip_longest

from nfexp.flows.kernels.products import rounded_up

# points that go through all couplings and back together: what they leave on the way fits into an
# L2 cache
TILE = 64
SHARE = 4 * TILE  # the fewest points that are worth a sum and a thread of their own
MOST_SHARES = 8  # of a batch: each has a row of gradients in memory


def share_of(n_points: int) -> int:
    """How many points of a batch make a share, whose gradients have one sum.

    >>> share_of(256), share_of(1000), share_of(5000)
    (256, 256, 640)
    """
    return max(SHARE, rounded_up(math.ceil(n_points / MOST_SHARES), TILE))


def split_points(n_points: int, unit: int, threads: int) -> list[range]:
    """`n_points` in at most as many ranges as there are threads, each from a multiple of `unit` on.

    There are no more ranges than shares of the least size, so that each is worth its thread.

    >>> split_points(1000, 256, 3)
    [range(0, 256), range(256, 512), range(512, 1000)]
    >>> split_points(300, 64, 8)
    [range(0, 128), range(128, 300)]
    """
    n_units = math.ceil(n_points / unit)
    n_parts = max(1, min(threads, n_units, math.ceil(n_points / SHARE)))
    ranges = []
    for k in range(n_parts):
        begin = unit * (n_units * k // n_parts)
        end = unit * (n_units * (k + 1) // n_parts)
        ranges.append(range(begin, min(end, n_points)))
    return ranges


def side_by_side(calls: Sequence[Callable[[], object]], threads: int) -> None:
    """Make all calls, at most `threads` of them, at once: the first one in this thread.

    Returns when all have ended, also after an error or Ctrl-C, for they write to memory of the
    caller's. A call that no other thread has begun when the first one ends, for the cores are busy,
    is made in this thread, too.
    """
    others = _begin(calls[1:], threads - 1)
    try:
        calls[0]()
        for call, other in zip_longest(calls[1:], others):
            if other is None or other.cancel():
                call()
    finally:
        begun = [other for other in others if not other.cancel()]
        _wait_for(begun)
    for other in begun:
        other.result()  # raises what the call raised


def _begin(calls: Sequence[Callable[[], object]], n_threads: int) -> list[Future[object]]:
    """The first of these calls in other threads: all, unless no thread can be had any more."""
    futures: list[Future[object]] = []
    if not calls:
        return futures
    pool = _pool(n_threads)
    try:
        for call in calls:
            futures.append(pool.submit(call))
    except RuntimeError:  # at the end of the program, or where the system starts no thread
        # A call may be queued although it was refused: it must not be made behind the caller's back
        pool.shutdown(wait=False, cancel_futures=True)
        _pool.cache_clear()
    return futures


def _wait_for(futures: Sequence[Future[object]]) -> None:
    """Until all have ended; Ctrl-C is raised then, only a second one at once."""
    try:
        for future in futures:
            future.exception()
    except KeyboardInterrupt:
        for future in futures:
            future.exception()
        raise


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="nfexp-kernel")


if hasattr(os, "register_at_fork"):
    # A forked process inherits the pools, but not their threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
