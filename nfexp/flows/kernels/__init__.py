"""The fused step: a tile of points goes through all couplings, and back, while it is in the caches of a core.

What the kernel does not know, torch computes. numba is imported where a kernel is wanted, not here.
"""

from __future__ import annotations

import logging
from functools import cache

import torch

from nfexp.flows.fusible import KNOWN, unknown_key
from nfexp.flows.kernel_protocol import Kernel
from nfexp.flows.stack import FlowStack
from nfexp.spec import Flow, SpecError, Words

__all__ = ["KNOWN", "check_fused", "kernel_for", "missing", "obstacle"]

log = logging.getLogger(__name__)

MEMORY_TYPE = torch.float32


@cache
def missing() -> str | None:
    """What this machine lacks for the fused kernel, and what to do about it; None if nothing."""
    try:
        from nfexp.flows.kernels.lanes import has_fma
    except ImportError as error:
        return f"numba cannot be imported ({error}): pip install numba"
    return None if has_fma() else "the processor has no fused multiply-add"


@cache
def _say_once(text: str) -> None:
    log.info(text)


def obstacle(flow: Flow, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the fused kernel cannot compute with this architecture here, in a few words.

    None if it can.
    """
    if device.type != "cpu":
        return f"device is {device.type}"
    if dtype != MEMORY_TYPE:
        return f"the weights are {str(dtype).removeprefix('torch.')}"
    key = unknown_key(flow)
    return None if key is None else f"flow.{key} is {getattr(flow, key)!r}"


def check_fused(flow: Flow, device: torch.device, dtype: torch.dtype) -> None:
    """Raise SpecError if the fused kernel cannot compute with this architecture here."""
    reason = obstacle(flow, device, dtype) or missing()
    if reason is not None:
        raise SpecError(
            "train.kernel",
            "'auto' or 'torch', for the fused kernel cannot be used here",
            Words(reason),
        )


def kernel_for(wanted: str, flow: FlowStack) -> Kernel | None:
    """The kernel that `train.kernel` asks for: None is the torch path.

    Raises
    ------
    SpecError
        If `fused` is asked for and cannot be.
    """
    if wanted == "torch":
        return None
    described = flow.flow, flow.theta.device, flow.theta.dtype
    if wanted == "fused":
        check_fused(*described)
    if obstacle(*described) is not None:
        return None
    if missing() is not None:
        _say_once(f"train.kernel=auto: torch, for {missing()}")
        return None
    from nfexp.flows.kernels.compiled import Fused

    return Fused(flow)
