"""Every command that README and docs show is one that nfexp takes; those of tutorial and how-to pages are run."""

import os
import re
import shlex
from pathlib import Path

import pytest

from documentation.__main__ import COPIED, GENERATED
from nfexp import cli, report
from nfexp.data.densities import TARGET_NAMES
from nfexp.report import figures
from tests.conftest import SMALL

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "docs/sweeps.md",
    ROOT / "docs/ensembles.md",
    ROOT / "docs/recipes.md",
    ROOT / "docs/reliability.md",
    ROOT / "docs/scaling.md",
    ROOT / "docs/howto/slurm.md",
    ROOT / "docs/howto/gpu.md",
]
# Pages whose lines are run one after another, in one empty folder, with small flows
TOLD = ["tutorial.md", "howto/explore.md", "howto/resume.md", "howto/paper.md", "howto/compare.md"]
ENTRIES = {"nfexp": cli.main, "nfexp-resume": cli.resume, "nfexp-report": report.main, "nfexp-plot": figures.main}
SETTING_UP = ("pip install ", "python -m venv ", ". .venv/")
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")


def code_lines(page: Path) -> list[str]:
    """The lines of a page's code blocks that begin with `nfexp `."""
    inside = False
    found = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = not inside
        elif inside and line.startswith("nfexp "):
            found.append(line)
    return found


def commands() -> list[str]:
    """All of them, each once, made to look at everything and to train nothing."""
    found = []
    for page in PAGES:
        for line in code_lines(page):
            command = line.partition(" #")[0].strip()
            if "hydra.sweep.dir=DIR" in command or "my_conf" in command or "optuna" in command:
                continue  # folders of the reader's; another sweeper
            if "dry_run=true" not in command:
                command += " dry_run=true" if " -m " in command else " --cfg job"
            if command not in found:
                found.append(command)
    return found


@pytest.mark.parametrize("command", commands(), ids=str)
def test_commands_are_understood(nfexp, command):
    code, _, err = nfexp(*shlex.split(command)[1:])
    if "that is installed (pip install" in err:
        pytest.skip(err.strip())
    if "device=cuda" in command and "expected a CUDA device on this machine" in err:
        pytest.skip(err.strip())
    assert code == 0, err


def test_the_experiment_that_is_shown_is_understood(nfexp, tmp_path):
    page = (ROOT / "docs/sweeps.md").read_text(encoding="utf-8")
    (tmp_path / "my_conf/experiment").mkdir(parents=True)
    shown = page.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "my_conf/experiment/mine.yaml").write_text(shown, encoding="utf-8")
    code, out, err = nfexp("-m", "--config-dir", str(tmp_path / "my_conf"), "experiment=mine", "dry_run=true")
    assert code == 0 and "15 runs" in out, out + err


def test_the_pages_for_newcomers_work_as_printed(nfexp, tmp_path, monkeypatch):
    monkeypatch.setattr(report.figures, "draw_all", lambda *args, **keywords: {})
    monkeypatch.setattr(report, "lacking", lambda: ["the explorer has tests of its own"])
    names = {}
    for page in TOLD:
        for language, block in BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8")):
            if language == "python":
                exec(block, names)
                continue
            for line in block.splitlines():
                if line.startswith(SETTING_UP):
                    continue
                name, *words = shlex.split(line)
                if name == "nfexp":
                    words = [word for word in words if word != "train=quick"]
                    words += [*SMALL, "train.kernel=torch", "record=none"]
                if page == "howto/compare.md" and not os.path.exists("more"):
                    os.rename("mine", "more")
                code, out, err = nfexp(*words, entry=ENTRIES[name])
                assert code == 0, f"{page}: {line}\n{out}{err}"
    assert len(list((tmp_path / "flows").glob("*/result.json"))) == 18
    assert (tmp_path / "both/report.html").is_file()


def test_the_target_of_ones_own_works_as_printed(nfexp, tmp_path):
    page = (ROOT / "docs/howto/own-target.md").read_text(encoding="utf-8")
    (_, code), (_, line) = BLOCK.findall(page)
    exec(code, {})
    status, out, err = nfexp(*shlex.split(line)[1:], "dry_run=true")
    assert status == 0 and "4 runs" in out, out + err


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_completion_is_installed_as_printed(nfexp, shell):
    page = (ROOT / "docs/howto/completion.md").read_text(encoding="utf-8")
    assert f"nfexp -sc install={shell}" in page
    code, out, err = nfexp("-sc", f"install={shell}")
    assert code == 0 and "complete" in out, err


def test_there_are_commands():
    assert len(commands()) > 10


def test_the_table_of_groups_has_every_target():
    text = (ROOT / "docs/sweeps.md").read_text(encoding="utf-8")
    row = re.search(r"^\| `data` \| `([^`]+)`", text, re.M)
    assert set(row[1].split()) == set(TARGET_NAMES)


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]), ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = page.parent / match[1]
        if target.name in GENERATED | COPIED:  # tests/test_site.py follows these
            continue
        assert target.exists(), f"{page.name} links to {match[1]}"


def test_the_places_where_things_are_added_exist():
    """Each file that the table of architecture.md names is there, and each name stands in a file of its row."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = page.partition("## Where do I add a …")[2].partition("\n\nEach axis")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 15
    for row in rows:
        named = re.findall(r"`([\w./<>]+)`", row)
        files = []
        for path in named:
            if path.endswith(".py"):
                found = [*ROOT.glob(path), *(ROOT / "nfexp").rglob(path)]
                assert found, f"{path} in the row {row[:40]}"
                files += found
        searched = "\n".join(path.read_text(encoding="utf-8") for path in files)
        for name in named:
            if re.fullmatch(r"_?[A-Z][A-Z_]+", name):
                assert re.search(rf"\b{name}\b", searched), f"{name} in the row {row[:40]}"
