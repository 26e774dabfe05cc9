"""Runs and sweeps from Python: the same as from a shell, without anything left behind."""

import pytest

from nfexp import train_run, train_sweep
from nfexp.scripting import _lines
from tests.helpers.sabotage import NO_REPORT, site

QUICK = {
    "data.n_samples": 100,
    "data.n_val": 50,
    "data.n_test": 50,
    "train.steps": 10,
    "flow.hidden_width": 8,
}


def test_a_run_and_a_sweep(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(site(tmp_path / "site", NO_REPORT)))
    flow = train_run(QUICK | {"data": "circles", "seed": 3, "record": "none", "device": "cpu"})
    assert flow.spec.data.name == "circles" and flow.spec.seed == 3
    assert flow.metrics["test_nll"] > 0
    assert flow.folder.parent.name == "runs"
    assert "circles seed 3: test NLL" in capfd.readouterr().out
    more = QUICK | {"data": ["circles", "moons"], "seed": 3, "record": "none", "device": "cpu"}
    runs = train_sweep(more | {"hydra.launcher.workers": 1}, folder="a sweep", verbose=False)
    assert sorted(runs["data.name"]) == ["circles", "moons"]
    circles = runs[runs["data.name"] == "circles"]
    assert circles["test_nll"].item() == flow.metrics["test_nll"]
    assert capfd.readouterr().out == ""


def test_what_the_command_says_is_raised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match=r"^flow.n_flows: expected an integer >= 1 .*; got 0$"):
        train_run(["flow.n_flows=0"], verbose=False)
    assert not list(tmp_path.iterdir())


def test_overrides_by_key():
    assert _lines({"data.path": ["a.csv", "my b.csv"], "train.grad_clip": None}) == [
        "data.path='a.csv','my b.csv'", "train.grad_clip=null",
    ]  # fmt: skip
    with pytest.raises(TypeError, match="overrides: expected a list of overrides or a mapping; got the text"):
        _lines("seed=3")
