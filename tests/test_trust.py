"""A run directory from elsewhere is data: nothing in it runs, leads out of it, or stops the report."""

import contextlib
import io
import json
import math
import os
import re
import shutil
import struct
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from nfexp import report
from nfexp.analysis.table import CACHE, MANY, ReportError, collect, load_arrays, load_histories, load_runs
from nfexp.analysis.table.cells import KINDS
from nfexp.analysis.table.records import check_record, planned_runs, read_history
from nfexp.files import parse_json
from nfexp.record import load_flow
from nfexp.record.formats import LIMITS
from nfexp.report.exemplar import exemplar
from nfexp.report.figures import animations, catalogue, parallel, writing
from nfexp.report.figures.clouds import draw_gallery
from nfexp.report.figures.summary import draw_summary
from nfexp.report.selection import centre_scores
from tests.helpers.fake_sweep import METRICS, centre, default_metrics, write_run, write_sweep
from tests.helpers.pages import Page
from tests.helpers.specs import small_spec

STORED = {"record.samples": 30, "record.grid": 8, "record.walk": 40}
NAMES = {
    "script": "<script>alert(1)</script>",
    "attribute": "\" onload=\"alert(1)\" x='",
    "markdown": "[x](javascript:alert(1)) ![y](http://example.org/y.png) `a|b` <img src=x onerror=alert(1)>",
    "tex": r"\input{/etc/passwd} $\write18{id}$ %~^_#&{}",
    "formula": "=HYPERLINK(\"http://example.org\";\"x\")",
    "formula, minus": "-2+3+cmd|' /C calc'!A0",
    "template": "{{ 7 * 7 }} {% for x in y %} ${HOME} $(id)",
    "mathtext": "$\\frac{1}{0}$ $",
    "underscore": "_hidden",
    "upwards": "../../../outside",
    "absolute": "/etc/passwd",
    "letters of no font": "数据 \U0001f600",
    "long": "x" * 1000,
}  # fmt: skip


def record(**changed):
    config = centre()
    full = {"schema_version": 1, "status": "completed", "reason": None, "config": config,
            "metrics": default_metrics(config, np.random.default_rng(0)), "versions": {"nfexp": "0.1.0"},
            "git_commit": None}  # fmt: skip
    return full | changed


def bytes_of(value):
    return json.dumps(value).encode()


def with_config(**changed):
    return bytes_of(record(config=centre() | {k.replace("__", "."): v for k, v in changed.items()}))


def sparse(size):
    def write(path):
        with path.open("wb") as file:
            file.truncate(size)

    return write


RECORDS = {
    "empty": b"",
    "zeros": bytes(100),
    "truncated": bytes_of(record())[:-30],
    "a key twice": bytes_of(record()).replace(b'"status"', b'"status": "failed", "status"'),
    "a key twice inside": bytes_of(record()).replace(b'"kl":', b'"kl": 0.0001, "kl":'),
    "UTF-16": json.dumps(record()).encode("utf-16"),
    "Latin-1": bytes_of(record()).replace(b"moons", b"m\xe9ons"),
    "byte order mark": b"\xef\xbb\xbf" + bytes_of(record()),
    "NaN": bytes_of(record()).replace(b"0.004,", b"NaN,", 1),
    "-Infinity": bytes_of(record()).replace(b"0.004,", b"-Infinity,", 1),
    "1e999": bytes_of(record()).replace(b"0.004,", b"1e999,", 1),
    "deep": b'{"schema_version":' + b"[" * 10**5 + b"]" * 10**5 + b"}",
    "deep objects": b'{"a":' * 10**5 + b"1" + b"}" * 10**5,
    "endless number": b'{"schema_version": ' + b"1" * 10**5 + b"}",
    "pickle": b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.",
    "YAML": b"!!python/object/apply:os.system ['id']",
    "swapped": b"step,train_nll,val_nll,grad_norm,lr\n1,2,3,4,5\n",
    "two documents": bytes_of(record()) * 2,
    "newer": bytes_of(record(schema_version=99)),
    "version is text": bytes_of(record(schema_version="1")),
    "status is a list": bytes_of(record(status=["completed"])),
    "metric is text": bytes_of(record(metrics={"kl": "0"})),
    "metric is a list": bytes_of(record(metrics={"kl": [0]})),
    "metric is huge": bytes_of(record(metrics={"kl": 10**300})),
    "metrics are null": bytes_of(record(metrics=None)),
    "config is text": bytes_of(record(config="moons")),
    "seed is huge": with_config(seed=2**63),
    "seed is a decimal": with_config(seed=0.5),
    "noise is infinite": bytes_of(record()).replace(b'"data.noise": 0.05', b'"data.noise": 1e999'),
    "escape codes": with_config(data__name="\x1b[2J\x1b]0;owned\x07"),
    "two lines": with_config(data__name="moons\nskipped: nothing"),
    "right to left": with_config(data__name="\u202esnoom"),
    "half a surrogate pair": with_config(data__name="\ud800"),
    "endless name": with_config(data__name="x" * 81),
    "endless text": with_config(data__text="x" * 1001),
    "key upwards": with_config(**{"../../x": 1}),
    "key with a tag": with_config(**{"<script>": 1}),
    "key with a null": with_config(**{"a\0b": 1}),
    "too large": sparse(2**33),
    "a directory": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
}
HEAD = b"step,train_nll,val_nll,grad_norm,lr\n"
HISTORIES = {
    "empty": b"",
    "other columns": b"step,kl\n1,2\n",
    "text": HEAD + b"1,2,3,4,=1+1\n",
    "ragged": HEAD + b"1,2,3,4,5\n1,2\n",
    "binary": os.urandom(500),
    "zeros": HEAD + bytes(99),
    "truncated": HEAD + b"1,2,3,4,5\n2,3,4",
    "swapped": b"PK\x03\x04" + bytes(60),
    "too large": sparse(2**33),
    "a directory": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a link": lambda path: path.symlink_to("/etc/passwd"),
}


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def zipped(name, content, **how):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **how) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def npy(header, content=b""):
    text = header.encode("latin-1").ljust(118)[:-1] + b"\n" if len(header) < 118 else header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def array_of(shape, descr="<f8", content=b""):
    return zipped("base.npy", npy(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}", content))


def bomb():
    """More zeros than are read, packed a thousandfold, declared as they are."""
    buffer, block, n = io.BytesIO(), bytes(2**24), LIMITS["samples.npz"] // 2**24 + 1
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("base.npy", "w", force_zip64=True) as file,
    ):
        file.write(npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({n * 2**24},), }}"))
        for _ in range(n):
            file.write(block)
    return buffer.getvalue()


