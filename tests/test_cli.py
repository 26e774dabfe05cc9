"""The command line as its users meet it: runs, sweeps, dry runs, other launchers, and every kind of bad input."""

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
from nfexp import figures
from nfexp import report as reporting
from nfexp.cli import conf_dir, spec_of

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
    assert "report.html" in out


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_other_launchers_give_the_same_numbers(nfexp, small_args, launcher):
    extra = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    sweep = ["-m", *small_args, "record=none", "seed=0,1", "data=moons,circles"]
    for name, args in {"stack": [], launcher: [f"hydra/launcher={launcher}", *extra]}.items():
        code, _, err = nfexp(*sweep, f"hydra.sweep.dir={name}", *args)
        assert code == 0, err
    stack, other = (pd.read_csv(f"{n}/runs.csv").drop(columns=["seconds", "stack_size"]) for n in ("stack", launcher))
    pd.testing.assert_frame_equal(stack, other, rtol=1e-5)


def test_callbacks_and_logs_are_hydras_own(nfexp, small_args):
    callback = "+hydra.callbacks.log._target_=hydra.experimental.callbacks.LogJobReturnCallback"
    code, _, err = nfexp("-m", *small_args, "record=none", "seed=0,1", "hydra.sweep.dir=s", callback)
    assert code == 0, err
    for job, row in pd.read_csv("s/runs.csv", dtype={"job": str}).set_index("job").iterrows():
        log = Path(f"s/{job}/nfexp.log").read_text()
        value = float(re.search(r"Succeeded with return value: (\S+)", log)[1])
        assert value == pytest.approx(row["val_nll"]) and f"seed {row['seed']}" in log


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


GRIDS = {
    "union without duplicates": (["+hydra.sweeper.grids.a={seed:[0,1]}", "+hydra.sweeper.grids.b={seed:[1,2]}"], 3),
    "product": (["+hydra.sweeper.grids.a={seed:[0,1],flow.n_flows:[1,2]}"], 4),
    "zip": (["+hydra.sweeper.grids.a={zip:{seed:[0,1],flow.n_flows:[1,2]}}"], 2),
    "list of grids": (["+hydra.sweeper.grids.a=[{seed:[0,1]},{flow.n_flows:[1,2]}]"], 4),
    "params multiply": (["+hydra.sweeper.grids.a={seed:[0,1]}", "+hydra.sweeper.params.data=[moons,circles]"], 4),
    "range in text": (["+hydra.sweeper.params.seed='range(3)'"], 3),
    "the command line restricts": (["+hydra.sweeper.grids.a={seed:[0,1,2]}", "seed=1,2,9"], 2),
    "one value in two spellings": (["train.lr=1e-3,0.001"], 1),
    "a default spelled out": (["+hydra.sweeper.grids.a={flow.n_flows:[6,7]}", "+hydra.sweeper.grids.b={seed:0}"], 2),
}


@pytest.mark.parametrize(("arguments", "n"), GRIDS.values(), ids=GRIDS)
def test_grids(nfexp, arguments, n):
    code, out, err = nfexp("-m", *arguments, "dry_run=true")
    assert code == 0, err
    assert f"\n{n} runs (" in out


