"""Which runs come next when seeds come in rounds."""

import os

import numpy as np
import pandas as pd
import pytest

from nfexp.analysis.claims.looks import courses
from nfexp.analysis.statistics import studies
from nfexp.analysis.table import METRICS, config_columns
from nfexp.spec import SpecError, flatten, relevant
from nfexp.sweep.rounds import most, next_round, rounds_of_sweep, with_seed
from tests.helpers.specs import small_spec

CELLS = {"centre": {}, "single": {"flow.n_flows": 1}, "tanh": {"flow.activation": "tanh"}}
FIRST = range(5)


class Study:
    """The jobs of a small sweep and a table of what came of them."""

    def __init__(self, targets=("moons",), cells=tuple(CELLS)):
        self.specs, self.overrides, self.folders = {}, {}, {}
        self.kl = {}
        for target in targets:
            for name in cells:
                for seed in FIRST:
                    words = [f"data={target}", *(f"{k}={v}" for k, v in CELLS[name].items()), f"seed={seed}"]
                    self.add(words)

    def add(self, words):
        values = dict(word.split("=") for word in words)
        flat = {"data__name": values.pop("data"), "seed": int(values.pop("seed")), "flow__n_flows": 6}
        for key, value in values.items():
            flat[key.replace(".", "__")] = int(value) if value.isdigit() else value
        number = len(self.specs)
        self.specs[number] = small_spec(**flat)
        self.overrides[number] = words
        self.folders[os.path.abspath(f"/sweep/{number:04d}")] = number

    def table(self, effects, sd=0.001, status=None):
        """A run for each job; its KL is its cell's effect with noise that depends on the job alone."""
        rows = []
        for folder, number in self.folders.items():
            spec = self.specs[number]
            name = "single" if spec.flow.n_flows == 1 else "tanh" if spec.flow.activation == "tanh" else "centre"
            noise = np.random.default_rng([number, 5]).normal(0, sd)
            effect = effects.get((spec.data.name, name), effects.get(name, 0.0))
            own = {k: v for k, v in relevant(spec).items() if k in flatten(spec)}
            ended = (status or {}).get(number, "completed")
            row = own | {"status": ended, "dir": folder} | dict.fromkeys(METRICS) | {"kl": 0.3 + effect + noise}
            rows.append(row)
        return pd.DataFrame(rows)

    def next(self, table, max_seeds=20, margin=None):
        specs = [spec for spec in self.specs.values() if spec.seed in FIRST]
        rounds = rounds_of_sweep(specs, max_seeds, margin)
        centres = {}
        for spec in specs:
            middle = {k: v for k, v in relevant(small_spec(flow__n_flows=6)).items() if k in config_columns(table)}
            centres[spec.data.name] = middle
        found = courses(studies(table, centres), rounds)
        return next_round(found, self.folders, self.specs, self.overrides, rounds)


CLEAR = {"single": 0.5, "tanh": 0.5}
MORE = [5, 6, 7, 8, 9]


def told(round_):
    """What is added: seeds by the rest of the overrides."""
    found = {}
    for words in round_.overrides:
        rest = " ".join(word for word in words if not word.startswith("seed="))
        found.setdefault(rest, []).extend(int(word[5:]) for word in words if word.startswith("seed="))
    return found


def test_nothing_comes_after_a_round_that_decides_everything():
    found = Study().next(Study().table(CLEAR))
    assert found.overrides == [] and found.n_cells == 0
    assert found.n_open == 1  # B1: that no seed ever diverges would take hundreds of calm ones


def test_seeds_that_diverge_are_followed():
    study = Study()
    found = study.next(study.table(CLEAR, status={0: "diverged"}))
    assert told(found) == {"data=moons": MORE}  # one of five says nothing yet; the centre is all that B1 is about here


def test_open_cells_get_the_same_new_seeds():
    study = Study()
    found = study.next(study.table({"single": 0.05, "tanh": 0.5}))  # K1a is exactly at its margin
    assert told(found) == {"data=moons": MORE, "data=moons flow.n_flows=1": MORE}


def test_only_open_targets_get_seeds():
    study = Study(targets=("moons", "spiral2"))
    table = study.table(CLEAR | {("spiral2", "tanh"): 0.0})
    assert set(told(study.next(table))) == {"data=spiral2", "data=spiral2 flow.activation=tanh"}


def test_a_cell_that_is_ahead_waits():
    study = Study()
    for words in [w for n, w in study.overrides.items() if "n_flows" not in str(w) and "tanh" not in str(w)][:5]:
        study.add(with_seed(words, int(words[-1][5:]) + 5))  # the centre has its second round
    found = study.next(study.table({"single": 0.05, "tanh": 0.5}))
    assert told(found) == {"data=moons flow.n_flows=1": MORE}


def test_the_last_round_is_cut_and_then_there_is_none():
    study = Study()
    found = study.next(study.table({"single": 0.05}), max_seeds=7)
    assert told(found)["data=moons flow.n_flows=1"] == [5, 6]
    for words in found.overrides:
        study.add(words)
    assert study.next(study.table({"single": 0.05}), max_seeds=7).overrides == []


def test_a_margin_asks_of_every_cell():
    study = Study()
    found = study.next(study.table({"single": 0.5, "tanh": 0.05}), margin=0.05)
    assert told(found) == {"data=moons": MORE, "data=moons flow.activation=tanh": MORE}
    assert (found.n_open, found.n_claims) == (1, 2)
    assert study.next(study.table({"single": 0.5, "tanh": 0.0}), margin=0.05).overrides == []


SPECS = [small_spec(seed=seed, flow__n_flows=n) for n in (1, 6) for seed in (0, 1, 2)]
REFUSED = {
    "one seed": (SPECS[:1], 20, "until: expected two or more seeds in the first round; got seed 0 alone"),
    "unlike seeds": (
        SPECS[:5],
        20,
        "until: expected the same seeds in every cell of the first round; got seeds 0, 1 in",
    ),
    "too few": (SPECS, 2, "max_seeds: expected at least the 3 seeds of the first round; got 2"),
    "too many": (SPECS, 1000, "max_seeds: expected at most 50 rounds of 3 seeds; got 1000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rounds_that_cannot_be(case):
    specs, max_seeds, message = REFUSED[case]
    with pytest.raises(SpecError, match=message):
        rounds_of_sweep(specs, max_seeds, None)


def test_what_a_sweep_may_come_to():
    rounds = rounds_of_sweep(SPECS, 20, None)
    assert rounds.first == (0, 1, 2)
    assert "3 seeds in 2 cells" in most(SPECS, rounds, 1e9) and "at most 7 rounds, 40 runs" in most(SPECS, rounds, 1e9)
