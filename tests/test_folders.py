"""Who writes where: a folder is claimed before training, each job has its own, and what is finished stays."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nfexp import cli, load_runs
from nfexp.configuration import conf_dir
from nfexp.files import replacing
from nfexp.record import outcome, write_run
from nfexp.spec import SpecError
from nfexp.sweep import conclusion
from nfexp.sweep.claim import is_named_by_clock
from nfexp.sweep.folder import check_folders, locked
from nfexp.sweep.running import ADHOC, Running
from nfexp.sweep.worker import Job, work

TINY = ("train.steps=2", "train.warmup=0", "train.n_evals=1", "flow.n_flows=1", "record=none")
BASIC = ("hydra/sweeper=basic", "hydra/launcher=basic")


@pytest.fixture
def run(nfexp, small_args, monkeypatch):
    """Call `nfexp` with tiny runs and without figures; gives (exit code, stdout, stderr)."""
    monkeypatch.setattr(conclusion, "report", lambda folder, explorer: None)
    small = [a for a in small_args if a.split("=")[0] not in {t.split("=")[0] for t in TINY}]
    return lambda *arguments, **how: nfexp(*arguments, *small, *TINY, **how)


def contents(folder="."):
    return {str(p): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def seeds(folder="."):
    """The seed of each finished run below a folder; its configuration is that of its record."""
    found = []
    for path in sorted(Path(folder).rglob("result.json")):
        seed = json.loads(path.read_text())["config"]["seed"]
        assert f"\nseed: {seed}\n" in (path.parent / ".hydra/config.yaml").read_text()
        found.append(seed)
    return sorted(found)


# A folder is claimed


def test_runs_at_one_moment_get_a_folder_each(tmp_path, small_args):
    command = [sys.executable, "-m", "nfexp", *small_args, "record=none"]
    started = [
        subprocess.Popen([*command, f"seed={seed}"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for seed in (1, 2, 3)
    ]
    told = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert seeds(tmp_path) == [1, 2, 3]
    named = {re.search(r"\((\S+)\)\n", text)[1] for text in told}
    assert named == {str(p.parent) for p in tmp_path.rglob("result.json")}


@pytest.fixture
def one_second(monkeypatch):
    """Let all commands begin in the same second."""
    from hydra.core import utils

    class Clock(utils.datetime):
        @classmethod
        def now(cls, *_):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(utils, "datetime", Clock)


CLOCKED = {
    "runs": ([], "outputs/runs/2026-01-02_03-04-05{}"),
    "runs of a folder of one's own": (["hydra.run.dir='mine/${now:%H%M%S}/x'"], "mine/030405{}/x"),
    "sweeps": (["-m"], "outputs/sweeps/adhoc/2026-01-02_03-04-05{}/0000"),
    "another launcher": (["-m", "hydra/launcher=basic"], "outputs/sweeps/adhoc/2026-01-02_03-04-05{}/0000"),
    "another sweeper": (["-m", *BASIC], "outputs/sweeps/adhoc/2026-01-02_03-04-05{}/0000"),
}


@pytest.mark.parametrize(("arguments", "place"), CLOCKED.values(), ids=CLOCKED)
def test_a_name_by_the_clock_that_is_taken_gets_another(run, one_second, arguments, place):
    for seed, again in enumerate(("", "_1", "_2") if arguments == [] else ("", "_1")):
        code, out, err = run(*arguments, f"seed={seed}")
        assert code == 0, err
        folder = Path(place.format(again)).absolute()
        assert outcome(folder).status == "completed" and str(folder) in out + (folder / "nfexp.log").read_text()
        assert str(folder) in (folder / ".hydra/hydra.yaml").read_text()
    assert len(seeds()) == seed + 1


def test_a_dry_run_claims_nothing(run):
    assert run("-m", "dry_run=true")[0] == 0 and not list(Path().iterdir())


@pytest.mark.parametrize("arguments", [[], ["-m"], ["-m", *BASIC]], ids=["run", "sweep", "another sweeper"])
def test_a_folder_that_a_process_writes_is_refused(run, arguments):
    key = "hydra.sweep.dir" if arguments else "hydra.run.dir"
    Path("s").mkdir()
    holding = "from nfexp.sweep.folder import *\nwith locked(Path('s')): print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", holding], **pipes) as holder:
        holder.stdout.readline()
        before = contents("s")
        code, _, err = run(*arguments, f"{key}=s")
        refusal = (
            rf"nfexp: s: expected a (sweep|folder) that no process is writing; got one that process {holder.pid} .*"
        )
        assert code == 1 and re.fullmatch(refusal, err.strip()), err
        assert contents("s") == before
        holder.communicate("\n")
    assert run(*arguments, f"{key}=s")[0] == 0


FINISHED = {
    "a run": (["hydra.run.dir=s/0000"], "s/0000: .*; got one that holds result.json"),
    "a run in a sweep's folder": (["hydra.run.dir=s"], "s: .*; got one that holds sweep.json"),
    "a folder named by a key": (["hydra.run.dir='s/000${seed}'"], "s/0001: .*; got one that holds result.json"),
    "a sweep in a run's folder": (["-m", "hydra.sweep.dir=s/0000"], "s/0000: .*; got one that holds a run"),
    "another sweeper": (["-m", "hydra/sweeper=basic", "hydra.sweep.dir=s"], "s: .*; got one that holds sweep.json"),
    "its jobs in a run": (["-m", "hydra/sweeper=basic", "hydra.sweep.dir=s/0000"], "s/0000: .* holds result.json"),
    "another launcher": (["-m", *BASIC, "hydra.sweep.dir=t"], "t: .*; got one that holds 0000/result.json"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of the grids sweeper, `s`, and what another sweeper left, `t`."""
    folder = tmp_path_factory.mktemp("finished")
    no_report = "from nfexp.sweep import conclusion; conclusion.report = lambda folder, explorer: None"
    code = f"from nfexp import cli; {no_report}; cli.main()"
    given = [sys.executable, "-c", code, "-m", *TINY, "seed=0,1"]
    small = ["data.n_samples=100", "data.n_val=50", "data.n_test=50", "flow.hidden_width=8", "device=cpu"]
    subprocess.run([*given, *small, "hydra.sweep.dir=s"], cwd=folder, check=True, capture_output=True)
    shutil.copytree(folder / "s", folder / "t")
    (folder / "t/sweep.json").unlink()
    return folder


