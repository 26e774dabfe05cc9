import math

import numpy as np
import pandas as pd
import pytest

from nfexp.analysis.claims import Finding, evaluate, find, judge, p_values, verdict
from nfexp.analysis.claims.catalogue import CLAIMS, Claim
from nfexp.analysis.claims.measures import Contrast, mean_of
from nfexp.analysis.statistics import studies
from nfexp.analysis.table import METRICS, infer_centres, load_runs, load_sweep, read_runs, write_csv
from tests.helpers.fake_sweep import ablation_runs, ablation_sweep, centre, default_metrics, paper_effects

TARGETS = ("moons", "circles", "spiral2", "spiral4")
CENTRES = {t: {k: v for k, v in centre(t).items() if k not in ("name", "seed", "device")} for t in TARGETS}
CLAIM = {c.id: c for c in CLAIMS}

# A small world for each claim: cells (how they differ from the centre) with the mean of each metric where the effect is
# exactly at the claim's margin, moved by e in favour of the claim. KL unless said.
F, D, W, N = "flow.n_flows", "flow.hidden_depth", "flow.hidden_width", "data.n_samples"
NOISE, LR, FULL = "data.noise", "train.lr", {"train.batch_size": "full"}
MIDDLE = {
    F: 6, D: 2, W: 64, N: 2000, NOISE: 0.05, LR: 0.005, "train.batch_size": 256, "flow.activation": "relu",
    "flow.mask": "alternating", "flow.coupling": "affine", "flow.norm": "none",
}  # fmt: skip
WORLDS = {
    "K1a": lambda e: [({}, 0.3), ({F: 1}, 0.35 + e)],
    "K1b": lambda e: [({}, 0.3), ({F: 1, D: 6}, 0.35 + e), ({F: 1, W: 256}, 0.35 + e)],
    "K1c": lambda e: [({}, 0.3), ({F: 3}, 0.35 + e)],  # on a hard target; a simple one has −e
    "K1d": lambda e: [({}, 0.3), ({F: 3}, 0.28 + e), ({F: 12}, 0.28 + e)],
    "K2a": lambda e: [({}, 0.3), ({D: 3}, 0.4 - e), ({D: 6}, 0.4 - e)],
    "K2b": lambda e: [({F: 1, D: 6}, 0.3 + e), ({D: 1}, 0.3)],
    "K3a": lambda e: [(FULL | {N: n}, {"seconds": 1 + e * (n == 1000)}) for n in (100, 1000)],
    "K3b": lambda e: [({N: n}, {"steps_to_converge": 1 - e * (n == 1000)}) for n in (100, 1000)],
    "K3c": lambda e: [({N: 4000}, 0.3), ({N: 4000, F: 4}, 0.32 - e)],
    "K4a": lambda e: [({NOISE: v}, {"clean_distance": 0.3 + e * (v == 0.4)}) for v in (0.01, 0.4)],
    "K4b": lambda e: [({}, 0.3), ({NOISE: 0.4}, 0.1 - e)],
    "K4c": lambda e: [(c, {"clean_distance": 0.3 + e * bool(c)}) for c in ({}, {NOISE: 0.4}, {NOISE: 0.4, F: 12})],
    "K5a": lambda e: [({}, 0.3), ({"flow.activation": "leaky_relu"}, 0.35 - e)],
    "K5b": lambda e: [({}, 0.3), ({"flow.activation": "tanh"}, 0.3 + e)],
    "K6a": lambda e: [({}, 0.3), ({"flow.mask": "fixed"}, 0.4 + e)],
    "K6b": lambda e: [({}, 0.3), ({"flow.mask": "once"}, 0.4 - e)],
    "B3": lambda e: [({"flow.norm": v}, {"kl": 0.3 - e * (v != "none"), "flattening": 0.3 - e * (v != "none")})
                     for v in ("none", "batchnorm")],
    "N1": lambda e: [({}, 0.3), ({"flow.coupling": "additive"}, 0.3 + e)],
}  # fmt: skip
SHARES = {  # probability that a run diverged, or (B4) moved two coordinates: against the claim, at its margin, for it
    "B1": ([({}, 0), ({LR: 0.1}, 0)], [({}, 0), ({LR: 0.1}, 0.01)], [({}, 0), ({LR: 0.1}, 0.5)]),
    "B2": ([({LR: 0.001}, 0.9), ({LR: 0.1}, 0)], [({LR: 0.001}, 0.4), ({LR: 0.1}, 0.4)], [({}, 0), ({LR: 0.1}, 0.9)]),
    "B4": ([({}, 0.5)], [({}, 0.05)], [({}, 0)]),
}
EFFECT = 0.045  # in nats or the like; less than the least margin of an equivalence, so that −EFFECT is a fair mirror
SEEDS = {"B1": 400, "B4": 200}  # shares near 0 need runs


