"""The typed, checked description of one run: types and ranges live here, values only in ``conf/``."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any, get_type_hints

SCHEMA_VERSION = 1  # of result.json and sweep.json
NAME = r"[\w-][\w.-]*"
LONGEST_TEXT = 1000  # characters of a path or of a list of columns


class SpecError(ValueError):
    """A value that nfexp cannot run with; its message names the key, what was expected and what came."""

    def __init__(self, key: str, expected: str, got: object) -> None:
        self.key = key
        self.expected = expected
        self.got = got
        shown = got if isinstance(got, Words) else repr(got)
        super().__init__(f"{key}: expected {expected}; got {shown}")

    def __reduce__(self) -> tuple[type[SpecError], tuple[str, str, object]]:
        return SpecError, (self.key, self.expected, self.got)  # a worker's error comes back whole


class Words(str):
    """Text that :class:`SpecError` shows as it is, without quotes."""


# A key with a `default` may be absent. At that value it is no part of a record, an identity or a table of runs, so that
# a key can be added without a change to any run there is.
def choice(*options: str, default: Any = MISSING) -> Any:
    """One of some words; the field's type says whether null is allowed, too."""
    return field(default=default, metadata={"choices": options})


def within(
    low: float,
    high: float = math.inf,
    *,
    exclusive: bool = False,
    words: tuple[str, ...] = (),
    null: str = "null",
    default: Any = MISSING,
    meaning: str = "",
) -> Any:
    """A number in [low, high] ((low, high] if exclusive), or one of `words`; the field's type says int or float.

    `null` says in an error message what null is for, where the type admits it. `meaning` is for a key that stands in
    no file of `conf/`; of all others the comment there says it.
    """
    metadata = {"low": low, "high": high, "exclusive": exclusive, "words": words, "null": null, "meaning": meaning}
    return field(default=default, metadata=metadata)


def named() -> Any:
    """A name that may stand in a file's name and on a page as it is."""
    return field(metadata={"pattern": NAME})


def listed() -> Any:
    """Names, as a list or as one text with commas; the text is what the spec holds."""
    return field(default=None, metadata={"listed": True})


