"""A run that is there twice is one run: no table, verdict, curve, page or count takes a copy for a replication."""

import shutil
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfexp import report
from nfexp.analysis import claims, table
from nfexp.analysis import statistics as stats
from nfexp.analysis.table.baselines import load_baselines
from nfexp.report import contents, figures
from nfexp.report.selection import centre_scores, learning_curves
from tests.helpers.fake_sweep import centre, write_run, write_sweep


def study(folder):
    """Two seeds at the centre and with one flow; two targets."""
    runs = []
    for target in ("moons", "circles"):
        for seed, kl in ((0, 0.074), (1, 3.045)):
            runs.append(({"data.name": target, "seed": seed}, {"kl": kl}, "completed"))
            runs.append(({"data.name": target, "seed": seed, "flow.n_flows": 1}, {"kl": 2 * kl}, "completed"))
    return write_sweep(folder, runs, arrays=False)


def copied(folder, to):
    shutil.copytree(folder, to, dirs_exist_ok=True)


def moved(folder, to):
    """One run moved elsewhere: its own place is a planned job without a result."""
    shutil.move(folder / "000", to / "000")


def trained_again(folder, to):
    """The same configuration and seed, other numbers, as by another machine or version."""
    write_run(to / "run", centre(seed=0), {"kl": 0.5}, "completed")


def lost_elsewhere(folder, to):
    write_run(to / "run", centre(seed=1), {}, "failed")


def inside(folder, to):
    shutil.copytree(folder / "002", folder / "002 (copy)")


WAYS = {"a copy": copied, "moved": moved, "trained again": trained_again, "failed elsewhere": lost_elsewhere,
        "a copy of a run": inside}  # fmt: skip


def said(folder):
    """All that is computed from the runs below a folder."""
    found = table.collect(folder)
    runs, centres = found.runs, found.sweep.centres
    tables = stats.ablations(runs, centres)
    judged = claims.evaluate(runs, centres)
    curves = []
    for column in (None, "flow.n_flows"):
        curves.append(learning_curves(runs, table.load_histories(runs), centres, column)[1])
    data = asdict(contents.contents_of(found, tables, judged, {}, "", load_baselines(folder)))
    for key in ("title", "command", "skipped"):
        del data[key]
    del data["facts"]["repetitions"]
    return centres, tables, judged, curves, centre_scores(runs, centres), data


def same(a, b):
    if isinstance(a, (pd.DataFrame, pd.Series)):
        columns = [c for c in a if c != "dir"]
        a, b = (frame.sort_values(columns, ignore_index=True)[columns] for frame in (a, b))
        pd.testing.assert_frame_equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        same([*a.values()], [*b.values()])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)
    else:
        assert a == b


@pytest.mark.parametrize("way", WAYS)
def test_a_repetition_changes_nothing(tmp_path, way):
    whole = study(tmp_path / "plain" / "s")
    folder = study(tmp_path / "repeated" / "s")
    other = tmp_path / "repeated" / "s2"
    other.mkdir()
    WAYS[way](folder, other)
    same(said(whole.parent), said(folder.parent))


def test_the_report_of_a_sweep_and_its_copy(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(figures, "draw_all", lambda *args, **keywords: {})
    folder = study(tmp_path / "s")
    shutil.copytree(folder, tmp_path / "s2")
    report.build(folder, out=tmp_path / "one")
    report.build(folder, tmp_path / "s2", out=tmp_path / "both")
    page = (tmp_path / "both" / "report.md").read_text()
    assert "8 of 16 rows repeat a run" in page and "8 completed of 8 planned" in page
    assert [line for line in caplog.messages if "8 of 16 rows repeat a run" in line] == caplog.messages
    assert pd.read_csv(tmp_path / "both" / "ablation_flows.csv")["n"].tolist() == [2, 2, 2, 2]
    for name in ("ablation_flows.csv", "claims.csv", "tables/flows.tex", "tables/claims.tex"):
        assert (tmp_path / "both" / name).read_text() == (tmp_path / "one" / name).read_text()


def test_which_row_counts(tmp_path):
    base = {"data.name": "moons", "seed": 0, "flow.n_flows": 3}
    rows = [
        base | {"status": "missing", "dir": "a"},
        base | {"status": "failed", "dir": "b"},
        base | {"status": "diverged", "dir": "c"},
        base | {"status": "completed", "dir": "e"},
        base | {"status": "completed", "dir": "d"},
    ]
    for count in range(1, len(rows) + 1):
        kept = table.distinct(pd.DataFrame(rows[:count]))
        assert kept["dir"].tolist() == ["abced"[count - 1]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 3]), st.sampled_from([None, "x"])), min_size=1),
       st.randoms(use_true_random=False))  # fmt: skip
def test_the_choice_does_not_depend_on_the_order(cells, random):
    rows = []
    for i, (seed, flows, text) in enumerate(cells):
        status = ("completed", "diverged", "failed", "missing")[i % 4]
        rows.append({"data.name": "moons", "seed": seed, "flow.n_flows": flows, "data.text": text, "status": status,
                     "dir": f"d{i:03d}"})  # fmt: skip
    kept = table.distinct(pd.DataFrame(rows))
    assert len(kept) == len(set(cells))
    random.shuffle(rows)
    shuffled = table.distinct(pd.DataFrame(rows))
    assert sorted(shuffled["dir"]) == sorted(kept["dir"])
    assert table.distinct(kept).equals(kept)


def test_without_repetitions_nothing_is_said(tmp_path, caplog):
    runs = table.load_runs(study(tmp_path / "s"))
    assert table.repetitions(runs) == "" and caplog.messages == []
    assert np.array_equal(table.distinct(runs).index, runs.index)
