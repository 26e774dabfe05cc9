"""Progress: what is counted and left, where stacks stand, and what a terminal shows."""

import io
import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch

from nfexp.flows.cost import training_cost
from nfexp.record import Outcome
from nfexp.spec import run_id
from nfexp.sweep import standing as standings
from nfexp.sweep.dry_run import Pace, Stacks, seconds_to_train, to_measure
from nfexp.sweep.planning import run_cost
from nfexp.sweep.progress import Progress, plain_line
from nfexp.sweep.requests import label, varied_keys
from nfexp.sweep.standing import FOLDER, Clock, Standing, Teller, Watch
from nfexp.sweep.stopping import this_process


def ended(spec, status="completed"):
    return Outcome(run_id=run_id(spec), status=status, reason=None, val_nll=0.5, code="")


def standing(specs, step, *, steps=40, rate=100.0, begun_at=0, by=None):
    return Standing(
        by=by or this_process(),
        runs=[run_id(spec) for spec in specs],
        architecture="3 flows 2x16 relu",
        begun_at=begun_at,
        step=step,
        steps=steps,
        alive=len(specs),
        best_nll=0.4321,
        rate=rate,
    )


@pytest.fixture
def at_ten_seconds(monkeypatch):
    """Progress that began ten seconds ago."""
    monkeypatch.setattr(Progress, "elapsed", 10.0)


def test_the_time_left_counts_stacks_in_work(at_ten_seconds, make_spec):
    specs = [make_spec(seed=seed) for seed in range(4)]
    progress = Progress(specs)
    assert progress.seconds_left([]) == math.inf and "left" not in progress.times([])
    half = standing(specs[:2], 20)
    share = 20 / 40 * 2 * training_cost(specs[0]) / (4 * run_cost(specs[0]))
    assert progress.share([half]) == pytest.approx(share)
    assert progress.seconds_left([half]) == pytest.approx(10 * (1 / share - 1))
    progress.add(specs[:2], [ended(spec) for spec in specs[:2]])
    assert progress.share([half]) == pytest.approx(0.5)  # what is done counts once
    assert progress.in_work([half]) == []


def test_the_last_stack_decides_how_long_it_takes(at_ten_seconds, make_spec):
    specs = [make_spec(seed=seed) for seed in range(8)]
    progress = Progress(specs)
    progress.add(specs[:7], [ended(spec) for spec in specs[:7]])
    slow = standing(specs[7:], 10, rate=1.0)
    assert progress.seconds_left([slow]) == pytest.approx(30.0)  # 30 steps of one member, one a second


def test_steps_of_an_earlier_command_are_not_this_ones_pace(at_ten_seconds, make_spec):
    specs = [make_spec()]
    half = 0.5 * training_cost(specs[0])  # was done before, so that there is less to do
    rest = run_cost(specs[0]) - half
    found = Progress(specs).share([standing(specs, 30, begun_at=20)])
    assert found == pytest.approx(0.25 * training_cost(specs[0]) / rest)


def test_the_plain_line(at_ten_seconds, make_spec):
    specs = [make_spec(seed=seed) for seed in range(4)]
    progress = Progress(specs[:3], [ended(specs[3], "diverged")])
    said = plain_line(progress, [standing(specs[:2], 20)])
    assert said.startswith("1/4 runs, 1 diverged, 0 failed · 1 stack in work: 50% · 0:10 elapsed, about ")
    alone = plain_line(Progress(specs[:1]), [standing(specs[:1], 20)])
    assert alone.startswith("step 20 of 40, best validation NLL 0.4321 nats · 0:10 elapsed, about ")


# --- Where stacks stand ----------------------------------------------------------------


def training_at(specs, step):
    """A training and its state, as far as progress looks at them."""
    curves = torch.full((len(specs), 3, 4), math.nan, dtype=torch.float64)
    curves[0, 0, 1] = 0.75
    training = SimpleNamespace(specs=specs, lead=specs[0])
    return training, SimpleNamespace(step=step, curves=curves, alive=torch.tensor([True] + [False] * (len(specs) - 1)))


def test_a_process_tells_where_its_stack_stands(tmp_path, make_spec, monkeypatch):
    monkeypatch.setattr(standings, "WRITE_SECONDS", 0.0)
    specs = [make_spec(seed=seed) for seed in range(2)]
    teller = Teller(tmp_path)
    teller.observe(*training_at(specs, 0))
    teller.observe(*training_at(specs, 10))
    (seen,) = Watch(tmp_path).look()
    assert (seen.runs, seen.step, seen.steps) == ([run_id(s) for s in specs], 10, 40)
    assert (seen.alive, seen.best_nll, seen.architecture) == (1, 0.75, "3 flows 2x16 relu")
    assert seen.rate > 0 and not seen.is_scoring
    teller.close()
    assert Watch(tmp_path).look() == [] and not any((tmp_path / FOLDER).iterdir())


