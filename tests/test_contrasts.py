"""Contrasts of a study's own: read, checked, judged as claims are."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from nfexp import baselines
from nfexp.analysis.claims import evaluate
from nfexp.analysis.claims.looks import evaluate_in_rounds
from nfexp.analysis.claims.own import claims_of
from nfexp.analysis.contrasts import contrasts_of
from nfexp.analysis.sequential import Rounds
from nfexp.analysis.statistics import ablations
from nfexp.analysis.table import load_runs, load_sweep, write_csv
from nfexp.analysis.table.baselines import columns_of, data_key, load_baselines
from nfexp.baseline_fits import fit_draws
from nfexp.spec import SpecError
from nfexp.targets import find_source
from tests.helpers.fake_sweep import centre, write_sweep

DEEP = {"better": {"flow.n_flows": 6}, "worse": {"flow.n_flows": 2}}
CENTRES = {"moons": {"flow.n_flows": 6, "data.noise": 0.1}, "ring": {"flow.n_flows": 6, "data.noise": 0.1}}


def study(gap, *, metric="kl", seeds=5, targets=("moons", "ring")):
    """Runs in which two flows are worse than six by `gap` of each target, give or take."""
    rng = np.random.default_rng(0)
    rows = []
    for target in targets:
        for seed in range(seeds):
            base = rng.normal(0.3, 0.1)
            for flows in (2, 6):
                value = base + (gap[target] + rng.normal(0, 0.02) if flows == 2 else 0.0)
                known = {"kl": np.nan, "test_nll": np.nan, metric: value}
                rows.append({"data.name": target, "status": "completed", "seed": seed, "flow.n_flows": flows,
                             "data.noise": 0.1, "dir": f"{target}/{flows}/{seed}", **known})  # fmt: skip
    return pd.DataFrame(rows)


def verdicts(runs, **contrast):
    claims = claims_of(contrasts_of({"deep": DEEP | contrast}))
    table = evaluate(runs, CENTRES, claims)
    return dict(zip(table["target"], table["verdict"], strict=True))


def test_a_contrast_says_by_how_much_on_every_target():
    runs = study({"moons": 0.3, "ring": 0.005})
    assert verdicts(runs) == {"moons": "supported", "ring": "inconclusive", "all": "inconclusive"}
    assert verdicts(runs, margin=0.1) == {"moons": "supported", "ring": "contradicted", "all": "contradicted"}
    assert verdicts(runs, margin=0.1, quantifier="some")["all"] == "supported"
    within = verdicts(runs, margin=0.1, kind="within")
    assert within == {"moons": "contradicted", "ring": "supported", "all": "contradicted"}


def test_the_interval_is_of_paired_differences():
    runs = study({"moons": 0.3, "ring": 0.3})
    table = evaluate(runs, CENTRES, claims_of(contrasts_of({"deep": DEEP}))).set_index("target")
    wide = runs[runs["data.name"] == "moons"].pivot(index="seed", columns="flow.n_flows", values="kl")
    assert table.loc["moons", "estimate"] == pytest.approx((wide[2] - wide[6]).mean())
    assert table.loc["moons", "n"] == 5


def test_without_a_density_the_nll_is_compared():
    runs = study({"moons": 0.3, "ring": 0.3}, metric="test_nll")
    assert set(verdicts(runs).values()) == {"supported"}
    assert set(verdicts(runs, metric="kl").values()) == {"inconclusive"}


def test_a_metric_of_the_table_may_be_named():
    runs = study({"moons": 0.3, "ring": 0.3}).assign(worst_nll=lambda runs: runs["kl"] * 10)
    assert set(verdicts(runs, metric="worst_nll", margin=2).values()) == {"supported"}


def test_rounds_go_on_for_contrasts_alone():
    runs = study({"moons": 0.3, "ring": 0.3}, seeds=3)
    rounds = Rounds(first=(0, 1, 2), max_seeds=9)
    table = evaluate_in_rounds(runs, CENTRES, rounds, contrasts_of({"deep": DEEP | {"margin": 0.05}}))
    own = table[table["claim"] == "deep"].set_index("target")
    assert own.loc["all", "verdict"] == "supported" and own.loc["all", "rounds"] == 1


BAD = {
    "a list": ([DEEP], "contrasts: expected at most 100 contrasts by name; got something else"),
    "name": ({"a b": DEEP}, "contrasts: expected names of .*; got 'a b'"),
    "no cell": ({"x": {"better": {}}}, r"contrasts.x.worse: expected how the cell differs .*; got nothing"),
    "same cells": ({"x": {"better": {}, "worse": {}}}, "contrasts.x: expected two cells that differ; got .*"),
    "key": ({"x": DEEP | {"bigger": 1}}, "contrasts.x.bigger: expected one of the keys better, .*; got an unknown key"),
    "group": ({"x": DEEP | {"better": {"flow": "tuned"}}}, "contrasts.x.better.flow: expected a key of data, .*"),
    "target": ({"x": DEEP | {"better": {"data.name": "moons"}}}, "contrasts.x.better.data.name: expected a key of .*"),
    "list": ({"x": DEEP | {"better": {"flow.n_flows": [1]}}}, r"contrasts.x.better.flow.n_flows: .* value; got \[1\]"),
    "margin": ({"x": DEEP | {"margin": -1}}, "contrasts.x.margin: expected a number >= 0, .*; got -1"),
    "no margin to be within": ({"x": DEEP | {"kind": "within"}}, "contrasts.x.margin: .* kind=within; got 0.0"),
    "kind": ({"x": DEEP | {"kind": "below"}}, "contrasts.x.kind: expected one of above, within; got 'below'"),
    "metric": ({"x": DEEP | {"metric": "loss"}}, "contrasts.x.metric: expected one of train_nll, .*; got 'loss'"),
    "sentence": ({"x": DEEP | {"sentence": "a\nb"}}, "contrasts.x.sentence: expected a line of .*"),
}


@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD)
def test_bad_contrasts(given, message):
    with pytest.raises(SpecError) as caught:
        contrasts_of(given)
    assert re.fullmatch(message, str(caught.value)), caught.value


def test_written_contrasts_are_read_back():
    (one,) = contrasts_of({"deep": DEEP | {"margin": 0.1, "sentence": "Deep is good."}})
    assert contrasts_of({"deep": one.written()}) == (one,)


def test_a_contrast_needs_cells_of_the_sweep(nfexp, small_args):
    contrast = "contrasts={deep:{better:{flow.n_flows:8},worse:{flow.n_flows:2}}}"
    code, _, err = nfexp("-m", *small_args, "flow.n_flows=2,4", f"+{contrast}", "dry_run=true")
    assert code == 1 and "contrasts.deep: expected two cells that the sweep has" in err and "flow.n_flows=8" in err


def test_code_is_named_in_a_file_alone(nfexp, small_args, tmp_path):
    (tmp_path / "x.py").write_text("raise SystemExit('executed')")
    code, _, err = nfexp("-m", *small_args, "data=own", "data.target=x.py:X", "seed=0,1", "dry_run=true")
    assert code == 1 and "data.target: expected" in err and "executed" not in err


def test_a_plan_with_a_bad_contrast_is_skipped(tmp_path, caplog):
    folder = write_sweep(tmp_path / "s", [({"seed": 0}, {}, "completed")], arrays=False)
    plan = json.loads((folder / "sweep.json").read_text())
    for margin, n_read in ((0.1, 1), ("<script>", 0)):
        plan["contrasts"] = {"deep": DEEP | {"margin": margin}}
        (folder / "sweep.json").write_text(json.dumps(plan))
        assert len(load_sweep(folder, load_runs(folder)).contrasts) == n_read
    assert "contrasts.deep.margin" in caplog.text


def test_a_parameter_that_is_as_usual_has_its_value_in_the_table(tmp_path):
    rings = {"data.name": "circles"}
    runs = [(rings | {"seed": seed} | own, {}, "completed") for seed in (0, 1) for own in ({}, {"data.factor": 0.5})]
    folder = write_sweep(tmp_path / "s", [*runs, ({"seed": 0}, {}, "completed")], arrays=False)
    table = load_runs(folder)
    assert table.groupby("data.name")["data.factor"].agg(list)["circles"] == [0.8, 0.5, 0.8, 0.5]
    assert table.loc[table["data.name"] == "moons", "data.factor"].isna().all()
    sweep = load_sweep(folder, table)
    assert sweep.centres["circles"]["data.factor"] == 0.8
    axis = ablations(table, sweep.centres)["factor"]
    assert axis["data.factor"].tolist() == [0.5, 0.8] and axis["is_centre"].tolist() == [False, True]
    contrast = {
        "near": {"better": {}, "worse": {"data.factor": 0.5}},
        "same": {"better": {"data.factor": 0.8}, "worse": {}},
    }
    judged = evaluate(table, sweep.centres, claims_of(contrasts_of(contrast))).set_index(["claim", "target"])
    assert judged.loc[("near", "circles"), "n"] == 2
    assert judged.loc[("same", "circles"), "n"] == 0  # a cell is not compared with itself
    # Baselines are of the draws: the usual value, spelled or not, is one law, and another value another.
    keys = {data_key(row) for row in table[table["data.name"] == "circles"].to_dict("records")}
    assert keys == {data_key(centre("circles")), data_key(centre("circles") | {"data.factor": 0.5})}


def test_baselines_of_parameters_are_written_and_read(tmp_path):
    rings = {"data.name": "circles", "data.n_samples": 60, "data.n_test": 50, "seed": 0}
    write_sweep(tmp_path / "s", [(rings | {"data.factor": 0.5}, {}, "completed"), (rings, {}, "completed")])
    tasks, refused = baselines.wanted(load_runs(tmp_path / "s"), pd.DataFrame())
    assert not refused and [dict(task.data.parameters) for task in tasks] == [{"factor": 0.5}, {}]
    rows = [row for task in tasks for row in fit_draws(task.data, task.seed, ["gaussian"])]
    frame = pd.DataFrame(rows, columns=list(columns_of(rows)))
    write_csv(frame, tmp_path / "baselines.csv")
    read = load_baselines(tmp_path)
    assert len(read) == 2 and read["data.factor"].tolist()[0] == 0.5
    assert not baselines.wanted(load_runs(tmp_path / "s"), read.assign(model="gaussian"))[0][0].models.count("gaussian")


RING = """
import math
import torch

