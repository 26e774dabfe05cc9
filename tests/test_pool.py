"""Stacks in worker processes: failures, dying workers, interrupts, a full disk, too little memory."""

import operator
import os
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from nfexp import load_runs
from nfexp.sweep.pool import Pool
from tests.helpers.sabotage import at_seed_one

linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")


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
    changes = at_seed_one("raise LookupError('a bad batch')")
    running = sweep("seed=range(3)", "hydra.launcher.workers=1", changes=changes, report=True)
    out, err = running.communicate(timeout=300)
    assert running.returncode == 1 and "Traceback" not in err
    assert "3 runs: 2 completed, 1 failed; the first that failed: s/0001: LookupError: a bad batch" in err
    assert "a stack of 3 raised LookupError: a bad batch" in out
    assert load_runs(tmp_path / "s")["status"].tolist() == ["completed", "failed", "completed"]
    assert (tmp_path / "s/report.html").exists()


def test_fail_fast_ends_the_sweep_at_the_first_failure(sweep, tmp_path):
    changes = at_seed_one("raise LookupError('a bad batch')")
    extra = ["seed=1,2,3", "hydra.launcher.workers=1", "hydra.launcher.max_stack=1", "fail_fast=true"]
    running = sweep(*extra, changes=changes)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 1 and "3 runs: 1 failed, 2 not finished" in err
    assert [p.parent.name for p in running.finished()] == ["0000"]


@linux
def test_a_run_that_kills_its_process_fails_alone(sweep, tmp_path):
    changes = at_seed_one("os.kill(os.getpid(), signal.SIGKILL)")
    running = sweep("seed=range(4)", "hydra.launcher.workers=1", changes=changes)
    out, err = running.communicate(timeout=300)
    assert running.returncode == 1 and "its process was killed by SIGKILL" in err
    assert "a worker was killed by SIGKILL; trying 4 unfinished runs of its stack again" in out
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


@pytest.mark.slow
@linux
def test_a_first_interrupt_ends_in_good_order_a_second_at_once(sweep, tmp_path):
    running = sweep(*ENDLESS, report=True)
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
    how = ["seed=0,1", "flow.n_flows=2", "train.steps=100000", "train.n_evals=2"]
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
