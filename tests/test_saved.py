"""A runs.csv read back is the table it was written from, or one line that says what is wrong with it."""

import gzip
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfexp import report
from nfexp.analysis.table import MANY, ReportError, load_runs, read_runs, write_csv, write_runs
from nfexp.analysis.table import saved as saved_module
from nfexp.report import figures
from tests.helpers.fake_sweep import ablation_sweep, centre, write_run, write_sweep

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
    "ragged": (replaced(b"\n./001,", b"\n./001,1,"), "line 3: expected "),
    "open quote": (lambda path: path.write_bytes(path.read_bytes() + b'"'), "expected comma-separated values"),
    "binary": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "expected a readable file"),
    "a zip": (lambda path: path.write_bytes(b"PK\3\4" + bytes(50)), "runs.csv: expected "),
    "a pipe": (lambda path: (path.unlink(), __import__("os").mkfifo(path)), "no regular file"),
    "a link": (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "a symbolic link"),
    "status": (cell("status", "done"), "expected status to be one of completed, diverged, failed, missing; got 'done'"),
    "seed": (cell("seed", "0.5"), "expected seed to be int; got 0.5"),
    "no seed": (cell("seed", ""), "expected seed to be int; got None"),
    "flows": (cell("flow.n_flows", "six"), "expected flow.n_flows to be int; got 'six'"),
    "noise": (cell("data.noise", "nan"), "expected data.noise to be float or null; got 'nan'"),
    "huge noise": (cell("data.noise", "1e999"), "expected data.noise to be float or null; got inf"),
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


TEXTS = (
    "2024", "007", "1e3", "1E3", "-1", "+5", "0.5", ".5", "1_000", "inf", "nan", "NaN", "NA", "N/A", "None", "null",
    "NULL", "<NA>", "#N/A", "True", "false", "'", "''", "'2024", "'=1", "=1+1", "@x", "", " ", " 1", "a,b", 'a "b"',
    "a\nb", "a\rb", "\r", "none", "relu", "\\", "é中",
)  # fmt: skip


def written(tmp_path, texts):
    runs = [({"seed": i, "data.text": text, "odd.key": text}, {}, "completed") for i, text in enumerate(texts)]
    folder = tmp_path / "texts"
    shutil.rmtree(folder, ignore_errors=True)
    table = load_runs(write_sweep(folder, runs, arrays=False))
    write_runs(table, folder / "runs.csv")
    return table, folder / "runs.csv"


def test_texts_survive(tmp_path):
    texts = [text for text in TEXTS if text.isprintable()]
    table, path = written(tmp_path, [*texts, None])
    back = read_runs(path)
    pd.testing.assert_frame_equal(back, table)
    assert back["data.text"].tolist()[:-1] == texts and back["odd.key"].tolist()[:-1] == texts


def test_texts_with_line_ends_survive(tmp_path):
    rows = [({"seed": i, "data.text": text}, {}, "completed") for i, text in enumerate(TEXTS)]
    folder = write_sweep(tmp_path / "s", rows, arrays=False)
    table = load_runs(folder)
    write_runs(table, folder / "runs.csv")
    pd.testing.assert_frame_equal(read_runs(folder / "runs.csv"), table)
    assert read_runs(folder / "runs.csv")["data.text"].tolist() == [*TEXTS]


@pytest.mark.parametrize("text", [text for text in TEXTS if text])
def test_plain_pandas_reads_texts_and_jobs_as_text(tmp_path, text):
    frame = pd.DataFrame({"job": ["0000", "0001"], "data.text": text})
    write_csv(frame, tmp_path / "runs.csv")
    back = pd.read_csv(tmp_path / "runs.csv")
    assert back["job"].tolist() == ["./0000", "./0001"]
    assert back["data.text"].tolist() in ([text] * 2, ["'" + text] * 2)


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(categories=("L", "N", "P", "S", "Zs"), max_codepoint=0x2FFF), max_size=6))
def test_any_text_comes_back(tmp_path_factory, text):
    if not " ".join(text.split()).isprintable():
        return
    path = tmp_path_factory.mktemp("any") / "runs.csv"
    row = {"job": "0000", "status": "completed"} | centre(data__text=text)
    frame = pd.DataFrame([{k: v for k, v in row.items() if k not in ("name", "device") and "record" not in k}])
    write_csv(frame, path)
    assert read_runs(path)["data.text"].tolist() == [text]


