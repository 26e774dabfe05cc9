import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from nfexp.analysis.statistics import (
    Absent,
    Study,
    ablations,
    axis_name,
    bootstrap_interval,
    deviations,
    distinct,
    holm,
    mean_interval,
    mean_tails,
    share_interval,
    share_tails,
    sign_tails,
    studies,
)
from nfexp.analysis.table import load_runs, load_sweep
from tests.helpers.fake_sweep import ablation_sweep, centre, write_sweep

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.helpers import intervals


def loaded(folder, runs, **options):
    write_sweep(folder, runs, arrays=False, **options)
    table = load_runs(folder)
    return table, load_sweep([folder], table).centres


def cells(folder, effects, seeds=3, status="completed"):
    """Runs of moons: for each (overrides, kl by seed)."""
    runs = [({**o, "seed": s}, {"kl": kl[s]}, status) for o, kl in effects for s in range(min(seeds, len(kl)))]
    return loaded(folder, runs)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 3, 10])
def test_mean_interval_is_scipys(n, level):
    x = np.random.default_rng(n).normal(size=n)
    mean, low, high = mean_interval(x, level)
    ends = scipy_stats.ttest_1samp(x, 0).confidence_interval(level)
    assert (mean, low, high) == pytest.approx((x.mean(), ends.low, ends.high))


def test_mean_interval_of_few_values():
    assert mean_interval([2.0, math.nan])[0] == 2.0 and np.isnan(mean_interval([2.0])[1:]).all()
    assert np.isnan(mean_interval([])).all() and np.isnan(mean_interval([math.nan])).all()
    assert mean_interval([1.0, 1.0, 1.0]) == (1.0, 1.0, 1.0)
    assert mean_interval(range(3)) == mean_interval(iter([0.0, 1.0, math.nan, 2.0]))


def test_interval_covers_95_percent():
    x = np.random.default_rng(0).normal(1.0, 2.0, (2000, 3))
    covered = [low < 1 < high for _, low, high in map(mean_interval, x)]
    assert abs(np.mean(covered) - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_tails_of_the_mean_are_scipys(n):
    x = np.random.default_rng(n).normal(0.3, 1, n)
    expected = [scipy_stats.ttest_1samp(x, 0.1, alternative=side).pvalue for side in ("greater", "less")]
    assert mean_tails(x, 0.1) == pytest.approx(expected)
    low, high = mean_interval(x, 0.9)[1:]  # an end of the interval has a tail of half of what the level leaves
    assert mean_tails(x, low)[0] == pytest.approx(0.05) and mean_tails(x, high)[1] == pytest.approx(0.05)


def test_tails_of_few_values():
    assert np.isnan(mean_tails([1.0, math.nan], 0)).all() and np.isnan(share_tails([], 0.5)).all()
    assert mean_tails([1, 1], 0) == (0, 1) and mean_tails([1, 1], 2) == (1, 0) and mean_tails([1, 1], 1) == (1, 1)


@pytest.mark.parametrize("k, n", [(0, 5), (1, 10), (5, 5), (7, 20)])
def test_shares_are_scipys(k, n):
    hits = [True] * k + [False] * (n - k)
    for level in (0.9, 0.95):
        ends = scipy_stats.binomtest(k, n).proportion_ci(level, method="exact")
        assert share_interval(hits, level) == pytest.approx((k / n, ends.low, ends.high))
    expected = [scipy_stats.binomtest(k, n, 0.2, alternative=side).pvalue for side in ("greater", "less")]
    assert share_tails(hits, 0.2) == pytest.approx(expected)
    assert np.isnan(share_interval([])).all()


@pytest.mark.parametrize("n", [2, 3, 10])
def test_bootstrap_interval(n):
    x = np.random.default_rng(n).normal(size=n)
    low, high = bootstrap_interval(x)
    assert x.min() <= low < x.mean() < high <= x.max() and (low, high) == bootstrap_interval([*x, math.nan])
    if n == 2:  # of the four equally likely resamples two are (x0, x1): the ends are those of the others
        assert (low, high) == (x.min(), x.max())
    if n == 3:  # all 27 resamples, exactly
        means = np.mean([*itertools.product(x, repeat=3)], axis=1)
        assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975], method="inverted_cdf"))
    assert bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0) and np.isnan(bootstrap_interval([2.0])).all()
    again = scipy_stats.bootstrap(
        (x,), np.mean, n_resamples=1999, method="percentile", random_state=np.random.default_rng(0)
    )
    assert (low, high) == pytest.approx(tuple(again.confidence_interval), rel=1e-12)


