"""What the report says, as plain values: `layouts` only lays it out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nfexp.analysis import table
from nfexp.analysis.table.records import rows_of
from nfexp.report.explorer.libraries import HOW_TO_GET
from nfexp.report.results import (
    CELL,
    AblationTable,
    CentreRow,
    Centres,
    ablation_table,
    centre_rows,
    fits_by_draws,
    measure_word,
)
from nfexp.report.selection import differences
from nfexp.report.verdicts import ClaimVerdict, verdicts
from nfexp.report.words import TROUBLES, duration, plain

BADGES = {"supported": "✓", "contradicted": "✗", "inconclusive": "?"}
RULE = (
    "Intervals are of one target each; verdicts are corrected over a claim's targets (Holm), so that an interval that "
    "just clears the margin can still be inconclusive. A difference that is not significant is not an equality."
)
ROUNDS_RULE = (
    "Seeds came in rounds: a verdict is that of the first look that gives it, and is corrected over all looks; an "
    "interval is not. Seeds needed are those that would decide an open claim if its estimates and spreads stayed."
)
# The most runs that did not complete, and the most files that could not be read, that a page lists:
# runs.csv and stderr have the rest
LISTED = 1000
LONGEST_COMMAND = 4096  # letters
OF_A_RUN = ("name", "data.name", "seed", "device")  # keys that say nothing of the centre


@dataclass(frozen=True)
class UnfinishedRun:
    """A run that did not complete."""

    job: str
    status: str
    target: str
    seed: str
    differs: str  # from the centre
    at: str  # the step at which it diverged
    reason: str


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Everything the report says, ready to be laid out."""

    title: str
    facts: dict[str, str]
    verdicts: list[ClaimVerdict]
    hidden: int  # claims without any run to judge them by
    tally: dict[str, int]  # of the verdicts
    centre: list[CentreRow]
    baselines: bool  # whether any are fitted
    measure: str  # what flows are compared by: KL, NLL or both
    axes: list[AblationTable]
    pictures: dict[str, dict[str, Path]]  # by kind and name
    bad: list[UnfinishedRun]  # LISTED of them
    n_bad: int
    skipped: list[str]  # LISTED of the files that could not be read
    n_skipped: int
    config: list[tuple[str, str]]  # key and value at the centre
    command: str  # the arguments that make this report again
    explorer: str  # how to get explorer.html; empty where it is beside the page


def contents_of(
    collected: table.Collection,
    tables: Mapping[str, pd.DataFrame],
    judged: pd.DataFrame,
    pictures: Mapping[str, Path],
    command: str,
    fits: pd.DataFrame,
    *,
    has_explorer: bool = False,
) -> Contents:
    """What there is to say of the runs `collected`, with their tables, verdicts and pictures."""
    centres = collected.sweep.centres
    runs = table.distinct(collected.runs)
    claims = verdicts(judged)
    baselines = fits_by_draws(fits)
    bad = runs[runs["status"] != "completed"]
    if not command.isprintable():
        command = table.printable(command, LONGEST_COMMAND)
    return Contents(
        title=collected.sweep.name,
        facts=_facts(collected, runs),
        verdicts=claims.shown,
        hidden=claims.n_hidden,
        tally=_tally(claims.shown),
        centre=centre_rows(runs, centres, baselines),
        baselines=bool(baselines),
        measure=measure_word(runs[runs["status"] == "completed"]),
        axes=[ablation_table(axis, own, centres, baselines) for axis, own in tables.items()],
        pictures={kind: _of_kind(kind, pictures) for kind in ("ablation", *HEADINGS)},
        bad=_unfinished(bad[:LISTED], centres, collected.reasons),
        n_bad=len(bad),
        skipped=[str(error) for error in collected.skipped[:LISTED]],
        n_skipped=len(collected.skipped),
        config=_configuration(centres),
        command=command,
        explorer="" if has_explorer else HOW_TO_GET,
    )


def _facts(collected: table.Collection, runs: pd.DataFrame) -> dict[str, str]:
    """The heading of the page; `runs` are those found, each once. What is empty is not shown."""
    n_repeated = len(collected.runs) - len(runs)
    planned = max(collected.sweep.planned, len(collected.runs)) - n_repeated
    counts = runs["status"].value_counts().to_dict()
    ends = [f"{counts.get('completed', 0)} completed of {planned} planned"]
    for status in TROUBLES:
        if counts.get(status):
            ends.append(f"{counts[status]} {status}")
    versions = [f"{package} {' / '.join(known)}" for package, known in collected.versions.items()]
    n_skipped = len(collected.skipped)
    return {
        "runs": ", ".join(ends),
        "targets": ", ".join(sorted(map(str, set(runs["data.name"])))),
        "seeds": table.printable(ranges(runs["seed"])),
        "training": f"{duration(float(runs['seconds'].sum()))} in all",
        "versions": ", ".join(versions),
        "repetitions": table.repetitions(collected.runs),
        "skipped": f"{n_skipped} not read" if n_skipped else "",
    }


def ranges(seeds: Iterable[Any]) -> str:
    """Distinct whole numbers, runs of them as ranges.

    >>> ranges([2, 0, 1, 7, 7])
    '0–2, 7'
    """
    known = sorted({int(seed) for seed in seeds})
    parts = []
    for seed in known:
        if seed - 1 not in known:
            start = seed
        if seed + 1 not in known:
            parts.append(str(start) if start == seed else f"{start}–{seed}")
    return ", ".join(parts)


