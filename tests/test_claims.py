import math

import numpy as np
import pandas as pd
import pytest
from fake_sweep import NOISES, ablation_runs, ablation_sweep, centre, default_metrics, paper_effects

from nfexp.claims import Finding, _overall, evaluate, verdict
from nfexp.claims.catalogue import CLAIMS, Claim
from nfexp.claims.measures import coordinates_moved, mean_of
from nfexp.stats import t_interval
from nfexp.table import METRICS, load_runs, load_sweep

TARGETS = ("moons", "circles", "spiral2", "spiral4")
CENTRES = {t: {k: v for k, v in centre(t).items() if k not in ("name", "seed", "device")} for t in TARGETS}


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


def full_batch(sign, seeds=4):
    sizes = [{"train.batch_size": "full", "data.n_samples": n, "seed": s} for n in (100, 1000) for s in range(seeds)]
    return [
        (c | {"data.name": t}, {"seconds": 10 + sign * c["data.n_samples"] / 500 + 0.1 * c["seed"]}, "completed")
        for c in sizes
        for t in TARGETS
    ]


def paper_world(config):
    """A world where every sentence holds: the fixture's effects, with all runs at a high learning rate lost."""
    metrics = paper_effects(config | {"train.lr": 0.001})
    return metrics | ({"status": "diverged"} if config["train.lr"] > 0.05 else {})


def opposite_world(config):
    """A world where no sentence holds on circles."""
    simple = config["data.name"] in ("moons", "spiral2")
    low, high = min(NOISES[config["data.name"]]), max(NOISES[config["data.name"]])
    flows, loud = config["flow.n_flows"], config["data.noise"] == high
    kl = 0.1 + 0.5 * loud + (0.2 * max(0, 6 - flows) / 5 if simple else 0) - 0.045 * (flows == 12)
    kl += 0.3 * (config["flow.hidden_depth"] > 2 and flows == 6)
    kl += {"leaky_relu": 0.2, "tanh": -0.05}.get(config["flow.activation"], 0) + 0.3 * (config["flow.mask"] == "once")
    kl += 0.05 * (config["flow.norm"] == "batchnorm") - 0.05 * (config["flow.coupling"] == "additive")
    kl += 0.1 * (flows == 4 and config["data.n_samples"] == 4000)
    metrics = {"kl": kl, "steps_to_converge": 200 + config["data.n_samples"]}
    metrics["clean_distance"] = 1 - 0.8 * (config["data.noise"] - low) / (high - low)
    return metrics | ({"status": "diverged"} if config["train.lr"] < 0.005 else {})


WORLDS = {"paper": (paper_world, 1), "opposite": (opposite_world, -1)}


@pytest.fixture(scope="module")
def judged():
    out = {}
    for name, (effects, sign) in WORLDS.items():
        runs = table_of([*ablation_runs(5, TARGETS, effects, sd=0.001), *full_batch(sign, 5)])
        out[name] = evaluate(runs, CENTRES).set_index(["claim", "target"])
    return out


DECIDABLE = [c.id for c in CLAIMS if c.id != "B4"]  # B4 reads files: tested below


@pytest.mark.parametrize("claim", DECIDABLE)
def test_supported_where_true(judged, claim):
    target = "moons" if claim == "K3c" else "all"
    row = judged["paper"].loc[claim, target]
    assert row["verdict"] == "supported", row.to_dict()
    assert row["n"] >= 2 and row["low"] <= row["estimate"] <= row["high"]


@pytest.mark.parametrize("claim", [c for c in DECIDABLE if c != "B1"])  # no run can refute "sometimes"
def test_contradicted_where_false(judged, claim):
    row = judged["opposite"].loc[claim, "all" if claim == "K1c" else "circles"]
    assert row["verdict"] == "contradicted", row.to_dict()


@pytest.mark.parametrize("claim", DECIDABLE)
def test_one_seed_decides_nothing(claim):
    rows = evaluate(table_of(ablation_runs(1, ("moons", "circles"), paper_effects)), CENTRES).set_index("claim")
    if claim != "B1":
        assert (rows.loc[[claim], "verdict"] == "inconclusive").all()


