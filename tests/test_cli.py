"""The command line as its users meet it: runs, sweeps, dry runs, other launchers."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir

import nfexp as package
from nfexp.configuration import conf_dir, spec_of

EXPERIMENTS = sorted(p.stem for p in (Path(conf_dir()) / "experiment").glob("*.yaml"))


def finished(folder="."):
    return sorted(Path(folder).rglob("result.json"))


def test_one_run_leaves_its_directory(nfexp, small_args):
    code, _, err = nfexp(*small_args, "record=full", "record.walk=50", "record.grid=20", "hydra.run.dir=out")
    assert code == 0, err
    names = {p.relative_to("out").as_posix() for p in Path("out").rglob("*") if p.is_file()}
    assert names == {
        "result.json", "history.csv", "samples.npz", "model.safetensors", "nfexp.log",
        ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml",
    }  # fmt: skip
    record = json.loads(Path("out/result.json").read_text())
    assert record["status"] == "completed" and record["schema_version"] == 1
    assert record["metrics"]["kl"] == pytest.approx(record["metrics"]["test_nll"] - record["metrics"]["true_nll"])
    assert list(pd.read_csv("out/history.csv").columns) == ["step", "train_nll", "val_nll", "grad_norm", "lr"]
    with np.load("out/samples.npz", allow_pickle=False) as arrays:
        assert arrays["snapshots"].shape == (len(arrays["snapshot_steps"]), 1000, 2)
        assert arrays["snapshot_steps"][[0, -1]].tolist() == [1, 20] and arrays["target"].shape == (200, 2)
        assert arrays["walk"].shape == (8, 50, 2) and arrays["walk_names"][0] == "base"
        assert arrays["grid_log_q"].shape == arrays["grid_log_p"].shape == (20, 20)
        flow = package.load_flow("out")
        best = flow.forward(arrays["base"]).numpy()
        np.testing.assert_allclose(best, arrays["best"], atol=1e-4)
    x = flow.sample(7)
    assert x.shape == (7, 2) and torch.equal(x, flow.sample(7))
    assert flow.log_prob(x.numpy()).shape == (7,)
    assert package.load_runs("out")["kl"].iloc[0] == pytest.approx(record["metrics"]["kl"])


@pytest.mark.pictures
def test_a_sweep_from_the_command_line(nfexp, small_args):
    code, out, err = nfexp("-m", *small_args, "record=lean", "flow.n_flows=1,2", "seed=range(2)", "hydra.sweep.dir=s")
    assert code == 0, err
    runs = pd.read_csv("s/runs.csv")
    assert len(runs) == 4 and set(runs["status"]) == {"completed"}
    assert sorted(zip(runs["flow.n_flows"], runs["seed"], strict=True)) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert set(runs["stack_size"]) == {2}
    for name in ("multirun.yaml", "sweep.json", "ablation_flows.csv", "claims.csv", "report.html", "report.md"):
        assert (Path("s") / name).is_file(), name
    assert list(Path("s/figures").glob("ablation_flows.png")) and list(Path("s/tables").glob("*.tex"))
    assert yaml.safe_load(Path("s/0002/.hydra/overrides.yaml").read_text())[-2:] == ["flow.n_flows=2", "seed=0"]
    assert "report.html" in out and "\x1b" not in out  # no terminal: nothing is drawn
    assert "moons seed 1 flow.n_flows=2: test NLL " in "".join(p.read_text() for p in Path("s").glob("*/nfexp.log"))
    assert "4/4 runs, 0 diverged, 0 failed · " in out and not Path("s/.progress").exists()
    assert "by flows:\n  flow.n_flows  moons\n" in out  # the ablation of its own axis


@pytest.mark.parametrize("first, second", [("none", "full"), ("full", "none")])
def test_of_equal_runs_the_one_that_records_more_is_kept(nfexp, small_args, first, second):
    grids = f"hydra.sweeper.grids=[{{record:{first},seed:[0,1]}},{{record:{second},seed:1}}]"
    code, _, err = nfexp("-m", *small_args, "hydra.sweep.dir=s", grids)
    assert code == 0, err
    held = {seed: Path(f"s/{seed:04d}/samples.npz").exists() for seed in (0, 1)}
    assert held == {0: first == "full", 1: True}


@pytest.mark.slow
def test_other_launchers_give_the_same_numbers(nfexp, small_args):
    sweep = ["-m", *small_args, "record=none", "seed=0,1", "data=moons,circles"]
    launchers = {
        "stack": [],
        "basic": ["hydra/launcher=basic"],
        "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    }
    tables = {}
    for name, choice in launchers.items():
        code, _, err = nfexp(*sweep, f"hydra.sweep.dir={name}", *choice)
        assert code == 0, err
        tables[name] = pd.read_csv(f"{name}/runs.csv").drop(columns=["seconds", "stack_size"])
    for name in ("basic", "joblib"):
        pd.testing.assert_frame_equal(tables["stack"], tables[name], rtol=1e-5)


def test_callbacks_and_logs_are_hydras_own(nfexp, small_args):
    callback = "+hydra.callbacks.log._target_=hydra.experimental.callbacks.LogJobReturnCallback"
    code, _, err = nfexp("-m", *small_args, "record=none", "seed=0,1", "hydra.sweep.dir=s", callback)
    assert code == 0, err
    for job, row in pd.read_csv("s/runs.csv", dtype={"job": str}).set_index("job").iterrows():
        log = Path(f"s/{job}/nfexp.log").read_text()
        value = float(re.search(r"Succeeded with return value: (\S+)", log)[1])
        assert value == pytest.approx(row["val_nll"]) and f"seed {row['seed']}" in log


@pytest.mark.measured
def test_a_dry_run_trains_and_writes_nothing(nfexp):
    code, out, err = nfexp("-m", "experiment=ablations", "train=quick", "dry_run=true")
    assert code == 0, err
    found = re.search(r"(\d+) runs \((\d+) moons, .*\) in (\d+) stacks; (\d+) duplicates dropped", out)
    assert found and int(found[1]) == 4 * int(found[2]) and int(found[4]) > 0
    assert "minutes of training" in out and not list(Path().iterdir())


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(nfexp, experiment):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        spec_of(compose("config", [f"experiment={experiment}"]))


def test_a_finished_run_is_never_overwritten(nfexp, small_args):
    assert nfexp("hydra.run.dir=out", *small_args, "record=none")[0] == 0
    before = {p: p.read_bytes() for p in finished()}
    code, _, err = nfexp("hydra.run.dir=out", *small_args, "record=none", "flow.n_flows=2")
    assert code != 0 and re.search(r"out: expected a new or empty folder; got one that holds result\.json", err)
    assert {p: p.read_bytes() for p in finished()} == before


def test_a_write_that_breaks_leaves_the_old_file(tmp_path):
    from nfexp.files import replacing

    (tmp_path / "x.csv").write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(tmp_path / "x.csv") as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.csv", "old")]
