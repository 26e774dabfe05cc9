"""The catalogue: one entry per claim of the sources.

Margins in nats are of the mean KL at one budget, and say what would matter to a reader:

- 0.05: how far good recipes lie apart (three RealNVP codes at this budget reach 0.058, 0.091 and
  0.111 on moons);
- 0.1: twice that; the density is off by a factor e^0.1 ≈ 1.1 on average, which samples hardly show
  to the eye;
- 0.02: a few times the standard error of one run's KL on 10,000 test points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nfexp.analysis.claims.measures import (
    DEPTH,
    FLOWS,
    NOISE,
    SAMPLES,
    Across,
    Contrast,
    Measure,
    covering_masks,
    deeper,
    divergence,
    divergence_by_lr,
    each_complex_flow,
    each_under_noise,
    extremes,
    fewer_flows,
    fixed_mask,
    flows_needed,
    kl_at_most_noise,
    more_than_one_moved,
    six_against_each,
    time_by_samples,
    versus,
    versus_each,
)
from nfexp.analysis.statistics import Study

PAPER = "Kataria, section III"
BLOG = "tutorial blog"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of a source, what is measured for it, and the margin with its reason."""

    id: str
    source: str
    sentence: str
    estimand: str
    measure: Measure | Across
    kind: str = "above"
    margin: float = 0.0
    why: str = "the sign decides"
    quantifier: str = "every"
    about_divergence: bool = False
    everywhere: bool = False  # whether targets beside the paper's have a vote

    @property
    def across(self) -> bool:
        """Whether it is about all targets at once, and not about each."""
        return isinstance(self.measure, Across)

    def contrasts(self, group: Mapping[str, Study]) -> list[Contrast]:
        """What is measured on a group of studies: of all targets if `across` them, else of one."""
        if isinstance(self.measure, Across):
            return self.measure.of(group)
        (study,) = group.values()
        return self.measure(study)