def simulated(claim, side, tables, sd=0.01, seeds=None):
    """Tables of one claim as the targets t0, t1, … of one: truth against it (side −1), at its margin (0), or for it."""
    rng, n = np.random.default_rng([side + 1, *claim.encode()]), seeds or SEEDS.get(claim, 10)
    index = np.repeat(np.arange(tables), n)
    shared, frames = rng.standard_normal(tables * n), []
    odd = claim == "K1c" and np.repeat(np.arange(tables) % 2, n)
    mirrored = WORLDS[claim](-side * EFFECT) if claim == "K1c" else None
    for i, (changes, means) in enumerate(SHARES[claim][side + 1] if claim in SHARES else WORLDS[claim](side * EFFECT)):
        frame = pd.DataFrame(MIDDLE | changes, index=range(tables * n)).assign(status="completed")
        frame = frame.assign(**{"data.name": [f"t{t}" for t in index], "seed": np.tile(np.arange(n), tables)})
        if claim in SHARES:
            hit = rng.random(tables * n) < means
            frame["kl"] = 0.3
            frame["coordinates_moved"] = 1.0 + hit
            frame["status"] = np.where(hit, "diverged", "completed") if claim != "B4" else "completed"
        else:
            for name, mean in (means if isinstance(means, dict) else {"kl": means}).items():
                mean = np.where(odd, mirrored[i][1], mean) if claim == "K1c" else mean
                frame[name] = mean + sd * (shared + rng.standard_normal(tables * n))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True), {f"t{t}": MIDDLE for t in range(tables)}


def findings(claim, side, tables, **options):
    found = studies(*simulated(claim, side, 4 * tables if claim == "K1c" else tables, **options))
    if claim != "K1c":
        return [find(CLAIM[claim], {target: study}) for target, study in found.items()]
    names, parts = ("circles", "moons", "spiral4", "spiral2"), list(found.values())
    return [find(CLAIM[claim], dict(zip(names, parts[i : i + 4], strict=True))) for i in range(0, 4 * tables, 4)]


@pytest.mark.parametrize("claim", CLAIM)
@pytest.mark.parametrize("side, expected", [(1, "supported"), (-1, "contradicted")])
def test_a_true_effect_is_found(claim, side, expected):
    found = findings(claim, side, 10)
    right = [f for f in found if verdict(*f.p()) == expected]
    assert len(right) >= 9, [(f.p(), f.note) for f in found]
    for f in right:
        estimate, low, high = f.decisive().interval()
        assert low <= estimate <= high and len(f.decisive().values) >= 2


@pytest.mark.parametrize("claim", [c for c in CLAIM if c not in SHARES])
def test_noise_leaves_a_true_effect_open(claim):
    found = findings(claim, 1, 20, sd=0.5, seeds=4)
    assert sum(verdict(*f.p()) == "inconclusive" for f in found) >= 16


@pytest.mark.parametrize("claim, side", [("B1", -1), ("B2", 1), ("B4", 1)])
def test_few_runs_leave_a_true_share_open(claim, side):
    assert all(verdict(*f.p()) == "inconclusive" for f in findings(claim, side, 10, seeds=5))


def test_false_positives_over_all_claims():
    tables, false = 60, {}
    for claim in CLAIM:
        verdicts = [verdict(*f.p()) for f in findings(claim, 0, tables)]
        false[claim] = [verdicts.count("supported"), verdicts.count("contradicted")]
    found = np.array([*false.values()])
    # Every effect is at its margin, so that 2.5% is what may be false on each side
    nominal = 0.025 * tables
    assert (found <= nominal + 5 * math.sqrt(nominal)).all(), false
    assert (found.sum(axis=0) < len(CLAIM) * nominal + 4 * math.sqrt(len(CLAIM) * nominal)).all(), false
    single = np.array([false[c] for c in ("K1a", "K2b", "K3a", "K3b", "K3c", "K4a", "K4b", "K5b", "K6a", "K6b", "N1")])
    expected = len(single) * nominal  # of one contrast each: the level is exact
    assert (np.abs(single.sum(axis=0) - expected) < 4 * math.sqrt(expected)).all(), false