@pytest.mark.parametrize(("arguments", "message"), FINISHED.values(), ids=FINISHED)
def test_what_is_finished_stays_as_it_is(run, finished, arguments, message):
    shutil.copytree(finished, ".", dirs_exist_ok=True)
    before = contents()
    code, _, err = run(*arguments, "seed=1")
    assert code == 1 and re.fullmatch(f"nfexp: {message}\n", err), err
    after = contents()
    assert {name: after[name] for name in before} == before
    assert {Path(name).name for name in after.keys() - before.keys()} <= {".lock"}


def test_an_empty_folder_and_that_of_a_crashed_run_are_taken(run, monkeypatch):
    Path("out").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(cli, "keep", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert run("hydra.run.dir=out")[0] == 1
    assert not Path("out/result.json").exists()
    assert run("hydra.run.dir=out")[0] == 0 and seeds() == [0]


def test_a_finished_record_is_never_replaced(make_spec, tmp_path, monkeypatch):
    from nfexp.run import run_stack

    first, second = run_stack([make_spec(seed=0), make_spec(seed=1)])
    write_run(tmp_path, first)
    before = contents(tmp_path)
    with pytest.raises(SpecError, match=r"expected a new or empty folder; got one that holds result\.json"):
        write_run(tmp_path, second)
    assert contents(tmp_path) == before
    job = Job(spec=second.spec, folder=str(tmp_path), files={".hydra/config.yaml": "seed: 1"})

    def finished_meanwhile(*_, **__):
        write_run(tmp_path, first)
        yield 0, second, None

    (tmp_path / "result.json").unlink()
    monkeypatch.setattr("nfexp.sweep.worker.train", finished_meanwhile)
    work([job])
    assert json.loads((tmp_path / "result.json").read_text())["config"]["seed"] == 0
    assert contents(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "none"])
