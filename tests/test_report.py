import json
import re

import pandas as pd
import pytest

from nfexp import report
from nfexp.analysis import table
from nfexp.report import figures, tex, words
from tests.helpers.fake_sweep import centre, write_run, write_sweep
from tests.helpers.pages import Page

HOSTILE = "<script>alert('x')</script> & 50%_a|b"
STORED = {"record.samples": 40, "record.grid": 12, "record.walk": 60}


def study(folder):
    """A hostile name, a flows axis, an lr axis that diverged, a text axis with a hostile value, a missing run."""
    runs = []
    for seed in (0, 1):
        runs += [
            ({"seed": seed} | (STORED if seed == 0 else {}), {"kl": 0.04 + 0.002 * seed}, "completed"),
            ({"flow.n_flows": 1, "seed": seed}, {"kl": 0.5 + 0.01 * seed}, "completed"),
            ({"flow.n_flows": 3, "seed": seed}, {"kl": 0.05}, "completed" if seed else "failed"),
            ({"train.lr": 0.1, "seed": seed}, {}, "diverged"),
            ({"data.text": HOSTILE, "seed": seed}, {"kl": 0.06}, "completed" if seed else "missing"),
        ]
    return write_sweep(folder, runs, name=HOSTILE)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = study(tmp_path_factory.mktemp("report") / "sweep")
    assert report.build(folder) == folder / "report.html"
    return folder


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(figures, "draw_all", lambda *args, **keywords: {})


@pytest.fixture
def page(built):
    return Page((built / "report.html").read_text(encoding="utf-8"))


def test_every_file_of_the_contract_is_there(built):
    axes = ("flows", "lr", "text")
    names = ["runs.csv", "claims.csv", "report.md", "report.html", "tables/claims.tex"]
    names += [f"ablation_{a}.csv" for a in axes] + [f"tables/{a}.tex" for a in axes]
    names += [
        f"figures/{kind}_{a}.{ext}" for kind in ("ablation", "convergence") for a in axes for ext in ("png", "pdf")
    ]
    names += [f"figures/{kind}_moons.png" for kind in ("gallery", "density", "walk")]
    assert [n for n in names if not (built / n).is_file()] == []
    assert [p.name for p in built.rglob(".*") if p.is_file()] == [".runs.cache"]
    runs = pd.read_csv(built / "runs.csv")
    assert list(runs)[:2] == ["job", "status"] and list(runs)[-1] == "diverged_layer" and len(runs) == 10


def test_html_stands_alone(page):
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert len(page.pictures) == 3 + 4 + 3 and all(p["alt"] for p in page.pictures)


def test_html_comes_in_order_and_anchors_lead_somewhere(built):
    text = (built / "report.html").read_text(encoding="utf-8")
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == ["Verdicts on the claims", "Centre of the study", "Ablations", "Learning curves",
                      "Convergence galleries", "Densities", "Layer by layer", "Runs that did not complete",
                      "How this was made"]  # fmt: skip
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)
    markdown = re.findall(r"^## (.*)$", (built / "report.md").read_text(encoding="utf-8"), re.M)
    assert markdown == titles


def test_html_says_what_happened(page):
    assert "6 completed of 10 planned, 2 diverged, 1 failed, 1 missing" in page.text
    for said in (
        "2/2 diverged",
        "1/2 failed",
        "1/2 missing",
        "One flow is not enough",
        "supported",
        "non-finite loss",
    ):
        assert said in page.text
    assert re.search(r"\d+ claims are not listed", page.text)


