"""Layers of an image flow.

Points are (E, N, D): the active part, (C, H, W) row by row, then what is factored out.

The first layer maps each cell of a level [k, k + 1) onto itself: it is the dequantisation, and its
log-det is the term that the bound owes to it.
"""

from __future__ import annotations

from nfexp.flows.image.cells import Dequantise, Logit, PixelScale, PixelStandardise
from nfexp.flows.image.couplings import (
    ChannelCoupling,
    CheckerboardCoupling,
)
from nfexp.flows.image.marginals import Marginals
from nfexp.flows.image.norms import CHANNEL_NORMS, Mixing
from nfexp.flows.image.plan import Image, Stage
from nfexp.flows.image.shapes import Reorder, Squeeze
from nfexp.flows.layers import Layer
from nfexp.spec import Flow


def image_layers(flow: Flow, image: Image, plan: list[Stage]) -> list[Layer]:
    """All layers in data → base order."""
    layers: list[Layer] = [Dequantise(flow, image)]
    if flow.standardise == "marginals":
        layers.append(Marginals(image))
    else:
        layers += [Logit(flow, image), PixelStandardise(flow, image.dim)]
    n_couplings = 0
    for stage in plan:
        if stage.kind == "squeeze":
            layers.append(Squeeze(f"squeeze.{stage.scale}", image, stage.shape))
        elif stage.kind == "reorder":
            layers.append(Reorder(f"reorder.{stage.scale}", image, stage.shape))
        else:
            if flow.mixing == "conv" and stage.shape[0] > 1:
                layers.append(Mixing(f"mixing.{n_couplings}", image, stage.shape))
            kind = CheckerboardCoupling if stage.kind == "checkerboard" else ChannelCoupling
            layers.append(kind(flow, n_couplings, image, stage))
            n_couplings += 1
            if flow.norm != "none" and n_couplings % flow.norm_every == 0:
                layers.append(
                    CHANNEL_NORMS[flow.norm](f"norm.{n_couplings - 1}", image, stage.shape)
                )
    if flow.coupling == "additive":
        layers.append(PixelScale("diagonal", image.dim))
    return layers
