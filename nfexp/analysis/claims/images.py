"""The claims about flows of images, judged by the same rules on the runs that are of images.

Effects are in bits/dim of the test images, the mean of single-sample bounds. What else than the sign
would matter to a reader: 0.02, about twice what one seed of a digits run at full length differs from
another by.
"""

from __future__ import annotations

from nfexp.analysis.claims.catalogue import Claim
from nfexp.analysis.claims.measures import Contrast, mean_of
from nfexp.analysis.statistics import BITS, Study

REALNVP = "Dinh et al. 2017"
FLOW_PLUS = "Ho et al. 2019"


def _gap(study: Study, a: dict[str, object], b: dict[str, object], label: str = "") -> Contrast:
    return mean_of(label, study.gap(a, b, BITS))


def _one_scale(study: Study) -> list[Contrast]:
    return [_gap(study, {"flow.scales": 1}, {})]


def _each_mask_alone(study: Study) -> list[Contrast]:
    found = []
    for mask in ("checkerboard", "channel"):
        found.append(_gap(study, {"flow.mask": mask}, {}, f"{mask} alone"))
    return found


def _additive(study: Study) -> list[Contrast]:
    return [_gap(study, {"flow.coupling": "additive"}, {})]


def _uniform(study: Study) -> list[Contrast]:
    return [_gap(study, {}, {"flow.dequantisation": "net"})]


def _unchanged(study: Study) -> list[Contrast]:
    return [_gap(study, {}, {"train.augment": "shift"})]


def _without_norm(study: Study) -> list[Contrast]:
    return [_gap(study, {"flow.norm": "none"}, {})]


IMAGE_CLAIMS = (
    Claim(
        id="I1",
        source=REALNVP,
        sentence="Several scales help.",
        estimand="bits/dim(1 scale) − bits/dim(the centre, 2 scales)",
        measure=_one_scale,
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
        measure=_additive,
    ),
    Claim(
        id="I4",
        source=FLOW_PLUS,
        sentence="Learned dequantisation helps.",
        estimand="bits/dim(uniform) − bits/dim(by a small network)",
        measure=_uniform,
    ),
    Claim(
        id="I5",
        source="common practice",
        sentence="Shifting images by a pixel helps against over-fitting.",
        estimand="bits/dim(images as they are) − bits/dim(shifted where nothing is lost)",
        measure=_unchanged,
    ),
    Claim(
        id="I6",
        source="Kingma and Dhariwal 2018",
        sentence="Activation normalisation helps.",
        estimand="bits/dim(no normalisation) − bits/dim(actnorm)",
        measure=_without_norm,
    ),
)
