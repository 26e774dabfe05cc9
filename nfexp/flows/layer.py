"""What a layer of a flow over E members is.

`inverse` maps data to base (the direction of training), `forward` base to data; points are
(E, D, N), and the log-det that comes with them is (E, N), (E, 1) or a number. A layer names the
tensors it needs, and sets the first values of one member's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Generator, Tensor

Tensors = Mapping[str, Tensor]
CONTEXT = "context"  # among the tensors: what is given at each point, standardised, (E, C, N)
# block → the tensors in it; a block is (E, size) in a layer's hands
Shapes = dict[str, dict[str, tuple[int, ...]]]


@dataclass(kw_only=True)
class Batch:
    """Says that the points are a training batch; without one, layers use what they have stored.

    Batch norm normalises by the batch's own statistics. With `initialise`, actnorm sets itself by
    them. What a layer wants to be stored it leaves in `updates`, by the name of the block. The
    networks of images drop a share of their hidden numbers, `dropout`, which each member's own
    generator chooses.
    """

    initialise: bool = False
    updates: dict[str, Tensor] = field(default_factory=dict)
    dropout: float = 0.0
    generators: list[Generator] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Points:
    """What one member's layers may know of its training points.

    Mean and variance of each coordinate, (D,). Of images these are moments of logits, and `counts`
    (D, L) says in how many images each pixel has each level.
    """

    mean: Tensor
    var: Tensor
    counts: Tensor | None = None


class Layer:
    """A bijection with a name; without tensors of its own unless a subclass says so."""

    def __init__(self, name: str, dim: int) -> None:
        self.name = name
        self.dim = dim

    def learned_shapes(self) -> Shapes:
        """The tensors that training changes."""
        return {}

    def fixed_shapes(self) -> Shapes:
        """The tensors that training leaves alone, or that follow the batches."""
        return {}

    def initialise(self, tensors: Tensors, points: Points, draws: Generator) -> None:
        """Set the first values of one member, in place.

        `tensors` are the member's, without the stack axis.
        """

    def inverse(self, p: Tensors, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _per_coordinate(self, *keys: str) -> Shapes:
        """One block of one tensor (1, D) for each key."""
        shapes: Shapes = {}
        for key in keys:
            name = f"{self.name}.{key}"
            shapes[name] = {name: (1, self.dim)}
        return shapes
