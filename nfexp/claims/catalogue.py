"""The catalogue: one entry per claim of the sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nfexp.claims.measures import (
    FLOWS,
    NOISE,
    SAMPLES,
    Contrast,
    best_under_noise,
    covering_masks,
    deeper,
    divergence,
    divergence_by_lr,
    extremes,
    fewer_flows,
    fixed_mask,
    flows_needed,
    kl_at_most_noise,
    one_complex_flow,
    one_coordinate,
    ranges,
    six_against_each,
    time_by_samples,
    versus,
)

PAPER, BLOG = "Kataria, section III", "tutorial blog"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of a source, what is measured for it, and the margin with its reason."""

    id: str
    source: str
    sentence: str
    estimand: str
    measure: Callable[..., Sequence[Contrast]]
    kind: str = "above"
    margin: float = 0.0
    why: str = "the sign decides"
    quantifier: str = "every"
    across: bool = False
    about_divergence: bool = False


CLAIMS = (
    Claim(
        id="K1a", source=PAPER, sentence="One flow is not enough on any target.", margin=0.05,
        why="the spread between good recipes at the same budget",
        estimand="KL(1 flow) − KL(centre), nats", measure=versus({FLOWS: 1}, {}),
    ),
    Claim(
        id="K1b", source=PAPER, sentence="Nor is one very complex flow.", margin=0.05, why="as K1a",
        estimand="KL(best single flow deeper or wider than the centre, by mean) − KL(centre), nats",
        measure=one_complex_flow,
    ),
    Claim(
        id="K1c", source=PAPER, sentence="Simple targets (moons, spiral2) need fewer flows.", across=True,
        estimand="flows needed (smallest number within 0.05 nats of the seed's lowest KL on the flows axis): mean of "
        "circles and spiral4 − mean of moons and spiral2, flows", measure=flows_needed,
    ),
    Claim(
        id="K1d", source=PAPER, sentence="Six flows are the optimum most of the time.", kind="below", margin=0.02,
        why="less would be the noise of a test set", quantifier="most",
        estimand="KL(6 flows) − KL(n flows) for every other n, nats: no n is better by more",
        measure=six_against_each,
    ),
    Claim(
        id="K2a", source=PAPER, sentence="More complexity of each flow makes no huge change.", kind="within",
        margin=0.1, why="'huge': twice what matters in K1",
        estimand="KL(depth d) − KL(depth 2) for every d above 2, nats", measure=deeper,
    ),
    Claim(
        id="K2b", source=PAPER, sentence="Concatenation matters more than the complexity of each flow.",
        estimand="range (max − min) of KL over the flows axis − range over the depth axis, nats", measure=ranges,
    ),
    Claim(
        id="K3a", source=PAPER, sentence="More samples cost more time.",
        estimand="seconds(most samples) − seconds(fewest), full batch, seconds", measure=time_by_samples,
    ),
    Claim(
        id="K3b", source=PAPER, sentence="With more samples the model converges in fewer steps.", kind="below",
        estimand="steps until the validation NLL is within 0.05 nats of the run's lowest: (most samples) − (fewest, "
        "from 100), steps", measure=extremes(SAMPLES, "steps_to_converge", 100),
    ),
    Claim(
        id="K3c", source=PAPER, sentence="With more samples fewer flows sometimes suffice (4 for moons).",
        kind="below", margin=0.02, why="as K1d", quantifier="some",
        estimand="KL(4 flows) − KL(6 flows), both at the most samples, nats", measure=fewer_flows,
    ),
    Claim(
        id="K4a", source=PAPER, sentence="More noise makes the underlying (noise-free) distribution harder to get.",
        estimand="clean_distance(highest noise) − clean_distance(lowest), data units",
        measure=extremes(NOISE, "clean_distance"),
    ),
    Claim(
        id="K4b", source=PAPER, sentence="Most of the time the result matches the noisy distribution.", kind="below",
        margin=0.1, why="a match by eye, as K2a", quantifier="most", estimand="KL at the highest noise, nats",
        measure=kl_at_most_noise,
    ),
    Claim(
        id="K4c", source=PAPER, sentence="With too much noise no complexity recovers the underlying distribution.",
        estimand="smallest clean_distance of any architecture at the highest noise, per seed − the centre's, data "
        "units", measure=best_under_noise,
    ),
    Claim(
        id="K5a", source=PAPER, sentence="ReLU and leaky ReLU are alike.", kind="within", margin=0.05, why="as K1a",
        estimand="KL(leaky ReLU) − KL(ReLU), nats",
        measure=versus({"flow.activation": "leaky_relu"}, {"flow.activation": "relu"}),
    ),
    Claim(
        id="K5b", source=PAPER, sentence="Models with tanh do not converge that well.",
        estimand="KL(tanh) − KL(ReLU), nats",
        measure=versus({"flow.activation": "tanh"}, {"flow.activation": "relu"}),
    ),
    Claim(
        id="K6a", source=PAPER, sentence="Masks that always pass the same dimension do not converge.", margin=0.1,
        why="a failure to see by eye, as K2a", estimand="KL(fixed mask) − KL(alternating), nats",
        measure=fixed_mask,
    ),
    Claim(
        id="K6b", source=PAPER, sentence="Masks that cover both dimensions generally converge.", kind="below",
        margin=0.1, why="as K6a", quantifier="most",
        estimand="KL(mask changed once) − KL(alternating), nats", measure=covering_masks,
    ),
    Claim(
        id="B1", source=BLOG, sentence="Training sometimes ends in NaN.", quantifier="some", about_divergence=True,
        estimand="share of diverged runs over the lr axis (Wilson interval; no number of runs can refute 'sometimes')",
        measure=divergence,
    ),
    Claim(
        id="B2", source=BLOG, sentence="A lower learning rate helps against NaN.", about_divergence=True,
        estimand="share of diverged runs at the highest lr − at the lowest (Newcombe interval)",
        measure=divergence_by_lr,
    ),
    Claim(
        id="B3", source=BLOG, sentence="Batch norm helps, but flattens the data in one dimension.", kind="below",
        estimand="KL(batch norm) − KL(none), nats: 'helps' only, flattening is not measured here",
        measure=versus({"flow.norm": "batchnorm"}, {"flow.norm": "none"}),
    ),
    Claim(
        id="B4", source=BLOG, sentence="Each coupling moves one coordinate only.", margin=0.999, why="exact",
        estimand="share of the coupling steps of stored walks in which exactly one coordinate moved",
        measure=one_coordinate,
    ),
    Claim(
        id="N1", source="NICE 2014, RealNVP 2016", sentence="Affine coupling beats additive coupling.",
        estimand="KL(additive) − KL(affine), nats",
        measure=versus({"flow.coupling": "additive"}, {"flow.coupling": "affine"}),
    ),
)  # fmt: skip