class Normal:
    def __init__(self, scale=1.0, noise=0.0):
        self.scale = math.hypot(scale, noise)

    def sample(self, n, generator):
        return self.scale * torch.randn(n, 3, generator=generator, dtype=torch.float64)

    def log_prob(self, x):
        return -(x / self.scale).square().sum(1) / 2 - 1.5 * math.log(2 * math.pi) - 3 * math.log(self.scale)
"""


@pytest.fixture
def own_sweep(tmp_path):
    """The folder of a run of a target of the user's own, and the file of that target."""
    file = tmp_path / "law.py"
    file.write_text(RING)
    own = {
        "data.name": "mine",
        "data.kind": "own",
        "data.target": f"{file}:Normal",
        "data.digest": find_source(f"{file}:Normal").digest,
        "data.dim": 3,
        "data.n_samples": 400,
        "data.n_test": 500,
        "data.noise": 0.1,
        "data.scale": 2.0,
    }
    centres = {"mine": centre("mine") | own}
    folder = write_sweep(tmp_path / "s", [(own | {"seed": 0}, {}, "completed")], centres=centres, arrays=False)
    return folder, file


def test_no_baseline_executes_what_a_record_names(own_sweep):
    folder, _ = own_sweep
    for sources, got in (({}, "no source"), ({"0" * 16: "x.py:X"}, "another source")):
        tasks, refused = baselines.wanted(load_runs(folder), pd.DataFrame(), sources)
        expected = "target=FILE.py:NAME with the source that its runs learned, which is then executed"
        assert not tasks and refused == [f"mine: expected {expected}; got {got}"]


def test_baselines_of_a_target_that_the_user_names(own_sweep):
    folder, file = own_sweep
    sources = baselines._sources(f"{file}:Normal")
    (task,), refused = baselines.wanted(load_runs(folder), pd.DataFrame(), sources)
    assert not refused and dict(task.data.parameters) == {"scale": 2.0}
    (row,) = fit_draws(task.data, task.seed, ["gaussian"])
    entropy = 1.5 * math.log(2 * math.pi * math.e) + 3 * math.log(2)
    assert row["true_nll"] == pytest.approx(entropy, abs=0.2) and 0 < row["kl"] < 0.1  # 9 moments cost 9 / 2n
    write_csv(pd.DataFrame([row], columns=list(columns_of([row]))), folder / "baselines.csv")
    read = load_baselines(folder)
    assert data_key(read.iloc[0]) == data_key(load_runs(folder).iloc[0])
    (again,), _ = baselines.wanted(load_runs(folder), read, sources)
    assert "gaussian" not in again.models and "mixture" in again.models
