"""Checks of keys that belong together; the range of each alone is in the schema."""

from __future__ import annotations

import re

from nfexp.spec.errors import SpecError, Words
from nfexp.spec.ranges import LONGEST_TEXT, names_of
from nfexp.spec.schema import IMAGE_MASKS, IMAGE_SETS, IN_FILES, VECTOR_MASKS, Data, Spec
from nfexp.spec.shapes import event_shape


def _check_data(data: Data) -> None:
    if data.kind == "image" or data.images is not None:
        _check_images(data)
    _check_context(data)
    if data.kind == "density":
        for key in ("n_samples", "noise", "n_val", "n_test"):
            if getattr(data, key) is None:
                raise SpecError(f"data.{key}", f"a number for data.name={data.name}", None)
        return
    if data.kind == "own":
        _check_own(data)
        return
    if data.kind != "image" and data.noise is not None:
        raise SpecError(
            "data.noise", "null for a table (data.jitter adds noise to one)", data.noise
        )
    if data.kind not in ("array", "sklearn", "image") and data.path is None:
        what = (
            "folder that holds the published files"
            if data.kind == "maf"
            else "table, such as data.path=points.csv"
        )
        raise SpecError("data.path", f"the path of the {what}", None)
    _check_text(data, "path", "val_path", "test_path", "columns", "drop")


def _check_text(data: Data, *keys: str) -> None:
    for key in keys:
        value = getattr(data, key)
        if value is not None and (not value.isprintable() or not 0 < len(value) <= LONGEST_TEXT):
            raise SpecError(
                f"data.{key}", f"printable text of at most {LONGEST_TEXT} characters", value
            )


def _check_context(data: Data) -> None:
    """Raise where there are no columns that could be given."""
    _check_text(data, "context")
    if data.context is not None and data.kind not in ("table", "sklearn"):
        expected = (
            "null here, for it names columns of a table (data=table or one of scikit-learn's)"
        )
        raise SpecError("data.context", expected, data.context)
    named = 0 if data.context is None else len(names_of(data.context))
    if data.context_dim not in (0, named) and data.kind != "array":
        raise SpecError(
            "data.context_dim", f"{named}, the columns that data.context names", data.context_dim
        )


def _check_own(data: Data) -> None:
    source = data.target
    if (
        source is None
        or not source.isprintable()
        or len(source) > LONGEST_TEXT
        or not re.fullmatch(r".+:\w+", source)
    ):
        raise SpecError("data.target", "a density as file.py:Name or module:Name", source)
    for key in ("n_samples", "n_val", "n_test"):
        if getattr(data, key) is None:
            raise SpecError(f"data.{key}", "a number of points to draw", None)


def _check_images(data: Data) -> None:
    if data.kind != "image" or data.images is None:
        expected = f"data.kind=image and data.images one of {', '.join(IMAGE_SETS)}, as data=digits brings them"
        raise SpecError(
            "data.images", expected, Words(f"data.kind={data.kind}, data.images={data.images}")
        )
    if data.noise is not None:
        raise SpecError(
            "data.noise", "null for images (a flow of images dequantises them)", data.noise
        )
    if data.jitter != 0.0:
        raise SpecError(
            "data.jitter", "0 for images (a flow of images dequantises them)", data.jitter
        )
    for key in ("columns", "drop"):
        if getattr(data, key) is not None:
            raise SpecError(f"data.{key}", "null for images", getattr(data, key))
    if data.images in IN_FILES and data.path is None:
        what = (
            "an .npz or .npy file of images"
            if data.images == "npz"
            else "the folder that holds the images"
        )
        raise SpecError("data.path", f"the path of {what}", None)
    has_no_use_for = [] if data.images in IN_FILES else ["path"]
    if data.images not in ("npz", "folder"):
        has_no_use_for += ["val_path", "test_path"]
    for key in has_no_use_for:
        if getattr(data, key) is not None:
            expected = (
                f"null where data.images is '{data.images}' (data=images reads images of your own)"
            )
            raise SpecError(f"data.{key}", expected, getattr(data, key))


OF_IMAGES = {
    "flow": ("scales", "alpha", "dequantisation", "mixing", "net_norm"),
    "train": ("dropout", "augment", "augment_share", "augment_until"),
}