def test_holm_is_the_closure_of_bonferroni():
    # Marcus, Peritz and Gabriel 1976: p_i adjusted is the largest Bonferroni p of any set of hypotheses with i in it
    rng = np.random.default_rng(0)
    for k in (1, 2, 4):
        p = rng.random(k) ** 3
        sets = [s for r in range(1, k + 1) for s in itertools.combinations(range(k), r)]
        closed = [max(min(1, len(s) * p[list(s)].min()) for s in sets if i in s) for i in range(k)]
        assert holm(p) == pytest.approx(closed)
    assert holm([0.01, math.nan]).tolist() == [0.02, 1] and len(holm([])) == 0


def test_holm_holds_its_level_over_targets():
    x = np.random.default_rng(0).standard_normal((4000, 4, 10))
    p = [holm([mean_tails(target, 0)[0] for target in table]).min() for table in x]
    assert 0.015 < np.mean(np.less_equal(p, 0.025)) < 0.025 + 4 * math.sqrt(0.025 / 4000)


NOMINAL, TABLES = 0.025, 4000
BAND = 4 * math.sqrt(NOMINAL / TABLES)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_of_the_verdicts_holds_its_level(n):
    assert np.abs(np.subtract(intervals.misses(intervals.DIFFERENCES["normal"], n, "t", TABLES), NOMINAL)).max() < BAND
    assert max(intervals.misses(intervals.DIFFERENCES["arms"], n, "t", TABLES)) < NOMINAL + BAND


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_the_bootstrap_does_not(method):
    draw = intervals.DIFFERENCES["normal"]
    assert min(intervals.misses(draw, 3, method, 500)) > 3 * NOMINAL
    assert min(intervals.misses(draw, 10, method, 2000)) > NOMINAL + 2 * math.sqrt(NOMINAL / 2000)


def test_where_t_itself_errs_too_often():
    above, below = intervals.misses(intervals.DIFFERENCES["skewed"], 10, "t", TABLES)
    assert above < NOMINAL and 2 * NOMINAL < below < 4 * NOMINAL


def test_cells_and_paired_differences(tmp_path):
    centre_kl, three = [0.1, 0.2, 0.4], [0.5, 0.5, 0.9]
    runs, centres = cells(tmp_path, [({}, centre_kl), ({"flow.n_flows": 3}, three)])
    table = ablations(runs, centres)["flows"]
    assert table["flow.n_flows"].tolist() == [3, 6] and table["is_centre"].tolist() == [False, True]
    row, middle = table.iloc[0], table.iloc[1]
    assert tuple(row[["kl_mean", "kl_low", "kl_high"]]) == pytest.approx(mean_interval(three))
    gap = mean_interval(np.subtract(three, centre_kl))
    assert tuple(row[["kl_diff_mean", "kl_diff_low", "kl_diff_high"]]) == pytest.approx(gap)
    assert tuple(middle[["kl_diff_mean", "kl_diff_low", "kl_diff_high"]]) == (0, 0, 0)
    assert row["n_pairs"] == middle["n_pairs"] == row["n"] == 3


def test_columns(tmp_path):
    runs, centres = cells(tmp_path, [({}, [0.1, 0.2]), ({"flow.n_flows": 3}, [0.3, 0.4])])
    assert [*ablations(runs, centres)["flows"]] == [
        "data.name", "flow.n_flows", "n", "n_diverged", "n_failed", "n_missing", "test_nll_mean", "test_nll_low",
        "test_nll_high", "kl_mean", "kl_low", "kl_high", "kl_diff_mean", "kl_diff_low", "kl_diff_high", "n_pairs",
        "is_centre",
    ]  # fmt: skip