PLAIN = npz(base=np.zeros((3, 2)), target=np.ones((3, 2)))
ARCHIVES = {
    "empty": lambda: b"",
    "text": lambda: b"hello" * 20,
    "truncated": lambda: PLAIN[:-10],
    "hole": lambda: PLAIN[:60] + bytes(40) + PLAIN[100:],
    "swapped": lambda: bytes_of(record()),
    "bare pickle": lambda: RECORDS["pickle"] + bytes(50),
    "pickled array": lambda: npz(base=np.array([Trap()], dtype=object)),
    "complex": lambda: npz(base=np.zeros((3, 2), complex)),
    "truth": lambda: npz(base=np.zeros((3, 2), bool)),
    "dates": lambda: npz(base=np.zeros((3, 2), "M8[s]")),
    "bytes": lambda: npz(base=np.zeros((3, 2), "S4")),
    "fields": lambda: npz(base=np.zeros(3, [("x", float), ("y", float)])),
    "no letters": lambda: npz(base=np.full(4, 2**31, np.uint32).view("U1")),
    "terabytes declared": lambda: array_of("(10**6, 10**6)".replace("10**6", "1000000")),
    "more than there is": lambda: array_of("(100, 2)", content=bytes(16)),
    "negative": lambda: array_of("(-1, 2)", content=bytes(16)),
    "many axes": lambda: array_of("(1,) ".replace("1,", "1," * 20), content=bytes(8)),
    "overflowing": lambda: array_of("(4294967296, 4294967296)", content=bytes(8)),
    "code": lambda: zipped("base.npy", npy("__import__('os').mkdir('trapped')")),
    "endless header": lambda: zipped("base.npy", npy("{" + " " * 20_000 + "}")),
    "version 3": lambda: zipped("base.npy", b"\x93NUMPY\x03\x00" + bytes(60)),
    "no numpy": lambda: zipped("base.npy", b"text"),
    "bomb": bomb,
    "directory of a gigabyte": lambda: PLAIN[:-10] + struct.pack("<I", 2**30) + PLAIN[-6:],
    "64-bit directory": lambda: PLAIN[:-22] + b"PK\x06\x07" + bytes(16) + PLAIN[-22:],
    "comment": lambda: PLAIN[:-2] + struct.pack("<H", 5) + b"hello",
    "encrypted": lambda: PLAIN.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")
    .replace(b"PK\x01\x02-\x03-\x00\x00", b"PK\x01\x02-\x03-\x00\x01"),
}  # fmt: skip


def put(path, content):
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)


