"""Stacks at work: what Hydra would leave, memory, failures, dying workers, interrupts, a full disk."""

import logging
import operator
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode

from nfexp import load_runs, run
from nfexp.configuration import conf_dir
from nfexp.flows.cost import member_bytes
from nfexp.record import outcome
from nfexp.spec import stack_key
from nfexp.sweep import worker as work_module
from nfexp.sweep.compose import Composer
from nfexp.sweep.planning import Machine, budget, plan
from nfexp.sweep.pool import Pool
from nfexp.sweep.worker import HOLDER, Job, following, leader, stopping, train, work
from tests.helpers.sabotage import patched

linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")

JOBS = {
    "values": ["flow.n_flows=2", "train.lr=1e-3", "train.grad_clip=null", "data.text='1e3'", "seed=7"],
    "groups": ["data=circles", "record=lean", "train=paper"],
    "an experiment": ["experiment=ablate_mask", "seed=1"],
    "interpolation": ["train.warmup=${train.steps}", "name=a-b"],
    "hydra's own keys": ["+hydra.job.env_set.X=1", "seed=2"],
    "a new key": ["+extra={a:[1,2]}", "seed=3"],
}
SETTINGS = {
    "as it comes": [],
    "a folder by overrides": ["hydra.sweep.subdir=${hydra:job.override_dirname}"],
    "a log by number": ["hydra.job_logging.handlers.file.filename=${hydra.runtime.output_dir}/${hydra.job.num}.log"],
    "naming": ["hydra.job.config.override_dirname.exclude_keys=[seed]"],
    "no .hydra": ["hydra.output_subdir=null"],
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_job_leaves_what_hydra_leaves(tmp_path, settings):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        command = [f"hydra.sweep.dir={tmp_path}", "record=none", *settings]
        master = hydra.compose_config("config", command, run_mode=RunMode.MULTIRUN, with_log_configuration=False)
        composer, basic = Composer(hydra.config_loader, master), BasicLauncher()
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        basic.setup(hydra_context=context, task_function=lambda config: 0.0, config=master)
        handlers = logging.root.handlers[:]
        try:
            basic.launch(list(JOBS.values()), initial_job_idx=3)
        finally:
            logging.root.handlers[:] = handlers
        pages = [composer.page(overrides, number) for number, overrides in enumerate(JOBS.values(), 3)]
    written = {p.relative_to(tmp_path).as_posix(): p.read_text() for p in tmp_path.rglob("*.yaml")}
    ours = {f"{os.path.relpath(p.folder, tmp_path)}/{name}": text for p in pages for name, text in p.files.items()}
    assert {k: yaml.safe_load(v) for k, v in ours.items()} == {k: yaml.safe_load(v) for k, v in written.items()}
    assert len(written) == (0 if "hydra.output_subdir=null" in settings else 3 * len(JOBS))
    logs = {p.logging["handlers"]["file"]["filename"] for p in pages}
    assert logs == {str(p) for p in tmp_path.rglob("*.log")} and len(logs) == len(JOBS)


OUT_OF_MEMORY = {
    "python": MemoryError("no room"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    "gpu": torch.cuda.OutOfMemoryError("CUDA out of memory"),
}


def breaking(monkeypatch, error, when):
    """Make `run_stack` raise for the stacks that `when` says."""
    whole, seen = run.run_stack, []

    def breaks(specs, **options):
        seen.append(len(specs))
        if when(specs):
            raise error
        return whole(specs, **options)

    monkeypatch.setattr(run, "run_stack", breaks)
    return seen


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_a_stack_that_does_not_fit_is_halved(make_spec, monkeypatch, tmp_path, caplog, error):
    seen = breaking(monkeypatch, error, lambda specs: len(specs) > 2)
    specs = [make_spec(seed=s, train__steps=2, train__warmup=0) for s in range(5)]
    found = sorted((i, result.spec.seed, result.status, trouble) for i, result, trouble in train(specs, [tmp_path] * 5))
    assert found == [(i, i, "completed", None) for i in range(5)]
    assert seen == [5, 3, 2, 1, 2]
    assert len(caplog.messages) == 2 and "a stack of 5 raised" in caplog.text and "in stacks of 3" in caplog.text


def logged_job(folder, spec):
    handler = {"class": "logging.FileHandler", "filename": f"{folder}/nfexp.log"}
    root = {"handlers": ["file"], "level": "INFO"}
    how = {"version": 1, "disable_existing_loggers": False, "handlers": {"file": handler}, "root": root}
    return Job(spec=spec, folder=str(folder), files={".hydra/note.yaml": "a: 1\n"}, logging=how)


def test_a_run_that_raises_fails_alone_and_its_log_says_why(make_spec, monkeypatch, tmp_path):
    breaking(monkeypatch, LookupError("a bad batch"), lambda specs: any(s.seed == 1 for s in specs))
    jobs = [logged_job(tmp_path / str(s), make_spec(seed=s, train__steps=2, train__warmup=0)) for s in range(3)]
    before = logging.root.handlers[:]
    work(jobs)
    assert logging.root.handlers == before
    ends = [outcome(job.folder) for job in jobs]
    assert [end.status for end in ends] == ["completed", "failed", "completed"]
    assert ends[1].reason == "LookupError: a bad batch"
    logs = [(tmp_path / str(s) / "nfexp.log").read_text() for s in range(3)]
    assert "Traceback" in logs[1] and "a bad batch" in logs[1] and "seed 2" in logs[2]
    assert "Traceback" not in logs[0] + logs[2]
    assert (tmp_path / "2/.hydra/note.yaml").read_text() == "a: 1\n"


def test_work_leaves_finished_runs_alone(make_spec, monkeypatch, tmp_path):
    jobs = [logged_job(tmp_path / str(s), make_spec(seed=s, train__steps=2, train__warmup=0)) for s in range(2)]
    work(jobs[:1])
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in tmp_path.rglob("*")}
    seen = breaking(monkeypatch, None, lambda specs: False)
    work(jobs)
    assert seen == [1] and outcome(jobs[1].folder).status == "completed"
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in before} == before


