"""The contrasts of a study's own as claims, judged by the same rules as those of the sources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from nfexp.analysis.claims.catalogue import Claim
from nfexp.analysis.claims.measures import Contrast, Measure, mean_of
from nfexp.analysis.contrasts import OwnContrast
from nfexp.analysis.statistics import BITS, Study, named
from nfexp.analysis.statistics.ablations import measure_of

SOURCE = "this study"
# of the usual measure, in a verdict's row
NAMES = {"kl": "", "test_nll": "test NLL", BITS: "bits/dim"}


def claims_of(contrasts: Iterable[OwnContrast]) -> list[Claim]:
    """One claim for each contrast."""
    return [_claim(contrast) for contrast in contrasts]


def _claim(contrast: OwnContrast) -> Claim:
    better = named(contrast.better)
    worse = named(contrast.worse)
    metric = contrast.metric or "KL (NLL where no density is known, bits/dim of images)"
    sentence = f"{better} is better than {worse}"
    if contrast.kind == "within":
        sentence = f"{better} is as good as {worse}"
    elif contrast.margin:
        sentence += f" by more than {contrast.margin:g}"
    return Claim(
        id=contrast.name,
        source=SOURCE,
        sentence=contrast.sentence or f"{sentence}.",
        estimand=f"{metric} of ({worse}) − of ({better})",
        measure=gap_of(contrast.worse, contrast.better, contrast.metric),
        kind=contrast.kind,
        margin=contrast.margin,
        why="as the study says",
        quantifier=contrast.quantifier,
        everywhere=True,
    )


def gap_of(a: Mapping[str, Any], b: Mapping[str, Any], metric: str | None = None) -> Measure:
    """The measure metric(a) − metric(b) of two cells.

    Without a metric it is the KL, the test NLL where no density is known, and bits/dim of images.
    """

    def measure(study: Study) -> list[Contrast]:
        if metric is not None:
            return [mean_of(metric, study.gap(a, b, metric))]
        usual = measure_of(pd.concat(study.cells.values())) if study.cells else "kl"
        return [mean_of(NAMES[usual], study.gap(a, b, usual))]

    return measure