def test_hostile_names_are_text_everywhere(built, page):
    raw = (built / "report.html").read_text(encoding="utf-8")
    assert "<script" not in raw and HOSTILE in page.text
    markdown = (built / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown and r"a\|b" in markdown
    table_text = (built / "tables" / "text.tex").read_text(encoding="utf-8")
    assert r"$<$script$>$alert('x')$<$/script$>$ \& 50\%\_a$|$b" in table_text


def test_tex_is_booktabs_that_pdflatex_reads(built):
    for path in (built / "tables").glob("*.tex"):
        text = path.read_text(encoding="utf-8")
        assert text.isascii() and r"\toprule" in text and r"\caption{" in text and r"\label{tab:" in text
        bare = re.sub(r"\\[\\{}$&%]", "", text)
        assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
        head, *rows = [re.sub(r"\\&", "", line) for line in text.splitlines() if line.endswith(r"\\") and " & " in line]
        assert {row.count("&") for row in rows} == {head.count("&")}
    flows = (built / "tables" / "flows.tex").read_text(encoding="utf-8")
    assert re.search(r"1 & 0\.505 \[0\.4\d+, 0\.5\d+\] & \+0\.464 ", flows)
    assert "1; 1/2 failed" in flows and "flow.n\\_flows" in flows


def test_long_tables_become_longtables():
    text = tex.to_tex(["a", "b"], [["[x", "*"]] * 41, about="c", label="d e")
    assert r"\begin{longtable}{ll}" in text and r"{}[x & {}*" in text and "tab:d-e" in text


@pytest.mark.parametrize(
    ("given", "shown"),
    [("é—ß 中", "e---? ?"), ("\\{}", r"\textbackslash{}\{\}"), ("1e-05 a-b", "1e-05 a-b"), ("x\n y", "x y")],
)
def test_tex(given, shown):
    assert tex.tex(given) == shown


def test_markdown_tables_are_whole_and_figures_exist(built):
    text = (built / "report.md").read_text(encoding="utf-8")
    for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (built / link).is_file()
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    assert len(tables) >= 6
    for block in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "0.050; 1/2 failed" in text


def test_rebuilding_changes_no_byte(built, no_figures):
    names = [p for p in built.rglob("*.csv") if p.parent == built] + list((built / "tables").iterdir())
    before = {p: p.read_bytes() for p in names}
    report.build(built)
    assert {p: p.read_bytes() for p in names} == before


def test_out_leaves_the_sweep_alone(tmp_path, no_figures):
    folder = study(tmp_path / "sweep")
    path = report.build(folder, out=tmp_path / "elsewhere" / "deep")
    assert path == tmp_path / "elsewhere" / "deep" / "report.html" and path.is_file()
    assert not (folder / "runs.csv").exists()


def test_what_was_not_read_is_said(tmp_path, no_figures, caplog):
    folder = study(tmp_path / "sweep")
    write_run(tmp_path / "elsewhere" / "000", centre(), {}, "completed", arrays=False)
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    page = Page(report.build(folder).read_text(encoding="utf-8"))
    line = f"{folder}/more: expected a folder; got a symbolic link"
    assert line in page.text and "1 not read" in page.text and line in (folder / "report.md").read_text()
    assert len([message for message in caplog.messages if message.startswith(f"skipped: {line}")]) == 1


def test_single_run(tmp_path):
    run = write_run(tmp_path / "run", centre("spiral2", record__samples=40), {"kl": -0.001}, "completed")
    page = Page(report.build(run).read_text(encoding="utf-8"))
    assert "1 completed of 1 planned" in page.text and "-0.001" in page.text and "Ablations" not in page.text
    assert len(page.pictures) == 2
    assert not list(run.glob("ablation_*"))
    assert table.load_runs(run)["status"].tolist() == ["completed"]


def test_without_a_run_at_the_centre_no_empty_table_stands_there(tmp_path, no_figures):
    runs = [({"flow.n_flows": n}, {"kl": 0.1}, "completed") for n in (1, 2)]
    folder = write_sweep(tmp_path / "sweep", runs, centres={"moons": centre()})
    page = Page(report.build(folder).read_text(encoding="utf-8"))
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    said = "No run of this collection stands at its centre."
    assert said in page.text
    assert f"## Centre of the study\n\n{said}\n\n## Ablations" in markdown


def test_claims_without_any_run_are_counted_not_listed(tmp_path, no_figures, capsys):
    runs = [({"seed": seed}, {"kl": 0.1}, "completed") for seed in (0, 1)]
    folder = write_sweep(tmp_path / "sweep", runs)
    assert report.main([str(folder)]) == 0
    judged = pd.read_csv(folder / "claims.csv")
    most_runs = judged.groupby("claim", sort=False)["n"].max()
    shown = [claim for claim, n in most_runs.items() if n > 0]
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    text = capsys.readouterr().out
    assert 0 < len(shown) < len(most_runs)
    assert re.findall(r"^\| ([A-Z]\d\w?) \|", markdown, re.M) == shown
    assert re.findall(r"^([A-Z]\d\w?) ", text, re.M) == shown
    said = f"{len(most_runs) - len(shown)} claims are not listed"
    assert said in page.text and said in markdown


def test_plain_sweep_of_one_seed(tmp_path, no_figures, capsys):
    runs = [({"flow.n_flows": n}, {"kl": 0.1 / n}, "completed") for n in (1, 2, 4)]
    folder = write_sweep(tmp_path / "sweep", runs, sweep_json=False)
    assert report.main([str(folder)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == str(folder / "report.html")
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert "flow.n_flows" in page.text and "0.025" in page.text and "claims are not listed" in page.text
    assert "nan" not in page.text.lower().split()


def test_nothing_completed(tmp_path):
    runs = [({"train.lr": lr, "seed": s}, {}, "diverged") for lr in (0.1, 0.2) for s in (0, 1)]
    folder = write_sweep(tmp_path / "sweep", runs, centres={"moons": centre(train__lr=0.1)})
    page = Page(report.build(folder).read_text(encoding="utf-8"))
    assert page.text.count("2/2 diverged") >= 3 and "0 completed of 4 planned, 4 diverged" in page.text


def test_claims_as_plain_text(built, no_figures, capsys):
    assert report.main([str(built)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 100
    at = next(i for i, line in enumerate(lines) if line.startswith("K1a"))
    assert lines[at].split()[1] in ("supported", "inconclusive", "contradicted") and "One flow" in lines[at]
    assert "moons" in lines[at + 1] and "n = 2" in lines[at + 1]


BAD = {
    "nothing": ([], "got no directory"),
    "absent": (["{tmp}/absent"], "absent: expected a directory; got nothing there"),
    "empty": (["{tmp}"], "expected a finished run (a directory with result.json); got none"),
    "option": (["{sweep}", "figures=all"], "nfexp-report: expected out=PATH or explorer=false; got figures=all"),
    "flag": (["{sweep}", "-v"], "got the option -v"),
    "out is a file": (["{sweep}", "out={sweep}/sweep.json"], "expected a folder that can be written; got"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_code_2(case, built, tmp_path, capsys):
    words, message = BAD[case]
    assert report.main([w.format(tmp=tmp_path, sweep=built) for w in words]) == 1
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and not out


def test_numbers():
    assert words.interval(0.04123, 0.0362, 0.0487) == "0.041 [0.036, 0.049]"
    assert words.interval(0.04, float("nan"), float("nan")) == "0.040"
    assert [words.duration(s) for s in (12.34, 270, 7560)] == ["12.3 s", "4.5 min", "2.1 h"]


def in_rounds(folder, seeds, **rule):
    """A sweep of one flow against six, whose seeds came in rounds."""
    runs = []
    for seed in range(seeds):
        runs.append(({"seed": seed}, {"kl": 0.04 + 0.001 * seed}, "completed"))
        runs.append(({"flow.n_flows": 1, "seed": seed}, {"kl": 0.1 + 0.03 * (seed % 3)}, "completed"))
    write_sweep(folder, runs, arrays=False)
    plan = json.loads((folder / "sweep.json").read_text())
    written = {"first": [0, 1, 2], "max_seeds": 12, "spending": "linear", "margin": None} | rule
    (folder / "sweep.json").write_text(json.dumps(plan | {"rounds": written}))
    return folder


def test_rounds_are_told(tmp_path, no_figures, capsys):
    folder = in_rounds(tmp_path / "s", 6)
    assert report.main([str(folder)]) == 0
    told = capsys.readouterr().out
    judged = pd.read_csv(folder / "claims.csv").set_index(["claim", "target"])
    assert [*judged][-3:] == ["rounds", "stopped", "seeds_needed"]
    row = judged.loc["K1a", "moons"]
    assert (row["rounds"], row["stopped"], row["n"], row["verdict"]) == (2, "no further round", 6, "inconclusive")
    assert row["seeds_needed"] > 6
    words = f"2 rounds, no further round, about {row['seeds_needed']:.0f} seeds needed"
    assert words in told
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text(encoding="utf-8")
        assert words in text and "Seeds came in rounds" in text


def test_a_plan_whose_rounds_are_no_rule_is_skipped(tmp_path, no_figures, caplog):
    folder = in_rounds(tmp_path / "s", 3, spending="none")
    report.build(folder)
    assert "rounds.spending: linear" in caplog.text
    assert "rounds" not in pd.read_csv(folder / "claims.csv")