def test_old_spellings_stay_readable(tmp_path):
    folder = write_sweep(tmp_path / "s", [({"data.text": "x"}, {}, "completed")], arrays=False)
    table = load_runs(folder)
    write_runs(table, folder / "runs.csv")
    new = (folder / "runs.csv").read_text()
    for cell, text in (("2024", "2024"), ("'=1", "=1"), ("NA", "NA"), ("007", "007"), ("'a", "'a")):
        old = new.replace("./000,", "000,").replace(",x,", f",{cell},")
        (folder / "runs.csv").write_text(old)
        back = read_runs(folder / "runs.csv")
        assert back["job"].tolist() == ["000"] and back["data.text"].tolist() == [text]
        assert back["dir"].tolist() == [str(folder / "000")]


def test_a_byte_order_mark(saved):
    saved.write_bytes(b"\xef\xbb\xbf" + saved.read_bytes())
    pd.testing.assert_frame_equal(read_runs(saved), load_runs(saved.parent))


def test_odd_folders_are_found_again(tmp_path):
    for name in ("=1+1", "a b", "a  b", "1e3", "NA", "'x", "a\\b", "é", "a,b", "a\nb", "2024-01-01_12-00-00"):
        write_run(tmp_path / "p" / name, centre(), {}, "completed", arrays=False)
    runs = load_runs(tmp_path / "p")
    write_runs(runs, tmp_path / "p" / "runs.csv")
    assert read_runs(tmp_path / "p" / "runs.csv")["dir"].tolist() == runs["dir"].tolist()


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two sweeps with the same job numbers, and A's own report."""
    monkeypatch.setattr(figures, "draw_all", lambda *args, **keywords: {})
    for name, seeds in (("A", (0, 1)), ("B", (2, 3))):
        write_sweep(tmp_path / name, [({"seed": s}, {}, "completed") for s in seeds], arrays=False)
    report.build(tmp_path / "A")
    return tmp_path


REFUSED = {
    "two folders": (["{}/A", "{}/B"], "out: expected out=PATH, since several folders are read; got none"),
    "a folder and a run in it": (["{}/A", "{}/A/000"], "out: expected out=PATH"),
    "out is one of them": (["{}/A", "{}/B", "out={}/A"], "out: expected a folder without runs of its own; got"),
    "out is another sweep": (["{}/B", "out={}/A"], "out: expected a folder without runs of its own; got"),
    "out is a run": (["{}/B", "out={}/A/000"], "out: expected a folder without runs of its own; got"),
    "out is a link to one": (["{}/B", "out={}/link"], "out: expected a folder without runs of its own; got"),
}


@pytest.mark.parametrize("entry", [report.main, figures.main])
@pytest.mark.parametrize("case", REFUSED)
def test_no_folder_gets_the_tables_of_another(two, case, entry, capsys):
    (two / "link").symlink_to(two / "A")
    before = {p: p.read_bytes() for p in two.rglob("*") if p.is_file()}
    words, message = REFUSED[case]
    assert entry([word.format(two) for word in words]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert {p: p.read_bytes() for p in two.rglob("*") if p.is_file()} == before


def test_every_row_says_where_it_lives(two):
    own = (two / "A" / "runs.csv").read_bytes()
    report.build(two / "A", two / "B", out=two / "both")
    runs = load_runs(two / "A", two / "B")
    back = read_runs(two / "both" / "runs.csv")
    pd.testing.assert_frame_equal(back, runs)
    assert back["job"].tolist() == ["A/000", "A/001", "B/000", "B/001"]
    assert back["dir"].tolist() == [str(two / job) for job in back["job"]]
    assert (two / "A" / "runs.csv").read_bytes() == own and "dir" not in pd.read_csv(two / "A" / "runs.csv")
    pd.testing.assert_frame_equal(read_runs(two / "A" / "runs.csv"), load_runs(two / "A"))


PLACES = {"elsewhere": "out", "deeper": "A/reports/one", "of one run": "A/001"}


@pytest.mark.parametrize("case", PLACES)
def test_a_report_elsewhere_knows_its_runs(two, case):
    out = two / PLACES[case]
    read = out if case == "of one run" else two / "A"
    report.build(read, out=out)
    assert read_runs(out / "runs.csv")["dir"].tolist() == load_runs(read)["dir"].tolist()


def test_one_folder_named_twice_is_one(two):
    (two / "link").symlink_to(two / "A")
    report.build(two / "A", f"{two}/A/", two / "link")
    assert len(read_runs(two / "A" / "runs.csv")) == 2
    assert load_runs(two / "A", two / "link")["dir"].tolist() == [f"{two}/A/000", f"{two}/A/001"]
