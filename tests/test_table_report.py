"""The report of a sweep over tables: NLL, paired differences and baselines; no KL, no claims, no empty panels."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nfexp import baselines, report
from nfexp.analysis.statistics import ablations
from nfexp.analysis.table import load_runs

ARGUMENTS = (
    "-m", "data=table", "data.path=a.csv,b.csv", "data.jitter=gap", "flow.n_flows=2,3", "seed=0,1", "record=lean",
    "train.steps=20", "train.batch_size=32", "train.n_evals=5", "flow.hidden_width=8", "device=cpu", "name=two",
    "hydra.launcher.workers=1", "hydra.sweep.dir=s",
)  # fmt: skip


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def sweep(nfexp, kept):
    """The folder `s` of a sweep over two tables, trained once for all tests and copied."""
    if list(kept.iterdir()):
        shutil.copytree(kept, ".", dirs_exist_ok=True)
        return Path("s")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        frame = pd.DataFrame(rng.normal(size=(120, 3)), columns=["x", "y", "z"])
        frame.assign(z=frame["z"].round()).to_csv(f"{name}.csv", index=False)
    code, _, err = nfexp(*ARGUMENTS)
    assert code == 0, err
    shutil.copytree(".", kept, dirs_exist_ok=True)
    return Path("s")


@pytest.mark.pictures
def test_the_report_of_tables(sweep, capsys, monkeypatch):
    runs = load_runs(sweep)
    assert len(runs) == 8 and set(runs["data.name"]) == {"a", "b"}
    assert runs["kl"].isna().all() and runs["true_nll"].isna().all()
    with monkeypatch.context() as here:  # a process of its own would import torch and scikit-learn
        here.setattr(baselines, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
        assert baselines.main(["s", "workers=1"]) == 0
    assert "a, 84 points, seed 0: test NLL gaussian " in capsys.readouterr().out
    assert report.main(["s"]) == 0
    page = (sweep / "report.md").read_text()
    assert "NLL in nats per point" in page and "| Gaussian |" in page
    assert "KL" not in page.partition("## How this was made")[0]
    drawn = {path.stem for path in (sweep / "figures").glob("*.png")}
    assert drawn == {"ablation_flows", "convergence_flows", "corner_a", "corner_b"}
    written = pd.read_csv(sweep / "baselines.csv")
    assert written["data.digest"].nunique() == 2 and written["test_nll"].notna().all()
    assert baselines.main(["s", "workers=1"]) == 0  # nothing is fitted twice
    assert ", seed " not in capsys.readouterr().out
    # A baseline is fitted to the rows that the run trained on: a Gaussian's likelihood is known in closed form.
    run = runs[(runs["data.name"] == "a") & (runs["seed"] == 0)].iloc[0]
    own = written[(written["data.name"] == "a") & (written["seed"] == 0) & (written["model"] == "gaussian")]
    from nfexp import load_flow
    from nfexp.data import load

    dataset = load(load_flow(run["dir"]).spec)
    mean, covariance = dataset.train.mean(0), dataset.train.T.cov(correction=0)
    from scipy.stats import multivariate_normal

    exact = -multivariate_normal(mean, covariance).logpdf(dataset.test).mean()
    assert abs(own["test_nll"].item() - exact) < 1e-3


@pytest.mark.pictures
def test_the_report_of_a_table_with_a_context(sweep, nfexp, capsys):
    given = [word for word in ARGUMENTS if not word.startswith(("data.path", "flow.n_flows", "seed", "hydra.sweep"))]
    code, _, err = nfexp(
        *given, "data.path=a.csv", "data.context=[z]", "flow.n_flows=2", "seed=0,1", "hydra.sweep.dir=c"
    )
    assert code == 0, err
    capsys.readouterr()
    assert baselines.main(["c", "workers=1"]) == 0
    assert "a_given_z, 84 points, seed 0: test NLL gaussian " in capsys.readouterr().out
    assert report.main(["c"]) == 0
    drawn = {path.stem for path in Path("c/figures").glob("*.png")}
    assert drawn == {"convergence_centre", "corner_a_given_z", "gallery_a_given_z"}  # no walk, no grid
    runs = load_runs("c", "s")
    assert set(runs["data.name"]) == {"a", "b", "a_given_z"}  # each with its own baselines
    assert runs["data.context"].dropna().unique().tolist() == ["z"]
    fits = pd.read_csv("c/baselines.csv")
    assert set(fits["data.name"]) == {"a_given_z"} and fits["test_nll"].notna().all()


def test_differences_of_nll_are_paired(sweep):
    runs = load_runs(sweep)
    centre = runs[runs["flow.n_flows"] == 2].groupby("data.name").first().drop(columns="seed")
    centres = {name: row.to_dict() | {"data.name": name} for name, row in centre.iterrows()}
    table = ablations(runs, centres)["flows"]
    for name in ("a", "b"):
        own = runs[runs["data.name"] == name].pivot(index="seed", columns="flow.n_flows", values="test_nll")
        cell = table[(table["data.name"] == name) & (table["flow.n_flows"] == 3)]
        assert cell["kl_diff_mean"].item() == pytest.approx((own[3] - own[2]).mean())
        assert cell["n_pairs"].item() == 2


def test_a_sweep_over_tables_is_resumed(sweep, nfexp):
    from nfexp import cli

    before = (sweep / "0000" / "result.json").read_text()
    shutil.rmtree(sweep / "0003")
    code, _, err = nfexp("s", entry=cli.resume)
    assert code == 0, err
    assert (sweep / "0003" / "result.json").exists()
    assert (sweep / "0000" / "result.json").read_text() == before


def test_each_context_has_its_centre(nfexp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    pd.DataFrame(rng.normal(size=(40, 3)), columns=["x", "y", "z"]).to_csv("a.csv", index=False)
    code, _, err = nfexp(
        "-m", "data=table", "data.path=a.csv", "data.context=[z],null", "train.steps=2", "train.warmup=0",
        "flow.hidden_width=4", "flow.n_flows=1", "record=none", "seed=0", "hydra.sweep.dir=d",
    )  # fmt: skip
    assert code == 0, err
    centres = json.loads(Path("d/sweep.json").read_text())["centres"]
    found = {name: (centre["data.name"], centre.get("data.context")) for name, centre in centres.items()}
    assert found == {"a": ("a", None), "a_given_z": ("a_given_z", "z")}
