"""The keys of one run, each with its type and range; values are in ``conf/`` only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from nfexp.spec.errors import SpecError, Words
from nfexp.spec.ranges import choice, filled_in, listed, named, within

SCHEMA_VERSION = 1  # of result.json and sweep.json
OF_A_TABLE = "null for a table"
# Sets of images: those of packages, a law of its own (`nfexp.mesh`), standard sets in a folder, the
# user's own
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


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is learned from.

    A target and how many points are drawn from it, or a table of the user's own.

    `parameters` are keys beside the fields: numbers of a built-in target that are not the usual
    ones, and whatever a target of the user's own takes.
    """

    name: str = named()  # of a target or a table; `nfexp.data` knows which targets there are
    n_samples: int | None = within(2, 10_000_000, null=OF_A_TABLE)
    noise: float | None = within(0, 1e6, exclusive=True, null=OF_A_TABLE)
    n_val: int | None = within(2, 10_000_000, null=OF_A_TABLE)
    n_test: int | None = within(2, 10_000_000, null=OF_A_TABLE)
    text: str | None
    # What follows is for tables; `nfexp.tables` reads them, and fills in sizes, `dim` and `digest`
    kind: str = choice(
        "density", "own", "table", "sklearn", "maf", "array", "image", default="density"
    )
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
    dim: int = within(
        1, 65_536, default=2, meaning="coordinates of a point; read off the table, not to be set"
    )
    context_dim: int = within(
        0, 65_536, default=0, meaning="columns of the context; counted, not to be set"
    )
    digest: str | None = filled_in("of the numbers of a table, which names its runs; not to be set")
    # A density of the user's own; `nfexp.targets` finds its source, and fills in `digest`
    target: str | None = None
    parameters: tuple[tuple[str, Any], ...] = field(
        default=(),
        metadata={
            "meaning": "what a target can be varied by; each has a key of its own, as data.factor"
        },
    )

    # What follows is for images, filled in with their sizes, `dim` and `digest`: `dim` is channels
    # · height · width
    channels: int | None = within(1, 1024, default=None)
    height: int | None = within(1, 4096, default=None)
    width: int | None = within(1, 4096, default=None)
    levels: int | None = within(2, 65_536, default=None)  # values of a pixel: 0, 1, …, levels − 1
    images: str | None = choice(*IMAGE_SETS, default=None)  # which set; `nfexp.images` reads them
    # what the files of a standard set must be
    check: str = choice("published", "format", default="published")

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
        # the rows that an estimator is tested on come later
        n_test = 0 if self.kind == "array" else self.n_test
        sizes = (self.n_samples, self.n_val, n_test)
        if None in sizes:
            raise SpecError(
                "data",
                "a table that was read, see nfexp.tables.settled",
                Words("one without its sizes"),
            )
        return sizes  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The architecture: RealNVP and its variants.

    For images `n_flows` counts the couplings of one kind of mask at one scale, `hidden_depth` the
    residual blocks of their networks and `hidden_width` the maps; see
    :mod:`nfexp.flows.image.plan`.
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
    init: str = choice("spread", "identity", "random", "kaiming")
    standardise: str = choice("moments", "none", "marginals")
    norm: str = choice("none", "batchnorm", "actnorm")
    norm_every: int = within(1, 1000)
    base: str = choice("normal", "logistic", "laplace", "student_t", "mixture", "contaminated")
    tail_bound: float | None = within(0, 1e6, exclusive=True)
    tail: str = choice("none", "learned")
    members: int = within(1, 1000)  # of an ensemble: flows whose mean density is the run's
    weights: str = choice("equal", "val")  # of the members in that mean
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