def test_with_fail_fast_the_first_failure_ends_the_work(make_spec, monkeypatch, tmp_path):
    breaking(monkeypatch, LookupError("bad"), lambda specs: True)
    jobs = [Job(spec=make_spec(seed=s), folder=str(tmp_path / str(s))) for s in range(3)]
    work(jobs, fail_fast=True)
    assert [outcome(job.folder) is None for job in jobs] == [False, True, True]


def test_stacks_hold_what_may_train_together(make_spec):
    specs = [make_spec(seed=s, flow__n_flows=f) for s in range(10) for f in (1, 2)] + [make_spec(flow__n_flows=12)]
    stacks = plan(specs, max_stack=4)
    assert sorted(i for stack in stacks for i in stack) == list(range(21))
    assert all(len({stack_key(specs[i]) for i in stack}) == 1 and len(stack) <= 4 for stack in stacks)
    assert sorted(map(len, stacks)) == [1, 3, 3, 3, 3, 4, 4]
    assert sorted(map(len, plan(specs[::2][:10], max_stack=32, workers=2))) == [5, 5]


def test_stacks_fit_into_the_memory_there_is(make_spec):
    specs = [make_spec(seed=s, data__n_samples=100 * (s + 1)) for s in range(10)]
    largest = max(map(member_bytes, specs))
    assert max(map(len, plan(specs, room=3.5 * largest))) == 3
    assert len(plan(specs, room=largest / 2)) == 10  # one alone is tried, whatever the estimate says
    assert len(plan(specs, room=2 * largest, max_stack=10)) == 1  # said is said
    cpu, gpus = Machine(device="cpu", places=4, free=10e9), Machine(device="cuda", places=2, free=10e9)
    assert budget(cpu, 4, None) == 2e9 and budget(cpu, 4, 1.5) == 1.5e9
    assert budget(gpus, 2, None) == 8e9 and budget(gpus, 4, None) == 4e9


