"""The explorer: what it holds, that its text is text, and how it behaves in a browser."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nfexp import report
from nfexp.analysis import table
from nfexp.report import explorer, figures
from nfexp.report.explorer import libraries
from nfexp.report.explorer.contents import explorer_contents
from nfexp.report.explorer.frames import KEPT, MOST_POINTS, decoded, frames_of
from nfexp.report.explorer.page import as_json, policy
from tests.helpers.browser import Browser, find_browser
from tests.helpers.fake_sweep import write_sweep
from tests.helpers.pages import Page

HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>"
WITH_LIBRARIES = pytest.mark.skipif(bool(explorer.lacking()), reason=explorer.HOW_TO_GET)
STORED = {"record.samples": 40}


def study(folder):
    """A flows axis and a text axis on two targets, hostile names, a run that diverged and one that is missing."""
    runs = []
    for seed in (0, 1):
        own = {"seed": seed} | STORED
        runs += [
            (own, {"kl": 0.04 + 0.002 * seed}, "completed"),
            (own | {"flow.n_flows": 1}, {"kl": 0.5 + 0.01 * seed}, "completed"),
            (own | {"flow.n_flows": 12}, {}, "diverged" if seed else "completed"),
            (own | {"data.text": HOSTILE}, {"kl": 0.06}, "completed" if seed else "missing"),
            (own | {"data.name": "circles"}, {"kl": 0.09}, "completed"),
            (own | {"data.name": "circles", "flow.n_flows": 1}, {"kl": 0.7 + 0.01 * seed}, "completed"),
        ]
    return write_sweep(folder, runs, name=HOSTILE)


def judged_of(found):
    return report._judged(found.runs, found.sweep)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return table.collect(study(tmp_path_factory.mktemp("explorer") / "a & <b>"))


@pytest.fixture(scope="module")
def contents(found):
    return explorer_contents(found, judged_of(found))


@pytest.fixture(scope="module")
def built(found, tmp_path_factory):
    return explorer.write_explorer(found, judged_of(found), tmp_path_factory.mktemp("page"))


def test_cells_are_those_of_the_ablation_tables(found, contents):
    from nfexp.analysis import statistics as stats

    tables = stats.ablations(found.runs, found.sweep.centres)
    assert [axis["name"] for axis in contents["axes"]] == list(tables)
    flows = contents["axes"][0]
    for cell, (_, row) in zip(flows["cells"], tables["flows"].iterrows(), strict=True):
        expected = [row["kl_mean"], row["kl_low"], row["kl_high"]]
        given = np.array(cell["kl"], dtype=float)
        np.testing.assert_allclose(given, np.array(expected, dtype=float), rtol=1e-5)
        assert cell["n"] == row["n"]


def test_a_difference_of_images_is_in_bits(found, contents):
    assert contents["measures"]["kl_diff"] == "Difference to the centre, nats"
    of_images = found.runs.assign(test_bpd=2.0)
    judged = judged_of(found)
    shown = explorer_contents(replace(found, runs=of_images), judged)
    assert shown["measures"]["kl_diff"] == "Difference to the centre, bits/dim"
    some = found.runs.assign(test_bpd=np.where(found.runs["data.name"] == "circles", 2.0, np.nan))
    shown = explorer_contents(replace(found, runs=some), judged)
    assert shown["measures"]["kl_diff"] == "Difference to the centre, nats, of images bits/dim"


def test_every_run_of_a_cell_is_named(contents):
    flows = contents["axes"][0]
    keys = [column["key"] for column in contents["columns"]]
    for cell in flows["cells"]:
        assert len(cell["runs"]) == 2
        for number in cell["runs"]:
            row = dict(zip(keys, contents["rows"][number], strict=True))
            assert row["data.name"] == cell["target"] and str(row["flow.n_flows"]) == cell["values"][0]


def test_a_claim_names_the_runs_that_decide_it(contents):
    keys = [column["key"] for column in contents["columns"]]
    claim = next(claim for claim in contents["claims"] if claim["claim"] == "K1a")
    rows = [dict(zip(keys, contents["rows"][n], strict=True)) for n in claim["runs"]]
    assert len(rows) == 8 and {row["flow.n_flows"] for row in rows} == {1, 6}
    everywhere = next(claim for claim in contents["claims"] if claim["claim"] == "B4")
    assert len(everywhere["runs"]) == len(contents["rows"])


def test_samples_are_those_that_were_stored(found, contents):
    runs = table.distinct(found.runs).reset_index(drop=True)
    number, own = next(iter(contents["samples"]["runs"].items()))
    arrays = table.load_arrays(runs["dir"][number])
    limits = contents["samples"]["limits"][runs["data.name"][number]]
    points = decoded(own["clouds"], limits).reshape(len(own["steps"]), own["n"], 2)
    assert own["steps"] == [*arrays["snapshot_steps"].tolist(), KEPT]
    stored = np.concatenate([arrays["snapshots"], arrays["best"][None]])[:, : own["n"]]
    inside = np.isfinite(points).all(-1)
    width = limits[1] - limits[0]
    assert inside[-1].any()
    np.testing.assert_allclose(points[inside], stored[inside], atol=0.51 * width / 254)


def test_samples_are_thinned_to_the_size_that_is_stated(found):
    runs = found.runs
    whole = frames_of(runs)
    assert whole.n_points == MOST_POINTS and whole.n_left_out == 0
    small = frames_of(runs, most_bytes=12_000)
    size = sum(len(own["clouds"]) for own in small.runs.values())
    assert 0 < len(small.runs) < len(whole.runs) and size <= 12_000
    assert small.n_left_out == len(whole.runs) - len(small.runs)


def test_an_archive_that_cannot_be_read_is_skipped(tmp_path):
    folder = study(tmp_path / "sweep")
    (folder / "000" / "samples.npz").write_bytes(b"no archive")
    skipped = []
    frames = frames_of(table.load_runs(folder), skipped=skipped)
    assert len(skipped) == 1 and 0 not in frames.runs and frames.runs


def test_json_cannot_end_its_script():
    text = as_json({HOSTILE: [HOSTILE, "a & b", "\u2028"]})
    assert not set("<>&") & set(text) and json.loads(text)[HOSTILE][0] == HOSTILE


def test_the_policy_admits_nothing_from_outside():
    said = policy(scripts=["a"], styles=["b"])
    assert said.startswith("default-src 'none'; script-src 'sha256-")
    assert not re.search(r"unsafe|https?:|\*|connect-src", said)


def test_without_its_libraries_the_report_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw_all", lambda *args, **keywords: {})
    monkeypatch.setattr(libraries, "PACKAGES", ("no-such-package-of-anybody",))
    page = report.build(study(tmp_path / "sweep")).read_text(encoding="utf-8")
    assert "pip install &#39;nfexp[explorer]&#39;" in page
    assert not (tmp_path / "sweep/explorer.html").exists()


@WITH_LIBRARIES
def test_the_switch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures, "draw_all", lambda *args, **keywords: {})
    folder = study(tmp_path / "sweep")
    assert report.main([str(folder)]) == 0
    assert (folder / "explorer.html").is_file()
    assert "explorer.html" in Page((folder / "report.html").read_text(encoding="utf-8")).text
    assert report.main([str(folder), "explorer=false"]) == 0
    assert not (folder / "explorer.html").exists()
    assert report.main([str(folder), "explorer=maybe"]) == 1
    assert "true or false" in capsys.readouterr().err


@WITH_LIBRARIES
def test_the_page_stands_alone(built):
    page = Page(built.read_text(encoding="utf-8"))
    assert page.links == ["#runs", "report.html"]
    assert page.tags.count("script") == 5 and not {"link", "iframe", "object", "img"} & set(page.tags)


@pytest.fixture(scope="module")
def browser(built):
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium was found: install one, or name it in NFEXP_BROWSER")
    if sys.platform == "win32":
        pytest.skip("the pipe to the browser is POSIX")
    tab = Browser(program)
    yield tab
    tab.close()


@pytest.fixture
def opened(browser, built):
    browser.look(width=1200, height=900)
    browser.open(built)
    yield browser
    assert browser.complaints == []
    assert all(url.startswith("file:") for url in browser.requests)


def count(tab, selector):
    return tab.run(f"document.querySelectorAll({json.dumps(selector)}).length")


def pick(tab, name, value):
    tab.run(f"(() => {{ const s = document.getElementById('{name}'); s.value = {json.dumps(value)};"
            " s.dispatchEvent(new Event('change')); })()")  # fmt: skip


@WITH_LIBRARIES
def test_a_page_of_hostile_names_runs_none_of_them(opened):
    assert opened.run("document.querySelector('h1').textContent") == HOSTILE
    assert count(opened, "img") == 0
    pick(opened, "group", "data.text")
    opened.run("document.querySelector('.dtsb-add').click()")
    assert count(opened, "img") == 0 and count(opened, "#runs tbody tr[data-run]") == 12


@WITH_LIBRARIES
def test_axis_target_and_measure_draw_anew(opened):
    points = '#ablation path[aria-label*="flow.n_flows"]'
    assert count(opened, points) == 5
    pick(opened, "target", "circles")
    opened.wait(f"document.querySelectorAll('{points}').length === 2")
    pick(opened, "measure", "kl_diff")
    opened.wait("document.querySelector('#ablation').textContent.includes('centre')")
    pick(opened, "axis", "text")
    pick(opened, "target", "moons")
    opened.wait("document.querySelectorAll('#ablation path[aria-label*=\"data.text\"]').length === 2")


@WITH_LIBRARIES
@pytest.mark.parametrize("shift", [False, True])
def test_a_point_leads_to_its_run(opened, shift):
    side = "right" if shift else "left"
    spot = opened.run("(() => { const all = document.querySelectorAll('#ablation path[aria-label^=\"run \"]');"
                      " const b = all[4].getBoundingClientRect(); const job = all[4].getAttribute('aria-label');"
                      " return [b.x + b.width / 2, b.y + b.height / 2, job] })()")  # fmt: skip
    opened.click(spot[0], spot[1], shift=shift)
    job = spot[2].removeprefix("run ").partition(" (")[0]
    opened.wait(f"document.getElementById('{side}-title').textContent.includes('run {job} (')")
    assert f"{side}=" in opened.run("location.hash")


@WITH_LIBRARIES
def test_the_slider_shows_every_recorded_step_by_keyboard(opened):
    opened.run("document.getElementById('step').focus()")
    assert opened.run("document.getElementById('at').textContent") == "kept weights"
    opened.key("Home", 36)
    opened.wait("document.getElementById('left-title').textContent.includes('step ')")
    n_steps = opened.run("Number(document.getElementById('step').max)")
    assert n_steps == 13 and count(opened, ".cloud svg") == 2


@WITH_LIBRARIES
def test_a_claim_highlights_its_cells_and_a_link_keeps_the_view(opened, built):
    opened.run("document.querySelector('[data-claim=K1a]').click()")
    opened.wait("document.querySelectorAll('#cells tr.decided').length === 4")
    assert count(opened, "#runs tr.decided") == 8
    pick(opened, "scope", "claim")
    opened.run("(() => { const s = document.querySelector('.dt-search input'); s.value = 'circles';"
               " s.dispatchEvent(new Event('input')); })()")  # fmt: skip
    opened.wait("document.querySelectorAll('#runs tbody tr[data-run]').length === 4")
    fragment = opened.run("location.hash")
    opened.open(built, fragment)
    assert count(opened, "#cells tr.decided") == 4 and count(opened, "#runs tbody tr[data-run]") == 4
    assert opened.run("document.querySelector('[aria-pressed=true]').dataset.claim") == "K1a"


@WITH_LIBRARIES
@pytest.mark.parametrize(
    "fragment", ["#axis=none&left=99999&step=x&order=9:up", "#filter={&group=%3Cimg%3E", f"#search={HOSTILE}"]
)
def test_a_hostile_link_does_no_harm(opened, built, fragment):
    opened.open(built, fragment)
    assert count(opened, "img") == 0 and count(opened, "#ablation svg") == 1


@WITH_LIBRARIES
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_all_of_it(opened, built, dark):
    opened.look(width=390, height=844, dark=dark)
    opened.open(built)
    assert opened.run("document.documentElement.scrollWidth") <= 390
    unnamed = "[...document.querySelectorAll('main select, main input, main button')].filter(c =>"
    unnamed += " !c.labels?.length && !c.getAttribute('aria-label') && !c.textContent.trim()).length"
    assert opened.run(unnamed) == 0
    paper = opened.run("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 24, 28)" if dark else "rgb(255, 255, 255)")


def test_the_parts_are_in_the_package():
    folder = Path(explorer.__file__).parent
    assert {"explorer.js", "explorer.css", "explorer.html.j2"} <= {path.name for path in folder.iterdir()}
