"""Sweeps with until=decided: rounds of seeds, told by sweep.json, met again, refused."""

import json
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from nfexp import cli, load_runs
from nfexp.sweep import conclusion, executors, slurm
from nfexp.sweep.slurm import Slurm
from nfexp.sweep.worker import work

TINY = ("train.steps=2", "train.warmup=0", "train.n_evals=1", "flow.n_flows=1", "record=none", "hydra/launcher=basic")
SWEEP = ("-m", *TINY, "hydra.sweep.dir=s", "flow.activation=relu,tanh", "seed=0,1", "until=decided")
OPEN = ("max_seeds=4", "margin=1e-6")  # no pair of seeds tells so small a difference
CLEAR = ("max_seeds=4", "margin=1000")


@pytest.fixture
def run(nfexp, small_args, monkeypatch):
    """Call `nfexp` or `nfexp-resume` without reports; gives (exit code, stdout and stderr, the jobs it wrote)."""
    monkeypatch.setattr(conclusion, "report", lambda folder, explorer: None)

    def call(*arguments, entry=cli.main):
        before = {p: p.stat().st_mtime_ns for p in Path("s").rglob("result.json")}
        small = [a for a in small_args if a.split("=")[0] not in {t.split("=")[0] for t in TINY}]
        code, out, err = nfexp(*arguments, *(small if entry is cli.main else ()), entry=entry)
        after = {p: p.stat().st_mtime_ns for p in Path("s").rglob("result.json")}
        return code, out + err, sorted(p.parent.name for p, t in after.items() if before.get(p) != t)

    return call


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def begin(run, kept):
    """Have the folder `s` of a sweep; the same one is trained once for all tests, and copied."""

    def call(*arguments):
        place = kept / "_".join(word.replace("/", "") for word in arguments)
        if not place.exists():
            assert run(*SWEEP, *arguments)[0] == 0
            shutil.copytree("s", place)
        else:
            shutil.copytree(place, "s")

    return call


def seeds():
    """The seeds of each activation in the folder."""
    runs = load_runs("s")
    return {name: sorted(own["seed"]) for name, own in runs.groupby("flow.activation")}


def plan():
    return json.loads(Path("s/sweep.json").read_text())


def test_one_round_is_enough_where_all_is_clear(begin):
    begin(*CLEAR)
    assert len(list(Path("s").glob("*/result.json"))) == 4
    assert plan()["rounds"] == {"first": [0, 1], "max_seeds": 4, "spending": "linear", "margin": 1000}
    assert plan()["mixed"] == []


def test_open_cells_get_seeds_until_there_are_no_more(run, begin):
    begin(*OPEN)
    assert seeds() == {"relu": [0, 1, 2, 3], "tanh": [0, 1, 2, 3]}
    jobs = plan()["jobs"]
    assert [job["job"] for job in jobs] == [f"{k:04d}" for k in range(8)]
    assert {job["run_id"] for job in jobs[:4]}.isdisjoint(job["run_id"] for job in jobs[4:])
    # Met again by the same command and by nfexp-resume, it keeps what is there
    assert run(*SWEEP, *OPEN)[0::2] == (0, [])
    os.unlink("s/0006/result.json")
    assert run("s", entry=cli.resume)[0::2] == (0, ["0006"])
    assert plan()["mixed"] == []


def test_a_round_that_was_cut_off_is_finished_first(run, begin):
    begin(*OPEN, "time_budget=1e-6")
    assert seeds() == {"relu": [0, 1], "tanh": [0, 1]}
    os.unlink("s/0001/result.json")
    code, said, written = run(*SWEEP, *OPEN)
    assert code == 0 and written == ["0001", "0004", "0005", "0006", "0007"], said


