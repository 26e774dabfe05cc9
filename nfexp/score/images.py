"""What the figures of an image flow need.

Samples, temperatures, interpolations, what each scale holds, the walk.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nfexp.data import Dataset
from nfexp.flows.image.plan import Image, factored_out
from nfexp.flows.image.shapes import Reorder, Squeeze
from nfexp.flows.stack import FlowStack
from nfexp.score.evaluation import base_draws
from nfexp.score.results import Arrays
from nfexp.spec import Spec

SHOWN = 64  # training images and samples that a run keeps
COLUMNS = 10  # images of a row of the other figures
TEMPERATURES = (0.5, 0.7, 0.85, 1.0)  # Parmar et al. 2018, Kingma and Dhariwal 2018
PAIRS = 5  # rows of an interpolation
BETWEEN = 9  # images in each
WALKED = 6  # samples that are followed through the layers


def image_arrays(
    specs: Sequence[Spec], datasets: Sequence[Dataset], kept: FlowStack, shown: int
) -> Arrays:
    """What each member keeps for its figures, at most `shown` images of a kind.

    Images are (…, C, H, W) of levels.

    `tempered` (T, N, C, H, W) are samples from one base draw times each temperature. `interpolated`
    (pairs, steps, C, H, W) lie between two test images. `redrawn` (rows, N, C, H, W) are test
    images and, below them, the images that share all base coordinates but those of the first one,
    two, … scales, which are drawn anew; `redrawn_numbers` says how many are kept. `image_walk`
    (layers, N, C, H, W) are samples after every layer, in the places of the pixels they come from.
    """
    image = kept.image
    if image is None:
        raise ValueError("kept: expected a flow of images; got one of vectors")
    n = min(shown, SHOWN)
    base = base_draws(specs, kept, n, "generated")
    arrays: Arrays = {
        "real": _levels([dataset.train[:n].flatten(1) for dataset in datasets], image),
        "drawn": _images(kept, base),
        "levels": [np.array(image.levels)] * len(specs),
    }
    columns = base[:, :COLUMNS]
    rows = [_images(kept, columns * temperature) for temperature in TEMPERATURES]
    arrays["tempered"] = _stacked(rows)
    arrays["temperatures"] = [np.array(TEMPERATURES)] * len(specs)

    n_test = min(COLUMNS, *(len(dataset.test) for dataset in datasets))
    test = torch.stack([dataset.test[:n_test] for dataset in datasets]).flatten(2).to(kept.theta)
    latents, _ = kept.inverse(test + 0.5)  # the middle of each cell
    if n_test >= 2:
        arrays |= _interpolated(kept, latents, image)
    arrays |= _redrawn(specs, kept, test, latents, image)
    return arrays | _image_walk(kept, base[:, :WALKED], image)


def _images(kept: FlowStack, base: Tensor) -> list[np.ndarray]:
    """The levels of the images that base points (E, N, D) become, (N, C, H, W) of each member."""
    assert kept.image is not None
    points = kept.as_levels(kept.forward(base)[0].nan_to_num(nan=0.0))
    return _levels(list(points), kept.image)


def _levels(rows: Sequence[Tensor], image: Image) -> list[np.ndarray]:
    """Levels (N, D) of each member as small whole numbers (N, C, H, W)."""
    kind = np.uint8 if image.levels <= 256 else np.uint16
    return [row.unflatten(1, image.shape).cpu().numpy().astype(kind) for row in rows]


def _stacked(rows: Sequence[Sequence[np.ndarray]], axis: int = 0) -> list[np.ndarray]:
    """One array per member, from rows that have one image or more of each."""
    return [np.stack(of_member, axis) for of_member in zip(*rows, strict=True)]


def _interpolated(kept: FlowStack, latents: Tensor, image: Image) -> Arrays:
    """Images along great circles between the base points of neighbouring test images (White 2016)."""
    pairs = min(PAIRS, latents.shape[1] // 2)
    start = latents[:, : 2 * pairs : 2]
    end = latents[:, 1 : 2 * pairs : 2]
    cosine = (start * end).sum(-1) / (start.norm(dim=-1) * end.norm(dim=-1))
    angle = torch.arccos(cosine.clamp(-0.9999, 0.9999))[..., None]
    rows = []
    for share in np.linspace(0, 1, BETWEEN).tolist():
        of_start = torch.sin((1 - share) * angle)
        of_end = torch.sin(share * angle)
        between = (of_start * start + of_end * end) / torch.sin(angle)
        rows.append(_images(kept, between))
    return {"interpolated": _stacked(rows, axis=1)}


def _redrawn(
    specs: Sequence[Spec], kept: FlowStack, test: Tensor, latents: Tensor, image: Image
) -> Arrays:
    """Test images with the base coordinates of the finest scales drawn anew, one scale more in each row."""
    sizes = factored_out(kept.flow, image.shape)
    fresh = base_draws(specs, kept, latents.shape[1], "redrawn")
    rows = [_levels(list(test), image)]
    numbers = [image.dim]
    left = image.dim
    for size in sizes[:-1]:
        left -= size  # in a base point the last scale comes first, so that `left` numbers are kept
        mixed = torch.cat([latents[..., :left], fresh[..., left:]], -1)
        rows.append(_images(kept, mixed))
        numbers.append(left)
    rows.append(_images(kept, fresh))
    numbers.append(0)
    return {
        "redrawn": _stacked(rows),
        "redrawn_numbers": [np.array(numbers)] * len(specs),
    }


def _image_walk(kept: FlowStack, base: Tensor, image: Image) -> Arrays:
    """Samples after every layer from base to data, each frame put where its pixels belong.

    Only squeezes and their order move numbers about: what those of the remaining layers do to a
    frame shows it as an image.
    """
    frames = []
    names = []
    walk = kept.walk(base)
    p = kept.tensors()
    for i, (name, points) in enumerate(walk):
        remaining = list(reversed(kept.layers))[i:]
        placed = points
        for layer in remaining:
            if isinstance(layer, Squeeze | Reorder):
                placed, _ = layer.forward(p, placed)
        if name.startswith(("squeeze", "reorder")):
            continue  # moves numbers alone, and looks like the frame before
        frames.append(placed.unflatten(-1, image.shape).nan_to_num(nan=0.0))
        names.append(name)
    whole = torch.stack(frames, 1).float().cpu().numpy()
    return {"image_walk": list(whole), "image_walk_names": [np.array(names)] * len(whole)}
