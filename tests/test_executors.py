"""Stacks by real executors: loky, Dask and Ray by joblib, submitit here and on a SLURM of two nodes, Hydra's plugins.

What is not installed is skipped; CI installs none of it but joblib.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest

from nfexp import load_runs
from nfexp.checkpoint import CHECKPOINT
from nfexp.record import outcome
from nfexp.spec import SpecError
from nfexp.sweep import executors, slurm
from nfexp.sweep.pool import Pool
from nfexp.sweep.slurm import Slurm, resources
from nfexp.sweep.stacking import Options, Stacking
from nfexp.sweep.worker import Job, work
from tests.helpers.sabotage import at_seed_one, site

linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TASK_MAX_RETRIES": "0",
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
}
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
COLUMNS = ["data.name", "seed", "flow.n_flows", "status", "val_nll", "test_nll", "kl", "best_step"]
NEEDS = {"partition": None, "time": 5, "cpus": 1, "mem_gb": 0.5, "gpus": 0, "extra": dict.fromkeys(
    ("account", "qos", "constraint", "reservation", "nodelist", "exclude", "licenses", "gres"))}  # fmt: skip


# Settings

BAD = {
    "executor": (["executor=pbs"], "executor: expected one of local, slurm, joblib; got 'pbs'"),
    "backend": (["executor=joblib", "backend=mpi"], "backend: expected one of loky, dask, ray; got 'mpi'"),
    "wait": (["wait=false"], "wait: expected true, or false with executor=slurm; got False"),
    "wait is a truth value": (["wait=3"], "wait: expected true, or false with executor=slurm; got 3"),
    "time": (["slurm.time=0"], "slurm.time: expected an integer >= 1 .*; got 0"),
    "mem_gb": (["slurm.mem_gb=lots"], "slurm.mem_gb: expected a number > 0 .*; got 'lots'"),
    "an unknown option": (["+slurm.extra.wrap=ls"], "slurm.extra.wrap: expected one of the keys account, .*"),
    "a second line for the script": (
        [r"slurm.extra.account='a\nrm'"], r"slurm.extra.account: expected a word as sbatch takes it, or null; got .*",
    ),
    "a quote for the script": (
        ["slurm.partition='a b'"], "slurm.partition: expected a word as sbatch takes it, or null; got 'a b'",
    ),
    "no group": (["slurm=3"], "slurm: expected a group of keys; got 3"),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), BAD.values(), ids=BAD)
def test_bad_settings(nfexp, tmp_path, settings, message):
    words = [re.sub(r"^(\+?)", r"\1hydra.launcher.", s, count=1) for s in settings]
    code, _, err = nfexp("-m", "seed=0", "hydra.sweep.dir=s", *words)
    assert code == 1 and re.fullmatch(rf"nfexp: hydra\.launcher\.{message}\n", err), err
    assert not list(tmp_path.iterdir())


ABSENT = {
    "submitit": ("slurm", "loky", "slurm"),
    "distributed": ("joblib", "dask", "dask"),
    "ray": ("joblib", "ray", "ray"),
}


@pytest.mark.parametrize(("module", "case"), ABSENT.items(), ids=ABSENT)
def test_an_extra_that_is_not_installed(monkeypatch, module, case):
    monkeypatch.setattr(executors, "find_spec", lambda name: name != module)
    executor, backend, extra = case
    with pytest.raises(SpecError, match=rf"expected one that is installed \(pip install 'nfexp\[{extra}\]'\)"):
        executors.check(executor, backend, True)


def test_a_machine_without_slurm(monkeypatch):
    monkeypatch.setattr(executors, "find_spec", lambda name: True)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SpecError, match="expected a machine that has sbatch"):
        executors.check("slurm", "loky", True)


@dataclass(frozen=True)
class Handle:
    job_id: str


@pytest.mark.parametrize("executor", executors.EXECUTORS)
def test_every_executor_ends_with_its_sweep(executor, tmp_path):
    launcher = Options(max_stack=None, memory=None, workers=None, executor=executor, backend="loky", wait=True,
                       slurm=resources(NEEDS))  # fmt: skip
    stacking = Stacking(launcher, lambda: tmp_path)
    assert stacking.executor is stacking.executor
    stacking.close()
    assert stacking.pool.workers == []


@pytest.fixture
def squeue_says(tmp_path, monkeypatch):
    """Put a `squeue` on the path that does this."""

    def make(script):
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "squeue").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        return Slurm(tmp_path, None, resources(NEEDS), wait=True)

    return make


def test_a_queue_that_cannot_be_asked_ends_nothing(squeue_says, caplog):
    handles = [Handle("7_0"), Handle("7_1")]
    assert squeue_says("echo 7_1")._alive(handles) == {handles[1]}
    assert squeue_says("echo no answer >&2; exit 1")._alive(handles) == set(handles)
    assert caplog.messages == ["squeue: expected the queue; got no answer"]


def test_a_sweep_that_jobs_still_write_is_refused(squeue_says, tmp_path):
    executor = squeue_says('echo "$*" >> $(dirname $0)/asked; echo 7_0; echo 7_1')
    with pytest.raises(SpecError, match="got one that SLURM job 7 writes"):
        _ = executor.scratch
    assert slurm.array_name(tmp_path) in (tmp_path / "asked").read_text() and not (tmp_path / ".submitit").exists()


# joblib

BACKENDS = {"loky": "joblib", "dask": "distributed", "ray": "ray"}


@pytest.fixture
def by(sweep, monkeypatch):
    """Run a sweep with these arguments by an executor; gives its exit code, output and runs."""
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)

    def call(cwd, *arguments, **options):
        cwd.mkdir()
        running = sweep(*arguments, cwd=cwd, **options)
        out, err = running.communicate(timeout=600)
        assert "Traceback" not in err
        return running.returncode, out + err, load_runs(running.folder) if running.finished() else None

    return call


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_gives_the_same_numbers(by, tmp_path, backend):
    pytest.importorskip(BACKENDS[backend])
    grid = ["seed=range(3)", "flow.n_flows=1,2", "hydra.launcher.max_stack=3"]
    code, said, runs = by(
        tmp_path / "executor", *grid, "hydra.launcher.executor=joblib", f"hydra.launcher.backend={backend}"
    )
    assert code == 0 and "6 runs in 2 stacks" in said
    pd.testing.assert_frame_equal(runs[COLUMNS], by(tmp_path / "local", *grid)[2][COLUMNS])
    assert set(runs["stack_size"]) == {3}


@pytest.mark.slow
@linux
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_process_that_dies_does_not_end_the_sweep(by, tmp_path, backend):
    pytest.importorskip(BACKENDS[backend])
    grid = ["seed=range(6)", "hydra.launcher.max_stack=2", "hydra.launcher.workers=2"]
    extra = ["hydra.launcher.executor=joblib", f"hydra.launcher.backend={backend}"]
    code, said, runs = by(tmp_path / "executor", *grid, *extra, changes=at_seed_one(KILL))
    assert code == 1 and re.search(rf"{backend} lost [12] stacks", said)
    assert runs["status"].tolist() == ["completed", "failed", *["completed"] * 4]
    assert "6 runs: 5 completed, 1 failed; the first that failed: s/0001: its process was killed by SIGKILL" in said


@pytest.mark.slow
@linux
def test_ctrl_c_ends_a_sweep_by_joblib_in_good_order(sweep):
    running = sweep("seed=0,1", "train.steps=20,100000", "hydra.launcher.workers=3", "hydra.launcher.executor=joblib")
    running.wait_for(lambda: len(running.finished()) == 2)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130 and err == (
        "nfexp: interrupted; 4 runs: 2 completed, 2 not finished; go on with: nfexp-resume s\n"
    )


@linux
@pytest.mark.parametrize("backend", ["loky", "dask"])
def test_training_by_joblib_does_not_outlive_the_command(sweep, backend):
    pytest.importorskip(BACKENDS[backend])
    extra = ["hydra.launcher.workers=3", "hydra.launcher.executor=joblib", f"hydra.launcher.backend={backend}"]
    running = sweep("seed=0,1", "train.steps=20,100000000", *extra)
    running.wait_for(lambda: len(running.finished()) == 2)
    family = running.family()
    running.kill()
    running.wait()

    def over():  # Dask ends its processes itself; loky's stay for a while, with nothing to do
        if backend == "loky":
            return len(list(running.folder.glob(f"*/{CHECKPOINT}"))) == 2
        return not any(Path(f"/proc/{pid}").exists() for pid in family)

    deadline = time.monotonic() + 60
    while not over() and time.monotonic() < deadline:
        time.sleep(0.1)
    ended = over()
    with suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    assert ended


def test_a_cluster_that_is_not_there(by, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", f"tcp://127.0.0.1:{free.getsockname()[1]}")
        extra = ["hydra.launcher.executor=joblib", "hydra.launcher.backend=dask"]
        code, said, _ = by(tmp_path / "executor", "seed=0", *extra)
    assert code == 1 and "nfexp: DASK_SCHEDULER_ADDRESS: expected the address of a Dask scheduler with workers" in said


# submitit on this machine


class Here(Slurm):
    """SLURM's executor on submitit's own local executor."""

    cluster = "local"
    told = 0

    def _submit(self, *args):
        self.handles = super()._submit(*args)
        self.processes += [handle._process for handle in self.handles]
        return self.handles

    def _alive(self, handles):
        self.when_alive()
        return {handle for handle in handles if not handle.done()}

    def _cancel(self, handles):
        for handle in handles:
            os.kill(self.task_of(handle), signal.SIGINT)
            handle._process.wait()

    def task_of(self, handle):
        """The process that trains, a child of submitit's."""
        return int(Path(f"/proc/{handle._process.pid}/task/{handle._process.pid}/children").read_text().split()[0])

    def when_alive(self):
        pass

    def signal(self, what):
        """Send a signal, once, to the processes that train, as soon as one has left a checkpoint."""
        if not self.told and list(self.folder.glob(f"*/{CHECKPOINT}")):
            self.told = 1
            for handle in self.handles:
                os.kill(self.task_of(handle), what)