def fine(folder, n=4):
    """A sweep of `n` good runs, seeds from 100 on."""
    runs = [({"seed": 100 + i, **STORED}, {"kl": 0.05}, "completed") for i in range(n)]
    return write_sweep(folder, runs, name="foreign", centres={"moons": centre()})


@pytest.fixture
def coarse(tmp_path, monkeypatch):
    """Draw coarsely, in this process, and without embedding fonts, which takes longest: every line of nfexp runs."""
    style = tmp_path / "coarse.mplstyle"
    style.write_text(writing.STYLE.read_text().replace("dpi: 150", "dpi: 30").replace("fonttype: 42", "fonttype: 3"))
    monkeypatch.setattr(writing, "STYLE", style)
    monkeypatch.setattr(parallel, "MOST_PROCESSES", 1)


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """An empty folder to be in, which holds nothing else afterwards but what the test put there."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    yield home
    assert not list(home.iterdir())


@pytest.mark.parametrize("case", RECORDS)
def test_a_hostile_record_is_skipped_and_named(case, tmp_path, inside, caplog):
    folder = fine(tmp_path / "sweep", 1)
    (folder / "bad").mkdir()
    path = folder / "bad" / "result.json"
    put(path, RECORDS[case])
    found = collect(folder)
    assert found.runs["job"].tolist() == ["000"]
    assert len(found.skipped) == len(caplog.messages) == 1
    for error in found.skipped:
        assert str(error).startswith(f"{path}: expected ") and str(error).isprintable() and len(str(error)) < 500


@pytest.mark.parametrize("case", HISTORIES)
def test_a_hostile_history_is_skipped_and_named(case, tmp_path, inside):
    folder = fine(tmp_path / "sweep", 2)
    (folder / "001" / "history.csv").unlink()
    put(folder / "001" / "history.csv", HISTORIES[case])
    skipped = []
    assert set(load_histories(load_runs(folder), skipped=skipped)["job"]) == {"000"}
    assert [str(e).partition(": ")[0] for e in skipped] == [str(folder / "001" / "history.csv")]


@pytest.mark.parametrize("case", ARCHIVES)
def test_a_hostile_archive_is_refused(case, tmp_path, inside):
    (tmp_path / "samples.npz").write_bytes(ARCHIVES[case]())
    with pytest.raises(ReportError, match=r"samples\.npz: expected an archive of plain arrays; got ."):
        load_arrays(tmp_path)


def test_an_error_without_a_text_is_named(tmp_path, monkeypatch):
    def raises(*_):
        raise MemoryError

    monkeypatch.setattr("nfexp.analysis.table.arrays._array", raises)
    (tmp_path / "samples.npz").write_bytes(npz(base=np.zeros(1)))
    with pytest.raises(ReportError, match=r"got MemoryError$"):
        load_arrays(tmp_path)


def test_an_archive_is_read_by_name_and_never_unpacked(tmp_path, inside):
    (tmp_path / "samples.npz").write_bytes(zipped("../../base.npy", npy("{'descr': '<f8', 'fortran_order': True, "
                                                                        "'shape': (2, 1), }", bytes(16))))  # fmt: skip
    assert load_arrays(tmp_path, only=("base",)) == {}
    assert [*load_arrays(tmp_path)] == ["../../base"] and load_arrays(tmp_path)["../../base"].shape == (2, 1)
    fortran = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    (tmp_path / "samples.npz").write_bytes(npz(base=fortran, name=np.array(["é", "x"]), one=np.float32(3)))
    back = load_arrays(tmp_path)
    assert (back["base"] == fortran).all() and back["name"].tolist() == ["é", "x"] and back["one"] == 3


def test_one_report_of_everything_hostile(tmp_path, inside, coarse, capsys):
    """Every hostile file at once, hostile names in every place: the report stands, and says what it skipped."""
    runs = [({"seed": s}, {"kl": 0.04 + 0.01 * s}, "completed") for s in range(3)]
    runs += [({"data.text": name, "seed": s}, {"kl": 0.06}, "completed") for name in NAMES.values() for s in (0, 1)]
    as_target = [NAMES["script"], NAMES["upwards"], NAMES["mathtext"], NAMES["long"][:80]]
    runs += [({"data.name": name, "seed": 5}, {"kl": 0.05}, "completed") for name in as_target]
    runs += [({"data.name": NAMES["upwards"], "seed": 6} | STORED, {"kl": 0.05}, "completed")]
    folder = write_sweep(tmp_path / "sweep", runs, name=NAMES["script"] + NAMES["tex"])
    config = centre()
    for i, kl in enumerate((1e99, -1e99)):
        write_run(folder / f"kl{i}", config | {"flow.n_flows": i + 1}, {"kl": kl}, "completed", arrays=False)
    expected = 0
    for kind, cases in (("result.json", RECORDS), ("history.csv", HISTORIES)):
        for i, content in enumerate(cases.values()):
            bad = folder / f"{kind[0]}{i}"
            write_run(bad, config | {"seed": 1000 + i}, {}, "completed", arrays=False)
            (bad / kind).unlink()
            put(bad / kind, content)
            expected += 1
    for i, content in enumerate(ARCHIVES.values()):
        bad = write_run(folder / f"s{i}", config | {"seed": -1000 + i}, {}, "completed", arrays=False)
        (bad / "samples.npz").write_bytes(content())
    for name in ("a\nb", "\x1b[31m", "<script>alert(1)<", "$(id)", os.fsdecode(b"\xff\xfe"), "=1+1", "[x](y)"):
        write_run(folder / name, config | {"seed": 77}, {}, "diverged")
    for name in ("..link", "loop"):
        (folder / name).symlink_to("/etc" if name != "loop" else folder)

    assert report.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & set(page.tags)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    looked_at = 10  # archives of all runs that completed, for the explorer
    found = [line for line in page.text.split() if line.endswith((".json:", ".csv:", ".npz:"))]
    assert sum(not line.endswith(".npz:") for line in found) == expected
    assert len([line for line in found if line.endswith(".npz:")]) == looked_at
    assert f"{len(found)} not read" in page.text
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown and "<img" not in markdown and "](javascript" not in markdown
    of_the_explorer = markdown.count("](explorer.html)")
    assert markdown.count("](") == markdown.count("](figures/") + of_the_explorer and of_the_explorer == 1
    for path in (folder / "tables").iterdir():
        text = path.read_text(encoding="utf-8")
        assert text.isascii() and r"\input{/etc" not in text and r"\write18" not in text
    for path in folder.glob("*.csv"):
        cells = pd.read_csv(path, dtype=str, keep_default_na=False).select_dtypes(exclude="number").to_numpy().ravel()
        risky = [c for c in cells if c.startswith(("=", "+", "@", "\t")) or (c[:1] == "-" and not _number(c))]
        assert not risky
    written = {p for p in tmp_path.rglob("*") if p.is_file() and p.suffix in (".png", ".pdf", ".tex", ".html", ".md")}
    assert written and all(p.is_relative_to(folder) for p in written)
    assert all(re.fullmatch(r"[\w.-]{1,120}", p.name, re.ASCII) for p in written)


def _number(text):
    with contextlib.suppress(ValueError):
        float(text)
        return True
    return False


LINKED = ("figures", "tables")


@pytest.mark.parametrize("name", LINKED)
def test_output_does_not_follow_links_to_folders(name, tmp_path, capsys):
    folder = fine(tmp_path / "sweep", 1)
    (tmp_path / "outside").mkdir()
    (folder / name).symlink_to(tmp_path / "outside")
    assert report.main([str(folder)]) == 1
    assert f"{name}: expected a folder; got a symbolic link" in capsys.readouterr().err
    assert not list((tmp_path / "outside").iterdir())


def test_output_replaces_links_to_files(tmp_path, monkeypatch):
    monkeypatch.setattr(report.figures, "draw_all", lambda *args, **keywords: {})
    folder = fine(tmp_path / "sweep", 1)
    (tmp_path / "precious").write_text("mine")
    names = ("runs.csv", "report.html", "report.md", "claims.csv", CACHE)
    for name in names:
        (folder / name).symlink_to(tmp_path / "precious")
    report.build(folder)
    assert (tmp_path / "precious").read_text() == "mine"
    assert not any((folder / name).is_symlink() for name in names if name != CACHE)


def test_a_table_has_bounded_targets_and_columns(tmp_path):
    folder = tmp_path / "sweep"
    for i in range(MANY + 5):
        write_run(folder / f"t{i:03d}", centre() | {"data.name": f"target{i}"}, {}, "completed", arrays=False)
        write_run(folder / f"k{i:03d}", centre() | {f"odd.key{i}": i}, {}, "completed", arrays=False)
    found = collect(folder)
    assert len(found.skipped) == 5 + 6 and len(found.runs) == 2 * MANY - 1
    assert found.runs["data.name"].nunique() == MANY
    assert "at most 64 unknown configuration keys in one table; got 'odd.key64' more" in str(found.skipped[0])


# What figures are drawn from


def clouds(**changed):
    points = np.random.default_rng(0).standard_normal((6, 20, 2))
    steps, names = np.arange(1, 5), np.array(["base", "coupling 2", "coupling 1", "data"])
    extent = np.array([-1.0, 1, -1, 1])
    grid = -(points[0, :8, :1] ** 2) - points[1, :8, 0] ** 2
    return {"base": points[0], "target": points[1], "best": points[2], "snapshots": points[2:], "snapshot_steps": steps,
            "grid_log_q": grid, "grid_log_p": grid, "grid_extent": extent, "walk": points[:4], "walk_names": names,
            "walk_grid": points[:4].reshape(4, 4, 5, 2)} | changed  # fmt: skip


ALL = {"gallery", "density", "walk"}


def floats(change):
    return {k: change(v) for k, v in clouds().items() if v.dtype == float}


ODD = {
    "fine": ({}, ALL),
    "not a number": (floats(lambda v: np.full_like(v, np.nan)), {"gallery", "walk"}),
    "infinite": (floats(lambda v: np.full_like(v, np.inf)), {"gallery", "walk"}),
    "huge": (floats(lambda v: v * 1e300), ALL),
    "huge, single": (floats(lambda v: v.astype("f4") * 3e37), ALL),
    "equal": (floats(np.zeros_like), {"gallery", "walk"}),
    "big-endian": (floats(lambda v: v.astype(">f8")), ALL),
    "flat": (floats(np.ravel), set()),
    "empty": (floats(lambda v: v[:0]), set()),
    "words": (floats(lambda v: v.astype(str)), set()),
    "numbers for names": ({"walk_names": np.arange(4)}, {"gallery", "density"}),
    "lengths that differ": ({"snapshot_steps": np.arange(3), "walk_names": np.array(["a"])}, {"density"}),
    "turned": ({"grid_extent": np.array([1.0, -1, 1, -1])}, {"gallery", "walk"}),
    "steps of no time": ({"snapshot_steps": np.array([-1, 0, 2**62, 2**63 - 1])}, ALL),
    "odd grid": ({"walk_grid": np.full((4, 300, 3, 2), [np.nan, 1e300])}, ALL),
    "grid of words": ({"walk_grid": np.full((4, 2, 2, 2), "1")}, ALL),
    "long names": ({"walk_names": np.array(["$" * 10_000, "\x1b[1m", "_x", "\u202e"])}, ALL),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_arrays_are_drawn_or_left_out(case, tmp_path, coarse, monkeypatch):
    monkeypatch.setattr(animations, "MOVES", 1)
    changed, expected = ODD[case]
    folder = write_run(tmp_path / "run", centre(), {}, "completed", arrays=False)
    np.savez(folder / "samples.npz", **clouds(**changed))
    runs = load_runs(folder)
    rows = {kind: exemplar(runs, {"moons": centre()}, "moons", kind) for kind in [*ALL, "summary"]}
    assert {kind for kind, row in rows.items() if row} == expected | ({"summary"} if "density" in expected else set())
    scores = centre_scores(runs, {"moons": centre()})
    tasks = {name: partial(picture, rows[kind]["arrays"], NAMES["long"])
             for kind in expected for name, picture in catalogue.OF_ONE_RUN[kind].items()}  # fmt: skip
    if rows["summary"]:
        tasks["summary"] = partial(draw_summary, {"moons": rows["summary"]["arrays"]}, *scores, NAMES["long"])
    writing.draw(tmp_path, tasks)
    for name in tasks:
        assert (tmp_path / f"{name}.{'gif' if 'gif' in name else 'pdf'}").stat().st_size > 1000


def test_odd_numbers_are_drawn(tmp_path, coarse):
    """Histories and metrics at the ends of what is read, many values on one axis: figures for all of it."""
    rng = np.random.default_rng(0)
    values = [0.0, -1e99, 1e99, 1e-300, 5.0, *rng.standard_normal(300)]
    runs = [({"train.lr": 10.0 ** -(1 + i / 60), "seed": i % 2}, {"kl": v}, "completed") for i, v in enumerate(values)]
    runs += [
        ({"flow.n_flows": i % 40, "train.weight_decay": i / 7, "seed": 0}, {"kl": 1.0}, "diverged") for i in range(90)
    ]
    folder = write_sweep(tmp_path / "sweep", runs, centres={"moons": centre()}, arrays=False)
    lines = ["0,1,2,3,4", "1,nan,nan,nan,nan", "2,inf,-inf,1e308,0", "-5,1,1,1,1", "1e99,1e99,-1e99,0,0", "3,1,2,3,4"]
    (folder / "000" / "history.csv").write_bytes(HEAD + "\n".join(lines).encode())
    (folder / "001" / "history.csv").write_bytes(HEAD + b"0,0,0,0,0\n" * 3)
    assert report.main([str(folder)]) == 0
    drawn = {p.stem for p in (folder / "figures").iterdir()}
    assert {"ablation_lr", "convergence_lr", "ablation_flows_x_weight_decay"} <= drawn


# The cache of records


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(report.figures, "draw_all", lambda *args, **keywords: {})


def opened(monkeypatch, folder, **how):
    """The result.json files that `collect` opens."""
    from nfexp.record import formats

    names = []
    plain = formats.read_plain

    def noting(path, limit):
        names.append(Path(path))
        return plain(path, limit)

    with monkeypatch.context() as patch:
        patch.setattr(formats, "read_plain", noting)
        found = collect(folder, **how)
    return found, [f"{p.parent.name}/{p.name}" for p in names if p.name == "result.json"]


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled at once, so that no test has to wait."""
    monkeypatch.setattr("nfexp.analysis.table.index.SETTLED", -(10**9))


