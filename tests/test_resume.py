"""A sweep's folder met again: resumed, repeated, extended, redone, refused; and one writer at a time."""

import json
import re
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest

from nfexp import cli, load_runs
from nfexp.spec import SpecError
from nfexp.sweep import conclusion
from nfexp.sweep.folder import Plan, locked, read_plan

TINY = ("train.steps=2", "train.warmup=0", "train.n_evals=1", "flow.n_flows=1", "record=none")
SWEEP = ("-m", *TINY, "hydra.sweep.dir=s")


@pytest.fixture
def run(nfexp, small_args, monkeypatch):
    """Call `nfexp` or `nfexp-resume` without figures; gives (exit code, stdout, stderr, jobs it wrote)."""
    reported = []
    monkeypatch.setattr(conclusion, "report", lambda folder, explorer: reported.append(folder))

    def call(*arguments, entry=cli.main):
        before = {p: p.stat().st_mtime_ns for p in Path("s").rglob("result.json")}
        small = [a for a in small_args if a.split("=")[0] not in {t.split("=")[0] for t in TINY}]
        code, out, err = nfexp(*arguments, *(small if entry is cli.main else ()), entry=entry)
        after = {p: p.stat().st_mtime_ns for p in Path("s").rglob("result.json")}
        call.reports = len(reported)
        return code, out, err, sorted(p.parent.name for p, t in after.items() if before.get(p) != t)

    return call


