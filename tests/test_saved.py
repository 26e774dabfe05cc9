"""A runs.csv read back is the table it was written from, or one line that says what is wrong with it."""

import gzip
import re

import numpy as np
import pandas as pd
import pytest
from fake_sweep import ablation_sweep, write_sweep

from nfexp.analysis.table import MANY, ReportError, load_runs, read_runs, write_csv
from nfexp.analysis.table import saved as saved_module

ODD = [
    ({"seed": 0, "flow.n_flows": 3}, {"kl": 1 / 3, "seconds": 1e-7}, "completed"),
    ({"seed": 1, "train.batch_size": "full", "train.grad_clip": None}, {}, "diverged"),
    ({"seed": 2, "train.lr": 1e-5, "data.noise": 2}, {"kl": -1e-3}, "completed"),
    ({"seed": 3, "data.text": "=1+1, a \"word\""}, {}, "failed"),
    ({"seed": 4, "odd.key": 5, "odd.word": "-x"}, {}, "missing"),
]  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    folder = write_sweep(tmp_path / "sweep", ODD, arrays=False)
    write_csv(load_runs(folder).drop(columns="dir"), folder / "runs.csv")
    return folder / "runs.csv"


def test_the_table_comes_back(saved):
    pd.testing.assert_frame_equal(read_runs(saved), load_runs(saved.parent))


def test_a_packed_one_elsewhere_has_no_directories(saved, tmp_path):
    packed = tmp_path / "docs" / "runs.csv.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(saved.read_bytes()))
    back, runs = read_runs(packed), load_runs(saved.parent)
    pd.testing.assert_frame_equal(back.drop(columns="dir"), runs.drop(columns="dir"))
    assert back["dir"][0] == str(packed.parent / "000")


def test_a_whole_study_comes_back(tmp_path):
    runs = load_runs(ablation_sweep(tmp_path, seeds=1, arrays=False))
    write_csv(runs.drop(columns="dir"), tmp_path / "runs.csv")
    pd.testing.assert_frame_equal(read_runs(tmp_path / "runs.csv"), runs)


def test_a_table_may_lack_metrics_and_newer_keys(saved):
    cells = pd.read_csv(saved, dtype=str).drop(columns=["flattening", "kl", "train.schedule"])
    cells.to_csv(saved, index=False)
    back = read_runs(saved)
    assert back["flattening"].isna().all() and back["kl"].dtype == np.float64 and back["train.schedule"].isna().all()


def cell(column, value, row=0):
    def spoil(path):
        table = pd.read_csv(path, dtype=str)
        table.loc[row, column] = value
        table.to_csv(path, index=False)

    return spoil


def replaced(old, new):
    return lambda path: path.write_bytes(path.read_bytes().replace(old, new, 1))


ERRORS = {
    "empty": (lambda path: path.write_text(""), "expected the heading 'job'; got a table without it"),
    "only a heading": (lambda path: path.write_bytes(path.read_bytes().split(b"\n")[0]), "expected a row for each run"),
    "no status": (replaced(b"status", b"state"), "expected the heading 'status'"),
    "a heading twice": (replaced(b"data.noise", b"data.name"), "expected each heading once; got 'data.name' twice"),
    "a key it needs": (replaced(b"train.lr", b"train.rate"), "line 2: expected config to have train.lr"),
    "an odd key": (replaced(b"odd.key", b"<b>odd"), "expected keys of letters"),
    "ragged": (replaced(b"\n001,", b"\n001,1,"), "line 3: expected "),
    "open quote": (lambda path: path.write_bytes(path.read_bytes() + b'"'), "expected comma-separated values"),
    "binary": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "expected a readable file"),
    "a zip": (lambda path: path.write_bytes(b"PK\3\4" + bytes(50)), "runs.csv: expected "),
    "a pipe": (lambda path: (path.unlink(), __import__("os").mkfifo(path)), "no regular file"),
    "a link": (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "a symbolic link"),
    "status": (cell("status", "done"), "expected status to be one of completed, diverged, failed, missing; got 'done'"),
    "seed": (cell("seed", "0.5"), "expected seed to be int; got 0.5"),
    "no seed": (cell("seed", ""), "expected seed to be int; got None"),
    "flows": (cell("flow.n_flows", "six"), "expected flow.n_flows to be int; got 'six'"),
    "noise": (cell("data.noise", "nan"), "expected data.noise to be float; got 'nan'"),
    "huge noise": (cell("data.noise", "1e999"), "expected data.noise to be float; got inf"),
    "underscore": (cell("seed", "1_0"), "expected seed to be int; got '1_0'"),
    "endless": (cell("seed", "1" * 5000), "expected seed to be int; got '1111"),
    "escape": (cell("data.name", "\x1b[2J"), "expected data.name to be str, printable"),
    "metric": (cell("kl", "good"), "expected the metric kl to be a finite number or null; got 'good'"),
    "infinite": (cell("kl", "inf"), "expected the metric kl to be a finite number or null; got 'inf'"),
    "huge": (cell("best_step", "1e30"), "expected the metric best_step to be a finite number"),
    "formula": (cell("kl", "=1+1"), "expected the metric kl to be a finite number"),
    "upwards": (cell("job", "../000"), "expected job to be a path inside the sweep; got '../000'"),
    "absolute": (cell("job", "/etc"), "expected job to be a path inside the sweep"),
    "no job": (cell("job", ""), "expected job to be a path inside the sweep; got ''"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_a_bad_table_is_refused_in_one_line(saved, case):
    spoil, message = ERRORS[case]
    spoil(saved)
    with pytest.raises(ReportError, match=re.escape(message)) as caught:
        read_runs(saved)
    assert str(caught.value).startswith(str(saved)) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_packed_ones_are_bounded(saved, tmp_path, monkeypatch):
    packed, raw = tmp_path / "runs.csv.gz", gzip.compress(saved.read_bytes())
    for content in (b"", raw[:50], b"not packed", raw[:-8] + bytes(8)):
        packed.write_bytes(content)
        with pytest.raises(ReportError, match=r"runs\.csv\.gz: expected "):
            read_runs(packed)
    monkeypatch.setattr(saved_module, "LIMIT", 10_000)
    packed.write_bytes(gzip.compress(bytes(10_001)))
    with pytest.raises(ReportError, match="more than 10,000 bytes unpacked"):
        read_runs(packed)


def test_too_many_targets(saved):
    table = pd.read_csv(saved, dtype=str)
    table = pd.concat([table.iloc[:1].assign(**{"data.name": f"t{i}"}) for i in range(MANY + 1)])
    table.to_csv(saved, index=False)
    with pytest.raises(ReportError, match=f"at most {MANY} targets in one table"):
        read_runs(saved)