@pytest.mark.parametrize("claim", ["K1a", "K1b", "K2a", "K3b", "K4b", "K5a", "K5b", "K6a", "K6b", "B3", "N1"])
def test_noise_makes_it_inconclusive(claim):
    rows = evaluate(table_of(ablation_runs(3, ("moons",), paper_effects, sd=30.0)), {"moons": CENTRES["moons"]})
    assert rows.set_index(["claim", "target"]).loc[(claim, "moons"), "verdict"] == "inconclusive"


def test_columns_and_rows(judged):
    rows = judged["paper"].reset_index()
    assert [*rows] == [
        "claim", "target", "source", "sentence", "estimand", "estimate", "low", "high", "n", "margin", "verdict",
        "note",
    ]  # fmt: skip
    assert set(rows["verdict"]) <= {"supported", "contradicted", "inconclusive"}
    for claim in CLAIMS:
        targets = rows.loc[rows["claim"] == claim.id, "target"].tolist()
        assert targets == (["all"] if claim.across else [*TARGETS, "all"])
    assert len({c.id for c in CLAIMS}) == len(CLAIMS) == 21


VERDICTS = {
    "above": ("above", 0.05, {(0.06, 0.1): "supported", (0.0, 0.04): "contradicted", (0.04, 0.06): "inconclusive"}),
    "below": ("below", 0.02, {(-1, 0.01): "supported", (0.03, 1): "contradicted", (0.01, 0.03): "inconclusive"}),
    "within": (
        "within", 0.05,
        {(-0.04, 0.04): "supported", (0.06, 1): "contradicted", (-1, -0.06): "contradicted",
         (-0.06, 0.01): "inconclusive", (-1, 1): "inconclusive"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_verdict(case):
    kind, margin, cases = VERDICTS[case]
    for ends, expected in cases.items():
        assert verdict(kind, margin, *ends) == expected
    assert verdict(kind, margin, math.nan, math.nan) == "inconclusive"


def test_a_difference_that_is_not_significant_is_not_an_equality(judged):
    runs = table_of(ablation_runs(3, ("moons",), lambda c: {"kl": 0.5}, sd=0.3))
    row = evaluate(runs, CENTRES).set_index(["claim", "target"]).loc[("K5a", "moons")]
    assert row["low"] < 0 < row["high"] and row["verdict"] == "inconclusive"


@pytest.mark.parametrize("n", [3, 5, 10])
def test_false_positives_of_the_superiority_verdict(n):
    margin, draws = 0.05, 40_000
    x = np.random.default_rng(n).normal(margin, 0.1, (draws, n))
    low, high = t_interval(x.mean(1), x.std(1, ddof=1), n)
    band = 4 * math.sqrt(0.025 * 0.975 / draws)
    assert abs((low > margin).mean() - 0.025) < band and abs((high < margin).mean() - 0.025) < band
    claim = next(c for c in CLAIMS if c.id == "K1a")
    found = [Finding(claim, "moons", [mean_of("", pd.Series(row))]).verdict() for row in x[:200]]
    assert found == [verdict("above", margin, *ends) for ends in zip(low[:200], high[:200], strict=True)]


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


def judge(runs, claim, target="moons"):
    return evaluate(table_of(runs), CENTRES).set_index(["claim", "target"]).loc[(claim, target)]


@pytest.mark.parametrize("status", ["diverged", "failed", "missing"])
def test_lost_runs_are_counted_and_never_averaged(moons_runs, status):
    few = judge(with_status(moons_runs, status, (0, 1), flow__n_flows=1), "K1a")
    assert few["verdict"] == "supported" and few["n"] == 3 and f"2 {status} of 10 runs used" in few["note"]
    many = judge(with_status(moons_runs, status, (0, 1, 2), flow__n_flows=1), "K1a")
    assert many["verdict"] == "inconclusive" and "flow.n_flows=1 lost more than half of its seeds" in many["note"]
    assert many["n"] == 2


def test_diverging_under_the_fixed_mask_is_the_claim(moons_runs):
    runs = with_status(moons_runs, "diverged", range(5), flow__mask="fixed")
    row = judge(runs, "K6a")
    assert row["verdict"] == "supported" and "5 diverged" in row["note"] and math.isnan(row["estimate"])
    assert judge(with_status(moons_runs, "failed", range(5), flow__mask="fixed"), "K6a")["verdict"] == "inconclusive"
    lost = with_status(runs, "diverged", range(5))
    assert judge(lost, "K6a")["verdict"] == "inconclusive"


def test_nobody_diverged(moons_runs):
    calm = [(o, m, "completed") for o, m, _ in moons_runs]
    assert judge(calm, "B1")["verdict"] == judge(calm, "B2")["verdict"] == "inconclusive"
    assert "0 of 20 runs diverged" in judge(calm, "B1")["note"] and "nothing to help" in judge(calm, "B2")["note"]


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


def test_metrics_without_a_value_count_as_no_pair(moons_runs):
    table = table_of(moons_runs)
    table["kl"] = np.nan
    rows = evaluate(table, CENTRES).set_index(["claim", "target"])
    assert rows.loc[("K1a", "moons"), "verdict"] == "inconclusive"
    assert "fewer than two pairs" in rows.loc[("K1a", "moons"), "note"]


def finding(quantifier, target, values, applies=True):
    claim = Claim(id="X", source="", sentence="", estimand="", measure=list, quantifier=quantifier)
    contrasts = [mean_of("", pd.Series(values, dtype=float))]
    return Finding(claim, target, contrasts, None if applies else "inconclusive", applies)


YES, NO, MAYBE = (1.0, 1.01, 0.99), (-1.0, -1.01, -0.99), (-1.0, 1.0, 0.2)
WEAK = (-0.5, -0.15, -0.2, -0.6, -0.05)  # contradicted at 95%, not at 1 - 0.05/4
OVERALL = {
    "every, all": ("every", [YES] * 4, "supported"),
    "every, one open": ("every", [YES, YES, YES, MAYBE], "inconclusive"),
    "every, mixed": ("every", [YES, YES, YES, NO], "inconclusive"),
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
    assert _overall(found[0].claim, found)["verdict"] == expected


def test_targets_outside_the_claim_have_no_vote():
    found = [finding("every", "moons", YES), finding("every", "banana", NO), finding("every", "circles", NO, False)]
    row = _overall(found[0].claim, found)
    assert row["verdict"] == "supported" and row["note"].endswith("not counted: banana, circles")
    assert _overall(found[0].claim, found[1:2])["verdict"] == "contradicted"


def test_the_contradicting_contrast_is_shown():
    claim = next(c for c in CLAIMS if c.id == "K1d")
    clear, wide = mean_of("clear", pd.Series([0.1, 0.1001, 0.0999])), mean_of("wide", pd.Series([-5.0, 5.0, 1.0]))
    found = Finding(claim, "moons", [wide, clear])
    assert found.verdict() == "contradicted" and found.shown()[4] == "clear"


def test_a_sweep_from_disk_with_walks(tmp_path):
    folder = ablation_sweep(tmp_path / "sweep", seeds=2, targets=("moons",))
    runs = load_runs(folder)
    sweep = load_sweep([folder], runs)
    rows = evaluate(runs, sweep.centres).set_index(["claim", "target"])
    assert rows.loc[("B4", "moons"), "verdict"] == "supported" and rows.loc[("B4", "all"), "estimate"] == 1
    first = next(f for f in runs["dir"] if len(coordinates_moved(f)))
    walk = np.cumsum(np.ones((4, 5, 2)), axis=0)
    np.savez(f"{first}/samples.npz", walk=walk, walk_names=np.array(["base", "coupling 2", "coupling 1", "data"]))
    assert coordinates_moved(first).tolist() == [2, 2]
    rows = evaluate(runs, sweep.centres).set_index(["claim", "target"])
    assert rows.loc[("B4", "moons"), "verdict"] == "contradicted" and rows.loc[("B4", "moons"), "estimate"] == 0
    (tmp_path / "samples.npz").write_bytes(b"PK not an archive")
    assert len(coordinates_moved(str(tmp_path))) == 0


def test_a_metric_left_in_a_diverged_run_is_not_used(moons_runs):
    table = table_of(moons_runs)
    lost = table["flow.n_flows"].eq(1) & table["flow.hidden_depth"].eq(2) & table["flow.hidden_width"].eq(64)
    table.loc[lost & table["seed"].eq(0), ["status", "kl"]] = ["diverged", -1e6]
    row = evaluate(table, CENTRES).set_index(["claim", "target"]).loc[("K1a", "moons")]
    assert row["verdict"] == "supported" and row["n"] == 4