def change(path, **entries):
    path = Path(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_the_same_command_again_trains_nothing_and_reports(run):
    assert run(*SWEEP, "seed=0,1")[0] == 0
    code, _, err, written = run(*SWEEP, "seed=1,0")
    assert (code, written) == (0, []), err
    assert run.reports == 2


@pytest.mark.parametrize("launcher", ["stack", "basic"])
def test_what_is_missing_is_trained_in_its_own_folder(run, launcher):
    grid = ["seed=range(3)", f"hydra/launcher={launcher}"]
    assert run(*SWEEP, *grid)[0] == 0
    whole = load_runs("s").drop(columns=["seconds", "stack_size", "inverse_error"])
    for leftover in ("result.json", "history.csv"):
        Path("s/0001", leftover).unlink()
    shutil.rmtree("s/0002")
    code, _, err, written = run(*SWEEP, *grid)
    assert (code, written) == (0, ["0001", "0002"]), err
    again = load_runs("s").drop(columns=["seconds", "stack_size", "inverse_error"])
    pd.testing.assert_frame_equal(again, whole, rtol=1e-4)


def test_resume_needs_only_the_folder(run, monkeypatch):
    assert run(*SWEEP, "seed=range(3)", "data=moons,circles")[0] == 0
    shutil.rmtree("s/0004")
    Path("elsewhere").mkdir()
    Path("s").rename("elsewhere/t")
    (Path("s")).symlink_to("elsewhere/t")
    code, _, err, written = run("s", entry=cli.resume)
    assert (code, written) == (0, ["0004"]), err
    assert run("s", "dry_run=true", entry=cli.resume)[1].startswith("6 finished runs: nothing to train")


OTHERS = {
    "another grid": (["seed=0,2"], "seed 0, 2 instead of 0, 1"),
    "a part of the grid": (["seed=0"], "1 run instead of 2; seed 0 instead of 0, 1"),
    "another value": (["seed=0,1", "train.lr=0.1"], r"train.lr 0.1 instead of 0.01"),
}


@pytest.mark.parametrize(("grid", "unlike"), OTHERS.values(), ids=OTHERS)
def test_other_runs_are_refused(run, grid, unlike):
    assert run(*SWEEP, "seed=0,1")[0] == 0
    before = {p: p.read_bytes() for p in Path("s").rglob("*.json")}
    code, _, err, _ = run(*SWEEP, *grid)
    assert code == 1 and re.fullmatch(rf"nfexp: s: expected the runs of its sweep.json .*; got {unlike}\n", err), err
    assert {p: p.read_bytes() for p in Path("s").rglob("*.json")} == before


def test_mixed_runs_get_the_next_free_numbers_and_are_noted(run):
    assert run(*SWEEP, "seed=0,1")[0] == 0
    code, _, err, written = run(*SWEEP, "seed=1,2", "data=circles,moons", "mixed=true")
    assert (code, written) == (0, ["0002", "0003", "0004"]), err
    plan = read_plan(Path("s"))
    assert [j["job"] for j in plan.jobs] == ["0000", "0001", "0002", "0003", "0004"]
    assert len(plan.mixed) == 1 and "seed=1,2" in plan.mixed[0]["arguments"] and plan.mixed[0]["code"]
    assert "mixed=true" not in plan.arguments
    runs = load_runs("s")
    assert sorted(zip(runs["data.name"], runs["seed"], strict=True)) == [
        ("circles", 1), ("circles", 2), ("moons", 0), ("moons", 1), ("moons", 2),
    ]  # fmt: skip
    for job in ("0000", "0003"):
        shutil.rmtree(f"s/{job}")
    code, _, err, written = run("s", entry=cli.resume)
    assert (code, written) == (0, ["0000", "0003"]), err
    assert len(read_plan(Path("s")).mixed) == 1


def test_another_code_version_is_refused_unless_mixed(run):
    assert run(*SWEEP, "seed=0,1")[0] == 0
    change("s/0000/result.json", git_commit="0" * 40)
    shutil.rmtree("s/0001")
    code, _, err, written = run(*SWEEP, "seed=0,1")
    assert code == 1 and re.search(
        f"expected runs of nfexp .*; got finished runs of nfexp .* at commit {'0' * 40}", err
    )
    code, _, err, written = run(*SWEEP, "seed=0,1", "mixed=true")
    assert (code, written) == (0, ["0001"]), err
    assert len(read_plan(Path("s")).mixed) == 1


REDO = {"none": [], "failed": ["0000"], "diverged": ["0001"], "both": ["0000", "0001"]}


@pytest.mark.parametrize(("redo", "redone"), REDO.items(), ids=REDO)
def test_failed_and_diverged_runs_are_kept_or_redone(run, redo, redone):
    assert run(*SWEEP, "seed=range(3)")[0] == 0
    change("s/0000/result.json", status="failed", reason="a bad day")
    change("s/0001/result.json", status="diverged", reason="NaN")
    code, _, err, written = run(*SWEEP, "seed=range(3)", f"redo={redo}")
    assert written == redone and code == (0 if "0000" in redone else 1), err
    assert ("1 completed, 1 diverged, 1 failed; the first that failed: s/0000: a bad day" in err) == (redo == "none")


def test_a_folder_that_holds_something_else_is_refused(run, nfexp, small_args):
    assert run(*TINY, "hydra.run.dir=s")[0] == 0
    assert "expected a new or empty folder, or that of an earlier sweep; got one that holds a run" in run(*SWEEP)[2]
    shutil.rmtree("s")
    assert run(*SWEEP, "seed=0,1")[0] == 0
    Path("s/sweep.json").unlink()
    code, _, err, written = run(*SWEEP, "seed=2,1")
    assert code == 1 and not written and "got one whose 0000 holds another run" in err


def plan_with(**changed):
    plan = {"schema_version": 1, "name": "x", "arguments": [], "centres": {"moons": {}}, "jobs": []}
    return json.dumps(plan | changed)


PLANS = {
    "no JSON": ("{", "sweep.json: expected readable JSON; got Expecting .*"),
    "a list": ("[]", "sweep.json: expected a JSON object; got list"),
    "newer": ('{"schema_version": 99}', "sweep.json: expected schema_version at most 1; got 99"),
    "jobs of no sort": (plan_with(jobs=3), "sweep.json: expected jobs to be a JSON list; got int"),
    "a job without target": (
        plan_with(jobs=[{"run_id": "", "overrides": []}]),
        "sweep.json: expected each job to have job, data.name, seed and config; got .*",
    ),
    "a job without overrides": (
        plan_with(jobs=[{"job": "0", "run_id": "", "data.name": "moons", "seed": 0, "config": {}}]),
        "sweep.json: expected job 0 to have a run_id and overrides that are text; got .*",
    ),
    "an argument that is no text": (
        plan_with(arguments=[3]), "sweep.json: expected arguments that are text; got .*",
    ),
    "code to run": (
        plan_with(arguments=["-m", "hydra.launcher._target_=os.system"]),
        "sweep.json: expected arguments that are safe to repeat; got .*, "
        "which can name code or another place; if you trust it, type: nfexp-resume s hydra.launcher._target_=os.system",
    ),
    "code to find": (
        plan_with(arguments=["--config-dir=/evil", "-m"]),
        "sweep.json: expected arguments that are safe to repeat; got '--config-dir=/evil', "
        "which can name code .*: nfexp-resume s --config-dir=/evil",
    ),
    "another place": (
        plan_with(arguments=["-m", "hydra.sweep.subdir=/evil"]),
        "sweep.json: expected arguments that are safe to repeat; got 'hydra.sweep.subdir=/evil', which can name .*",
    ),
    "no sweep": (
        plan_with(arguments=["--experimental-rerun=evil.pickle"]),
        "sweep.json: expected arguments .*; got a command line that begins no sweep .--experimental-rerun.",
    ),
    "escape codes": (
        plan_with(arguments=["--config-dir=\x1b[2J"]),
        r"sweep.json: expected arguments that are safe to repeat; got '--config-dir=\\x1b\[2J'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), PLANS.values(), ids=PLANS)
def test_a_plan_from_elsewhere_is_read_with_care(run, text, message):
    Path("s").mkdir()
    Path("s/sweep.json").write_text(text)
    code, _, err, _ = run("s", entry=cli.resume)
    assert code == 1 and re.fullmatch(f"nfexp-resume: s/{message}\n", err), err
    assert [p.name for p in Path("s").iterdir()] == ["sweep.json"]


def test_a_single_run_goes_on_as_ctrl_c_says(nfexp, small_args, monkeypatch):
    asked = [*small_args, "seed=3", "train.steps=40", "train.n_evals=2", "hydra.run.dir=runs/one"]
    seen = []

    def observe(self, training, state):
        seen.append(state.step)
        if state.step > 1 and stops:
            raise KeyboardInterrupt

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr("nfexp.run.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("nfexp.cli.Tracking.observe", observe)
    monkeypatch.setattr("nfexp.cli.os._exit", leave)
    stops = True
    code, _, err = nfexp(*asked)
    told = "nfexp: interrupted; the run is not finished; go on with its command and hydra.run.dir=runs/one\n"
    assert code == 130 and err.endswith(told) and Path("runs/one/checkpoint.safetensors").exists()
    of_a_run = "DIR: expected the folder of a sweep; got a single run: give its own command again"
    assert nfexp("runs/one", entry=cli.resume)[2] == f"nfexp-resume: {of_a_run}\n"
    stops, begun = False, len(seen)
    assert nfexp(*asked)[0] == 0 and Path("runs/one/result.json").exists()
    assert seen[begun] > 0  # not from its first step


def test_resume_of_nothing(run):
    for given, message in {"absent": "'absent'", "redo=failed": "'redo=failed'"}.items():
        assert run(given, entry=cli.resume)[2] == f"nfexp-resume: DIR: expected the folder of a sweep; got {message}\n"
    assert run(entry=cli.resume)[2] == "nfexp-resume: DIR: expected the folder of a sweep; got nothing\n"


def test_a_plan_is_read_as_it_was_written(make_spec, tmp_path):
    plan = Plan(name="x", arguments=["-m"], centres={"moons": {"flow.n_flows": 1}})
    plan.jobs = [plan.entry("0000", make_spec(seed=3), ["seed=3"])]
    plan.write(tmp_path)
    assert read_plan(tmp_path) == plan and read_plan(tmp_path / "absent") is None


def test_one_process_writes_a_sweep(sweep, tmp_path):
    first = sweep("seed=0,1", "train.steps=100000")
    first.wait_for(lambda: (tmp_path / "s/sweep.json").exists())
    second = sweep("seed=0,1", "train.steps=100000")
    _, err = second.communicate(timeout=120)
    assert second.returncode == 1 and re.fullmatch(
        rf"nfexp: s: expected a sweep that no process is writing; got one that process {first.pid} on \S+ writes\n", err
    )
    with pytest.raises(SpecError, match=f"process {first.pid} on"), locked(tmp_path / "s"):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    with locked(tmp_path / "s"), locked(tmp_path / "s"):  # nothing stale; the same process may again
        assert (tmp_path / "s/.lock-holder").exists()
    assert not (tmp_path / "s/.lock-holder").exists()