def table_of(runs):
    """The table load_runs would make of these runs."""
    rng, rows = np.random.default_rng(0), []
    for overrides, metrics, status in runs:
        config = centre(overrides.get("data.name", "moons")) | overrides
        full = default_metrics(config, rng) | metrics
        full = full if status == "completed" else dict.fromkeys(METRICS)
        kept = {k: v for k, v in config.items() if k not in ("name", "device") and not k.startswith("record.")}
        rows.append({"job": "0", "status": status} | kept | full | {"dir": "/nowhere"})
    return pd.DataFrame(rows).astype(dict.fromkeys(METRICS, float))


def full_batch(seeds=4):
    sizes = [{"train.batch_size": "full", "data.n_samples": n, "seed": s} for n in (100, 1000) for s in range(seeds)]
    return [
        (c | {"data.name": t}, {"seconds": 10 + c["data.n_samples"] / 500 * (1 + 0.1 * c["seed"])}, "completed")
        for c in sizes
        for t in TARGETS
    ]


def paper_world(config):
    """A world where every sentence holds: the fixture's effects, with all runs at a high learning rate lost."""
    metrics = paper_effects(config | {"train.lr": 0.001})
    return metrics | ({"status": "diverged"} if config["train.lr"] > 0.05 else {})


@pytest.fixture(scope="module")
def judged():
    runs = table_of([*ablation_runs(8, TARGETS, paper_world, sd=0.001), *full_batch()])
    return evaluate(runs, CENTRES)


@pytest.mark.parametrize("claim", CLAIM)
def test_the_whole_study_in_a_world_where_the_paper_is_right(judged, claim):
    row = judged.set_index(["claim", "target"]).loc[claim, "moons" if claim == "K3c" else "all"]
    assert row["verdict"] == "supported", row.to_dict()
    assert row["n"] >= 2 and row["low"] <= row["estimate"] <= row["high"] and row["rows"]
    if claim not in SHARES:  # narrower, as measured
        assert row["low"] - 1e-12 <= row["boot_low"] <= row["boot_high"] <= row["high"] + 1e-12


def test_one_seed_decides_nothing():
    rows = evaluate(table_of(ablation_runs(1, ("moons", "circles"), paper_effects)), CENTRES)
    decided = rows.loc[rows["verdict"] != "inconclusive", "claim"]
    assert set(decided) <= {"B1", "B4"}  # they count runs, not seeds


def test_columns_and_rows(judged):
    assert [*judged] == [
        "claim", "source", "sentence", "target", "rows", "estimand", "n", "estimate", "low", "high", "boot_low",
        "boot_high", "margin", "p_for", "p_against", "verdict", "sign_verdict", "note",
    ]  # fmt: skip
    assert set(judged["verdict"]) <= {"supported", "contradicted", "inconclusive"}
    for claim in CLAIMS:
        targets = judged.loc[judged["claim"] == claim.id, "target"].tolist()
        assert targets == (["all"] if claim.across else [*TARGETS, "all"])
    assert len(CLAIM) == len(CLAIMS) == 21
    assert judged.loc[judged["claim"] == "K1a", "rows"].eq("flow.n_flows=1 | the centre").all()


def test_the_same_table_gives_the_same_intervals(judged):
    runs = table_of([*ablation_runs(8, TARGETS, paper_world, sd=0.001), *full_batch()])
    pd.testing.assert_frame_equal(evaluate(runs, CENTRES), judged)


KINDS = {  # kind, margin, mean of five values with a standard error of 0.01 (t = 2.776)
    "above": ("above", 0.05, {0.08: "supported", 0.02: "contradicted", 0.06: "inconclusive"}),
    "below": ("below", 0.02, {-0.01: "supported", 0.05: "contradicted", 0.04: "inconclusive"}),
    "within": ("within", 0.05, {0.02: "supported", -0.02: "supported", 0.08: "contradicted", -0.08: "contradicted",
                                0.03: "inconclusive", -0.03: "inconclusive"}),
    "within, none significant": ("within", 0.02, {0.0: "inconclusive", 0.01: "inconclusive"}),
}  # fmt: skip


@pytest.mark.parametrize("case", KINDS)
def test_verdicts_are_those_of_the_95_percent_interval(case):
    kind, margin, cases = KINDS[case]
    around = np.array([-1, -0.5, 0, 0.5, 1])
    around *= 0.01 * math.sqrt(5) / around.std(ddof=1)
    for mean, expected in cases.items():
        assert verdict(*p_values(Contrast("", mean + around), kind, margin)) == expected
    assert p_values(Contrast("", np.array([1.0])), kind, margin) == (1.0, 1.0)