def test_only_what_changed_is_read(tmp_path, monkeypatch, settled):
    folder = fine(tmp_path / "sweep", 4)
    assert len(opened(monkeypatch, folder, cache=folder)[1]) == 4
    assert opened(monkeypatch, folder, cache=folder)[1] == []
    write_run(folder / "002", centre(seed=102), {"kl": 0.7}, "completed")  # replaced
    write_run(folder / "900", centre(seed=900), {"kl": 0.8}, "completed")  # new
    (folder / "003" / "result.json").unlink()
    found, read = opened(monkeypatch, folder, cache=folder)
    assert sorted(read) == ["002/result.json", "900/result.json"]
    assert found.runs["status"].tolist() == ["completed"] * 3 + ["missing", "completed"]
    assert len((folder / CACHE).read_text().splitlines()) == 4
    (folder / CACHE).unlink()
    pd.testing.assert_frame_equal(load_runs(folder), found.runs)
    moved = folder.rename(tmp_path / "moved")
    collect(moved, cache=moved)
    assert opened(monkeypatch, moved, cache=moved)[1] == []


def test_a_file_edited_in_place_with_its_times_put_back_is_read_again(tmp_path, monkeypatch, settled):
    folder = fine(tmp_path / "sweep", 2)
    collect(folder, cache=folder)
    path = folder / "001" / "result.json"
    before = path.stat()
    text = path.read_text()
    path.write_text(text.replace('"kl": 0.05', '"kl": 0.01'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
    found, read = opened(monkeypatch, folder, cache=folder)
    assert read == ["001/result.json"] and found.runs["kl"].tolist() == [0.05, 0.01]


def test_a_record_that_just_changed_is_not_kept(tmp_path, monkeypatch):
    folder = fine(tmp_path / "sweep", 2)
    collect(folder, cache=folder)
    assert len(opened(monkeypatch, folder, cache=folder)[1]) == 2


CACHES = {
    "empty": lambda lines: b"",
    "binary": lambda lines: os.urandom(4000),
    "one endless line": lambda lines: b"x" * 10**7,
    "cut": lambda lines: b"\n".join(lines)[:-40],
    "no record": lambda lines: b"\n".join(line.partition(b" ")[0] + b" []" for line in lines) + b"\n",
    "no JSON": lambda lines: b"\n".join(line.partition(b" ")[0] + b" {" for line in lines) + b"\n",
    "other letters": lambda lines: "\n".join(["é ü"] * 5).encode() + b"\n",
}


@pytest.mark.parametrize("case", CACHES)
def test_a_spoilt_cache_runs_nothing_and_stops_nothing(case, tmp_path, settled):
    folder = fine(tmp_path / "sweep", 2)
    whole = collect(folder, cache=folder).runs
    lines = (folder / CACHE).read_bytes().splitlines()
    (folder / CACHE).write_bytes(CACHES[case](lines))
    if case.startswith("no "):  # identities as they are, contents that are no record: refused as a file would be
        with pytest.raises(ReportError, match=r"000/result.json: expected "):
            collect(folder)
    else:
        pd.testing.assert_frame_equal(collect(folder, cache=folder).runs, whole)


def test_no_cache_travels_with_a_copy(tmp_path, monkeypatch, settled):
    folder = fine(tmp_path / "sweep", 2)
    collect(folder, cache=folder)
    (folder / CACHE).write_text((folder / CACHE).read_text().replace('"kl":0.05', '"kl":0.00'))
    copy = tmp_path / "copy"
    for path in sorted(folder.rglob("*")):
        target = copy / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            target.write_bytes(path.read_bytes())
            os.utime(target, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    found, read = opened(monkeypatch, copy)
    assert len(read) == 2 and found.runs["kl"].tolist() == [0.05, 0.05]


def test_the_report_keeps_its_cache_where_it_writes(tmp_path, no_figures, settled):
    folder = fine(tmp_path / "sweep", 2)
    report.build(folder, out=tmp_path / "out")
    assert (tmp_path / "out" / CACHE).is_file() and not (folder / CACHE).exists()
    table_of = (tmp_path / "out" / "runs.csv").read_bytes()
    report.build(folder, out=tmp_path / "out")
    assert (tmp_path / "out" / "runs.csv").read_bytes() == table_of


# Fuzzing: a row of the right types, or the file's name and the reason

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([*NAMES.values()])
)
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3))
QUICK = settings(max_examples=200, deadline=None, suppress_health_check=[*HealthCheck], database=None)