def filled_in(meaning: str) -> Any:
    """Text that nfexp fills in itself; its meaning stands here, for it is in no file of `conf/`."""
    return field(default=None, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Parameter:
    """A number that a built-in target can be varied by, and the value that it has by itself."""

    usual: int | float
    low: float
    high: float
    exclusive: bool = False


# Keys of `data` that one target has, with the value by which it is what it was before it had them: at that value a key
# is in no record and in no identity. What they mean, `nfexp.data.densities.make_target` says.
PARAMETERS: dict[str, dict[str, Parameter]] = {
    "moons": {"shift": Parameter(0.5, -10, 10)},
    "circles": {"factor": Parameter(0.8, 0, 1, exclusive=True)},
    "spiral2": {"turns": Parameter(1.0, 0, 20, exclusive=True)},
    "spiral4": {"turns": Parameter(2.0, 0, 20, exclusive=True)},
    "banana": {"bend": Parameter(0.25, 0, 10)},
    "gaussians8": {"modes": Parameter(8, 1, 1000)},
    "pinwheel": {"arms": Parameter(5, 1, 100)},
    "checkerboard": {"squares": Parameter(4, 2, 64)},
}
LONGEST_PARAMETER = 80  # characters of a text that a target of the user's own takes

OF_A_TABLE = "null for a table"
# Sets of images: those of packages, a law of its own (`nfexp.mesh`), standard sets in a folder, the user's own
IMAGE_SETS = (
    "digits",
    "photographs",
    "pictures",
    "mnist_5k",
    "mesh",
    "cifar10",
    "mnist",
    "fashion_mnist",
    "npz",
    "folder",
)
IN_FILES = ("cifar10", "mnist", "fashion_mnist", "npz", "folder")
OF_A_VECTOR = "null for a vector flow"
VECTOR_MASKS = ("alternating", "fixed", "random", "once", "half")
IMAGE_MASKS = ("checkerboard", "channel", "both")


# Keys that are younger than the first records, each with the value by which a run is what it was without the key. A
# record that lacks one is read as if it held that value, and no run has another id for it.
ADDED: dict[str, Any] = {
    "flow.conditioner_input": "masked",
    "flow.tail_bound": None,
    "flow.tail": "none",
    "flow.members": 1,
    "train.optimizer": "adam",
    "train.noise": 0.0,
    "train.noise_end": 0.0,
    "train.ema": 0.0,
    "train.kernel": "torch",
}
# Keys that say what a run is called and how it is computed: none changes a number by more than rounding.
NO_PART = ("name", "device", "train.kernel")


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is learned from: a target and how many points are drawn from it, or a table of the user's own.

    `parameters` are keys beside the fields: numbers of a built-in target that are not the usual ones, and whatever a
    target of the user's own takes.
    """

    name: str = named()  # of a target or a table; `nfexp.data` knows which targets there are
    n_samples: int | None = within(2, 10_000_000, null=OF_A_TABLE)
    noise: float | None = within(0, 1e6, exclusive=True, null=OF_A_TABLE)
    n_val: int | None = within(2, 10_000_000, null=OF_A_TABLE)
    n_test: int | None = within(2, 10_000_000, null=OF_A_TABLE)
    text: str | None
    # What follows is for tables; `nfexp.tables` reads them, and fills in sizes, `dim` and `digest`
    kind: str = choice("density", "own", "table", "sklearn", "maf", "array", "image", default="density")
    path: str | None = None
    val_path: str | None = None
    test_path: str | None = None
    columns: str | None = listed()
    drop: str | None = listed()
    context: str | None = listed()  # columns that are given, not learned: p(x | c)
    header: str = choice("auto", "first_row", "none", default="auto")
    missing: str = choice("drop", "error", default="drop")
    val_share: float | None = within(0, 0.9, exclusive=True, default=None)
    test_share: float | None = within(0, 0.9, exclusive=True, default=None)
    split: int | None = within(0, 2**63 - 1, default=None)
    jitter: float | str = within(0, 1e6, words=("gap",), default=0.0)
    dim: int = within(1, 65_536, default=2, meaning="coordinates of a point; read off the table, not to be set")
    context_dim: int = within(0, 65_536, default=0, meaning="columns of the context; counted, not to be set")
    digest: str | None = filled_in("of the numbers of a table, which names its runs; not to be set")
    # A density of the user's own; `nfexp.targets` finds its source, and fills in `digest`
    target: str | None = None
    parameters: tuple[tuple[str, Any], ...] = field(
        default=(), metadata={"meaning": "what a target can be varied by; each has a key of its own, as data.factor"}
    )

    # What follows is for images, filled in with their sizes, `dim` and `digest`: `dim` is channels · height · width
    channels: int | None = within(1, 1024, default=None)
    height: int | None = within(1, 4096, default=None)
    width: int | None = within(1, 4096, default=None)
    levels: int | None = within(2, 65_536, default=None)  # values of a pixel: 0, 1, …, levels − 1
    images: str | None = choice(*IMAGE_SETS, default=None)  # which set; `nfexp.images` reads them
    check: str = choice("published", "format", default="published")  # what the files of a standard set must be

    @property
    def is_table(self) -> bool:
        """Whether points are the rows of a table, and not drawn."""
        return self.kind in ("table", "sklearn", "maf")

    @property
    def law(self) -> Data:
        """What fixes the law that points are drawn from, without how many are."""
        return replace(self, n_samples=None, n_val=None, n_test=None)

    @property
    def points(self) -> tuple[int, int, int]:
        """Points for training, validation and test, once they are known."""
        n_test = 0 if self.kind == "array" else self.n_test  # the rows that an estimator is tested on come later
        sizes = (self.n_samples, self.n_val, n_test)
        if None in sizes:
            raise SpecError("data", "a table that was read, see nfexp.tables.settled", Words("one without its sizes"))
        return sizes  # type: ignore[return-value]


_DATA_FIELDS = frozenset(f.name for f in fields(Data))


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The architecture: RealNVP and its variants.

    For images `n_flows` counts the couplings of one kind of mask at one scale, `hidden_depth` the residual blocks of
    their networks and `hidden_width` the maps; see :mod:`nfexp.flows.image.plan`.
    """

    n_flows: int = within(1, 1000)
    hidden_depth: int = within(1, 100)
    hidden_width: int = within(1, 65_536)
    activation: str = choice("relu", "leaky_relu", "tanh", "silu", "elu")
    mask: str = choice(*VECTOR_MASKS, *IMAGE_MASKS)
    coupling: str = choice("affine", "additive")
    conditioner: str = choice("separate", "shared")
    conditioner_input: str = choice("masked", "passed")
    scale: str = choice("learned", "tanh", "soft", "exp")
    init: str = choice("spread", "identity", "random")
    standardise: str = choice("moments", "none")
    norm: str = choice("none", "batchnorm", "actnorm")
    norm_every: int = within(1, 1000)
    base: str = choice("normal", "logistic", "laplace", "student_t", "mixture", "contaminated")
    tail_bound: float | None = within(0, 1e6, exclusive=True)
    tail: str = choice("none", "learned")
    members: int = within(1, 1000)  # of an ensemble: flows whose mean density is the run's
    # What follows is for images: null, and in no record, for vectors
    kind: str = choice("vector", "image", default="vector")
    scales: int | None = within(1, 12, null=OF_A_VECTOR, default=None)
    alpha: float | None = within(0, 0.4, exclusive=True, null=OF_A_VECTOR, default=None)
    dequantisation: str | None = choice("uniform", "table", "net", default=None)
    mixing: str | None = choice("none", "conv", default=None)
    net_norm: str | None = choice("none", "weight", "batch", "act", default=None)

    @property
    def heads(self) -> int:
        """Numbers that the networks give per coordinate: s and t, or t alone (NICE)."""
        return 2 if self.coupling == "affine" else 1

    @property
    def nets(self) -> int:
        """Networks of each coupling layer: one for each of s and t, or one that they share."""
        return self.heads if self.conditioner == "separate" else 1


@dataclass(frozen=True, kw_only=True)
class Train:
    """The recipe; learning rate, gradient clip and weight decay are each member's own."""

    steps: int = within(1, 100_000_000)
    batch_size: int | str = within(2, 10_000_000, words=("full",))
    optimizer: str = choice("adam", "nadam")
    lr: float = within(0, 1e3, exclusive=True)
    schedule: str = choice("cosine", "constant")
    warmup: int = within(0, 100_000_000)
    grad_clip: float | None = within(0, 1e9, exclusive=True)
    weight_decay: float = within(0, 1e3)
    ema: float = within(0, 0.999_999)
    noise: float = within(0, 1e3)
    noise_end: float = within(0, 1e3)
    select: str = choice("val", "train", "last")
    n_evals: int = within(1, 10_000)
    matmul_precision: str = choice("highest", "high")
    kernel: str = choice("auto", "fused", "torch")
    # What follows is for images: null, and in no record, for vectors
    dropout: float | None = within(0, 0.95, null=OF_A_VECTOR, default=None)
    augment: str | None = choice("none", "shift", "flip", default=None)
    augment_share: float | None = within(0, 1, null=OF_A_VECTOR, default=None)
    augment_until: float | None = within(0, 1, null=OF_A_VECTOR, default=None)


@dataclass(frozen=True, kw_only=True)
class Record:
    """How much a run keeps for its figures; none of it changes a number of the run."""

    samples: int = within(0, 1_000_000)
    snapshots: int = within(1, 1000)
    grid: int = within(0, 2000)
    walk: int = within(0, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One run. Build it with :func:`from_mapping`, which checks every value."""

    name: str = named()
    data: Data
    flow: Flow
    train: Train
    record: Record
    seed: int = within(0, 2**63 - 1)
    device: str = choice("auto", "cpu", "cuda")


_hints = cache(get_type_hints)


def from_mapping(config: Mapping[str, Any], cls: type = Spec, prefix: str = "") -> Any:
    """Build a checked spec from nested plain dicts.

    Raises
    ------
    SpecError
        For the first unknown, missing, mistyped or out-of-range key; the message has its full name.
    """
    known = {f.name: f for f in fields(cls) if f.name != "parameters"}
    hints = _hints(cls)
    parameters: dict[str, Any] = {}
    if cls is Data:
        parameters = {key: config[key] for key in config if is_parameter(config, key)}
        config = {key: value for key, value in config.items() if key not in parameters}
    for key in config:
        if key not in known:
            raise SpecError(prefix + str(key), f"one of the keys {', '.join(known)}", Words("an unknown key"))
    values = {}
    for key, spec_field in known.items():
        full = prefix + key
        if key not in config:
            if spec_field.default is MISSING:
                raise SpecError(full, "a value", Words("nothing"))
            values[key] = spec_field.default
            continue
        value = config[key]
        if is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise SpecError(full, "a group of keys", value)
            values[key] = from_mapping(value, hints[key], full + ".")
        else:
            if full == "train.warmup":
                value = steps_up_to(value, config.get("steps"))
            values[key] = _checked(full, value, hints[key], spec_field.metadata)
    if cls is Data:
        values["parameters"] = _parameters(values["kind"], values["name"], parameters)
    spec = cls(**values)
    if cls is Spec:
        _check_together(spec)
    return spec


def is_parameter(data: Mapping[str, Any], key: str) -> bool:
    """Whether a key of `data` is not a field but a parameter of the target that is named there."""
    if key in _DATA_FIELDS:
        return False
    return data.get("kind") == "own" or key in PARAMETERS.get(str(data.get("name")), {})


def parameters_in(row: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters in a flat configuration or a row of a table, by name, but those with their usual value.

    >>> parameters_in({"data.name": "circles", "data.factor": 0.5}), parameters_in({"data.factor": 0.8})
    ({'factor': 0.5}, {'factor': 0.8})
    >>> parameters_in({"data.name": "circles", "data.factor": 0.8, "data.noise": 0.1})
    {}
    """
    usual = PARAMETERS.get(str(row.get("data.name")), {})
    found = {}
    for key, value in row.items():
        name = key.removeprefix("data.")
        if not is_parameter_key(key) or value is None or value != value:
            continue
        if name not in usual or value != usual[name].usual:
            found[name] = value
    return found


def usual_value(name: str, key: str) -> int | float | None:
    """The value that a built-in target has for the key of a parameter by itself; None if it has no such one.

    >>> usual_value("circles", "data.factor"), usual_value("moons", "data.factor")
    (0.8, None)
    """
    parameter = PARAMETERS.get(name, {}).get(key.removeprefix("data."))
    return None if parameter is None else parameter.usual


def is_parameter_key(key: str) -> bool:
    """Whether a key of the flat configuration, or a column, is that of a target's parameter.

    >>> is_parameter_key("data.factor"), is_parameter_key("data.noise"), is_parameter_key("flow.mask")
    (True, False, False)
    """
    group, _, leaf = key.partition(".")
    return group == "data" and bool(leaf) and leaf not in _DATA_FIELDS


def _parameters(kind: str, name: str, given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The parameters of a target, checked, in the order of their names; without those that are as usual."""
    found = {}
    for key, value in given.items():
        if kind == "own":
            found[key] = _own_parameter(key, value)
        else:
            found |= unusual(name, {key: value})
    return tuple(sorted(found.items()))


def _own_parameter(key: str, value: Any) -> Any:
    full = f"data.{key}"
    if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z]\w{0,60}", key, re.ASCII):
        raise SpecError(full, "a key of letters, digits and '_'", Words("another"))
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    is_text = isinstance(value, str) and value.isprintable() and len(value) <= LONGEST_PARAMETER
    if not is_number and not is_text:
        raise SpecError(full, "a finite number or a short text, for a parameter of data.target", value)
    return value


def unusual(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a built-in target that are not as usual, checked.

    >>> unusual("circles", {"factor": 0.5}), unusual("circles", {"factor": 0.8})
    ({'factor': 0.5}, {})
    """
    own = PARAMETERS.get(name, {})
    found = {}
    for key, value in given.items():
        if key not in own:
            raise SpecError(f"data.{key}", f"one of the parameters of {name}: {', '.join(own) or 'it has none'}", value)
        parameter = own[key]
        meta = {"low": parameter.low, "high": parameter.high, "exclusive": parameter.exclusive, "words": (), "null": ""}
        checked = _checked(f"data.{key}", value, type(parameter.usual), meta)
        if parameter.exclusive and checked == parameter.high:
            raise SpecError(f"data.{key}", f"a number > {parameter.low:g} and < {parameter.high:g}", value)
        if checked != parameter.usual:
            found[key] = checked
    return found


def steps_up_to(value: Any, steps: Any) -> Any:
    """The number of steps that "up_to_50" stands for, never more than there are; any other value is given back.

    >>> steps_up_to("up_to_50", 2000), steps_up_to("up_to_50", 20), steps_up_to(100, 20)
    (50, 20, 100)
    """
    found = re.fullmatch(r"up_to_(\d{1,9})", value) if isinstance(value, str) else None
    if found is None:
        return value
    largest = int(found[1])
    return min(largest, steps) if type(steps) is int and steps > 0 else largest


def _checked(key: str, value: Any, hint: Any, meta: Mapping[str, Any]) -> Any:
    optional = type(None) in getattr(hint, "__args__", ())
    if value is None and optional:
        return None
    if "choices" in meta:
        if value not in meta["choices"]:
            null = " or null" if optional else ""
            raise SpecError(key, f"one of {', '.join(meta['choices'])}{null}", value)
        return value
    if "listed" in meta:
        return _listed(key, value)
    if "low" not in meta:
        if not isinstance(value, str):
            raise SpecError(key, "a string", value)
        if "pattern" in meta and not re.fullmatch(meta["pattern"], value):
            raise SpecError(key, "letters, digits, '_', '-' and '.' only", value)
        return value
    if value in meta["words"] and isinstance(value, str):
        return value
    whole = hint is int or int in getattr(hint, "__args__", ())
    low, high = meta["low"], meta["high"]
    allowed = (int,) if whole else (int, float)
    good = isinstance(value, allowed) and not isinstance(value, bool) and value == value
    if not good or value > high or value < low or (meta["exclusive"] and value == low):
        bound = f"{'>' if meta['exclusive'] else '>='} {low:g} and <= {high:g}"
        words = "".join(f" or {w!r}" for w in meta["words"]) + (f" or {meta['null']}" if optional else "")
        raise SpecError(key, f"{'an integer' if whole else 'a number'} {bound}{words}", value)
    return value if whole else float(value)


def _listed(key: str, value: Any) -> str:
    """Names with commas between them, as a line of a CSV file has them."""
    if isinstance(value, str):
        return value
    names = [value] if isinstance(value, int) else value
    if not isinstance(names, list | tuple) or not names:
        raise SpecError(key, "a list of names or positions of columns", value)
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise SpecError(key, "names or positions of columns", name)
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()


def names_of(text: str) -> list[str]:
    """The names that a text with commas lists.

    >>> names_of('age,"height, cm",3')
    ['age', 'height, cm', '3']
    """
    return next(csv.reader([text], skipinitialspace=True))


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
        raise SpecError("data.noise", "null for a table (data.jitter adds noise to one)", data.noise)
    if data.kind not in ("array", "sklearn", "image") and data.path is None:
        what = "folder that holds the published files" if data.kind == "maf" else "table, such as data.path=points.csv"
        raise SpecError("data.path", f"the path of the {what}", None)
    for key in ("path", "val_path", "test_path", "columns", "drop", "context"):
        value = getattr(data, key)
        if value is not None and (not value.isprintable() or not 0 < len(value) <= LONGEST_TEXT):
            raise SpecError(f"data.{key}", f"printable text of at most {LONGEST_TEXT} characters", value)


def _check_context(data: Data) -> None:
    """Raise where there are no columns that could be given."""
    if data.context is not None and data.kind not in ("table", "sklearn"):
        expected = "null here, for it names columns of a table (data=table or one of scikit-learn's)"
        raise SpecError("data.context", expected, data.context)
    if data.context_dim and data.kind not in ("table", "sklearn", "array"):
        raise SpecError("data.context_dim", "0, for it is counted (data.context names columns)", data.context_dim)


def _check_own(data: Data) -> None:
    place = data.target
    if place is None or not place.isprintable() or len(place) > LONGEST_TEXT or not re.fullmatch(r".+:\w+", place):
        raise SpecError("data.target", "a density as file.py:Name or module:Name", place)
    for key in ("n_samples", "n_val", "n_test"):
        if getattr(data, key) is None:
            raise SpecError(f"data.{key}", "a number of points to draw", None)


def _check_images(data: Data) -> None:
    if data.kind != "image" or data.images is None:
        expected = f"data.kind=image and data.images one of {', '.join(IMAGE_SETS)}, as data=digits brings them"
        raise SpecError("data.images", expected, Words(f"data.kind={data.kind}, data.images={data.images}"))
    if data.noise is not None:
        raise SpecError("data.noise", "null for images (a flow of images dequantises them)", data.noise)
    if data.jitter != 0.0:
        raise SpecError("data.jitter", "0 for images (a flow of images dequantises them)", data.jitter)
    for key in ("columns", "drop"):
        if getattr(data, key) is not None:
            raise SpecError(f"data.{key}", "null for images", getattr(data, key))
    if data.images in IN_FILES and data.path is None:
        what = "an .npz or .npy file of images" if data.images == "npz" else "the folder that holds the images"
        raise SpecError("data.path", f"the path of {what}", None)


OF_IMAGES = {
    "flow": ("scales", "alpha", "dequantisation", "mixing", "net_norm"),
    "train": ("dropout", "augment", "augment_share", "augment_until"),
}
# What an image flow does not have, with the only value that a key of vectors may hold there.
NOT_OF_IMAGES = {"conditioner": "shared", "conditioner_input": "masked", "tail_bound": None, "tail": "none"}


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
        raise SpecError("flow.mask", f"one of {', '.join(masks)} where flow.kind is '{flow.kind}'", flow.mask)
    for group, keys in OF_IMAGES.items():
        for key in keys:
            value = getattr(getattr(spec, group), key)
            if images and value is None and group == "flow":
                raise SpecError(f"flow.{key}", "a value where flow.kind is 'image'", None)
            if not images and value is not None:
                raise SpecError(f"{group}.{key}", "null where flow.kind is 'vector'", value)
    if not images:
        return
    for key, only in NOT_OF_IMAGES.items():
        value = getattr(flow, key)
        if value != only:
            raise SpecError(f"flow.{key}", f"{only!r} where flow.kind is 'image'", value)
    if flow.init == "spread":
        raise SpecError("flow.init", "identity or random where flow.kind is 'image'", flow.init)
    for key in ("noise", "noise_end"):
        noise = getattr(spec.train, key)
        if noise > 0:
            raise SpecError(f"train.{key}", "0 for images, which lie in the cells of their levels", noise)


def check_shape(spec: Spec) -> None:
    """Raise where images of this shape cannot go through that many scales; does nothing while the shape is not known.

    Each scale but the last halves both sides, and a checkerboard needs a side of 2.
    """
    data, flow = spec.data, spec.flow
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
        raise SpecError("flow.scales", f"at most {most} for images of {height} x {width} pixels", flow.scales)
    halvings = flow.scales - 1
    if flow.mask == "channel" and channels == 1 and halvings == 0:
        halvings = 1  # one channel cannot be split: the only scale squeezes, too
    factor = 2**halvings
    if height % factor or width % factor:
        expected = f"scales for whose squeezing {factor} divides both sides of {height} x {width} pixels"
        raise SpecError("flow.scales", expected, flow.scales)


def _check_together(spec: Spec) -> None:
    _check_data(spec.data)
    _check_kinds(spec)
    check_shape(spec)
    if spec.data.name == "text" and not (spec.data.text or "").strip():
        raise SpecError("data.text", "letters to draw when data.name is 'text'", spec.data.text)
    if spec.train.warmup > spec.train.steps:
        raise SpecError("train.warmup", f"at most train.steps = {spec.train.steps}", spec.train.warmup)
    if spec.flow.tail_bound is not None and spec.flow.standardise == "none":
        expected = "null where flow.standardise is 'none', for it counts in standard deviations"
        raise SpecError("flow.tail_bound", expected, spec.flow.tail_bound)


NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def from_text(key: str, text: str) -> Any:
    """The number that a text spells exactly, where the key takes one; else the text.

    >>> from_text("seed", "3"), from_text("train.lr", "1e-3"), from_text("data.text", "3")
    (3, 0.001, '3')
    """
    cls: Any = Spec
    *groups, leaf = key.split(".")
    for group in groups:
        cls = _hints(cls).get(group)
        if not is_dataclass(cls):
            return text
    hint = _hints(cls).get(leaf)
    if is_parameter_key(key):
        hint = int | float
    kinds = {hint, *getattr(hint, "__args__", ())}
    if int in kinds and re.fullmatch(r"[+-]?[0-9]{1,30}", text):
        return int(text)
    if float in kinds and NUMBER.fullmatch(text):
        return float(text)
    return text


def flatten(spec: Spec) -> dict[str, Any]:
    """The keys as the command line spells them: ``{"data.name": …, "flow.n_flows": …, …, "seed": …}``.

    Keys that may be absent are so where they have their default.
    """
    flat: dict[str, Any] = {}
    for f in fields(spec):
        value = getattr(spec, f.name)
        if is_dataclass(value):
            for g in fields(value):
                own = getattr(value, g.name)
                if g.name == "parameters":
                    flat |= {f"{f.name}.{key}": parameter for key, parameter in own}
                elif own != g.default:
                    flat[f"{f.name}.{g.name}"] = own
        else:
            flat[f.name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Spec:
    """The inverse of :func:`flatten`, checked again; what an old record lacks is as in :data:`ADDED`."""
    nested: dict[str, Any] = {}
    for key, value in (ADDED | dict(flat)).items():
        group, _, leaf = key.rpartition(".")
        inside = nested.setdefault(group, {}) if group else nested
        if not isinstance(inside, dict):
            raise SpecError(group, "a group of keys", inside)
        inside[leaf] = value
    return from_mapping(nested)


# Where the numbers of a table, or the code of a target, come from; what they are, `data.digest` says.
READING = frozenset(
    {"data.kind", "data.path", "data.val_path", "data.test_path", "data.columns", "data.drop", "data.context",
     "data.header", "data.missing", "data.target", "data.images", "data.check"}
)  # fmt: skip


def relevant(spec: Spec) -> dict[str, Any]:
    """The flattened keys that can change a number of the run: all but :data:`NO_PART` and what it records.

    Of a table they hold what its numbers are, not where they are read.
    """
    return {k: v for k, v in flatten(spec).items() if is_relevant(k)}


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


def event_shape(data: Data) -> tuple[int, ...]:
    """The shape of one point of the data: (D,) for a vector, (C, H, W) for an image."""
    if data.channels is None or data.height is None or data.width is None:
        return (data.dim,)
    return data.channels, data.height, data.width


def swaps(mask: str, n_flows: int) -> list[bool]:
    """Which couplings, in data → base order, pass what the first one moves, by a mask schedule that is not random."""
    if mask == "fixed":
        return [False] * n_flows
    if mask == "once":
        return [i >= (n_flows + 1) // 2 for i in range(n_flows)]
    return [i % 2 == 1 for i in range(n_flows)]


def passed_counts(flow: Flow, dim: int) -> tuple[int, ...]:
    """How many of `dim` coordinates each coupling passes unchanged, in data → base order.

    Which ones, :func:`nfexp.flows.layers.draw_mask` says.
    """
    if flow.mask == "random":
        return (dim // 2,) * flow.n_flows
    first = dim // 2 if flow.mask == "half" else (dim + 1) // 2
    counts = []
    for swapped in swaps(flow.mask, flow.n_flows):
        counts.append(dim - first if swapped else first)
    return tuple(counts)


def batch_points(spec: Spec) -> int:
    """Points per training step."""
    return spec.data.points[0] if spec.train.batch_size == "full" else int(spec.train.batch_size)


# May differ between the members of a stack; everything else of `relevant` must agree.
PER_MEMBER = frozenset(
    {"data.name", "data.n_samples", "data.noise", "data.text", "flow.mask", "train.lr", "train.grad_clip",
     "train.weight_decay", "train.noise", "train.noise_end", "train.select", "train.batch_size", "seed",
     "data.split", "data.jitter", "data.digest", *(READING - {"data.kind"})}
)  # fmt: skip


def stack_key(spec: Spec) -> tuple[tuple[str, Any], ...]:
    """What must agree in a stack: shape of a point, architecture, batch, steps, evaluation sizes, device, recording."""
    shared: dict[str, Any] = {"event_shape": event_shape(spec.data), "batch_points": batch_points(spec)}
    if spec.flow.kind == "image":  # what a mask says decides where an image is squeezed
        shared["mask"] = spec.flow.mask
    if spec.flow.conditioner_input == "passed":  # masks may differ, the networks' shapes may not
        shared["passed"] = passed_counts(spec.flow, math.prod(event_shape(spec.data)))
    for key, value in flatten(spec).items():
        if key not in PER_MEMBER and key != "name" and not is_parameter_key(key):
            shared[key] = value
    return tuple(shared.items())