@pytest.mark.parametrize("kind", ["above", "below", "within"])
def test_p_values_and_intervals_agree(kind):
    rng, margin = np.random.default_rng(0), 0.5
    for _ in range(200):
        x = rng.normal(rng.normal(0, 0.7), 0.5, rng.integers(2, 9))
        _, low, high = Contrast("", x).interval()
        yes, no = {
            "above": (low >= margin, high <= margin),
            "below": (high <= margin, low >= margin),
            "within": (-margin <= low and high <= margin, low >= margin or high <= -margin),
        }[kind]
        assert verdict(*p_values(Contrast("", x), kind, margin)) == (
            "supported" if yes else "contradicted" if no else "inconclusive"
        )


def with_status(runs, status, seeds, **changes):
    """`runs` with another status for these seeds of one cell."""
    keys = {k.replace("__", "."): v for k, v in changes.items()}
    full = [(centre(o["data.name"]) | o, o, m, s) for o, m, s in runs]
    names = {k for k in CENTRES["moons"] if k not in keys and k not in ("data.name", "data.noise")}
    middle = CENTRES["moons"]
    return [
        (o, m, status)
        if all(c[k] == v for k, v in keys.items()) and all(c[k] == middle[k] for k in names) and c["seed"] in seeds
        else (o, m, s)
        for c, o, m, s in full
    ]


@pytest.fixture
def moons_runs():
    return ablation_runs(5, ("moons",), paper_effects, sd=0.001)


def row_of(runs, claim, target="moons"):
    return evaluate(table_of(runs), CENTRES).set_index(["claim", "target"]).loc[(claim, target)]


@pytest.mark.parametrize("status", ["diverged", "failed", "missing"])
def test_lost_runs_are_counted_and_never_averaged(moons_runs, status):
    few = row_of(with_status(moons_runs, status, (0, 1), flow__n_flows=1), "K1a")
    assert few["verdict"] == "supported" and few["n"] == 3 and f"2 {status} of 10 runs used" in few["note"]
    many = row_of(with_status(moons_runs, status, (0, 1, 2), flow__n_flows=1), "K1a")
    assert many["verdict"] == "inconclusive" and "flow.n_flows=1 lost more than half of its seeds" in many["note"]
    assert many["n"] == 2


def test_diverging_under_the_fixed_mask_is_the_claim():
    runs = ablation_runs(8, ("moons",), paper_effects, sd=0.001)
    row = row_of(with_status(runs, "diverged", range(8), flow__mask="fixed"), "K6a")
    assert row["verdict"] == "supported" and row["estimate"] == 1 and row["margin"] == 0.5 and row["n"] == 8
    few = row_of(with_status(runs, "diverged", range(5), flow__mask="fixed"), "K6a")
    assert few["verdict"] == "inconclusive" and few["estimate"] == 5 / 8
    assert row_of(with_status(runs, "failed", range(8), flow__mask="fixed"), "K6a")["verdict"] == "inconclusive"
    lost = with_status(with_status(runs, "diverged", range(8), flow__mask="fixed"), "diverged", range(8))
    row = row_of(lost, "K6a")
    assert row["verdict"] == "inconclusive" and "the centre lost more than half" in row["note"]


def test_runs_that_share_the_time_of_a_stack_are_one_measurement():
    runs = [(c, {"seconds": 1 + c["data.n_samples"] / 500 + 1e-6 * c["seed"]}, s) for c, _, s in full_batch()]
    row = row_of(runs, "K3a")
    assert row["verdict"] == "inconclusive" and row["n"] == 1 and "4 runs in 1 pair of stacks" in row["note"]
    assert "each round of until=decided adds one" in row["note"]
    twice = [(c, m | {"seconds": m["seconds"] + 0.1 * c["data.n_samples"] * (c["seed"] > 1)}, s) for c, m, s in runs]
    row = row_of(twice, "K3a")
    assert row["n"] == 2 and "until=decided" not in row["note"]


def test_one_run_that_is_far_off_hides_an_effect_from_the_mean_only():
    runs = []
    for seed in range(10):
        for n, kl in ((1, 0.6), (6, 30.0 if seed == 3 else 0.1)):
            own = {"data.name": "moons", "flow.n_flows": n, "seed": seed}
            runs.append((own, {"kl": kl + 0.01 * seed}, "completed"))
    row = row_of(runs, "K1a")
    assert (row["verdict"], row["sign_verdict"]) == ("inconclusive", "supported")