@st.composite
def mutated(draw_from, value):
    """The JSON text of `value` with a few of its parts replaced, added or removed."""
    value = json.loads(json.dumps(value))
    for _ in range(draw_from(st.integers(1, 3))):
        at = value
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = draw_from(st.sampled_from(keys)) if keys else None
            if keys and isinstance(at[key], (dict, list)) and at[key] and draw_from(st.integers(0, 3)):
                at = at[key]
                continue
            break
        change = draw_from(st.integers(0, 3))
        if change == 0 and keys:
            del at[key]
        elif change == 1 and isinstance(at, dict):
            at[draw_from(st.text(max_size=6))] = draw_from(VALUES)
        elif keys:
            at[key] = draw_from(VALUES)
    return json.dumps(value).encode()


@st.composite
def scrambled(draw_from, raw):
    """`raw` with a few bytes changed, cut out or doubled."""
    raw = bytearray(raw)
    for _ in range(draw_from(st.integers(1, 4))):
        i, n = draw_from(st.integers(0, len(raw))), draw_from(st.integers(0, 8))
        raw[i : i + n] = draw_from(st.binary(max_size=8))
    return bytes(raw)


def admits(key, value):
    kinds = KINDS.get(key, frozenset({int, float, str, type(None)}))
    return type(value) in kinds or value is None


