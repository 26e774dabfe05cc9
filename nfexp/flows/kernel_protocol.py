"""What a kernel is to a stack.

The same maps and steps of training, computed in another way than by its layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Law:
    """What an optimiser with two moments does at one step.

    θ moves along of_grad · g + of_first · m, over √v̂ + ε.
    """

    of_grad: float
    of_first: float
    beta1: float
    beta2: float
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a step of training reads and changes.

    Weights, fixed numbers and both moments of a stack, (E, ·).
    """

    theta: Tensor
    fixed: Tensor
    first: Tensor
    second: Tensor


@dataclass(frozen=True, kw_only=True)
class Course:
    """The next steps of a training, after `begun` of them.

    By row: the bound `clip` on the norm of its gradient, its learning rate `lr` and its weight
    decay `decay`; by step the factor of the learning rate and the optimiser's law. Rows that are
    not among `members` stay as they are.
    """

    members: Sequence[int]
    clip: Sequence[float]
    lr: Sequence[float]
    decay: Sequence[float]
    factors: Sequence[float]
    laws: Sequence[Law]
    begun: int


@dataclass(frozen=True, kw_only=True)
class Made:
    """How many steps each row made before its loss or gradient was not finite, and the last gradient's norm (E,)."""

    made: list[int]
    norm: Tensor


class Kernel(Protocol):
    """A quicker way to the numbers of a stack than its layers in torch.

    The same up to rounding, not differentiable.
    """

    def log_prob(
        self, theta: Tensor, fixed: Tensor, x: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """As :meth:`FlowStack.log_prob`."""

    def inverse(
        self, theta: Tensor, fixed: Tensor, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`FlowStack.inverse`."""

    def forward(
        self, theta: Tensor, fixed: Tensor, z: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`FlowStack.forward`."""

    def steps(self, rows: Rows, x: Tensor, context: Tensor, order: Tensor, course: Course) -> Made:
        """Make S steps in place.

        Step i of row e learns from the points order[i, e] of x[e], (S, E, N) and (E, M, D), at
        their context (E, M, C), C = 0 where nothing is given.

        A row whose loss or gradient is not finite is not moved then, nor later.
        """
