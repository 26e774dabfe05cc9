"""Every command that README and docs show is one that nfexp takes."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs/sweeps.md", ROOT / "docs/reliability.md", ROOT / "docs/scaling.md"]
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
            if "hydra.sweep.dir=DIR" in command or "optuna" in command:
                continue  # a folder of the reader's; another sweeper
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


def test_there_are_commands():
    assert len(commands()) > 10


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = page.parent / match[1]
        assert target.exists(), f"{page.name} links to {match[1]}"