def test_lost_runs_are_counted_and_not_averaged(tmp_path):
    statuses = ["completed", "diverged", "failed", "missing", "completed"]
    runs = [({"seed": s}, {"kl": 0.1}, "completed") for s in range(4)]
    runs += [({"seed": s, "train.lr": 0.1}, {"kl": 0.5 + s}, status) for s, status in enumerate(statuses)]
    table = ablations(*loaded(tmp_path, runs))["lr"]
    row = table[table["train.lr"] == 0.1].iloc[0]
    assert row[["n", "n_diverged", "n_failed", "n_missing"]].tolist() == [2, 1, 1, 1]
    assert row["kl_mean"] == pytest.approx(2.5)  # seeds 0 and 4
    assert row["n_pairs"] == 1 and row["kl_diff_mean"] == pytest.approx(0.4) and math.isnan(row["kl_diff_low"])


def test_a_metric_left_in_a_diverged_run_is_not_averaged(tmp_path):
    runs, centres = cells(tmp_path, [({}, [0.1, 0.2]), ({"flow.n_flows": 3}, [0.3, 0.4])])
    runs.loc[runs["flow.n_flows"].eq(3) & runs["seed"].eq(1), ["status", "kl"]] = ["diverged", 1e9]
    row = ablations(runs, centres)["flows"].iloc[0]
    assert row["kl_mean"] == pytest.approx(0.3) and row["kl_diff_mean"] == pytest.approx(0.2)


def test_a_cell_without_completed_runs_stays_in_the_table(tmp_path):
    runs = [({"seed": 0}, {"kl": 0.1}, "completed"), ({"seed": 0, "flow.n_flows": 1}, {}, "diverged")]
    table = ablations(*loaded(tmp_path, runs))["flows"]
    assert table["n"].tolist() == [0, 1] and math.isnan(table["kl_mean"][0]) and table["n_pairs"].tolist() == [0, 1]


def test_repetitions_of_a_run_do_not_count(tmp_path):
    runs, centres = cells(tmp_path, [({}, [0.1, 0.2]), ({"flow.n_flows": 3}, [0.3, 0.4])])
    lost = runs.assign(status="diverged", kl=np.nan)
    twice = pd.concat([lost, runs, runs], ignore_index=True)
    assert len(distinct(twice)) == 4
    pd.testing.assert_frame_equal(ablations(twice, centres)["flows"], ablations(runs, centres)["flows"])


def test_pair_axes_are_whole_grids(tmp_path):
    grid = [({"flow.n_flows": f, "flow.hidden_depth": d}, [0.1, 0.2]) for f in (1, 6, 12) for d in (1, 2)]
    runs, centres = cells(tmp_path, [*grid, ({"flow.norm": "actnorm"}, [0.1, 0.2])])
    tables = ablations(runs, centres)
    assert [*tables] == ["flows", "depth", "norm", "flows_x_depth"]
    pair = tables["flows_x_depth"][["flow.n_flows", "flow.hidden_depth"]].to_numpy().tolist()
    assert pair == [[1, 1], [1, 2], [6, 1], [6, 2], [12, 1], [12, 2]]
    assert tables["flows"]["flow.n_flows"].tolist() == [1, 6, 12]


def test_three_changes_at_once_make_no_axis(tmp_path):
    odd = {"flow.n_flows": 3, "flow.norm": "actnorm", "train.lr": 0.1}
    assert ablations(*cells(tmp_path, [({}, [0.1]), (odd, [0.1])])) == {}


def test_targets_are_kept_apart(tmp_path):
    runs = [({"data.name": t, "seed": 0}, {"kl": kl}, "completed") for t, kl in (("moons", 0.1), ("circles", 0.3))]
    runs.append(({"data.name": "circles", "flow.n_flows": 3, "seed": 0}, {"kl": 0.7}, "completed"))
    table = ablations(*loaded(tmp_path, runs))["flows"]
    assert table["data.name"].tolist() == ["circles"] * 2  # moons has no such axis
    assert table["kl_diff_mean"].tolist() == pytest.approx([0.4, 0.0])