CLAIMS = (
    Claim(
        id="K1a",
        source=PAPER,
        sentence="One flow is not enough on any target.",
        margin=0.05,
        why="how far good recipes lie apart; the paper's own |s| ≤ 1 on raw data forces part of "
        "the claim: on moons at noise 0.01 no single flow could come nearer than 2.18 nats; here "
        "|s| may be larger and the data are standardised",
        estimand="KL(1 flow) − KL(centre), nats",
        measure=versus({FLOWS: 1}, {}),
    ),
    Claim(
        id="K1b",
        source=PAPER,
        sentence="Nor is one very complex flow.",
        margin=0.05,
        why="as K1a, with the same caveat",
        estimand="KL(each single flow deeper or wider than the centre) − KL(centre), nats: none is near",
        measure=each_complex_flow,
    ),
    Claim(
        id="K1c",
        source=PAPER,
        sentence="Simple targets (moons, spiral2) need fewer flows.",
        estimand="flows needed (smallest number within 0.05 nats of the seed's lowest KL on the "
        "flows axis): mean of circles and spiral4 − mean of moons and spiral2, flows",
        measure=Across(flows_needed),
    ),
    Claim(
        id="K1d",
        source=PAPER,
        sentence="Six flows are the optimum most of the time.",
        kind="below",
        margin=0.02,
        why="less would be the noise of a test set",
        quantifier="most",
        estimand="KL(6 flows) − KL(n flows) for every other n, nats: no n is better by more",
        measure=six_against_each,
    ),
    Claim(
        id="K2a",
        source=PAPER,
        sentence="More complexity of each flow makes no huge change.",
        kind="within",
        margin=0.1,
        why="'huge': twice what matters in K1",
        estimand="KL(depth d) − KL(depth 2) for every d above 2, nats: none matters, either way",
        measure=deeper,
    ),
    Claim(
        id="K2b",
        source=PAPER,
        sentence="Concatenation matters more than the complexity of each flow.",
        estimand="KL(1 flow of 6 hidden layers) − KL(6 flows of 1 hidden layer), nats: what six "
        "times the flows gain over one flow of one layer, less what six times the layers gain",
        measure=versus({FLOWS: 1, DEPTH: 6}, {FLOWS: 6, DEPTH: 1}),
    ),
    Claim(
        id="K3a",
        source=PAPER,
        sentence="More samples cost more time.",
        estimand="seconds(most samples) − seconds(fewest), full batch, seconds; n counts pairs of "
        "stacks, whose runs share their time",
        measure=time_by_samples,
    ),
    Claim(
        id="K3b",
        source=PAPER,
        sentence="With more samples the model converges in fewer steps.",
        kind="below",
        why="the sign decides; at few samples a run over-fits early, and its lowest NLL is high and soon reached",
        estimand="steps until the validation NLL is within 0.05 nats of the run's lowest: (most "
        "samples) − (fewest, from 100), steps",
        measure=extremes(SAMPLES, "steps_to_converge", 100),
    ),
    Claim(
        id="K3c",
        source=PAPER,
        sentence="With more samples fewer flows sometimes suffice (4 for moons).",
        kind="below",
        margin=0.02,
        why="as K1d",
        quantifier="some",
        estimand="KL(4 flows) − KL(6 flows), both at the most samples, nats",
        measure=fewer_flows,
    ),
    Claim(
        id="K4a",
        source=PAPER,
        sentence="More noise makes the underlying (noise-free) distribution harder to get.",
        why="the sign decides; a flow that learns the noisy target perfectly shows it too, by construction",
        estimand="clean_distance(highest noise) − clean_distance(lowest), data units",
        measure=extremes(NOISE, "clean_distance"),
    ),
    Claim(
        id="K4b",
        source=PAPER,
        sentence="Most of the time the result matches the noisy distribution.",
        kind="below",
        margin=0.1,
        why="a match by eye, as K2a",
        quantifier="most",
        estimand="KL at the highest noise, nats (which also is the smoothest target)",
        measure=kl_at_most_noise,
    ),
    Claim(
        id="K4c",
        source=PAPER,
        sentence="With too much noise no complexity recovers the underlying distribution.",
        estimand="clean_distance(each architecture at the highest noise) − "
        "clean_distance(centre), data units: none is as near",
        measure=each_under_noise,
    ),
    Claim(
        id="K5a",
        source=PAPER,
        sentence="ReLU and leaky ReLU are alike.",
        kind="within",
        margin=0.05,
        why="as K1a",
        estimand="KL(leaky ReLU) − KL(ReLU), nats",
        measure=versus({"flow.activation": "leaky_relu"}, {"flow.activation": "relu"}),
    ),
    Claim(
        id="K5b",
        source=PAPER,
        sentence="Models with tanh do not converge that well.",
        why="the sign decides; both with the same flow.init, and only spread makes the first layer steeper for tanh",
        estimand="KL(tanh) − KL(ReLU), nats",
        measure=versus({"flow.activation": "tanh"}, {"flow.activation": "relu"}),
    ),
    Claim(
        id="K6a",
        source=PAPER,
        sentence="Masks that always pass the same dimension do not converge.",
        margin=0.1,
        why="a failure to see by eye, as K2a; half of the runs where they diverge",
        estimand="KL(fixed mask) − KL(alternating), nats",
        measure=fixed_mask,
    ),
    Claim(
        id="K6b",
        source=PAPER,
        sentence="Masks that cover both dimensions generally converge.",
        kind="below",
        margin=0.1,
        why="as K6a",
        quantifier="most",
        estimand="KL(mask changed once) − KL(alternating), nats",
        measure=covering_masks,
    ),
    Claim(
        id="B1",
        source=BLOG,
        sentence="Training sometimes ends in NaN.",
        margin=0.01,
        why="'sometimes': one seed in a hundred, so that enough calm ones can refute it",
        quantifier="some",
        about_divergence=True,
        estimand="share of seeds that diverged at one of the learning rates at least",
        measure=divergence,
    ),
    Claim(
        id="B2",
        source=BLOG,
        sentence="A lower learning rate helps against NaN.",
        margin=0.5,
        why="a coin between the two",
        about_divergence=True,
        estimand="of the seeds that diverged at one of the highest and the lowest lr only, the "
        "share that did at the highest",
        measure=divergence_by_lr,
    ),
    Claim(
        id="B3",
        source=BLOG,
        sentence="Batch norm helps, but flattens the data in one dimension.",
        kind="below",
        why="the sign decides; the scale before a batch norm is free, so that flat layers need "
        "not touch the density, and a flow with more layers has more of them to be flat",
        estimand="batch norm − none, of KL (nats: it helps) and of flattening (smallest over the "
        "layers of the ratio of the two singular values of the output's covariance root, 1 for a "
        "round cloud: it flattens)",
        measure=versus_each({"flow.norm": "batchnorm"}, {"flow.norm": "none"}, "kl", "flattening"),
    ),
    Claim(
        id="B4",
        source=BLOG,
        sentence="Each coupling moves one coordinate only.",
        kind="below",
        margin=0.05,
        why="a fact of the code: one run in twenty would refute it",
        estimand="share of completed runs in which some coupling moved more than one coordinate",
        measure=more_than_one_moved,
    ),
    Claim(
        id="N1",
        source="NICE 2014, RealNVP 2016",
        sentence="Affine coupling beats additive coupling.",
        estimand="KL(additive) − KL(affine), nats",
        measure=versus({"flow.coupling": "additive"}, {"flow.coupling": "affine"}),
    ),
)
