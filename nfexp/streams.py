"""Random streams: one generator for each purpose of each run, derived from the run's seed.

There is no global seed.
"""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose of one run, independent of every other purpose and seed.

    Draws are made on the CPU on every device, so that a run is the same fact on each of them.

    >>> torch.equal(torch.rand(3, generator=stream(0, "init")), torch.rand(3, generator=stream(0, "init")))
    True
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    state = int.from_bytes(digest[:8], "big", signed=True)
    return torch.Generator().manual_seed(state)


def of_member(k: int, purpose: str) -> str:
    """The purpose of a stream that is member `k`'s own, of an ensemble.

    Member 0 has those of a run alone.

    >>> of_member(0, "init"), of_member(3, "init")
    ('init', 'members/3/init')
    """
    return purpose if k == 0 else f"members/{k}/{purpose}"
