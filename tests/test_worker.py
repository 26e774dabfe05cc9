"""One stack at work: what does not fit into the memory, what raises, what is finished already."""

import logging

import pytest
import torch

from nfexp import run
from nfexp.record import outcome
from nfexp.sweep.worker import Job, train, work

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
