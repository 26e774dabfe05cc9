"""Which keys name a run, which must agree in a stack, and the flat keys that records hold."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from nfexp.spec.errors import SpecError
from nfexp.spec.mapping import from_mapping
from nfexp.spec.parameters import is_parameter_key
from nfexp.spec.schema import Spec
from nfexp.spec.shapes import batch_points, event_shape, passed_counts

# Keys that are younger than the first records, each with the value by which a run is what it was
# without the key. A record that lacks one is read as if it held that value, and no run has another
# id for it.
ADDED: dict[str, Any] = {
    "flow.conditioner_input": "masked",
    "flow.tail_bound": None,
    "flow.tail": "none",
    "flow.members": 1,
    "flow.weights": "equal",
    "train.optimizer": "adam",
    "train.noise": 0.0,
    "train.noise_end": 0.0,
    "train.ema": 0.0,
    "train.kernel": "torch",
}

# Keys that say what a run is called and how it is computed: none changes a number by more than
# rounding.
NO_PART = ("name", "device", "train.kernel")


def flatten(spec: Spec) -> dict[str, Any]:
    """The keys as the command line spells them.

    ``{"data.name": …, "flow.n_flows": …, …, "seed": …}``.

    Keys that may be absent are so where they have their default.
    """
    flat: dict[str, Any] = {}
    for f in fields(spec):
        value = getattr(spec, f.name)
        if is_dataclass(value):
            for g in fields(value):
                part = getattr(value, g.name)
                if g.name == "parameters":
                    flat |= {f"{f.name}.{key}": parameter for key, parameter in part}
                elif part != g.default:
                    flat[f"{f.name}.{g.name}"] = part
        else:
            flat[f.name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Spec:
    """The inverse of :func:`flatten`, checked again.

    What an old record lacks is as in :data:`ADDED`.
    """
    nested: dict[str, Any] = {}
    for key, value in (ADDED | dict(flat)).items():
        group, _, leaf = key.rpartition(".")
        inside = nested.setdefault(group, {}) if group else nested
        if not isinstance(inside, dict):
            raise SpecError(group, "a group of keys", inside)
        inside[leaf] = value
    return from_mapping(nested)


# Where the numbers of a table, or the code of a target, come from; what they are, `data.digest`
# says.
READING = frozenset(
    {
        "data.kind",
        "data.path",
        "data.val_path",
        "data.test_path",
        "data.columns",
        "data.drop",
        "data.context",
        "data.header",
        "data.missing",
        "data.target",
        "data.images",
        "data.check",
    }
)


def relevant(spec: Spec) -> dict[str, Any]:
    """The flattened keys that can change a number of the run.

    All but :data:`NO_PART` and what it records.

    Of a table they hold what its numbers are, not where they are read.
    """
    return {key: value for key, value in flatten(spec).items() if is_relevant(key)}


def is_relevant(key: str) -> bool:
    """Whether a key of the flat configuration can change a number of a run.

    >>> is_relevant("train.lr"), is_relevant("train.kernel"), is_relevant("record.grid")
    (True, False, False)
    """
    return key not in NO_PART and key not in READING and not key.startswith("record.")


def run_id(spec: Spec) -> str:
    """The identity of a run: 16 hexadecimal digits of the hash of :func:`relevant`.

    A key of :data:`ADDED` counts where it changes the run.
    """
    counted = {}
    for key, value in relevant(spec).items():
        if key not in ADDED or value != ADDED[key]:
            counted[key] = value
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:16]


# May differ between the members of a stack; everything else of `relevant` must agree.
PER_MEMBER = frozenset(
    {
        "data.name",
        "data.n_samples",
        "data.noise",
        "data.text",
        "flow.mask",
        "train.lr",
        "train.grad_clip",
        "train.weight_decay",
        "train.noise",
        "train.noise_end",
        "train.select",
        "train.batch_size",
        "seed",
        "data.split",
        "data.jitter",
        "data.digest",
    }
) | (READING - {"data.kind"})


def stack_key(spec: Spec) -> tuple[tuple[str, Any], ...]:
    """What must agree in a stack.

    Shape of a point, architecture, batch, steps, evaluation sizes, device, recording.
    """
    shared: dict[str, Any] = {
        "event_shape": event_shape(spec.data),
        "batch_points": batch_points(spec),
    }
    if spec.flow.kind == "image":  # what a mask says decides where an image is squeezed
        shared["mask"] = spec.flow.mask
    if spec.flow.conditioner_input == "passed":  # masks may differ, the networks' shapes may not
        shared["passed"] = passed_counts(spec.flow, math.prod(event_shape(spec.data)))
    for key, value in flatten(spec).items():
        if key not in PER_MEMBER and key != "name" and not is_parameter_key(key):
            shared[key] = value
    return tuple(shared.items())
