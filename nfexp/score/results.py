"""What a finished run is: its status, its metrics, and what figures need of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from nfexp.spec import Spec

Metrics = dict[str, float | int | None]
Arrays = dict[str, list[np.ndarray]]  # key → one array per run


@dataclass(kw_only=True)
class Result:
    """One finished run: what its directory will hold. Every NLL in nats per point, data units."""

    spec: Spec
    status: str
    reason: str | None = None
    metrics: Metrics = field(default_factory=dict)
    history: dict[str, np.ndarray] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)
    members: list[Metrics] = field(default_factory=list)  # of an ensemble: what each flow is alone
    kernel: str = "torch"  # what computed it: "torch" or "fused"


def finite_or_none(metrics: Metrics) -> Metrics:
    """The metrics, with None for those that are not finite.

    A flow with a finite density can still overflow on the way to samples: such a metric is missing.
    """
    finite: Metrics = {}
    for key, value in metrics.items():
        is_lost = isinstance(value, float) and not math.isfinite(value)
        finite[key] = None if is_lost else value
    return finite
