"""The runs that a command asks for: the distinct ones of its points."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nfexp.spec import Spec, SpecError, Words, counted, relevant, run_id

LABELLED = 6  # keys that the label of a run names at most
NOT_NAMED = ("data.name", "data.digest", "seed")  # the first and the last stand in every label


@dataclass(frozen=True)
class Request:
    """A run that a command asks for: its overrides, and the spec they compose to."""

    overrides: Sequence[str]
    spec: Spec


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The runs of a sweep, by `run_id`, and a sentence on what was left out."""

    requests: dict[str, Request]
    dropped: str


def choose(
    overrides: Sequence[Sequence[str]],
    spec_of: Callable[[Sequence[str]], Spec],
    *,
    excluded: int,
    sample: int | None,
) -> Chosen:
    """The distinct runs among many lists of overrides, and of these `sample`, drawn at random.

    Of two equal runs the one that records more is trained. A sample of the same grid is always the
    same one. `excluded` is how many points were left out before.
    """
    requests: dict[str, Request] = {}
    for one in overrides:
        spec = spec_of(one)
        identity = run_id(spec)
        other = requests.get(identity)
        if other is None or _records_more(spec, other.spec):
            requests[identity] = Request(one, spec)
    n_distinct = len(requests)
    if n_distinct == 0 and excluded:
        raise SpecError("hydra.sweeper.exclude", "at least one run", Words("none left"))
    if n_distinct == 0:
        got = Words("none that agrees with the command line")
        raise SpecError("hydra.sweeper.grids", "at least one run", got)
    dropped = f"{counted(len(overrides) - n_distinct, 'duplicate')} dropped"
    if excluded:
        dropped += f", {excluded} excluded"
    if sample is not None and sample < n_distinct:
        drawn = set(random.Random(0).sample(sorted(requests), sample))
        for identity in requests.keys() - drawn:
            del requests[identity]  # the others keep their order
        dropped += f", drawn from {n_distinct}"
    return Chosen(requests=requests, dropped=dropped)


def _records_more(spec: Spec, other: Spec) -> bool:
    """Whether a run keeps all that an equal one keeps for figures, and something else."""
    mine = vars(spec.record)
    theirs = vars(other.record)
    return mine != theirs and all(mine[key] >= theirs[key] for key in theirs)


# --- Runs in words ---------------------------------------------------------------------


def varied_keys(specs: Sequence[Spec]) -> list[str]:
    """The keys that a sweep varies: of some target there are runs with different values.

    A key that only follows the target, such as the default noise of each, is none.
    """
    values: dict[tuple[str, str], set[object]] = {}
    for spec in specs:
        for key, value in relevant(spec).items():
            values.setdefault((key, spec.data.name), set()).add(value)
    keys = []
    for (key, _), distinct in values.items():
        if len(distinct) > 1 and key not in NOT_NAMED and key not in keys:
            keys.append(key)
    return keys


def label(spec: Spec, varied: Sequence[str]) -> str:
    """A run in words: its target, its seed, and its values of what the sweep varies.

    Such as "moons seed 0 flow.n_flows=2 flow.activation=tanh".
    """
    values = relevant(spec)
    words = [f"{spec.data.name} seed {spec.seed}"]
    for key in varied[:LABELLED]:
        value = values.get(key)
        words.append(f"{key}={'null' if value is None else value}")
    if len(varied) > LABELLED:
        words.append("…")
    return " ".join(words)
