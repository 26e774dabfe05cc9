"""Every command that README and docs show is one that nfexp takes."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from nfexp.data.densities import TARGET_NAMES
from nfexp.spec import Flow

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(ROOT / f"docs/{name}.md" for name in ("sweeps", "ensembles", "recipes", "reliability", "scaling")),
]
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
    assert code == 0, err


def test_the_experiment_that_is_shown_is_understood(nfexp, tmp_path):
    page = (ROOT / "docs/sweeps.md").read_text(encoding="utf-8")
    (tmp_path / "my_conf/experiment").mkdir(parents=True)
    shown = page.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "my_conf/experiment/mine.yaml").write_text(shown, encoding="utf-8")
    code, out, err = nfexp("-m", "--config-dir", str(tmp_path / "my_conf"), "experiment=mine", "dry_run=true")
    assert code == 0 and "15 runs" in out, out + err


def test_there_are_commands():
    assert len(commands()) > 10


def test_the_table_of_keys_has_every_option():
    rows = {}
    for line in (ROOT / "docs/sweeps.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            _, keys, values, _ = line.split("|")
            for key in re.findall(r"`(\S+)`", keys):
                rows[key] = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", values))))
    expected = {f"flow.{f.name}": f.metadata["choices"] for f in fields(Flow) if "choices" in f.metadata}
    for key, options in (expected | {"data": TARGET_NAMES}).items():
        assert set(options) <= rows[key], f"docs/sweeps.md, {key}"


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = page.parent / match[1]
        assert target.exists(), f"{page.name} links to {match[1]}"