@QUICK
@given(st.binary(max_size=200) | mutated(record()) | scrambled(bytes_of(record())))
def test_fuzzed_records(raw):
    try:
        _, row = check_record("place/result.json", raw)
    except ReportError as error:
        assert str(error).startswith("place/result.json: expected ") and str(error).isprintable()
        return
    assert row["status"] in ("completed", "diverged", "failed")
    assert all(isinstance(row[k], float) and (math.isnan(row[k]) or abs(row[k]) < 1e100) for k in METRICS)
    assert all(admits(k, v) for k, v in row.items() if k not in (*METRICS, "status"))


PLAN = {"schema_version": 1, "name": "x", "centres": {"moons": centre()},
        "jobs": [{"job": "000", "data.name": "moons", "seed": 0, "config": {"flow.n_flows": 3}}]}  # fmt: skip


@QUICK
@given(st.binary(max_size=200) | mutated(PLAN) | scrambled(bytes_of(PLAN)))
def test_fuzzed_plans(tmp_path_factory, raw):
    folder = tmp_path_factory.mktemp("plan")
    (folder / "sweep.json").write_bytes(raw)
    try:
        plan = planned_runs(folder)
    except ReportError as error:
        assert str(error).startswith(f"{folder}/sweep.json: expected ") and str(error).isprintable()
        return
    assert plan.name.isprintable() and all(isinstance(target, str) for target in plan.centres)
    for job, row in plan.rows.items():
        place = os.path.normpath(folder / job)
        assert place.startswith(f"{folder}/") and all(admits(k, v) for k, v in row.items())