def test_exclusions_hold_in_every_round(run):
    exclude = "hydra.sweeper.exclude=[{flow.activation:tanh}]"
    words = [word.replace("relu,tanh", "relu,tanh,elu") for word in SWEEP]
    words[words.index("hydra/launcher=basic")] = "hydra.launcher.workers=1"  # the stack launcher
    assert run(*words, *OPEN, exclude)[0] == 0
    assert seeds() == {"relu": [0, 1, 2, 3], "elu": [0, 1, 2, 3]}


def test_a_dry_run_tells_the_first_round_and_the_most(run):
    code, said, written = run(*SWEEP, *OPEN, "dry_run=true")
    assert code == 0 and written == []
    assert "4 runs (4 moons)" in said
    assert "2 seeds in 2 cells" in said and "at most 2 rounds, 8 runs" in said


RULES = {
    "more seeds": (
        ["max_seeds=6", "margin=1000"],
        "max_seeds=4 margin=1000 after seeds 0, 1; got until=decided max_seeds=6",
    ),
    "another margin": (["max_seeds=4", "margin=2"], "got until=decided max_seeds=4 margin=2"),
    "no rounds": (["until=null"], "got until=null"),
}


def test_another_rule_is_refused(run, begin):
    begin(*CLEAR)
    for given, message in RULES.values():
        code, said, written = run(*SWEEP, *given)
        assert (code, written) == (1, []) and message in said, said
    given, message = RULES["another margin"]
    code, said, written = run("s", *given, entry=cli.resume)  # which asks the same function
    assert (code, written) == (1, []) and message in said, said
    assert plan()["rounds"]["max_seeds"] == 4
    other_seeds = [word.replace("seed=0,1", "seed=5,6") for word in SWEEP]
    code, said, written = run(*other_seeds, *CLEAR)
    assert (code, written) == (1, []) and "after seeds 0, 1; got until=decided" in said, said
    Path("s/sweep.json").write_text(json.dumps(plan() | {"rounds": {"first": "01"}}))
    for arguments, entry in (((*SWEEP, *CLEAR), cli.main), (("s",), cli.resume)):
        code, said, written = run(*arguments, entry=entry)
        assert (code, written) == (1, []) and "sweep.json: expected rounds.first: a list of seeds" in said, said


def test_a_sweep_without_rounds_gets_none_later(run):
    plain = [word for word in SWEEP if not word.startswith("until")]
    assert run(*plain)[0] == 0
    assert "rounds" not in plan()
    code, said, written = run(*SWEEP, *CLEAR)
    assert (code, written) == (1, []) and "the rule that it was begun with, until=null" in said


