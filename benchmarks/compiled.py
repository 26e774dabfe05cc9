"""python -m benchmarks.compiled [members …]: would `torch.compile` pay? The gradient of a step, three ways.

The derivative written out (as nfexp trains), plain autograd over the same operations, and that compiled: CPU ms per
member and gradient, medians over interleaved rounds, one thread, 6 couplings, 64x2, batch 256; and the seconds that
compiling this one architecture took.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.cases import make_spec
from nfexp import layers
from nfexp.init import build
from nfexp.layers import Architecture
from nfexp.nn import mlp_shapes
from nfexp.run import reuse_freed_memory

ROUNDS, SECONDS = 5, 1.0


def plain_mlp(x: Tensor, weights: Tensor, widths: tuple[int, ...], *, nets: int, activation: str) -> Tensor:
    """:func:`nfexp.nn.mlp` for autograd."""
    n, shapes = len(x), mlp_shapes(widths, nets)
    parts = [p.reshape(-1, *s[1:]) for p, s in zip(weights.split([*map(math.prod, shapes)], 1), shapes, strict=True)]
    h = x.unsqueeze(1).expand(-1, nets, -1, -1).reshape(n * nets, *x.shape[1:])
    for i in range(0, len(parts), 2):
        h = torch.baddbmm(parts[i + 1].mT, parts[i].mT, h)
        h = getattr(torch, activation)(h) if i + 2 < len(parts) else h
    return h.view(n, -1, x.shape[-1])


class PlainAffine:
    """The tail of an affine coupling for autograd."""

    @staticmethod
    def apply(x: Tensor, raw: Tensor, log_scale: Tensor, free: Tensor, scale: str) -> tuple[Tensor, Tensor]:
        raw_s, raw_t = raw.chunk(2, 1)
        s = torch.tanh(raw_s) * torch.exp(log_scale).unsqueeze(-1) * free
        return x * torch.exp(s) + raw_t * free, s.sum(1)


def measure(members: int) -> dict[str, float]:
    spec = make_spec()
    x = torch.randn(members, 256, 2)
    flow = build(Architecture.of(spec), masks=["alternating"] * members, seeds=list(range(members)), data=x)
    theta = flow.theta.requires_grad_()

    def loss(theta: Tensor) -> Tensor:
        return -flow.with_rows(theta, flow.fixed).log_prob(x).mean(1).sum()

    def gradient(of: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.autograd.grad(of(theta), theta)[0]

    compiled = torch.compile(loss)
    with patch.object(layers, "mlp", plain_mlp), patch.object(layers, "_Affine", PlainAffine):
        begun = time.perf_counter()
        found = gradient(compiled)
        took = time.perf_counter() - begun
        torch.testing.assert_close(gradient(loss), found, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gradient(loss), found, rtol=1e-3, atol=1e-4)
    ways = {"written out": (loss, layers.mlp, layers._Affine), "autograd": (loss, plain_mlp, PlainAffine),
            "compiled": (compiled, plain_mlp, PlainAffine)}  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (of, network, tail) in ways.items():
            with patch.object(layers, "mlp", network), patch.object(layers, "_Affine", tail):
                count, begun = 0, time.process_time()
                while time.process_time() - begun < SECONDS:
                    gradient(of)
                    count += 1
                times[name].append(1e3 * (time.process_time() - begun) / count / members)
    return {name: statistics.median(seen) for name, seen in times.items()} | {"seconds to compile": took}


if __name__ == "__main__":
    torch.set_num_threads(1)
    reuse_freed_memory()
    for members in map(int, sys.argv[1:] or ["4", "16"]):
        print(f"E={members}: " + ", ".join(f"{name} {value:.3g}" for name, value in measure(members).items()))