CHECKPOINTS = {"nfexp.run": "CHECKPOINT_SECONDS = 0.0"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The executor `slurm` on submitit's local executor, below which every process has these changes."""
    pytest.importorskip("submitit")
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(slurm, "queued", lambda *options: set())
    pool, processes = Pool(), []

    def make(changes):
        path = site(tmp_path / "site", changes)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(path), str(Path(executors.__file__).parents[2])]))
        (tmp_path / "s").mkdir(exist_ok=True)
        executor = Here(tmp_path / "s", pool, resources(NEEDS), wait=True)
        executor.processes = processes
        return executor

    yield make
    for process in processes:
        process.wait(timeout=60)
    pool.close()


def jobs_below(folder, specs):
    return [Job(spec=spec, folder=str(folder / str(k))) for k, spec in enumerate(specs)]


def ends(jobs):
    return [outcome(job.folder) for job in jobs]


@linux
def test_a_dead_element_is_tried_again_and_its_mates_finish(here, tmp_path, make_spec):
    executor = here(at_seed_one(KILL))
    jobs = jobs_below(tmp_path / "s", [make_spec(seed=s, train__steps=2, train__warmup=0) for s in range(5)])
    done = [i for part in executor.run([[0, 1, 2], [3, 4]], jobs.__getitem__, workers=2, fail_fast=False) for i in part]
    assert sorted(done) == [0, 1, 2, 3, 4]
    assert [end.status for end in ends(jobs)] == ["completed", "failed", "completed", "completed", "completed"]
    assert re.fullmatch(r"SLURM job \d+ ended without a record \(log: .*\.err\)", ends(jobs)[1].reason)