REFUSED = {
    "nothing to decide": (["flow.hidden_width=8,16"], "until: expected cells that a claim compares, or margin="),
    "no centre": (["flow.activation=elu,tanh", "margin=1"], "until: expected the centre of the study and other cells"),
    "one cell": (["flow.activation=relu", "margin=1"], "until: expected the centre of the study and other cells"),
    "one seed": (
        ["flow.activation=tanh,elu", "seed=0"],
        "until: expected two or more seeds in the first round; got seed 0",
    ),
    "too few": (
        ["flow.activation=tanh,elu", "seed=range(5)", "max_seeds=4"],
        "max_seeds: expected at least the 5 seeds of",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rounds_that_decide_nothing_are_refused(run, case):
    arguments, message = REFUSED[case]
    plain = [word for word in SWEEP if not word.startswith(("flow.activation", "seed"))]
    seed = [] if any(word.startswith("seed") for word in arguments) else ["seed=0,1"]
    code, said, written = run(*plain, *seed, *arguments)
    assert (code, written) == (1, []) and message in said, said
    assert not Path("s").exists()


def spoil(number, status="failed"):
    """Let a job's record say that it ended so."""
    path = Path(f"s/{number:04d}/result.json")
    record = json.loads(path.read_text())
    nothing = dict.fromkeys(record["metrics"])
    path.write_text(json.dumps(record | {"status": status, "reason": "of this test", "metrics": nothing}))


def test_failed_runs_of_any_round_are_trained_again_and_the_rounds_go_on(run, begin):
    begin(*OPEN, "time_budget=1e-6")  # the first round alone
    spoil(1)
    code, said, written = run(*SWEEP, *OPEN, "redo=failed")
    assert code == 0 and written == ["0001", "0004", "0005", "0006", "0007"], said
    spoil(2)
    spoil(6, "diverged")
    code, said, written = run("s", "redo=both", entry=cli.resume)
    assert code == 0 and written == ["0002", "0006"], said
    assert seeds() == {"relu": [0, 1, 2, 3], "tanh": [0, 1, 2, 3]}
    assert plan()["mixed"] == [] and plan()["rounds"]["first"] == [0, 1]


def test_a_mixed_folder_takes_new_cells_into_its_rounds(run, begin):
    begin(*OPEN)
    other = [word.replace("relu,tanh", "relu,elu") for word in SWEEP]
    code, said, written = run(*other, *OPEN)
    assert (code, written) == (1, []) and "mixed=true" in said, said
    code, said, written = run(*other, *OPEN, "mixed=true")
    assert code == 0 and written == [f"{k:04d}" for k in range(8, 12)], said
    assert seeds() == {"relu": [0, 1, 2, 3], "tanh": [0, 1, 2, 3], "elu": [0, 1, 2, 3]}
    assert len(plan()["mixed"]) == 1  # the command that added cells; further rounds are the plan's own rule
    code, said, written = run(*SWEEP, *CLEAR, "mixed=true")  # what is mixed is runs, never the rule
    assert (code, written) == (1, []) and "expected the rule that it was begun with" in said, said


@dataclass(frozen=True)
class Submitted:
    """What submitit says of a job array's element."""

    job_id: str


@pytest.fixture
def cluster(monkeypatch):
    """SLURM with a queue that trains at once or, with wait=false, when the test says so: `cluster.pop()()`."""
    queue = []

    def submit(self, stacks, at_once, fail_fast):
        for jobs in stacks:
            if self.wait:
                work(jobs, fail_fast=fail_fast)
            else:
                queue.append(partial(work, jobs, fail_fast=fail_fast))
        return [Submitted(f"7_{k}") for k in range(len(stacks))]

    monkeypatch.setattr(executors, "check", lambda executor, backend, wait: None)
    monkeypatch.setattr(slurm, "queued", lambda *options: set())
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(Slurm, "_submit", submit)
    return queue


def by_slurm(words, *more):
    kept = [word for word in words if word != "hydra/launcher=basic"]
    return [
        *kept,
        "hydra.launcher.executor=slurm",
        "hydra.launcher.slurm.time=5",
        "hydra.launcher.slurm.mem_gb=1",
        *more,
    ]


def test_rounds_by_slurm_are_those_of_this_machine(run, cluster):
    code, said, written = run(*by_slurm(SWEEP), *OPEN)
    assert code == 0 and len(written) == 8, said
    assert seeds() == {"relu": [0, 1, 2, 3], "tanh": [0, 1, 2, 3]}


def test_rounds_that_are_only_submitted_go_on_when_the_queue_has_done_its_part(run, cluster):
    words = by_slurm(SWEEP, "hydra.launcher.wait=false")
    code, said, written = run(*words, *OPEN)
    assert code == 0 and written == [] and "submitted 2 stacks as SLURM job" in said, said
    assert len(plan()["jobs"]) == 4  # nothing is judged, and no further round begun, before the first one ends
    while cluster:
        cluster.pop()()
    assert seeds() == {"relu": [0, 1], "tanh": [0, 1]}
    assert run(*words, *OPEN)[0] == 0 and len(plan()["jobs"]) == 8
    while cluster:
        cluster.pop()()
    code, said, written = run(*words, *OPEN)
    assert (code, written, len(plan()["jobs"])) == (0, [], 8), said
    assert seeds() == {"relu": [0, 1, 2, 3], "tanh": [0, 1, 2, 3]}