def test_mixed_values_sort_numbers_first(tmp_path):
    sizes = [({"train.batch_size": b}, [0.1]) for b in ("full", 1024, 256, 64)]
    table = ablations(*cells(tmp_path, sizes))["batch_size"]
    assert table["train.batch_size"].tolist() == [64, 256, 1024, "full"]


def test_null_is_a_value(tmp_path):
    clips = [({}, [0.1, 0.2]), ({"train.grad_clip": None}, [0.3, 0.3])]
    table = ablations(*cells(tmp_path, clips))["grad_clip"]
    assert table["kl_mean"].tolist() == pytest.approx([0.15, 0.3]) and math.isnan(table["train.grad_clip"][1])


def test_runs_of_an_unknown_target_are_left_out(tmp_path):
    runs, _ = cells(tmp_path, [({}, [0.1]), ({"flow.n_flows": 3}, [0.3])])
    assert ablations(runs, {}) == {} and ablations(runs[:0], {"moons": centre()}) == {}


def test_whole_study(tmp_path):
    runs = load_runs(ablation_sweep(tmp_path / "s", seeds=2, arrays=False))
    centres = load_sweep([tmp_path / "s"], runs).centres
    tables = ablations(runs, centres)
    assert [*tables] == [
        "flows", "depth", "activation", "samples", "noise", "mask", "coupling", "norm", "lr",
        "flows_x_depth", "flows_x_width", "flows_x_samples", "flows_x_noise",
    ]  # fmt: skip
    for table in tables.values():
        assert table["is_centre"].sum() == 4 and list(dict.fromkeys(table["data.name"])) == list(centres)
    assert tables["lr"]["n_diverged"].sum() == 4


def test_axis_names():
    assert [axis_name(c) for c in ("train.lr", "flow.n_flows", "data.n_val", "odd")] == ["lr", "flows", "n_val", "odd"]


def test_deviations_compare_numbers_and_words():
    runs = pd.DataFrame(
        {"data.name": "moons", "seed": 0, "train.batch_size": [256, "full", None], "train.lr": [1, 1.0, 2]}
    )
    differs = deviations(runs, {"moons": {"train.batch_size": 256, "train.lr": 1}})
    assert differs.to_numpy(dtype=bool).tolist() == [[False, False], [True, False], [True, True]]


def test_study_looks_cells_up(tmp_path):
    runs, centres = cells(tmp_path, [({}, [0.1, 0.2]), ({"flow.n_flows": 3}, [0.3, 0.5])])
    study = studies(runs, centres)["moons"]
    assert isinstance(study, Study) and study.axis("flow.n_flows") == [3, 6]
    assert study.gap({"flow.n_flows": 3}, {}).tolist() == pytest.approx([0.2, 0.3])
    for lacking in (runs.drop(columns="kl"), runs.assign(kl=np.nan)):
        with pytest.raises(Absent, match=r"^missing: kl of flow\.n_flows=3$"):
            studies(lacking, centres)["moons"].values("kl", {"flow.n_flows": 3})
    lost = studies(runs.assign(status="diverged"), centres)["moons"]
    assert lost.values("kl", {}).empty  # no run completed: not the table's fault


def test_signs_are_of_the_median_and_hold_their_level():
    x = np.random.default_rng(0).lognormal(0, 2, (4000, 10)) - 1  # median 0, mean 6.4
    above = np.array([sign_tails(row, 0.0)[0] for row in x])
    assert (above <= 0.025).mean() == pytest.approx(11 / 1024, abs=0.006)
    nine = [0.1] * 9
    assert sign_tails([*nine, -90.0], 0.0) == pytest.approx((11 / 1024, 1023 / 1024))
    assert sign_tails([0.5, 0.5], 0.5) == (1.0, 1.0) and np.isnan(sign_tails([1.0], 0.0)).all()