def test_nobody_diverged(moons_runs):
    calm = [(o, m, "completed") for o, m, _ in moons_runs]
    assert row_of(calm, "B1")["verdict"] == row_of(calm, "B2")["verdict"] == "inconclusive"
    assert "0 of 20 runs diverged" in row_of(calm, "B1")["note"] and "nothing to help" in row_of(calm, "B2")["note"]


def test_missing_cells_are_named(moons_runs):
    only_centre = [r for r in moons_runs if r[0].keys() <= {"data.name", "seed", "record.grid", "record.walk"}]
    rows = evaluate(table_of(only_centre), CENTRES)
    assert (rows["verdict"] == "inconclusive").all()
    notes = rows.set_index(["claim", "target"])["note"]
    assert notes["K1a", "moons"] == "missing: flow.n_flows=1"
    assert "train.batch_size=full" in notes["K3a", "all"]
    assert "simple and on a hard target" in notes["K1c", "all"]


@pytest.mark.parametrize("column", [k for k in CENTRES["moons"] if "." in k])
def test_any_part_of_the_study_gives_a_table(moons_runs, column):
    part = [r for r in moons_runs if r[0].keys() - {"data.name", "seed", "record.grid", "record.walk"} <= {column}]
    assert len(evaluate(table_of(part), CENTRES)) == 20 * 5 + 1


def test_no_runs_and_no_centres_give_a_table(moons_runs):
    table = table_of(moons_runs)
    for rows in (evaluate(table, {}), evaluate(table[:0], CENTRES), evaluate(table[:0], {})):
        assert (rows["verdict"] == "inconclusive").all() and rows["claim"].nunique() == 21


def test_a_metric_without_any_value_is_missing(moons_runs):
    table = table_of(moons_runs)
    table["kl"] = np.nan
    rows = evaluate(table, CENTRES).set_index(["claim", "target"])
    assert rows.loc[("K1a", "moons"), "verdict"] == "inconclusive"
    assert "missing: kl of flow.n_flows=1" in rows.loc[("K1a", "moons"), "note"]


def finding(quantifier, target, values, applies=True):
    claim = Claim(id="X", source="", sentence="", estimand="", measure=list, quantifier=quantifier)
    return Finding(claim, target, [mean_of("", pd.Series(values, dtype=float))], applies=applies)


YES, NO, MAYBE = (1.0, 1.01, 0.99), (-1.0, -1.01, -0.99), (-1.0, 1.0, 0.2)
WEAK = (-0.5, -0.15, -0.2, -0.6, -0.05)  # contradicted alone, not as the best of four
OVERALL = {
    "every, all": ("every", [YES] * 4, "supported"),
    "every, one open": ("every", [YES, YES, YES, MAYBE], "inconclusive"),
    "every, mixed": ("every", [YES, YES, YES, NO], "contradicted"),
    "every, one against": ("every", [MAYBE, MAYBE, MAYBE, NO], "contradicted"),
    "every, one weakly against": ("every", [MAYBE, MAYBE, MAYBE, WEAK], "inconclusive"),
    "some, one": ("some", [YES, NO, NO, NO], "supported"),
    "some, none": ("some", [NO] * 4, "contradicted"),
    "some, open": ("some", [MAYBE, NO, NO, NO], "inconclusive"),
    "most, three": ("most", [YES, YES, YES, NO], "supported"),
    "most, half": ("most", [YES, YES, NO, NO], "contradicted"),
    "most, open": ("most", [YES, YES, MAYBE, NO], "inconclusive"),
}


@pytest.mark.parametrize("case", OVERALL)
def test_overall(case):
    quantifier, values, expected = OVERALL[case]
    found = [finding(quantifier, t, v) for t, v in zip(TARGETS, values, strict=True)]
    *rows, row = judge(found[0].claim, found)
    assert row["verdict"] == expected and [r["target"] for r in rows] == [*TARGETS]
    assert row["verdict"] == verdict(row["p_for"], row["p_against"])
    if expected != "inconclusive":  # the row shows a target of that verdict
        shown = next(r for r in rows if f"shown is {r['target']}" in row["note"])
        assert shown["verdict"] == expected and shown["estimate"] == row["estimate"]


def test_weak_evidence_alone_is_not_evidence_among_four():
    alone = finding("every", "circles", WEAK)
    assert verdict(*alone.p()) == judge(alone.claim, [alone])[0]["verdict"] == "contradicted"
    four = judge(alone.claim, [alone, *(finding("every", t, MAYBE) for t in TARGETS if t != "circles")])
    assert four[0]["verdict"] == "inconclusive" and four[0]["p_against"] == pytest.approx(4 * alone.p()[1])