BAD = {
    "unknown key": (["flow.n_layers=3"], "flow.n_layers: expected a key of the configuration .*; got an unknown one"),
    "unknown group option": (["data=moon"], "data: expected one of banana, checkerboard, circles, .*; got 'moon'"),
    "unknown experiment": (["-m", "experiment=nope"], "experiment: expected one of ablate_activation, .*; got 'nope'"),
    "wrong type": (["flow.n_flows=many"], "flow.n_flows: expected an integer >= 1 .*; got 'many'"),
    "out of range": (["flow.n_flows=0"], "flow.n_flows: expected an integer >= 1 .*; got 0"),
    "in a sweep, late": (["-m", "flow.n_flows=1,2,0"], "flow.n_flows: expected an integer >= 1 .*; got 0"),
    "unknown key in a sweep": (["-m", "flow.layers=1,2"], "flow.layers: expected a key of .*; got an unknown one"),
    "unknown activation": (["flow.activation=gelu"], "flow.activation: expected one of relu, .*; got 'gelu'"),
    "unknown mask": (["-m", "flow.mask=fixed,odd"], "flow.mask: expected one of alternating, .*; got 'odd'"),
    "too few samples": (["data.n_samples=1"], "data.n_samples: expected an integer >= 2 .*; got 1"),
    "noise 0": (["data.noise=0"], "data.noise: expected a number > 0 .*; got 0"),
    "noise out of reach": (["data.noise=1e-9"], "data.noise: expected at most .*; got a noise so small .*"),
    "unprintable text": (["data=text", "data.text='  '"], "data.text: expected .*; got '  '"),
    "empty grid": (["-m", "+hydra.sweeper.grids.a={seed:[]}"], r"hydra.sweeper.grids.a.seed: expected .*; got \[\]"),
    "grid of nothing": (["-m", "+hydra.sweeper.grids.a=3"], "hydra.sweeper.grids.a: expected a grid.*; got 3"),
    "zip of two lengths": (
        ["-m", "+hydra.sweeper.grids.a={zip:{seed:[0,1],flow.n_flows:[1]}}"],
        "hydra.sweeper.grids.a.zip: expected lists of one length; got .*",
    ),
    "grids that do not agree": (
        ["-m", "+hydra.sweeper.grids.a={seed:[0,1]}", "seed=7"],
        "hydra.sweeper.grids: expected at least one run; got none.*",
    ),
    "grids are no group": (["-m", "hydra.sweeper.grids=3"], "hydra.sweeper.grids: expected a group of keys; got 3"),
    "zip is no group": (
        ["-m", "+hydra.sweeper.grids.a={zip:3}"],
        "hydra.sweeper.grids.a.zip: expected keys with lists of values; got 3",
    ),
    "a key twice in a grid": (
        ["-m", "+hydra.sweeper.grids.a={zip:{seed:[0,1]},seed:[3]}"],
        "hydra.sweeper.grids.a.seed: expected a key in the grid or in its zip; got it in both",
    ),
    "two experiments": (["-m", "experiment=ablate_mask,ablate_norm"], "experiment: expected one value, .*; got .*"),
    "an experiment without -m": (
        ["experiment=ablate_mask"],
        "hydra.sweeper.grids: expected nfexp -m.*",
    ),
    "a dry single run": (["dry_run=true"], "dry_run: expected nfexp -m .*; got a single run"),
    "a dry run of no sort": (["-m", "seed=0,1", "dry_run=maybe"], "dry_run: expected true or false; got 'maybe'"),
    "a name with a path": (["-m", "name=../../evil", "seed=0,1"], "name: expected letters, .*; got '../../evil'"),
    "unknown configuration": (
        ["--config-name", "nope"],
        "configuration: expected a file .*; got 'nope'",
    ),
    "max_stack": (["-m", "hydra.launcher.max_stack=0"], "hydra.launcher.max_stack: expected an integer >= 1; got 0"),
    "syntax": (["flow.n_flows=[1"], ".*flow.n_flows=.*"),
    "sweep without -m": (["flow.n_flows=1,2"], ".*flow.n_flows=1,2.*"),
    "unwritable folder": (["hydra.run.dir=/proc/nfexp"], "/proc/nfexp.*: expected a folder nfexp can write to; got .*"),
    "unwritable sweep": (
        ["-m", "seed=0,1", "hydra.sweep.dir=/proc/nfexp"],
        "/proc/nfexp.*: expected a folder nfexp can write to; got .*",
    ),
}


BAD_FOLDERS = {
    "report on nothing there": (["nfexp-report", "absent"], ".*absent: expected a directory; got nothing there"),
    "report without runs": (["nfexp-report", "empty"], ".*empty: expected a finished run .*; got none"),
    "report on a half-written run": (["nfexp-report", "half"], ".*half: expected a finished run .*; got none"),
    "report on a newer schema": (["nfexp-report", "newer"], ".*expected schema_version at most 1; got 99"),
    "plot of a broken record": (["nfexp-plot", "broken"], ".*result.json: expected readable JSON; got .*"),
    "plot of an unknown figure": (["nfexp-plot", "run", "figures=maps"], "figures: expected one of .*; got 'maps'"),
}


def lay_out_folders():
    from fake_sweep import write_sweep

    for name, record in {"newer": '{"schema_version": 99}', "broken": '{"schema_'}.items():
        Path(name).mkdir()
        (Path(name) / "result.json").write_text(record)
    Path("empty").mkdir()
    Path("half/0000/.hydra").mkdir(parents=True)
    (Path("half/0000") / ".result.json.x1").write_text('{"schema_version": 1, "sta')
    write_sweep("run", [({"seed": 0}, {}, "completed")])