def test_a_quick_stack_writes_nothing(tmp_path, make_spec):
    teller = Teller(tmp_path)
    teller.observe(*training_at([make_spec()], 0))
    teller.observe(*training_at([make_spec()], 40))
    teller.close()
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_gone_does_not_come_back(tmp_path, make_spec, monkeypatch):
    monkeypatch.setattr(standings, "WRITE_SECONDS", 0.0)
    Teller(tmp_path / "gone").observe(*training_at([make_spec()], 10))
    assert not any(tmp_path.iterdir())


def test_the_pace_of_a_stack_begins_anew_with_its_halves(make_spec):
    clock = Clock()
    whole = [make_spec(seed=seed) for seed in range(2)]
    clock.standing(*training_at(whole, 0))
    assert clock.standing(*training_at(whole, 20)).begun_at == 0
    assert clock.standing(*training_at(whole[:1], 15)).begun_at == 15


GONE = {
    "killed": "process 999999999 on " + standings.socket.gethostname(),
    "silent": "process 1 on another-host",
}


@pytest.mark.parametrize("by", GONE.values(), ids=GONE)
def test_a_process_that_is_gone_is_not_believed(tmp_path, make_spec, monkeypatch, by):
    monkeypatch.setattr(standings, "SILENT_SECONDS", 0.0)
    (tmp_path / FOLDER).mkdir()
    text = json.dumps(standings.asdict(standing([make_spec()], 10, by=by)))
    (tmp_path / FOLDER / "other.json").write_text(text)
    watch = Watch(tmp_path)
    assert watch.look() == []
    watch.close()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"by": 1}', '{"step": NaN}'])
def test_a_damaged_file_is_left_out(tmp_path, text):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "x.json").write_text(text)
    assert Watch(tmp_path).look() == []


# --- What a run is called --------------------------------------------------------------


def test_a_run_is_named_by_what_the_sweep_varies(make_spec):
    specs = [
        make_spec(data__name="moons", data__noise=0.1, flow__n_flows=2, flow__activation="tanh"),
        make_spec(data__name="moons", data__noise=0.1, flow__n_flows=4, flow__activation="relu", seed=1),
        make_spec(data__name="circles", data__noise=0.2, flow__n_flows=2),
    ]
    varied = varied_keys(specs)
    assert varied == ["flow.n_flows", "flow.activation"]  # the noise only follows the target
    assert label(specs[0], varied) == "moons seed 0 flow.n_flows=2 flow.activation=tanh"


# --- How long it will take -------------------------------------------------------------


def test_the_dearest_stacks_and_each_path_are_measured(make_spec):
    fused = [make_spec(flow__n_flows=n, train__kernel="auto") for n in (1, 2, 3, 8)]
    slow = make_spec(train__kernel="torch", flow__n_flows=1, train__steps=1, train__warmup=0)
    specs = [*fused, slow]
    stacks = Stacks(positions=[[i] for i in range(5)], at_once=2, room=None)
    assert to_measure(specs, stacks) == [[3], [2], [4]]


def test_workers_that_share_the_stacks_end_when_the_last_one_does(make_spec):
    specs = [make_spec(seed=seed) for seed in range(3)]
    stacks = Stacks(positions=[[0], [1], [2]], at_once=2, room=None)
    pace = Pace([(specs[0], 0.5)])
    assert seconds_to_train(specs, stacks, pace) == pytest.approx(2 * run_cost(specs[0]) / 0.5)


# --- A terminal ------------------------------------------------------------------------


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [80, 120])
def test_the_display_shows_stacks_and_leaves_nothing(monkeypatch, make_spec, at_ten_seconds, columns):
    pytest.importorskip("rich", reason="rich is not installed")
    pyte = pytest.importorskip("pyte", reason="pyte, a terminal in memory, is not installed")
    from nfexp.sweep.display import Live

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("TERM", "xterm-256color")

    def screen():
        shown = pyte.Screen(columns, 24)
        pyte.Stream(shown).feed(terminal.getvalue().replace("\n", "\r\n"))
        assert not shown.cursor.hidden
        return [line.rstrip() for line in shown.display if line.strip()]

    specs = [make_spec(seed=seed) for seed in range(2)]
    live = Live()
    live.show(Progress(specs), [standing(specs, 20)])
    print("a line of the log")
    shown = screen()
    assert shown[0] == "a line of the log"
    assert "3 flows 2x16 relu" in shown[2] and "2/2" in shown[2] and "20/40" in shown[2] and "0.4321" in shown[2]
    assert "0/2 runs, 0 diverged, 0 failed" in shown[3] and "left" in shown[3]
    assert max(map(len, shown)) <= columns - 2  # a terminal writes ^C at the end
    live.close()
    assert sys.stdout is terminal and screen() == ["a line of the log"]
    live.show(Progress(specs), [])
    assert screen() == ["a line of the log"]