def test_a_core_gets_fewer_large_runs_at_a_time_than_small_ones(make_spec):
    small = [make_spec(seed=s) for s in range(64)]
    large = [make_spec(seed=s, flow__hidden_width=512, train__batch_size=100, flow__n_flows=12) for s in range(64)]
    assert max(map(len, plan(small))) == 32 and max(map(len, plan(large))) == 4
    assert len(plan(large, device="cuda")) == 1


def test_a_sweep_is_led_by_a_process_that_lives(tmp_path):
    def says(name):
        (tmp_path / HOLDER).write_text(name)
        return leader(tmp_path)

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = socket.gethostname()
    assert says(f"process {os.getpid()} on {here}") == f"process {os.getpid()} on {here}"
    assert says(f"process {gone.pid} on {here}") == ""
    assert says("process 1 on elsewhere") == "process 1 on elsewhere"  # cannot be looked for from here
    assert says("nobody") == "" and leader(tmp_path / "absent") == ""


def test_what_follows_a_sweep_stops_with_its_leader(tmp_path, monkeypatch):
    monkeypatch.setattr(work_module, "LOOK_SECONDS", 0.01)
    me = f"process {os.getpid()} on {socket.gethostname()}"
    (tmp_path / HOLDER).write_text(me)
    with following(str(tmp_path), me):
        time.sleep(0.1)
        assert not stopping()
        (tmp_path / HOLDER).unlink()
        deadline = time.monotonic() + 10
        while not stopping() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stopping()
    assert not stopping()


def test_a_worker_hands_on_what_a_call_returns_or_raises():
    pool = Pool()
    try:
        assert pool.call(os.getpid) == pool.call(os.getpid) != os.getpid()
        with pytest.raises(ValueError, match=r"invalid literal .* 'x'"):
            pool.call(int, "x")
        with pytest.raises(FileNotFoundError, match="/nowhere"):
            pool.call(os.listdir, "/nowhere")
        with pytest.raises(RuntimeError, match="KeyError: 1"):
            pool.call(operator.getitem, {}, 1)
        with pytest.raises(RuntimeError, match="a worker process ended in _exit"):
            pool.call(os._exit, 3)
    finally:
        pool.close()


LONG = ("seed=range(4)", "flow.n_flows=1", "train.steps=2000", "hydra.launcher.max_stack=2")
ENDLESS = ("seed=range(4)", "train.steps=20,100000", "hydra.launcher.workers=5")


def test_a_failed_run_is_recorded_and_its_mates_finish(sweep, tmp_path):
    path = patched(tmp_path / "site", "raise LookupError('a bad batch')")
    running = sweep("seed=range(3)", "hydra.launcher.workers=1", path=path)
    out, err = running.communicate(timeout=300)
    assert running.returncode == 1 and "Traceback" not in err
    assert "3 runs: 2 completed, 1 failed; the first that failed: s/0001: LookupError: a bad batch" in err
    assert "a stack of 3 raised LookupError: a bad batch" in out
    assert load_runs(tmp_path / "s")["status"].tolist() == ["completed", "failed", "completed"]
    assert (tmp_path / "s/report.html").exists()


def test_fail_fast_ends_the_sweep_at_the_first_failure(sweep, tmp_path):
    path = patched(tmp_path / "site", "raise LookupError('a bad batch')")
    extra = ["seed=1,2,3", "hydra.launcher.workers=1", "hydra.launcher.max_stack=1", "fail_fast=true"]
    running = sweep(*extra, path=path)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 1 and "3 runs: 1 failed, 2 not finished" in err
    assert [p.parent.name for p in running.finished()] == ["0000"]


@linux
def test_a_run_that_kills_its_process_fails_alone(sweep, tmp_path):
    path = patched(tmp_path / "site", "os.kill(os.getpid(), signal.SIGKILL)")
    running = sweep("seed=range(4)", "hydra.launcher.workers=1", path=path)
    out, err = running.communicate(timeout=300)
    assert running.returncode == 1 and "its process was killed by SIGKILL" in err
    assert "a worker was killed by SIGKILL; 4 unfinished runs of its stack are tried again" in out
    assert load_runs(tmp_path / "s")["status"].tolist() == ["completed", "failed", "completed", "completed"]