@linux
def test_an_element_whose_time_is_up_is_queued_again_and_goes_on(here, tmp_path, make_spec):
    specs = [make_spec(seed=s, train__steps=3000, train__n_evals=2) for s in range(2)]
    whole, jobs = jobs_below(tmp_path / "whole", specs), jobs_below(tmp_path / "s", specs)
    work(whole)
    executor = here(CHECKPOINTS)
    executor.when_alive = lambda: executor.signal(signal.SIGUSR2)
    assert list(executor.run([[0, 1]], jobs.__getitem__, workers=1, fail_fast=False)) == [[0, 1]] and executor.told
    log = "".join(p.read_text() for p in executor.scratch.glob("*_log.out"))
    assert len(re.findall("Starting with JobEnvironment", log)) == 2 and "Requeued job" in log
    assert ends(jobs) == ends(whole) and not list((tmp_path / "s").glob(f"*/{CHECKPOINT}"))


@linux
def test_leaving_early_cancels_and_leaves_checkpoints(here, tmp_path, make_spec):
    specs = [make_spec(seed=0, train__steps=2, train__warmup=0), make_spec(seed=0, train__steps=10**6)]
    jobs, executor = jobs_below(tmp_path / "s", specs), here(CHECKPOINTS)
    working = executor.run([[0], [1]], jobs.__getitem__, workers=2, fail_fast=False)
    assert next(working) == [0]
    checkpoint = tmp_path / "s/1" / CHECKPOINT
    while not checkpoint.exists():
        time.sleep(0.05)
    working.close()
    assert ends(jobs)[1] is None and checkpoint.exists() and executor.handles[1].done()


