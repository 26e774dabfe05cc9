"""The layers of an architecture, and where their tensors lie in the two matrices of a stack."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from nfexp.flows.elementwise import NORMS, ContextMoments, Diagonal, Standardise, Tail
from nfexp.flows.image.layers import image_layers
from nfexp.flows.image.plan import Image, stages
from nfexp.flows.layers import Coupling, Layer, Shapes
from nfexp.spec import Flow


class Layout:
    """Where blocks of named tensors (E, …) lie in the columns of a matrix (E, P)."""

    def __init__(self, blocks: Shapes) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}  # of every tensor
        self.sizes: dict[str, int] = {}  # of every block
        for block, shapes in blocks.items():
            self.shapes |= shapes
            self.sizes[block] = sum(math.prod(shape) for shape in shapes.values())
        self.width = sum(self.sizes.values())

    def blocks(self, matrix: Tensor) -> dict[str, Tensor]:
        """Each block as (E, size): what the layers compute with."""
        parts = torch.split(matrix, list(self.sizes.values()), dim=1)
        return dict(zip(self.sizes, parts, strict=True))

    def views(self, matrix: Tensor) -> dict[str, Tensor]:
        """Each named tensor as (E, …): what is initialised and stored."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = torch.split(matrix, sizes, dim=1)
        views = {}
        for (name, shape), part in zip(self.shapes.items(), parts, strict=True):
            views[name] = part.view(len(matrix), *shape)
        return views


@lru_cache(maxsize=64)
def architecture(
    flow: Flow, dim: int, image: Image | None, n_context: int
) -> tuple[list[Layer], Layout, Layout]:
    """The layers in data → base order, and where their learned and their fixed tensors lie."""
    if image is None:
        layers = _vector_layers(flow, dim, n_context)
    else:
        layers = image_layers(flow, image, stages(flow, image.shape))
    learned: Shapes = {}
    fixed: Shapes = {}
    for layer in layers:
        learned |= layer.learned_shapes()
        fixed |= layer.fixed_shapes()
    if n_context:
        fixed |= ContextMoments(n_context).fixed_shapes()
    return layers, Layout(learned), Layout(fixed)


def _vector_layers(flow: Flow, dim: int, n_context: int) -> list[Layer]:
    layers: list[Layer] = [Standardise(flow, dim)]
    for i in range(flow.n_flows):
        layers.append(Coupling(flow, i, dim, n_context))
        if flow.norm != "none" and (i + 1) % flow.norm_every == 0:
            layers.append(NORMS[flow.norm](f"norm.{i}", dim))
    if flow.coupling == "additive":
        layers.append(Diagonal("diagonal", dim))
    if flow.tail == "learned":
        layers.append(Tail("tail", dim))
    return layers
