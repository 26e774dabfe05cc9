"""Contrasts of a study's own: is one cell better than another by more than a margin?

Read and checked here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nfexp.record.metrics import METRICS
from nfexp.spec import NAME, SpecError, Words, is_relevant

KEY = "contrasts"
MANY = 100  # contrasts of one study
KINDS = ("above", "within")
QUANTIFIERS = ("every", "some", "most")
NOT_A_CELL = ("data.name", "data.kind", "data.target", "seed")
LONGEST = 200  # characters of a sentence


@dataclass(frozen=True, kw_only=True)
class OwnContrast:
    """The question whether the cell `better` beats the cell `worse` by more than `margin`.

    The cells are given by how they differ from the centre of a target. The effect is metric(worse)
    − metric(better), paired by seed: lower is better. Of the kind "within" the question is whether
    the two are within the margin of each other, either way.
    """

    name: str
    better: Mapping[str, Any]
    worse: Mapping[str, Any]
    margin: float = 0.0
    # None: the KL, the test NLL where no density is known, bits/dim of images
    metric: str | None = None
    kind: str = "above"
    quantifier: str = "every"
    sentence: str | None = None

    def written(self) -> dict[str, Any]:
        """As it stands in `sweep.json`, below its name."""
        values = asdict(self)
        del values["name"]
        return values


def contrasts_of(given: Mapping[str, Any] | None) -> tuple[OwnContrast, ...]:
    """The contrasts that a configuration or a `sweep.json` holds, by name.

    >>> (one,) = contrasts_of({"deep": {"better": {"flow.n_flows": 8}, "worse": {}, "margin": 0.05}})
    >>> one.kind, one.margin, one.metric
    ('above', 0.05, None)

    Raises
    ------
    SpecError
        For the first value that a contrast cannot have.
    """
    if given is None:
        return ()
    if not isinstance(given, Mapping) or len(given) > MANY:
        raise SpecError(KEY, f"at most {MANY} contrasts by name", Words("something else"))
    return tuple(_contrast(name, one) for name, one in given.items())


def _contrast(name: Any, given: Any) -> OwnContrast:
    key = f"{KEY}.{name}"
    if not isinstance(name, str) or not re.fullmatch(NAME, name, re.ASCII) or len(name) > 40:
        raise SpecError(KEY, "names of at most 40 letters, digits, '_', '-' and '.'", name)
    if not isinstance(given, Mapping):
        raise SpecError(key, "the keys better, worse and margin", given)
    known = ("better", "worse", "margin", "metric", "kind", "quantifier", "sentence")
    for entry in given:
        if entry not in known:
            raise SpecError(
                f"{key}.{entry}", f"one of the keys {', '.join(known)}", Words("an unknown key")
            )
    sides = {}
    for side in ("better", "worse"):
        sides[side] = _cell(f"{key}.{side}", given.get(side))
    if sides["better"] == sides["worse"]:
        raise SpecError(key, "two cells that differ", Words("the same as better and as worse"))
    kind = _one_of(f"{key}.kind", given.get("kind", "above"), KINDS)
    margin = given.get("margin", 0.0)
    is_number = isinstance(margin, int | float) and not isinstance(margin, bool)
    if not is_number or not 0 <= margin < math.inf or (kind == "within" and margin == 0):
        raise SpecError(f"{key}.margin", "a number >= 0, and above 0 for kind=within", margin)
    metric = given.get("metric")
    if metric is not None:
        _one_of(f"{key}.metric", metric, tuple(METRICS))
    sentence = given.get("sentence")
    is_text = isinstance(sentence, str) and sentence.isprintable() and 0 < len(sentence) <= LONGEST
    if sentence is not None and not is_text:
        raise SpecError(f"{key}.sentence", f"a line of at most {LONGEST} characters", sentence)
    return OwnContrast(
        name=name,
        **sides,
        margin=float(margin),
        metric=metric,
        kind=kind,
        quantifier=_one_of(f"{key}.quantifier", given.get("quantifier", "every"), QUANTIFIERS),
        sentence=sentence,
    )


def _one_of(key: str, value: Any, options: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in options:
        raise SpecError(key, f"one of {', '.join(options)}", value)
    return value


def _cell(key: str, given: Any) -> dict[str, Any]:
    """How a cell differs from the centre: keys of a run's configuration, and plain values."""
    if given is None:
        raise SpecError(
            key, "how the cell differs from the centre, {} for the centre itself", Words("nothing")
        )
    if not isinstance(given, Mapping):
        raise SpecError(key, "a mapping of keys to values, {} for the centre itself", given)
    for name, value in given.items():
        is_key = isinstance(name, str) and re.fullmatch(
            r"(data|flow|train)\.\w{1,60}", name, re.ASCII
        )
        if not is_key or not is_relevant(name) or name in NOT_A_CELL:
            raise SpecError(
                f"{key}.{name}",
                "a key of data, flow or train such as flow.n_flows",
                Words("another"),
            )
        is_text = isinstance(value, str) and value.isprintable() and len(value) <= LONGEST
        is_number = (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
        if value is not None and not is_number and not is_text:
            raise SpecError(f"{key}.{name}", "one value", value)
    return dict(given)
