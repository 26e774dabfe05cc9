"""Verdicts of studies whose seeds come in rounds."""

import numpy as np
import pandas as pd
import pytest

from nfexp.analysis.claims import CLAIMS, evaluate
from nfexp.analysis.claims.forecast import seeds_to_tell
from nfexp.analysis.claims.looks import Looks, courses, evaluate_in_rounds
from nfexp.analysis.claims.measures import Contrast
from nfexp.analysis.sequential import Rounds
from nfexp.analysis.statistics import studies

ROUNDS = Rounds(first=(0, 1, 2, 3, 4), max_seeds=20)
CENTRE = {"flow.n_flows": 6, "flow.mask": "alternating"}
TARGETS = ("moons", "circles", "spiral2", "spiral4")
CENTRES = dict.fromkeys(TARGETS, CENTRE)


def cell(target, effects, seeds, **changes):
    """Runs of one cell: KL by seed."""
    runs = pd.DataFrame({"data.name": target} | CENTRE, index=range(len(seeds)))
    for key, value in changes.items():
        runs[key.replace("__", ".")] = value
    return runs.assign(seed=list(seeds), status="completed", kl=[effects[seed] for seed in seeds])


def study(target, differences, *, n_seeds):
    """The centre and a single flow whose KL is higher by `differences`; K1a asks for more than 0.05."""
    noise = np.random.default_rng(7).normal(0, 0.01, 40)
    differences = np.broadcast_to(differences, 40)
    seeds = range(n_seeds)
    return [cell(target, noise, seeds), cell(target, noise + differences, seeds, flow__n_flows=1)]


def spread(mean, sd, seed=0):
    """Forty differences whose first five, ten, fifteen and twenty each have this mean and about this spread."""
    x = np.random.default_rng(seed).normal(0, 1, (8, 5))
    x = (x - x.mean(1, keepdims=True)) / x.std(1, ddof=1, keepdims=True)
    return mean + sd * x.ravel()


def k1a(parts, targets=("moons",), rounds=ROUNDS):
    rows = evaluate_in_rounds(pd.concat(parts, ignore_index=True), dict.fromkeys(targets, CENTRE), rounds)
    return rows[rows["claim"] == "K1a"].set_index("target")


CLEAR, OPEN = spread(0.5, 0.01), spread(0.088, 0.06)


def test_one_look_is_a_study_without_rounds():
    runs = pd.concat([*study("moons", OPEN, n_seeds=10), *study("circles", CLEAR, n_seeds=10)], ignore_index=True)
    centres = {"moons": CENTRE, "circles": CENTRE}
    rows = evaluate_in_rounds(runs, centres, Rounds(first=tuple(range(10)), max_seeds=10))
    plain = evaluate(runs, centres)
    pd.testing.assert_frame_equal(rows[[*plain]], plain)
    assert [*rows][len([*plain]) :] == ["rounds", "stopped", "seeds_needed"]


def test_a_clear_effect_needs_one_round_and_no_later_seed_changes_its_verdict():
    row = k1a(study("moons", CLEAR, n_seeds=5)).loc["moons"]
    assert (row["verdict"], row["rounds"], row["stopped"], row["n"]) == ("supported", 1, "decided", 5)
    assert pd.isna(row["seeds_needed"])
    turned = np.where(np.arange(40) < 5, CLEAR, -CLEAR)
    pd.testing.assert_series_equal(k1a(study("moons", turned, n_seeds=20)).loc["moons"], row)


def test_an_open_effect_goes_on_to_the_last_round():
    found = [k1a(study("moons", OPEN, n_seeds=n)).loc["all"] for n in (5, 10, 15, 20)]
    assert [row["rounds"] for row in found] == [1, 2, 3, 4]
    assert [row["n"] for row in found] == [5, 10, 15, 20]
    assert [row["stopped"] for row in found[:2]] == ["no further round"] * 2
    assert found[-1]["verdict"] == "supported"  # 0.038 above the margin, 0.06 of spread: t = 3.1 at 20 seeds
    weak = k1a(study("moons", spread(0.06, 0.06), n_seeds=20)).loc["all"]
    assert (weak["verdict"], weak["rounds"], weak["stopped"]) == ("inconclusive", 4, "max_seeds")
    assert 150 < weak["seeds_needed"] < 250  # t(0.011) ≈ 2.3 = √n·0.01/0.06