@pytest.mark.parametrize(("arguments", "message"), (BAD | BAD_FOLDERS).values(), ids=BAD | BAD_FOLDERS)
def test_bad_input(nfexp, capsys, arguments, message):
    commands = {"nfexp-report": reporting.main, "nfexp-plot": figures.main}
    if arguments[0] in commands:
        lay_out_folders()
        before = sorted(Path().rglob("*"))
        code = commands[arguments[0]](arguments[1:])
        out, err = capsys.readouterr()
    else:
        before = []
        code, out, err = nfexp(*arguments)
        message = "nfexp: " + message
    assert code != 0
    lines = err.strip().splitlines()
    assert len(lines) == 1 and re.fullmatch(message, lines[0]), err
    assert "Traceback" not in out + err
    assert sorted(Path().rglob("*")) == before


def test_a_failed_run_is_recorded_and_its_mates_finish(nfexp, small_args, monkeypatch):
    from nfexp import run

    whole = run.run_stack

    def breaks(specs, **kwargs):
        if any(s.seed == 1 for s in specs):
            raise MemoryError("no room")
        return whole(specs, **kwargs)

    monkeypatch.setattr(run, "run_stack", breaks)
    code, _, err = nfexp("-m", *small_args, "record=none", "seed=range(3)", "hydra.sweep.dir=s")
    assert code != 0 and "no room" in err
    assert pd.read_csv("s/runs.csv")["status"].tolist() == ["completed", "failed", "completed"]


@pytest.mark.parametrize("how", [("hydra.run.dir=out",), ("-m", "seed=0,1", "hydra.sweep.dir=out")])
def test_finished_results_are_never_overwritten(nfexp, small_args, how):
    assert nfexp(*how, *small_args, "record=none")[0] == 0
    before = {p: p.read_bytes() for p in finished()}
    code, _, err = nfexp(*how, *small_args, "record=none", "flow.n_flows=2")
    assert code != 0 and re.search(r"out: expected a new or empty folder; got one that holds (result|sweep)\.json", err)
    assert {p: p.read_bytes() for p in finished()} == before


def test_a_full_disk_stops_the_sweep(nfexp, small_args, monkeypatch):
    from nfexp import record

    def full(folder, result):
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(record, "write_run", full)
    code, _, err = nfexp("-m", *small_args, "record=none", "seed=0,1", "hydra.sweep.dir=s")
    assert code != 0 and "No space left on device" in err and "Traceback" not in err


def test_what_is_recorded_does_not_restrict_the_grids(nfexp):
    for record in ([], ["record=none"]):
        _, out, _ = nfexp("-m", "experiment=ablate_corners", "data=moons", "seed=0", "dry_run=true", *record)
        assert "\n7 runs (" in out


def test_interpolated_overrides_of_a_sweep(nfexp):
    code, out, err = nfexp("-m", "train.warmup=${train.steps}", "seed=0,1", "dry_run=true")
    assert code == 0 and "\n2 runs (" in out, err


def test_a_write_that_breaks_leaves_the_old_file(tmp_path):
    from nfexp.files import replacing

    (tmp_path / "x.csv").write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(tmp_path / "x.csv") as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.csv", "old")]


def test_stacks_hold_what_may_train_together(make_spec):
    from hydra_plugins.nfexp.stack_launcher import plan
    from nfexp.spec import stack_key

    specs = [make_spec(seed=s, flow__n_flows=f) for s in range(10) for f in (1, 2)] + [make_spec(flow__n_flows=12)]
    stacks = plan(specs, max_stack=4)
    assert sorted(i for stack in stacks for i in stack) == list(range(21))
    assert all(len({stack_key(specs[i]) for i in stack}) == 1 and len(stack) <= 4 for stack in stacks)
    assert sorted(map(len, stacks)) == [1, 3, 3, 3, 3, 4, 4]
    assert sorted(map(len, plan(specs[::2][:10], max_stack=32, workers=2))) == [5, 5]


def test_an_interrupted_sweep_keeps_its_finished_runs(tmp_path, small_args):
    import signal
    import subprocess
    import sys
    import time

    command = [sys.executable, "-m", "nfexp", "-m", *small_args, "record=none", "hydra.sweep.dir=s"]
    command += ["flow.n_flows=1,2", "train.steps=20,100000", "hydra.launcher.workers=4"]
    sweep = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=source_path())
    deadline = time.monotonic() + 120
    while len(finished(tmp_path)) < 2 and time.monotonic() < deadline and sweep.poll() is None:
        time.sleep(0.1)
    sweep.send_signal(signal.SIGINT)
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 130 and "interrupted; finished runs are kept" in err and "Traceback" not in err
    runs = package.load_runs(tmp_path / "s")
    assert sorted(runs["status"]) == ["completed", "completed", "missing", "missing"]


def source_path():
    import os

    return {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}
