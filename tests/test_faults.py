"""The fault campaign of `tests/robustness/faults.py` at a small size, and what a killed process leaves to others."""

import os
from pathlib import Path

import pytest

from nfexp import run
from nfexp.checkpoint import CHECKPOINT, Checkpoint
from nfexp.record import outcome
from nfexp.sweep.worker import Job, work
from tests.robustness import faults

QUICK = {"train__steps": 2, "train__warmup": 0}
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")


@pytest.mark.slow
@linux
def test_a_sweep_killed_three_times_ends_as_one_never_disturbed(tmp_path):
    rows = faults.campaign(tmp_path, kills=3, seeds=1, steps=200, span=3.0)
    assert rows["fault"].isin(faults.VICTIMS).sum() >= 3
    assert not rows["lost"].any() and not rows["half_written"].any(), rows["message"].tolist()
    assert not rows["leftovers"].any() and set(rows["fault"]) <= {*faults.VICTIMS, "at the end"}


@pytest.mark.parametrize(("name", "text"), {"result.json": "{", "runs.csv": "", "x.png": "\x89PNG"}.items())
def test_half_a_file_is_noticed(tmp_path, name, text):
    assert not faults.half_written(tmp_path)
    (tmp_path / name).write_text(text)
    assert [line.partition(":")[0] for line in faults.half_written(tmp_path)] == [name]


def test_a_different_run_is_noticed(make_spec, tmp_path):
    for name in ("whole", "same", "other"):
        lr = 0.01 if name == "other" else 0.005
        work([Job(spec=make_spec(seed=s, train__lr=lr, **QUICK), folder=str(tmp_path / name / str(s))) for s in (0, 1)])
    assert faults.compare(tmp_path / "same", tmp_path / "whole")[0] == 0
    assert faults.compare(tmp_path / "other", tmp_path / "whole")[0] == 2


def test_what_a_killed_process_left_is_cleared(make_spec, tmp_path):
    job = Job(spec=make_spec(**QUICK), folder=str(tmp_path / "0"), files={".hydra/a.yaml": "a: 1\n"})
    left = [tmp_path / "0" / name for name in (".result.json.abc12_x9", ".hydra/.a.yaml.00000000", ".mine.settings")]
    left[1].parent.mkdir(parents=True)
    for path in left:
        path.write_text("half")
    work([job])
    assert outcome(job.folder).status == "completed" and [path.exists() for path in left] == [False, False, True]


def test_a_sweep_whose_folder_is_gone_is_not_begun_anew(make_spec, tmp_path, monkeypatch):
    job = Job(spec=make_spec(train__steps=100_000), folder=str(tmp_path / "s/0"), root=str(tmp_path / "s"))
    with pytest.raises(FileNotFoundError, match="removed"):
        work([job])
    (tmp_path / "s").mkdir()
    whole = run.advance
    monkeypatch.setattr(
        run, "advance", lambda *a, **k: (os.path.isdir(job.root) and os.rmdir(job.root), whole(*a, **k))
    )
    with pytest.raises(FileNotFoundError, match="removed"):
        work([job])
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_breaks_a_run_is_left_behind(make_spec, tmp_path, monkeypatch, caplog):
    job = Job(spec=make_spec(**QUICK), folder=str(tmp_path / "0"))
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / CHECKPOINT).write_bytes(b"")

    def broken_while_it_is_there(folder, tag):
        return Checkpoint(step=1) if (folder / CHECKPOINT).exists() else Checkpoint()

    monkeypatch.setattr(run, "read_checkpoint", broken_while_it_is_there)
    work([job])
    assert outcome(job.folder).status == "completed" and "it is begun again" in caplog.text
