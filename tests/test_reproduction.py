"""The tables of the reproduction are what its CSVs say."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from documentation.__main__ import GENERATED
from nfexp import load_runs
from nfexp.analysis.claims import CLAIMS as VECTOR_CLAIMS
from nfexp.data import density_of
from nfexp.data import load as load_dataset
from nfexp.spec import flatten
from reproduction import CLAIMS, DATA, PAGE, blocks, load, worst
from reproduction.blocks import BLOCKS, RESTED_ON, VERDICTS, judge, with_verdicts
from reproduction.images import IMAGE_BLOCKS, IMAGES_DATA, IMAGES_PAGE
from reproduction.page import refreshed
from reproduction.taking import take, truth
from tests.helpers.fake_sweep import ablation_sweep
from tests.helpers.specs import small_spec


@pytest.fixture
def taken(tmp_path):
    sweep = ablation_sweep(tmp_path / "s")
    take("ablations", [str(sweep)], tmp_path / "data", images=None)
    return sweep, tmp_path / "data"


def test_a_study_is_stored_without_the_machine_it_ran_on(taken):
    sweep, data = taken
    frames, centres = load(data)
    runs = load_runs(sweep)
    assert len(frames["ablations"]) == len(runs) and set(centres["ablations"]) == set(runs["data.name"])
    assert frames["ablations"]["kl"].sum() == pytest.approx(runs["kl"].sum())
    assert str(sweep) not in json.dumps(centres)


def test_a_run_that_was_never_trained_is_left_out(tmp_path, capsys):
    sweep = ablation_sweep(tmp_path / "s", targets=("moons",), arrays=False)
    trained = load_runs(sweep)
    take("ablations", [str(sweep)], tmp_path / "data", images=None)
    assert capsys.readouterr().out == ""
    lost = trained["dir"].iloc[:2]
    for folder in lost:
        (Path(folder) / "result.json").unlink()
    take("ablations", [str(sweep)], tmp_path / "data", images=None)
    assert capsys.readouterr().out == "ablations: left out 2 runs, planned and never trained\n"
    frames, _ = load(tmp_path / "data")
    assert len(frames["ablations"]) == len(trained) - 2 and "missing" not in set(frames["ablations"]["status"])


def test_every_block_is_written_or_says_that_it_was_not_run(taken):
    _, data = taken
    page = "".join(f"<!-- {name} -->\n<!-- end -->\n" for name in BLOCKS)
    frames, centres = load(data)
    frames = with_verdicts(frames, centres)
    text = refreshed(page, frames, centres)
    assert text.count("Not run yet.") == len(BLOCKS) - 1  # claims need the blog's studies too
    judged = frames[VERDICTS]
    assert {"K1a", "K6a", "N1"} <= set(judged["claim"]) and not {"B1", "B2"} & set(judged["claim"])
    assert "| KL" not in text and "**flows** (`flow.n_flows`)" in text


def test_a_study_in_rounds_is_judged_by_its_rule(tmp_path):
    sweep = ablation_sweep(tmp_path / "s", targets=("moons",), arrays=False)
    plan = json.loads((sweep / "sweep.json").read_text())
    rule = {"first": [0, 1, 2], "max_seeds": 9, "spending": "linear", "margin": None}
    (sweep / "sweep.json").write_text(json.dumps(plan | {"rounds": rule}))
    take("ablations", [str(sweep)], tmp_path / "data", images=None)
    assert json.loads((tmp_path / "data" / "rounds.json").read_text()) == {"ablations": rule}
    judged = judge(*load(tmp_path / "data"))
    assert set(judged["rounds"]) == {1}
    (sweep / "sweep.json").write_text(json.dumps(plan))
    take("ablations", [str(sweep)], tmp_path / "data", images=None)
    assert "rounds" not in judge(*load(tmp_path / "data"))


def test_a_changed_number_changes_the_page(taken):
    _, data = taken
    page = refreshed("<!-- axes -->\n<!-- end -->\n", *load(data))
    runs = pd.read_csv(data / "ablations.csv.gz")
    runs["kl"] += 1
    runs.to_csv(data / "ablations.csv.gz", index=False)
    assert refreshed(page, *load(data)) != page


def test_every_claim_says_what_it_rested_on():
    assert set(RESTED_ON) == {claim.id for claim in VECTOR_CLAIMS}


@pytest.fixture(scope="module")
def stored():
    """The committed tables with their verdicts, and the centres."""
    frames, centres = load()
    return with_verdicts(frames, centres), centres


def test_the_claims_are_judged_once(taken, monkeypatch):
    frames, centres = load(taken[1])
    frames |= dict.fromkeys(("classic", "blog", "blog_norm"), frames["ablations"])
    centres |= dict.fromkeys(("classic", "blog", "blog_norm"), centres["ablations"])
    judged = []
    monkeypatch.setattr(blocks, "judge", lambda *asked: judged.append(asked[2]) or judge(*asked))
    whole = with_verdicts(frames, centres)
    page = "".join(f"<!-- {name} -->\n<!-- end -->\n" for name in ("claims", "recipes", "evidence"))
    assert "Not run yet." not in refreshed(page, whole, centres)
    assert judged == ["ablations", "classic"]


def test_the_page_says_what_the_tables_hold(stored):
    page = PAGE.read_text()
    assert refreshed(page, *stored) == page, "run: make reproduction-docs"
    assert {*re.findall(r"<!-- (?!end)(\w+) -->", page)} == {*BLOCKS}
    assert "Not run yet." not in page


def test_every_verdict_of_the_page_is_in_its_table(stored):
    judged = stored[0][VERDICTS]
    written = pd.read_csv(DATA / CLAIMS)
    pd.testing.assert_frame_equal(
        written[["claim", "target", "verdict", "study"]],
        judged[["claim", "target", "verdict", "study"]].reset_index(drop=True),
    )
    assert set(written["claim"]) == {claim.id for claim in VECTOR_CLAIMS}


def test_every_file_that_the_docs_link_is_there():
    docs = PAGE.parent
    for page in [*docs.glob("*.md"), docs.parent / "README.md"]:
        for name in re.findall(r"\]\(([^)#:]+\.(?:png|gif|md|py))\)", page.read_text()):
            is_generated = name in GENERATED
            assert is_generated or (page.parent / name).is_file(), f"{page.name}: {name}"


def test_the_truth_of_a_split_is_of_the_points_that_its_nll_is_of():
    spec = small_spec(data__name="circles", data__noise=0.1, data__n_samples=50, data__n_val=20, seed=3)
    runs = pd.DataFrame([flatten(spec)] * 2)
    for split in ("train", "val"):
        (row,) = truth(runs, split).to_dict("records")
        x = getattr(load_dataset(spec), split)[:20]
        assert row["true_nll"] == pytest.approx(-float(density_of(spec.data).log_prob(x).mean()))


def test_the_page_of_images_says_what_its_tables_say():
    page = IMAGES_PAGE.read_text()
    assert refreshed(page, *load(IMAGES_DATA), IMAGE_BLOCKS) == page
    assert all(f"<!-- {name} -->" in page for name in IMAGE_BLOCKS)
    for picture in re.findall(r"\]\((images/img/[^)]+)\)", page):
        assert (IMAGES_PAGE.parent / picture).exists()


def test_the_worst_points_are_named_and_what_is_left_without_them(monkeypatch):
    own = small_spec(data__n_test=1000)
    x, log_p = load_dataset(own).test, load_dataset(own).true_log_prob()
    loss = torch.full((1000,), 0.25)
    loss[[7, 500]] = torch.tensor([4000.0, 90.0])

    class Flow:
        spec = own

        class stack:
            theta = torch.zeros(1, dtype=torch.float64)

        def log_prob(self, points):
            return log_p - loss

        def inverse(self, points):
            return points

    monkeypatch.setattr(worst, "load_flow", lambda run: Flow())
    title, _, _, _, first, second, *_ = worst.worst("run").splitlines()
    assert "mean KL 4.340 over 1000 points" in title
    x0, y0, _, lost, _, rest = (float(cell.replace(",", "")) for cell in first.strip("|").split("|"))
    assert (x0, y0) == pytest.approx(x[7].tolist(), rel=0.01) and lost == 4000 and rest == pytest.approx(0.34, abs=0.01)
    assert float(second.strip("| ").split("|")[-1]) == 0.25