@QUICK
@given(st.binary(max_size=100) | scrambled(HEAD + b"1,0.5,0.25,1e-3,inf\n" * 3))
def test_fuzzed_histories(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("history") / "history.csv"
    path.write_bytes(raw)
    try:
        block = read_history(path)
    except ReportError as error:
        assert str(error).startswith(f"{path}: expected ")
        return
    assert block.dtype == float and block.ndim == 2 and block.shape[1] == 5
    assert not (np.abs(block[np.isfinite(block)]) > 1e100).any()


@QUICK
@given(st.binary(max_size=100) | scrambled(PLAIN) | scrambled(npz(walk_names=np.array(["a", "b"]))))
def test_fuzzed_archives(tmp_path_factory, raw):
    folder = tmp_path_factory.mktemp("archive")
    (folder / "samples.npz").write_bytes(raw)
    try:
        arrays = load_arrays(folder)
    except ReportError as error:
        assert str(error).startswith(f"{folder}/samples.npz: expected an archive of plain arrays; got ")
        return
    assert all(a.dtype.kind in "fiuU" and a.nbytes <= LIMITS["samples.npz"] for a in arrays.values())


@QUICK
@given(st.binary(max_size=60) | scrambled(b'{"a": [1, 2.5, "\\ud83d\\ude00", null], "b": {"c": true}}'))
def test_fuzzed_json(raw):
    try:
        value = parse_json(raw)
    except ValueError:
        return
    assert json.loads(json.dumps(value, allow_nan=True)) == value or "Infinity" in json.dumps(value)


# The flow of a record


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run as `nfexp` leaves it, with its weights."""
    from nfexp.record import write_run
    from nfexp.run import run_stack

    (result,) = run_stack([small_spec(train__steps=2, train__warmup=0)])
    folder = tmp_path_factory.mktemp("trained") / "run"
    write_run(folder, result)
    return folder


def weights(**changed):
    name = "model.safetensors"
    return lambda folder: (folder / name).write_bytes(save(load_file(folder / name) | changed))


def header(text, content=b""):
    return lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content)


def configured(**changed):
    def spoil(folder):
        path = folder / "result.json"
        full = json.loads(path.read_text())
        full["config"] |= {k.replace("__", "."): v for k, v in changed.items()}
        path.write_text(json.dumps(full))

    return spoil


def linked(folder):
    path = folder / "model.safetensors"
    path.rename(folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")


FLOWS = {
    **{f"record: {k}": lambda folder, c=c: ((folder / "result.json").unlink(), put(folder / "result.json", c))
       for k, c in RECORDS.items() if k not in ("newer", "a key twice inside")},
    "record is a list": lambda folder: (folder / "result.json").write_bytes(b"[]"),
    "record is text": lambda folder: (folder / "result.json").write_bytes(b'"config"'),
    "group is text": configured(data="x"),
    "unknown key": configured(flow__odd=1),
    "another architecture": configured(flow__n_flows=4),
    "vast architecture": configured(flow__n_flows=1000, flow__hidden_width=65536, flow__hidden_depth=100),
    "no weights": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "pickled weights": lambda folder: (folder / "model.safetensors").write_bytes(RECORDS["pickle"]),
    "cut weights": lambda folder: os.truncate(folder / "model.safetensors", 1000),
    "vast header": header(b"{" + b" " * 100),
    "no header": lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}"),
    "offsets outside": header(b'{"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}'),
    "another tensor": weights(odd=torch.zeros(3)),
    "whole numbers": lambda folder: weights(
        **{k: v.to(torch.int32) for k, v in load_file(folder / "model.safetensors").items()})(folder),
    "a link": linked,
}  # fmt: skip


@pytest.mark.parametrize("case", FLOWS)
def test_a_hostile_flow_is_refused(case, tmp_path, trained, inside):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    assert load_flow(folder).sample(2).shape == (2, 2)
    FLOWS[case](folder)
    with pytest.raises((ValueError, FileNotFoundError), match=": expected "):
        load_flow(folder)


# The processes that draw


def few_points():
    """Arrays of a gallery with one snapshot, which is soon drawn."""
    return clouds(snapshots=clouds()["snapshots"][:1], snapshot_steps=np.array([1]))


@pytest.fixture
def two_processes(monkeypatch):
    """Two processes draw three galleries; gives these."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(parallel, "WORTHWHILE", 3)
    return {f"gallery_{i}": partial(draw_gallery, few_points(), f"{i}") for i in range(3)}


def test_workers_draw_and_the_share_of_one_that_fails_is_drawn_here(two_processes, tmp_path, monkeypatch, inside):
    drawn, here = [], parallel.draw
    monkeypatch.setattr(parallel, "draw", lambda folder, tasks: (drawn.extend(tasks), here(folder, tasks)))
    parallel.draw_in_parallel(tmp_path, two_processes)
    assert drawn == ["gallery_0", "gallery_2"]
    assert {p.name for p in tmp_path.glob("*.p*")} == {f"{n}.{e}" for n in two_processes for e in ("png", "pdf")}
    drawn.clear()
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    parallel.draw_in_parallel(tmp_path, two_processes)
    assert drawn == ["gallery_0", "gallery_2", "gallery_1"]


def test_a_worker_does_not_import_from_the_folder_it_is_called_in(two_processes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("numpy", "nfexp", "matplotlib", "pickle"):
        (tmp_path / f"{name}.py").write_text("open('trapped', 'w')")
    folder = tmp_path / "figures"
    folder.mkdir()
    parallel.draw_in_parallel(folder, two_processes)
    assert len(list(folder.iterdir())) == 6 and not (tmp_path / "trapped").exists()
