"""Trackers: what TensorBoard and MLflow read back, during training and after it."""

import sqlite3
from importlib.util import find_spec
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from nfexp.export import main as export
from nfexp.spec import run_id
from nfexp.trackers import Tracking
from tests.helpers.fake_sweep import write_sweep

needs_tensorboard = pytest.mark.skipif(not find_spec("tensorboard"), reason="nfexp[tensorboard] is not installed")
needs_mlflow = pytest.mark.skipif(not find_spec("mlflow"), reason="nfexp[mlflow] is not installed")


def scalars(folder):
    """The scalars of the event files in a folder: by tag, (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, round(e.value, 4)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture
def sweep(tmp_path):
    runs = [
        ({"data.name": "moons", "seed": 0}, {"kl": 0.25}, "completed"),
        ({"data.name": "moons", "seed": 1}, {}, "diverged"),
    ]
    return write_sweep(tmp_path / "s", runs, arrays=False)


@needs_tensorboard
@pytest.mark.parametrize("words", [["to=tensorboard"], ["--to", "tensorboard"]], ids=" ".join)
def test_a_finished_sweep_goes_to_tensorboard(sweep, capsys, words):
    for _ in range(2):  # done twice, it is there once
        assert export([str(sweep), *words]) == 0
    assert "2 runs for tensorboard; look at them with: tensorboard --logdir " in capsys.readouterr().out
    first, second = sorted((sweep / "tensorboard").iterdir())
    found = scalars(first)
    history = pd.read_csv(sweep / first.name / "history.csv")
    assert [step for step, _ in found["training/val_nll"]] == history["step"].tolist()
    assert [value for _, value in found["metrics/kl"]] == [0.25]
    assert "metrics/kl" not in scalars(second)  # a diverged run has none
    assert len(list(first.iterdir())) == 1


@needs_mlflow
@pytest.mark.filterwarnings("ignore")  # of its own libraries
def test_a_finished_sweep_goes_to_mlflow(sweep, capsys):
    for _ in range(2):
        assert export([str(sweep), "to=mlflow"]) == 0
    with sqlite3.connect(sweep / "mlflow.db") as base:
        assert base.execute("select status from runs").fetchall() == [("FINISHED",), ("FINISHED",)]
        assert base.execute("select value from latest_metrics where key = 'final_kl'").fetchall() == [(0.25,)]
        assert base.execute("select count(*) from params where key = 'flow.n_flows'").fetchone() == (2,)


WRONG = {
    "no tracker": ([], "to: expected one of tensorboard, mlflow; got nothing"),
    "another": (["to=wandb"], "to: expected one of tensorboard, mlflow; got 'wandb'"),
    "an option": (["--tö", "x"], "nfexp-export: expected nfexp-export DIR… to=tensorboard|mlflow [out=PATH]"),
}


@pytest.mark.parametrize("words, message", WRONG.values(), ids=WRONG)
def test_what_cannot_be_exported(sweep, capsys, words, message):
    assert export([str(sweep), *words]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.fixture
def stack(make_spec):
    """Two members after the second of three evaluations, the second one diverged after the first."""
    specs = [make_spec(seed=seed) for seed in range(2)]
    curves = torch.full((2, 3, 4), float("nan"), dtype=torch.float64)
    curves[0, :2] = torch.tensor([[1.0, 1.1, 2.0, 0.01], [0.8, 0.9, 1.0, 0.005]])
    curves[1, 0] = torch.tensor([1.5, 1.6, 3.0, 0.01])
    training = SimpleNamespace(specs=specs, lead=specs[0], evaluation_steps=lambda: [1, 5, 40])
    return training, SimpleNamespace(step=10, curves=curves)


@needs_tensorboard
def test_training_is_told_as_it_goes(tmp_path, stack):
    training, state = stack
    tracking = Tracking("tensorboard", tmp_path, {run_id(s): f"{i:04d}" for i, s in enumerate(training.specs)})
    tracking.observe(training, state)
    tracking.observe(training, state)  # nothing is new
    first = scalars(tmp_path / "tensorboard/0000")
    assert first["training/val_nll"] == [(1, 1.1), (5, 0.9)] and "metrics/kl" not in first
    assert scalars(tmp_path / "tensorboard/0001")["training/val_nll"] == [(1, 1.6)]
    tracking.end(training.specs[0], "completed", {"kl": 0.5, "best_step": 5, "true_nll": None})
    assert scalars(tmp_path / "tensorboard/0000")["metrics/kl"] == [(5, 0.5)]


def test_a_tracker_that_fails_does_not_end_a_run(tmp_path, stack, monkeypatch, caplog):
    def broken(*_):
        raise LookupError("no such\nserver")

    monkeypatch.setitem(__import__("nfexp.trackers").trackers.OPEN, "mlflow", broken)
    tracking = Tracking("mlflow", tmp_path, {})
    tracking.observe(*stack)
    tracking.end(stack[0].specs[0], "completed", {})
    assert [record.getMessage() for record in caplog.records] == ["tracker=mlflow ends: LookupError: no such server"]


def test_without_one_nothing_is_written(tmp_path, stack):
    Tracking(None, tmp_path, {}).observe(*stack)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["wandb", "true"])
def test_a_tracker_that_does_not_exist(nfexp, value):
    code, _, err = nfexp(f"tracker={value}")
    assert code == 1 and err.startswith("nfexp: tracker: expected tensorboard, mlflow, or null; got ")