def test_a_round_that_is_not_whole_is_not_looked_at():
    ten = study("moons", OPEN, n_seeds=10)
    short = [ten[0], ten[1][ten[1]["seed"] < 9]]
    pd.testing.assert_frame_equal(k1a(short), k1a(study("moons", OPEN, n_seeds=5)))
    missing = ten[1].assign(status=["completed"] * 9 + ["missing"])
    pd.testing.assert_frame_equal(k1a([ten[0], missing]), k1a(study("moons", OPEN, n_seeds=5)))
    lost = ten[1].assign(status=["completed"] * 9 + ["failed"])  # it has ended
    assert k1a([ten[0], lost]).loc["moons", "rounds"] == 2
    first = k1a(study("moons", CLEAR, n_seeds=4)).loc["moons"]
    assert (first["verdict"], first["stopped"]) == ("inconclusive", "no further round")
    assert "the first round is not finished" in first["note"]


def test_seeds_of_no_round_do_not_count():
    parts = study("moons", OPEN, n_seeds=20)
    more = cell("moons", np.full(100, 9.0), range(60, 90), flow__n_flows=1)
    pd.testing.assert_frame_equal(k1a([*parts, more]), k1a(parts))


def test_a_target_that_is_decided_waits_for_the_others():
    parts = [*study("moons", CLEAR, n_seeds=5), *study("circles", OPEN, n_seeds=10)]
    rows = k1a(parts, ("moons", "circles"))
    assert rows["rounds"].to_dict() == {"moons": 1, "circles": 2, "all": 2}
    assert rows["n"].to_dict() == {"moons": 5, "circles": 10, "all": 10}
    assert rows.loc["moons", "stopped"] == "decided"


def test_what_is_open_names_the_runs_that_it_needs():
    parts = [*study("moons", CLEAR, n_seeds=5), *study("circles", OPEN, n_seeds=5)]
    runs = pd.concat(parts, ignore_index=True)
    by_claim = {course.claim.id: course for course in courses(studies(runs, CENTRES), ROUNDS)}
    (place,) = by_claim["K1a"].open()
    finding = by_claim["K1a"].findings[place]
    assert finding.target == "circles" and finding.look == 1
    assert sorted(finding.cells["circles"], key=len) == [frozenset(), frozenset({("flow.n_flows", 1)})]
    assert by_claim["K5b"].open() == []  # no run of it is in the study


def test_a_margin_makes_a_claim_of_every_cell():
    noise = np.random.default_rng(3).normal(0, 0.01, 40)
    masks = {"fixed": 0.3, "once": 0.0, "half": 0.05}
    parts = [cell("moons", noise, range(10))]
    for mask, effect in masks.items():
        parts.append(cell("moons", noise + spread(effect, 0.01), range(10), flow__mask=mask))
    runs = pd.concat(parts, ignore_index=True)
    rounds = Rounds(first=(0, 1, 2, 3, 4), max_seeds=20, margin=0.05)
    rows = evaluate_in_rounds(runs, {"moons": CENTRE}, rounds)
    own = rows[(rows["source"] == "this study") & (rows["target"] == "moons")].set_index("sentence")
    found = {mask: own.loc[f"flow.mask={mask} is as good as the centre.", "verdict"] for mask in masks}
    assert found == {"fixed": "contradicted", "once": "supported", "half": "inconclusive"}
    assert [course.claim.id for course in courses(studies(runs, {"moons": CENTRE}), rounds) if course.counts] == [
        "S1", "S2", "S3",
    ]  # fmt: skip


def image_study(differences, seeds):
    """A centre of two scales, and one scale whose bits/dim are higher by `differences`."""
    centre = {"data.name": "digits", "flow.kind": "image", "flow.scales": 2}
    cells = []
    for scales, added in ((2, 0.0), (1, differences)):
        bits = 2 + np.arange(len(seeds)) / 100 + added
        known = {"seed": list(seeds), "status": "completed", "kl": np.nan, "test_nll": 64 * bits, "test_bpd": bits}
        cells.append(pd.DataFrame(known).assign(**centre | {"flow.scales": scales}))
    return pd.concat(cells, ignore_index=True), {"digits": centre}


def test_a_study_of_images_is_about_claims_on_images_alone():
    runs, centres = image_study(spread(0.1, 0.01)[:5], range(5))
    rows = evaluate_in_rounds(runs, centres, ROUNDS)
    assert set(rows["claim"]) == {"I1", "I2", "I3", "I4", "I5", "I6"}
    scales = rows[(rows["claim"] == "I1") & (rows["target"] == "all")].iloc[0]
    assert (scales["verdict"], scales["stopped"]) == ("supported", "decided")
    assert scales["estimate"] == pytest.approx(0.1)
    assert set(rows.loc[rows["claim"] == "I3", "stopped"]) == {"not measured"}