@linux
def test_an_element_told_to_make_room_stops_and_waits_to_be_killed(here, tmp_path, make_spec):
    jobs, executor = jobs_below(tmp_path / "s", [make_spec(train__steps=10**6)]), here(CHECKPOINTS)
    seen = []

    class Waits(Exception):
        pass

    def when_alive():
        executor.signal(signal.SIGTERM)
        if executor.told:
            seen.append((tmp_path / "s/0" / CHECKPOINT).stat().st_mtime_ns)
            if len(seen) > 40 and seen[-1] == seen[-30]:  # three seconds without a checkpoint: it trains no more
                raise Waits

    executor.when_alive = when_alive
    with pytest.raises(Waits):  # and is then told to end
        next(executor.run([[0]], jobs.__getitem__, workers=1, fail_fast=False))
    assert ends(jobs) == [None] and executor.handles[0].done()


def test_without_wait_the_stacks_are_submitted_and_left(here, tmp_path, make_spec, caplog):
    caplog.set_level("INFO")
    jobs = jobs_below(tmp_path / "s", [make_spec(seed=s, train__steps=2, train__warmup=0) for s in range(2)])
    executor = here({})
    executor.wait = False
    assert list(executor.run([[0], [1]], jobs.__getitem__, workers=2, fail_fast=False)) == []
    assert "submitted 2 stacks as SLURM job" in caplog.text and f"nfexp-report {tmp_path}/s" in caplog.text
    for handle in executor.handles:
        handle._process.wait()
    assert [end.status for end in ends(jobs)] == ["completed", "completed"]
    assert executor.scratch.stat().st_mode & 0o077 == 0  # what submitit unpickles is the user's own


def test_what_a_stack_asks_for_decides_its_size():
    cpu = Slurm(Path("s"), None, resources(NEEDS), wait=True).machine(None)
    gpu = Slurm(Path("s"), None, replace(resources(NEEDS), gpus=1), wait=True).machine(None)
    assert (cpu.device, cpu.free_bytes, gpu.device) == ("cpu", 0.5e9, "cuda")