def test_a_file_written_once_is_not_replaced(tmp_path, monkeypatch, links):
    def no_link(*_):
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    path = tmp_path / "x"
    for text in ("first", "second"):
        try:
            with replacing(path, once=True) as temporary:
                temporary.write_text(text)
        except FileExistsError:
            assert text == "second"
    assert contents(tmp_path) == {str(path): b"first"}


def test_taking_a_lock_is_not_logged_step_by_step(tmp_path, caplog):
    caplog.set_level("DEBUG")
    with locked(tmp_path / "s"):
        pass
    assert caplog.messages == []


def test_the_lock_of_a_run_goes_with_its_end(tmp_path):
    with locked(tmp_path), locked(Path(os.path.relpath(tmp_path))):
        (tmp_path / "result.json").write_text("{}")
    assert os.listdir(tmp_path) == ["result.json"]


# Each job has a folder of its own, where the reader looks


SUBDIRS = {
    "fixed": ("fixed", "a folder of its own for each job; got 'fixed' for job 0 and job 1"),
    "by another key": ("n${flow.n_flows}", "a folder of its own for each job; got 'n1' for job 0 and job 1"),
    "by another spelling": ("'a/${seed}/..'", "a folder of its own for each job; got 'a' for job 0 and job 1"),
    "one within the other": (
        "'a${nfexp.test_part:${seed}}'", "a folder of its own for each job; got that of job 1 within that of job 0",
    ),
    "beside": ("../up/${seed}", "a folder below that of the sweep; got '../up/0'"),
    "absolute": ("/tmp/nfexp-absent/${seed}", "a folder below that of the sweep; got '(../)+nfexp-absent/0'"),
    "hidden": (".runs/${seed}", "a folder that is not hidden, for reports pass over those; got '.runs/0'"),
    "hidden below": ("a/.${seed}", "a folder that is not hidden, for reports pass over those; got 'a/.0'"),
    "a file's name": ("report.md/${seed}", "a folder whose name is not that of a file .*; got 'report.md/0'"),
    "the sweep's own": (".", "a folder below that of the sweep; got '.'"),
    "empty": ("", "a folder below that of the sweep; got '.'"),
}  # fmt: skip


@pytest.mark.parametrize("sweeper", ["grids", "basic"])
@pytest.mark.parametrize(("subdir", "message"), SUBDIRS.values(), ids=SUBDIRS)
def test_a_subdir_that_mixes_or_hides_runs_is_refused(run, monkeypatch, subdir, message, sweeper):
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("nfexp.test_part", lambda seed: "/b" * seed, replace=True)
    monkeypatch.setattr("nfexp.sweep.pool.Pool.run", None)
    given = ["seed=0,1", f"hydra.sweep.subdir={subdir}", f"hydra/sweeper={sweeper}", "hydra.launcher.workers=1"]
    code, _, err = run("-m", *given, "hydra.sweep.dir=s")
    assert code == 1 and re.fullmatch(f"nfexp: hydra.sweep.subdir: expected {message}\n", err), err
    assert not list(Path().rglob("*.json")) and not (sweeper == "grids" and Path("s").exists())


def test_folders_that_are_their_own_are_taken():
    check_folders({0: "0000", 1: "0001", 2: "00", 3: "a/0", 4: "a/1", 5: "b..c/d.", 6: "a0", 7: "seed=1,x=a b"})


def test_a_subdir_of_ones_own_is_met_again(run):
    sweep = ["-m", "seed=0,1", "hydra.sweep.dir=s", "hydra.sweep.subdir='${data.name}/s${seed}'"]
    assert run(*sweep)[0] == 0
    assert sorted(load_runs("s")["job"]) == ["moons/s0", "moons/s1"]
    before = contents("s/moons")
    assert run(*sweep)[0] == 0 and contents("s/moons") == before
    code, _, err = run(*sweep, "hydra.sweep.subdir='${seed}'")
    assert code == 1 and "hydra.sweep.subdir: expected 'moons/s0', where sweep.json has this run; got '0'" in err


# A folder has a name