def test_a_margin_is_in_bits_where_there_are_images():
    runs, centres = image_study(spread(0.1, 0.01)[:5], range(5))
    rounds = Rounds(first=(0, 1, 2, 3, 4), max_seeds=20, margin=0.2)  # 6.4 nats an image would be above it
    rows = evaluate_in_rounds(runs, centres, rounds).set_index("claim")
    own = rows.loc["S1"].iloc[0]
    assert own["verdict"] == "supported"
    assert own["estimate"] == pytest.approx(0.1)


def test_a_margin_asks_of_every_target_and_of_the_nll_without_a_density():
    noise = np.random.default_rng(3).normal(0, 0.01, 40)
    parts = []
    for target, effect in (("moons", 0.0), ("mine", 0.3)):
        parts.append(cell(target, noise, range(5)))
        parts.append(cell(target, noise + spread(effect, 0.01), range(5), flow__n_flows=1))
    runs = pd.concat(parts, ignore_index=True)
    runs["test_nll"] = runs["kl"] + 1
    runs.loc[runs["data.name"] == "mine", "kl"] = np.nan
    rounds = Rounds(first=(0, 1, 2, 3, 4), max_seeds=20, margin=0.1)
    rows = evaluate_in_rounds(runs, {"moons": CENTRE, "mine": CENTRE}, rounds)
    found = rows[rows["claim"] == "S1"].set_index("target")
    assert found["verdict"].to_dict() == {"moons": "supported", "mine": "contradicted", "all": "contradicted"}
    assert found.loc["mine", "note"] == "test NLL"


def test_cells_without_a_seed_of_the_rounds_are_not_in_the_study():
    parts = study("moons", CLEAR, n_seeds=5)
    other = cell("moons", np.full(100, 9.0), range(60, 90), flow__n_flows=2)
    runs = pd.concat([*parts, other], ignore_index=True)
    by_claim = {course.claim.id: course for course in courses(studies(runs, CENTRES), ROUNDS)}
    assert by_claim["K1d"].findings[0].rows == "the centre | flow.n_flows=1"


def test_false_verdicts_of_whole_studies():
    """K1a where the effect is at its margin on one target and clear on the others, under the real stopping rule."""
    rng = np.random.default_rng(0)
    n_studies = 100
    (claim,) = [claim for claim in CLAIMS if claim.id == "K1a"]
    verdicts = []
    for _ in range(n_studies):
        parts = study("moons", 0.05 + rng.normal(0, 0.05, 40), n_seeds=20)
        parts += study("circles", CLEAR, n_seeds=20)
        by_target = studies(pd.concat(parts, ignore_index=True), {"moons": CENTRE, "circles": CENTRE})
        verdicts.append(Looks(by_target, ROUNDS).course(claim).verdicts[-1])
    allowed = 0.025 * n_studies
    for wrong in ("supported", "contradicted"):
        assert verdicts.count(wrong) <= allowed + 4 * np.sqrt(allowed)


@pytest.mark.parametrize("kind, margin", [("above", 0.1), ("below", 0.5), ("within", 0.5)])
def test_so_many_seeds_would_tell(kind, margin):
    values = spread(0.3, 0.5)[:10]
    level = 0.01
    holds, fails = seeds_to_tell(Contrast("", values), kind, margin, level)
    assert fails == np.inf
    scale = values.std(ddof=1)
    for n, is_enough in ((holds, True), (holds - 1, False)):
        x = np.random.default_rng(0).normal(0, 1, n)
        x = values.mean() + scale * (x - x.mean()) / x.std(ddof=1)
        at_most, at_least = Contrast("", x).tails(margin)
        p = {"above": at_most, "below": at_least, "within": max(at_least, Contrast("", x).tails(-margin)[0])}[kind]
        assert (p <= level) == is_enough


def test_so_many_calm_seeds_would_tell_of_a_share():
    _, fails = seeds_to_tell(Contrast("", np.zeros(20), share=True), "above", 0.01, 0.025)
    assert fails == 368  # 0.99^368 = 0.0248
    at_margin = Contrast("", np.array([0.0, 1.0]), share=True)
    assert seeds_to_tell(at_margin, "above", 0.5, 0.025) == (np.inf, np.inf)