# Hydra's own launchers and sweepers


def test_hydras_submitit_launcher_gives_the_same_numbers(by, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    other = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"]
    (code, _, runs), (_, _, stack) = (by(tmp_path / n, "seed=0,1", *a) for n, a in {"one": other, "two": []}.items())
    assert code == 0 and set(runs["stack_size"]) == {1}
    pd.testing.assert_frame_equal(runs[COLUMNS], stack[COLUMNS], rtol=1e-4)


def test_batches_of_optunas_sweeper_train_as_stacks(by, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=3", "hydra.launcher.workers=1"]
    code, said, runs = by(tmp_path / "o", *search, "train.lr=interval(1e-4,1e-2)", "hydra.sweeper.direction=minimize")
    assert code == 0 and said.count("3 runs in 1 stack,") == 2
    assert set(runs["stack_size"]) == {3} and runs["train.lr"].nunique() == 6
    best = re.search(r"best_value: (\S+)", (tmp_path / "o/s/optimization_results.yaml").read_text())[1]
    assert float(best) == runs["val_nll"].min()


# A SLURM of two nodes on this machine's loopback

CLUSTER = """
ClusterName=nfexp
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={top}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
MailProg=/bin/true
StateSaveLocation={top}/state
SlurmdSpoolDir={top}/%n
SlurmctldPidFile={top}/slurmctld.pid
SlurmdPidFile={top}/%n.pid
SlurmctldLogFile={top}/slurmctld.log
SlurmdLogFile={top}/%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=1 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=1 RealMemory=4000
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
HAVE_SLURM = all(map(shutil.which, ("munged", "mungekey", "slurmctld", "slurmd", "sbatch"))) and os.geteuid() == 0


def on_slurm(function):
    """A test that needs the cluster."""
    skip = pytest.mark.skipif(not HAVE_SLURM, reason="needs slurmctld, slurmd, munge and root")
    return pytest.mark.slurm(skip(function))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A controller and two nodes that listen on 127.0.0.1 only."""
    pytest.importorskip("submitit")
    top, host = tmp_path_factory.mktemp("slurm"), socket.gethostname()
    if not socket.gethostbyname(host).startswith("127."):
        pytest.skip("the host's name must resolve to 127.x, or slurmd would listen to the network")
    ports = []
    for _ in range(3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    values = dict(zip(("port", "port1", "port2"), ports, strict=True), host=host, top=top)
    (top / "slurm.conf").write_text(CLUSTER.format(**values))
    for name in ("n1", "n2", "state"):
        (top / name).mkdir()
    subprocess.run(["mungekey", "--create", f"--keyfile={top}/key"], check=True)
    files = [f"--{kind}={top}/munge.{kind}" for kind in ("socket", "seed-file", "log-file", "pid-file")]
    daemons = [["munged", "--foreground", "--force", f"--key-file={top}/key", *files]]
    daemons += [["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]
    before, started = os.environ.get("SLURM_CONF"), []
    os.environ["SLURM_CONF"] = f"{top}/slurm.conf"
    try:
        for daemon in daemons:
            with (top / f"{daemon[0]}.out").open("a") as out:
                started.append(subprocess.Popen(daemon, stdout=out, stderr=out))
            time.sleep(1)
        until = time.monotonic() + 30
        while (found := sinfo()).split() != ["n1", "idle", "n2", "idle"] and time.monotonic() < until:
            time.sleep(0.5)
        assert found.split() == ["n1", "idle", "n2", "idle"], found
        yield top
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()
        os.environ.pop("SLURM_CONF")
        if before:
            os.environ["SLURM_CONF"] = before


def sinfo():
    return subprocess.run(["sinfo", "--noheader", "--Node", "--format=%N %T"], capture_output=True, text=True).stdout


def squeue(folder):
    """Ids of the elements that work for a sweep."""
    return sorted(slurm.queued(f"--name={slurm.array_name(folder)}", "--states=PENDING,RUNNING"))


SLURM = ("hydra.launcher.executor=slurm", "hydra.launcher.slurm.mem_gb=0.5", "hydra.launcher.slurm.time=10")


@on_slurm
def test_slurm_gives_the_same_numbers_on_two_nodes(cluster, by, tmp_path):
    grid = ["seed=range(3)", "flow.n_flows=1,2"]
    code, said, runs = by(tmp_path / "executor", *grid, *SLURM)
    assert code == 0 and "6 runs in 2 stacks, 2 at a time" in said and set(runs["stack_size"]) == {3}
    pd.testing.assert_frame_equal(
        runs[COLUMNS], by(tmp_path / "local", *grid, "hydra.launcher.max_stack=3")[2][COLUMNS]
    )
    assert all(f"NodeList={node}" in (cluster / "slurmctld.log").read_text() for node in ("n1", "n2"))


@on_slurm
def test_slurm_isolates_a_run_that_kills_its_process(cluster, by, tmp_path):
    code, said, runs = by(tmp_path / "executor", "seed=range(3)", *SLURM, changes=at_seed_one(KILL))
    assert code == 1 and "is gone; trying 3 unfinished runs of its stack again" in said
    assert runs["status"].tolist() == ["completed", "failed", "completed"]
    assert re.search(r"s/0001: SLURM job \d+(_\d+)? ended without a record", said)


@on_slurm
def test_slurm_jobs_are_submitted_left_guarded_and_collected(cluster, by, sweep, tmp_path):
    grid = ["seed=0,1", "train.steps=3000", "train.n_evals=2", *SLURM]
    code, said, runs = by(tmp_path / "executor", *grid, "hydra.launcher.wait=false")
    folder = tmp_path / "executor/s"
    assert code == 0 and runs is None and "submitted 1 stack as SLURM job" in said and "2 not finished" in said
    again = sweep(*grid, cwd=tmp_path / "executor")
    _, err = again.communicate(timeout=120)
    assert again.returncode == 1 and re.search(
        r"expected a sweep that no process is writing; got one that SLURM job", err
    )
    (job,) = squeue(folder)
    while not list(folder.glob(".submitit/*/*.out")) or (squeue(folder) and not started(folder)):
        time.sleep(0.5)
    subprocess.run(["scancel", "--signal=USR2", job], check=True)  # as SLURM does when the time is up
    until = time.monotonic() + 400
    while not all(map(outcome, folder.glob("0*"))) or not outcome(folder / "0001"):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(1)
    log = "".join(p.read_text() for p in folder.glob(".submitit/*/*_log.out"))
    assert "Requeued job" in log and len(re.findall("Starting with JobEnvironment", log)) == 2
    subprocess.run(
        [sys.executable, "-c", "from nfexp.report import main; raise SystemExit(main())", str(folder)],
        check=True,
        cwd=Path(executors.__file__).parents[2],
    )
    whole = by(tmp_path / "local", *grid[:3])[2]
    pd.testing.assert_frame_equal(load_runs(folder)[COLUMNS], whole[COLUMNS])


def started(folder):
    """Whether an element has come as far as to train."""
    return any("Loading pickle" in p.read_text() for p in folder.glob(".submitit/*/*_log.out"))


@on_slurm
def test_ctrl_c_cancels_slurm_jobs_which_leave_checkpoints(cluster, sweep, tmp_path):
    running = sweep("seed=0,1", "train.steps=100000", *SLURM)
    running.wait_for(lambda: started(running.folder))
    time.sleep(10)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=200)
    assert running.returncode == 130 and "2 runs: 2 not finished; go on with: nfexp-resume s" in err
    assert len(list(running.folder.glob(f"*/{CHECKPOINT}"))) == 2 and not squeue(running.folder)
