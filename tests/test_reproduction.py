"""The tables of the reproduction are what its CSVs say."""

import json
import re

import pandas as pd
import pytest
from fake_sweep import ablation_sweep

from benchmarks import reproduction
from nfexp import load_runs
from nfexp.claims import CLAIMS


@pytest.fixture
def taken(tmp_path):
    sweep = ablation_sweep(tmp_path / "s")
    reproduction.take("ablations", [str(sweep)], tmp_path / "data", images=None)
    return sweep, tmp_path / "data"


def test_a_study_is_stored_without_the_machine_it_ran_on(taken):
    sweep, data = taken
    frames, centres = reproduction.load(data)
    runs = load_runs(sweep)
    assert len(frames["ablations"]) == len(runs) and set(centres["ablations"]) == set(runs["data.name"])
    assert frames["ablations"]["kl"].sum() == pytest.approx(runs["kl"].sum())
    assert str(sweep) not in json.dumps(centres)


def test_every_block_is_written_or_says_that_it_was_not_run(taken):
    _, data = taken
    page = "".join(f"<!-- {name} -->\n<!-- end -->\n" for name in reproduction.BLOCKS)
    text = reproduction.refreshed(page, data)
    assert text.count("Not run yet.") == len(reproduction.BLOCKS) - 1  # claims need the blog's study too
    frames, centres = reproduction.load(data)
    judged = reproduction.judge(frames, centres)
    assert {"K1a", "K6a", "N1"} <= set(judged["claim"]) and not {"B1", "B2"} & set(judged["claim"])
    assert "| KL" not in text and "**flows** (`flow.n_flows`)" in text


def test_a_changed_number_changes_the_page(taken):
    _, data = taken
    page = reproduction.refreshed("<!-- axes -->\n<!-- end -->\n", data)
    runs = pd.read_csv(data / "ablations.csv.gz")
    runs["kl"] += 1
    runs.to_csv(data / "ablations.csv.gz", index=False)
    assert reproduction.refreshed(page, data) != page


def test_every_claim_says_what_it_rested_on():
    assert set(reproduction.RESTED_ON) == {claim.id for claim in CLAIMS}


def test_the_page_says_what_the_tables_hold():
    page = reproduction.PAGE.read_text()
    assert reproduction.refreshed(page) == page, "run: make reproduction-docs"
    assert {*re.findall(r"<!-- (?!end)(\w+) -->", page)} == {*reproduction.BLOCKS}
    assert "Not run yet." not in page


def test_every_file_that_the_docs_link_is_there():
    docs = reproduction.PAGE.parent
    for page in [*docs.glob("*.md"), docs.parent / "README.md"]:
        for name in re.findall(r"\]\(([^)#:]+\.(?:png|gif|md|py))\)", page.read_text()):
            assert (page.parent / name).is_file(), f"{page.name}: {name}"