UNNAMED = {
    "a sweep": ["-m", "hydra.sweep.dir="],
    "blanks": ["-m", "hydra.sweep.dir='  '"],
    "a dry run": ["-m", "hydra.sweep.dir=", "dry_run=true"],
    "another sweeper": ["-m", *BASIC, "hydra.sweep.dir="],
    "by a key": ["-m", "hydra.sweep.dir=${data.text}", "data.text=''"],
    "a run": ["hydra.run.dir="],
    "a run by a key": ["hydra.run.dir=${oc.env:NFEXP_ABSENT,' '}"],
}


@pytest.mark.parametrize("arguments", UNNAMED.values(), ids=UNNAMED)
def test_a_folder_without_a_name_is_refused(run, arguments):
    code, _, err = run(*arguments)
    key = "hydra.sweep.dir" if "-m" in arguments else "hydra.run.dir"
    assert code == 1 and re.fullmatch(f"nfexp: {key}: expected a folder; got '.*'\n", err), err
    assert not list(Path().iterdir())


OUTSIDE = {
    "beside": ["hydra.output_subdir=../all", "hydra.run.dir=out"],
    "absolute": ["hydra.output_subdir=/tmp/nfexp-absent", "hydra.run.dir=out"],
    "of a sweep": ["-m", "seed=0,1", "hydra.output_subdir='${seed}/../..'", "hydra.sweep.dir=out"],
    "of another sweeper": ["-m", *BASIC, "seed=0,1", "hydra.output_subdir=..", "hydra.sweep.dir=out"],
}


@pytest.mark.parametrize("arguments", OUTSIDE.values(), ids=OUTSIDE)
def test_an_output_subdir_outside_the_run_is_refused(run, arguments):
    code, _, err = run(*arguments)
    assert code == 1 and re.fullmatch(
        "nfexp: hydra.output_subdir: expected a folder below that of the run, or null; got '.*'\n", err
    )
    assert not list(Path().iterdir())


# A sweep without -m


MULTIRUN = {
    "seeds": ["hydra.mode=MULTIRUN", "seed=0,1"],
    "a grid": ["hydra.mode=MULTIRUN", "hydra.sweeper.params={seed:[0,1]}"],
    "repeats": ["seed=0", "hydra.sweeper.repeats=2", "hydra.mode=MULTIRUN"],
    "both": ["-m", "hydra.mode=MULTIRUN", "seed=0,1"],
}


@pytest.mark.parametrize("arguments", MULTIRUN.values(), ids=MULTIRUN)
def test_hydras_mode_asks_for_a_sweep(run, arguments):
    code, out, err = run(*arguments, "dry_run=true")
    assert code == 0 and out.startswith("  runs ") and "2 runs (2 moons)" in out, err


def test_a_sweep_begun_by_hydras_mode_is_resumed(run, nfexp):
    assert run("hydra.mode=MULTIRUN", "seed=0,1", "hydra.sweep.dir=s")[0] == 0
    shutil.rmtree("s/0001")
    assert nfexp("s", entry=cli.resume)[0] == 0 and seeds("s") == [0, 1]


def test_several_values_without_a_sweep_are_refused(run):
    for arguments in (["seed=0,1"], ["hydra.mode=RUN", "seed=0,1"]):
        code, _, err = run(*arguments)
        assert code == 1 and "seed: expected one value, nfexp -m for a sweep, or" in err and not list(Path().iterdir())


def test_composing_claims_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("config", return_hydra_config=True)
        assert is_named_by_clock(config, "run") and is_named_by_clock(config, "sweep")
        assert config.name == ADHOC
    assert not list(tmp_path.iterdir())


TITLES = {
    "the name that is given": ({"name": "mine"}, {"experiment": "rings"}, "first", "mine"),
    "the experiment": ({}, {"experiment": "rings"}, "first", "rings"),
    "the folder that is given": ({}, {}, "some/first", "first"),
    "nothing": ({}, {}, "outputs/${now:%Y-%m-%d_%H-%M-%S}", "adhoc"),
}


@pytest.mark.parametrize(("own", "choices", "folder", "title"), TITLES.values(), ids=TITLES)
def test_what_a_report_is_headed(own, choices, folder, title):
    node = {"runtime": {"choices": choices}, "sweep": {"dir": folder}}
    config = OmegaConf.create({"name": ADHOC, "hydra": node} | own)
    running = Running(SimpleNamespace(config=config), None, None)
    assert running._title(Path(folder)) == title