@linux
def test_a_worker_that_is_killed_is_replaced(sweep, tmp_path):
    running = sweep(*LONG)
    running.wait_for(lambda: len(running.workers()) == 2)
    os.kill(running.workers()[0], signal.SIGKILL)
    out, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    assert "killed by SIGKILL" in out and set(load_runs(tmp_path / "s")["status"]) == {"completed"}


def alive(pids):
    """Those that still run; a zombie does not."""
    states = {p: Path(f"/proc/{p}/stat") for p in pids}
    return [p for p, path in states.items() if path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"]


@linux
def test_workers_do_not_outlive_their_parent(sweep):
    running = sweep(*LONG)
    running.wait_for(lambda: len(running.workers()) == 2)
    family = running.family()
    running.kill()
    running.wait()
    deadline = time.monotonic() + 60
    while alive(family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(family)


@linux
def test_a_first_interrupt_ends_in_good_order_a_second_at_once(sweep, tmp_path):
    running = sweep(*ENDLESS)
    running.wait_for(lambda: len(running.finished()) == 4)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: the whole group
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130 and err == (
        "nfexp: interrupted; 8 runs: 4 completed, 4 not finished; go on with: nfexp-resume s\n"
    )
    assert (tmp_path / "s/report.html").exists() and not list(tmp_path.rglob(".result*"))

    again = sweep(*ENDLESS)
    again.wait_for(lambda: len(again.workers()) == 4)
    time.sleep(1)
    os.killpg(again.pid, signal.SIGINT)
    os.killpg(again.pid, signal.SIGINT)
    _, err = again.communicate(timeout=30)
    assert again.returncode == 130 and "interrupted" in err and "Traceback" not in err


@linux
def test_an_interrupted_sweep_goes_on_to_the_same_numbers(sweep, tmp_path):
    how = ["seed=0,1", "flow.n_flows=2", "train.steps=3000", "train.n_evals=2"]
    (tmp_path / "whole").mkdir()
    whole = sweep(*how, cwd=tmp_path / "whole")
    assert whole.wait() == 0
    first = sweep(*how)
    first.wait_for(lambda: len(first.workers()) == 2)
    time.sleep(1)
    first.send_signal(signal.SIGINT)
    assert first.wait() == 130 and not first.finished() and list(first.folder.glob("*/checkpoint.safetensors"))
    again = sweep(*how)
    assert again.wait() == 0 and not list(first.folder.glob("*/checkpoint.safetensors"))
    columns = ["val_nll", "test_nll", "best_step", "status"]
    pd.testing.assert_frame_equal(load_runs(tmp_path / "s")[columns], load_runs(tmp_path / "whole/s")[columns])


def test_a_disk_that_takes_no_more_stops_the_sweep(sweep):
    running = sweep("seed=0,1", "flow.hidden_width=128", limits="ulimit -f 200;")  # files of at most 100 to 200 kB
    out, err = running.communicate(timeout=300)
    assert running.returncode == 1 and "File too large" in err and "Traceback" not in out + err
    assert not running.finished() and not list(running.folder.glob("*/.*.safetensors*"))


@linux
def test_a_run_too_large_for_the_memory_fails_alone(sweep, tmp_path):
    extra = ["seed=0,1", "flow.n_flows=1", "flow.hidden_width=8,40000", "train.steps=1", "train.warmup=0"]
    extra += ["hydra.launcher.max_stack=2", "hydra.launcher.workers=1"]
    running = sweep(*extra, limits=f"ulimit -v {12 << 20};")  # 12 GB of addresses
    out, err = running.communicate(timeout=300)
    assert running.returncode == 1 and "allocate memory" in err and "Traceback" not in err
    assert "a stack of 2 raised RuntimeError" in out
    assert load_runs(tmp_path / "s").groupby("flow.hidden_width")["status"].unique().map(list).to_dict() == {
        8: ["completed"], 40000: ["failed"],
    }  # fmt: skip