def _tally(claims: Sequence[ClaimVerdict]) -> dict[str, int]:
    """How many claims have each verdict, in the order of BADGES."""
    given = [claim.verdict for claim in claims]
    return {verdict: given.count(verdict) for verdict in BADGES if verdict in given}


def _of_kind(kind: str, pictures: Mapping[str, Path]) -> dict[str, Path]:
    """The pictures of one kind, by the rest of their names."""
    prefix = f"{kind}_"
    of_kind = {}
    for name, path in pictures.items():
        if name.startswith(prefix):
            of_kind[name.removeprefix(prefix)] = path
    return of_kind


def _unfinished(
    runs: pd.DataFrame,
    centres: Centres,
    reasons: Mapping[str, str],
) -> list[UnfinishedRun]:
    unfinished = []
    for row, differs in zip(rows_of(runs), differences(runs, centres), strict=True):
        settings = []
        for key in differs:
            settings.append(f"{key} = {table.printable(plain(row[key]), CELL)}")
        step = row["diverged_at"]
        usual_reason = "planned, no result" if row["status"] == "missing" else "–"
        unfinished.append(
            UnfinishedRun(
                job=row["job"],
                status=row["status"],
                target=row["data.name"],
                seed=plain(row["seed"]),
                differs=", ".join(settings) or "centre",
                at=plain(step) if step == step else "–",
                reason=reasons.get(row["dir"]) or usual_reason,
            )
        )
    return unfinished


def _configuration(centres: Centres) -> list[tuple[str, str]]:
    """The centre of the study by key: one value, or one per target where they differ."""
    keys: dict[str, None] = {}  # a set that keeps its order
    for centre in centres.values():
        keys |= dict.fromkeys(centre)
    rows = []
    for key in keys:
        if key in OF_A_RUN:
            continue
        known = {str(centre.get(key)) for centre in centres.values()}
        if len(known) == 1:
            text = table.printable(known.pop(), CELL)
        else:
            pairs = []
            for target, centre in centres.items():
                pairs.append(f"{target}: {table.printable(plain(centre.get(key)), CELL)}")
            text = ", ".join(pairs)
        rows.append((key, text))
    return rows


CAPTIONS = {
    "ablation": "KL to the exact density by {0}, one panel per target; what did not complete is written at its value.",
    "convergence": "Validation NLL above the target's own, by {0}: thin lines are runs, thick lines their means.",
    "centre": "NLL above the target's own at the centre of the study, on training and validation points.",
    "gallery": "{0}: base draw, training points, samples at recorded steps (from one base draw), best model.",
    "density": "{0}: learned density beside the exact one, in the same colours, and log q − log p where p counts.",
    "corner": "{0}: rows of the table (grey) and as many samples (blue), each column alone and each pair.",
    "walk": "{0}: the same base points and grid after every layer, coloured by the quadrant they started in.",
    "images": "{0}: training images, and as many samples of the flow.",
    "temperatures": "{0}: samples from the same base draws, which are multiplied by the temperature of each row.",
    "interpolation": "{0}: between two test images at the ends of each row, along a great circle of the base.",
    "scales": "{0}: test images; below, the base of the finest scales drawn anew, one scale more in each row.",
    "imagewalk": "{0}: samples after every layer from base to data, each panel in colours of its own.",
    "summary": "Target draws, flow samples and learned density of one run; KL of all seeds, mean and 95% interval.",
}
OF_NLL = {  # where no density is known
    "ablation": "Test NLL by {0}, one panel per table; what did not complete is written at its value.",
    "convergence": "NLL against the training step, {0}: thin lines are runs, thick lines their means.",
}
OF_BITS = {  # of images
    "ablation": "Bits/dim of test images by {0}; what did not complete is written at its value.",
    "convergence": "Bits/dim against the training step, {0}: thin lines are runs, thick lines their means.",
}
HEADINGS = {
    "summary": "The centre at a glance",
    "convergence": "Learning curves",
    "gallery": "Convergence galleries",
    "density": "Densities",
    "corner": "Data and samples",
    "walk": "Layer by layer",
    "images": "Images and samples",
    "temperatures": "Samples at temperatures",
    "interpolation": "From one image to another",
    "scales": "What each scale holds",
    "imagewalk": "Images layer by layer",
}

BASELINES_NOTE = (
    "Without a flow, from scikit-learn: a Gaussian with full covariance, a mixture of such Gaussians (components by "
    "BIC) and a Gaussian kernel density (bandwidth by 5-fold cross-validation, in standard deviations of the data), "
    "fitted to the runs' own training draws (mixture and kernel to the first 20,000 points at most) and scored on the "
    "same test draws; the flow had the validation draws besides, to choose its weights. The difference is paired by "
    "seed: above 0 the flow is better."
)

IMAGE_BASELINES_NOTE = (
    "Without a flow of images, on the same split: uniform levels, a histogram of each pixel, a Gaussian and a mixture "
    "of Gaussians of the pixels' logits, a mixture of independent pixels, and RealNVP of the pixels as a vector. What "
    "there is to choose, validation images choose. Densities of logits are scored by the mean bound of 16 places in "
    "the cells of each test image. The difference is paired by seed: above 0 the flow is better."
)


def caption(kind: str, name: str, measure: str = "KL") -> str:
    """What a picture shows, for the figure's caption and for readers who cannot see it."""
    if measure == "NLL" and kind in OF_NLL:
        return OF_NLL[kind].format(name)
    if measure == "bits/dim" and kind in OF_BITS:
        return OF_BITS[kind].format(name)
    if kind == "convergence" and name == "centre":
        return CAPTIONS["centre"]
    return CAPTIONS[kind].format(name)