def test_targets_outside_the_claim_have_no_vote():
    found = [finding("every", "moons", YES), finding("every", "banana", NO), finding("every", "circles", NO, False)]
    row = judge(found[0].claim, found)[-1]
    assert row["verdict"] == "supported" and row["note"].endswith("not counted: banana, circles")
    assert judge(found[0].claim, found[1:2])[-1]["verdict"] == "contradicted"


def test_the_contradicting_contrast_is_shown():
    clear, wide = mean_of("clear", pd.Series([0.1, 0.1001, 0.0999])), mean_of("wide", pd.Series([-5.0, 5.0, 1.0]))
    found = Finding(CLAIM["K1d"], "moons", [wide, clear])
    assert verdict(*found.p()) == "contradicted" and found.decisive().label == "clear"
    assert Finding(CLAIM["K2a"], "moons", [wide, mean_of("", pd.Series([0.0, 0.0]))]).decisive().label == "wide"


def test_one_of_many_contrasts_needs_more_evidence():
    weak = mean_of("", pd.Series(np.negative(WEAK) + CLAIM["K1d"].margin))
    open_ones = [mean_of("", pd.Series(MAYBE))] * 3
    assert verdict(*Finding(CLAIM["K1d"], "moons", [weak]).p()) == "contradicted"
    assert verdict(*Finding(CLAIM["K1d"], "moons", [weak, *open_ones]).p()) == "inconclusive"


def test_a_claim_of_many_contrasts_needs_all_of_them():
    clear, wide = mean_of("", pd.Series(NO)), mean_of("wide", pd.Series(MAYBE))
    assert verdict(*Finding(CLAIM["K1d"], "moons", [clear, clear]).p()) == "supported"
    found = Finding(CLAIM["K1d"], "moons", [clear, wide])
    assert verdict(*found.p()) == "inconclusive" and found.decisive() is wide


def test_seeds_that_diverge_at_both_rates_say_nothing_about_lr():
    def at_odd_rates(config):
        return {"kl": 0.1, "status": "completed" if config["train.lr"] == 0.005 else "diverged"}

    both = ablation_runs(12, ("moons",), at_odd_rates)
    row = row_of(both, "B2")
    assert row["verdict"] == "inconclusive" and row["n"] == 0 and "nothing to compare" in row["note"]
    runs = with_status(both, "completed", (0, 1), train__lr=0.001)
    row = row_of(runs, "B2")
    assert row["verdict"] == "inconclusive" and row["n"] == 2 and "12 diverged at lr 0.1, 10 at 0.001" in row["note"]


def test_a_table_from_a_file_gives_the_same_verdicts(tmp_path):
    folder = ablation_sweep(tmp_path / "sweep", seeds=2, targets=("moons",), arrays=False)
    runs = load_runs(folder)
    write_csv(runs.drop(columns="dir"), tmp_path / "runs.csv")
    back = read_runs(tmp_path / "runs.csv")
    found = evaluate(back, infer_centres(back))
    pd.testing.assert_frame_equal(found, evaluate(runs, load_sweep([folder], runs).centres))
    assert "0 of " in found.set_index(["claim", "target"]).loc[("B4", "moons"), "note"]


@pytest.mark.parametrize(
    "claim, metric", [("B3", "flattening"), ("B4", "coordinates_moved"), ("K4a", "clean_distance")]
)
def test_metrics_that_a_table_lacks_are_missing(moons_runs, claim, metric):
    table = table_of(moons_runs)
    for lacking in (table.drop(columns=metric), table.assign(**{metric: np.nan})):
        row = evaluate(lacking, CENTRES).set_index(["claim", "target"]).loc[(claim, "moons")]
        assert row["verdict"] == "inconclusive" and row["n"] == 0 and f"missing: {metric}" in row["note"]


def test_a_metric_left_in_a_diverged_run_is_not_used(moons_runs):
    table = table_of(moons_runs)
    lost = table["flow.n_flows"].eq(1) & table["flow.hidden_depth"].eq(2) & table["flow.hidden_width"].eq(64)
    table.loc[lost & table["seed"].eq(0), ["status", "kl"]] = ["diverged", -1e6]
    row = evaluate(table, CENTRES).set_index(["claim", "target"]).loc[("K1a", "moons")]
    assert row["verdict"] == "supported" and row["n"] == 4