# What an image flow does not have, with the only value that a key of vectors may hold there.
NOT_OF_IMAGES = {
    "conditioner": "shared",
    "conditioner_input": "masked",
    "tail_bound": None,
    "tail": "none",
}


def _check_kinds(spec: Spec) -> None:
    """Raise where images meet a flow for vectors or the reverse, and for a key that the flow has no use for."""
    flow = spec.flow
    images = flow.kind == "image"
    if images != (spec.data.kind == "image"):
        why = f"for data.name={spec.data.name} holds {'vectors' if images else 'images'}"
        if spec.data.images == "digits":
            why += "; the table of digits is data=digits_table"
        expected = f"'vector' (flow=realnvp), {why}" if images else f"'image' (flow=image), {why}"
        raise SpecError("flow.kind", expected, flow.kind)
    masks = IMAGE_MASKS if images else VECTOR_MASKS
    if flow.mask not in masks:
        raise SpecError(
            "flow.mask", f"one of {', '.join(masks)} where flow.kind is '{flow.kind}'", flow.mask
        )
    for group, keys in OF_IMAGES.items():
        for key in keys:
            value = getattr(getattr(spec, group), key)
            if images and value is None and group == "flow":
                raise SpecError(f"flow.{key}", "a value where flow.kind is 'image'", None)
            if not images and value is not None:
                raise SpecError(f"{group}.{key}", "null where flow.kind is 'vector'", value)
    if not images:
        if flow.standardise == "marginals":
            raise SpecError(
                "flow.standardise", "moments or none where flow.kind is 'vector'", flow.standardise
            )
        return
    for key, only in NOT_OF_IMAGES.items():
        value = getattr(flow, key)
        if value != only:
            raise SpecError(f"flow.{key}", f"{only!r} where flow.kind is 'image'", value)
    if flow.init in ("spread", "kaiming"):
        raise SpecError("flow.init", "identity or random where flow.kind is 'image'", flow.init)
    for key in ("noise", "noise_end"):
        noise = getattr(spec.train, key)
        if noise > 0:
            raise SpecError(
                f"train.{key}", "0 for images, which lie in the cells of their levels", noise
            )


def check_shape(spec: Spec) -> None:
    """Raise where images of this shape cannot go through that many scales.

    Does nothing while the shape is not known.

    Each scale but the last halves both sides, and a checkerboard needs a side of 2.
    """
    data = spec.data
    flow = spec.flow
    if flow.kind != "image" or flow.scales is None:
        return
    shape = event_shape(data)
    if len(shape) != 3 or data.levels is None:
        return
    channels, height, width = shape
    side = min(height, width)
    most = 1
    while side // 2**most >= 2:
        most += 1
    if side < 2:
        raise SpecError("data", "images of at least 2 x 2 pixels", Words(f"{height} x {width}"))
    if flow.scales > most:
        raise SpecError(
            "flow.scales", f"at most {most} for images of {height} x {width} pixels", flow.scales
        )
    halvings = flow.scales - 1
    if flow.mask == "channel" and channels == 1 and halvings == 0:
        halvings = 1  # one channel cannot be split: the only scale squeezes, too
    factor = 2**halvings
    if height % factor or width % factor:
        expected = (
            f"scales for whose squeezing {factor} divides both sides of {height} x {width} pixels"
        )
        raise SpecError("flow.scales", expected, flow.scales)


def check_together(spec: Spec) -> None:
    """Raise where keys do not go together, each of which is in its range."""
    _check_data(spec.data)
    _check_kinds(spec)
    check_shape(spec)
    if spec.data.name == "text" and not (spec.data.text or "").strip():
        raise SpecError("data.text", "letters to draw when data.name is 'text'", spec.data.text)
    if spec.train.warmup > spec.train.steps:
        raise SpecError(
            "train.warmup", f"at most train.steps = {spec.train.steps}", spec.train.warmup
        )
    if spec.flow.tail_bound is not None and spec.flow.standardise == "none":
        expected = "null where flow.standardise is 'none', for it counts in standard deviations"
        raise SpecError("flow.tail_bound", expected, spec.flow.tail_bound)
