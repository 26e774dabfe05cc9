"""The points of each step: which ones, and the noise that is added to them. Every step can be asked for by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from nfexp.spec import Spec, batch_points
from nfexp.streams import stream


class Order:
    """Endless passes over `n` points, each in a random order of its own: which points step 1, 2, … learns from.

    Pass k is a permutation drawn from the stream "batches/k" of the run's seed, so that any step can be asked for.

    >>> order = Order(n=4, batch=2, seed=0)
    >>> sorted(torch.cat([order.at(1), order.at(2)]).tolist())
    [0, 1, 2, 3]
    """

    def __init__(self, *, n: int, batch: int, seed: int) -> None:
        self.n = n
        self.batch = batch
        self.seed = seed
        self.known: dict[int, Tensor] = {}  # the passes of the last step

    def at(self, step: int) -> Tensor:
        """The positions of the points of `step` (1, 2, …), shape (batch,)."""
        begin = (step - 1) * self.batch
        end = step * self.batch
        first_pass = begin // self.n
        last_pass = (end - 1) // self.n
        passes = {}
        for k in range(first_pass, last_pass + 1):
            passes[k] = self.known[k] if k in self.known else self._permutation(k)
        self.known = passes
        whole = torch.cat(list(passes.values())) if len(passes) > 1 else passes[first_pass]
        offset = first_pass * self.n
        return whole[begin - offset : end - offset]

    def _permutation(self, k: int) -> Tensor:
        return torch.randperm(self.n, generator=stream(self.seed, f"batches/{k}"))


class Noise:
    """What is added to the points of each step's batch: normal, its sd a share of that of the training points.

    The share goes from `train.noise` at the first step to `train.noise_end` at the last in a straight line. Step k
    draws from the stream "noise/k" of the run's seed, so that any step can be asked for, and a run without noise draws
    nothing. Noise on the data smooths what is learned as a kernel does (Rothfuss et al. 2019).

    `sd` is that of one member's training points, (D,).
    """

    def __init__(self, spec: Spec, sd: Tensor) -> None:
        self.spec = spec
        self.sd = sd

    def share(self, step: int) -> float:
        """The standard deviation of step 1, 2, … as a share of that of the training points."""
        recipe = self.spec.train
        passed = (step - 1) / max(recipe.steps - 1, 1)
        return recipe.noise + (recipe.noise_end - recipe.noise) * passed

    def at(self, step: int) -> Tensor:
        """The noise of a step's points, shape (batch, D), as the training points are."""
        share = self.share(step)
        shape = (batch_points(self.spec), len(self.sd))
        if share == 0:
            return self.sd.new_zeros(shape)
        generator = stream(self.spec.seed, f"noise/{step}")
        draws = torch.randn(shape, generator=generator, dtype=torch.float64)
        return draws.to(self.sd) * self.sd * share
