"""The claims about flows of images, judged by the same rules on the runs that are of images.

Effects are in bits/dim of the test images, the mean of single-sample bounds. What else than the
sign would matter to a reader: 0.02, about twice what one seed of a digits run at full length
differs from another by.
"""

from __future__ import annotations

from collections.abc import Sequence

from nfexp.analysis.claims.catalogue import CLAIMS, Claim
from nfexp.analysis.claims.measures import Contrast, mean_of, versus
from nfexp.analysis.statistics import BITS, Study
from nfexp.analysis.statistics.ablations import Centres

REALNVP = "Dinh et al. 2017"
FLOW_PLUS = "Ho et al. 2019"


def _each_mask_alone(study: Study) -> list[Contrast]:
    contrasts = []
    for mask in ("checkerboard", "channel"):
        contrasts.append(mean_of(f"{mask} alone", study.gap({"flow.mask": mask}, {}, BITS)))
    return contrasts


IMAGE_CLAIMS = (
    Claim(
        id="I1",
        source=REALNVP,
        sentence="Several scales help.",
        estimand="bits/dim(1 scale) − bits/dim(the centre, 2 scales)",
        measure=versus({"flow.scales": 1}, {}, BITS),
    ),
    Claim(
        id="I2",
        source=REALNVP,
        sentence="Both kinds of mask are needed, checkerboards and channels.",
        margin=0.02,
        why="'needed': worse by what matters without either",
        estimand="bits/dim(one kind of mask alone, as many couplings) − bits/dim(both), for each kind",
        measure=_each_mask_alone,
    ),
    Claim(
        id="I3",
        source="NICE 2014, RealNVP 2016",
        sentence="Affine couplings beat additive ones.",
        estimand="bits/dim(additive) − bits/dim(affine)",
        measure=versus({"flow.coupling": "additive"}, {}, BITS),
    ),
    Claim(
        id="I4",
        source=FLOW_PLUS,
        sentence="Learned dequantisation helps.",
        estimand="bits/dim(uniform) − bits/dim(by a small network)",
        measure=versus({"flow.dequantisation": "uniform"}, {"flow.dequantisation": "net"}, BITS),
    ),
    Claim(
        id="I5",
        source="common practice",
        sentence="Shifting images by a pixel helps against over-fitting.",
        estimand="bits/dim(images as they are) − bits/dim(shifted where nothing is lost)",
        measure=versus({"train.augment": "none"}, {"train.augment": "shift"}, BITS),
    ),
    Claim(
        id="I6",
        source="Kingma and Dhariwal 2018",
        sentence="Activation normalisation helps.",
        estimand="bits/dim(no normalisation) − bits/dim(actnorm)",
        measure=versus({"flow.norm": "none"}, {}, BITS),
    ),
)


def claims_of_sources(centres: Centres) -> list[tuple[Sequence[Claim], list[str]]]:
    """The claims about flows of vectors with the targets of those, and likewise about images.

    `centres` holds the centre of the study per target. A study without images gets the former
    alone, one of nothing but images the latter alone.
    """
    vectors: list[str] = []
    images: list[str] = []
    for target, centre in centres.items():
        group = images if centre.get("flow.kind") == "image" else vectors
        group.append(target)
    groups: list[tuple[Sequence[Claim], list[str]]] = []
    if vectors or not images:
        groups.append((CLAIMS, vectors))
    if images:
        groups.append((IMAGE_CLAIMS, images))
    return groups
