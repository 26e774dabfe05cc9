"""The lines of docs/own-data.md, of its notebook and of docs/own-study.md work as printed, in an empty folder."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.sabotage import site

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# The page in one process: what its lines import is imported once
COMMANDS = """
import subprocess
import sys
from importlib import import_module

ENTRIES = {
    "nfexp": ("nfexp.cli", "main"),
    "nfexp-resume": ("nfexp.cli", "resume"),
    "nfexp-report": ("nfexp.report", "main"),
    "nfexp-baselines": ("nfexp.baselines", "main"),
}

def command(*words):
    sys.argv = [*words]
    module, entry = ENTRIES[words[0]]
    try:
        code = getattr(import_module(module), entry)()
    except SystemExit as stop:
        code = stop.code
    assert not code, f"{words} ended with {code}"
"""

# Figures and the explorer have tests of their own, and take most of the time of a small sweep
NO_PICTURES = {
    "nfexp.report.figures": "draw_all = lambda *arguments, **keywords: {}",
    "nfexp.report.explorer": "lacking = lambda: ['left out']",
}
STEPS = re.compile(r"(\bsteps\"?(?:=|: )|_resources=)(\d+)")


def shorter(text):
    """The lines of a page, each with a tenth of the training steps."""
    return "\n".join(shorter_line(line) for line in text.splitlines())


def shorter_line(text):
    """One of them.

    >>> shorter_line("RealNVP(steps=300)"), shorter_line("nfexp train=quick")
    ('RealNVP(steps=30)', 'nfexp train=quick train.steps=40')
    """
    if "steps" not in text:
        text = text.replace("train=quick", "train=quick train.steps=40")
        return text.replace('"train": "quick"', '"train": "quick", "train.steps": 40')
    return STEPS.sub(lambda found: f"{found[1]}{int(found[2]) // 10}", text)


def as_python(language, text):
    """A block of a page as lines of Python."""
    if language == "python":
        return text
    calls = []
    written = []  # lines of the shell that write files, up to the next command
    for line in text.splitlines():
        is_command = line.startswith("nfexp")
        if not is_command:
            written.append(line)
        if is_command and "".join(written):
            script = "\n".join(written)
            calls.append(f"subprocess.run(['bash', '-e', '-c', {script!r}], check=True)\n")
        if is_command:
            calls.append(f"command(*{shlex.split(line)!r})\n")
            written = []
    if "".join(written):
        calls.append(f"subprocess.run(['bash', '-e', '-c', {chr(10).join(written)!r}], check=True)\n")
    return "".join(calls)


def run(text, folder):
    changed = site(folder / "site", NO_PICTURES)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(changed), str(DOCS.parent)]),
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "default",
    }
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("own")


def run_page(name, folder):
    """Run the blocks of a page from top to bottom; what they printed."""
    blocks = BLOCK.findall((DOCS / name).read_text())
    lines = [as_python(language, shorter(text) + "\n") for language, text in blocks]
    return run(COMMANDS + "".join(lines), folder)


def test_the_page(folder):
    run_page("own-data.md", folder)
    for name in ("report.html", "runs.csv", "baselines.csv"):
        assert (folder / "sweep" / name).exists()


def test_the_page_of_a_study(tmp_path):
    printed = run_page("own-study.md", tmp_path)
    assert "ring seed 0: test NLL" in printed
    assert re.search(r"several_flows +ring .*(supported|inconclusive|contradicted)", printed)
    assert "until every claim is decided" in printed and "12 finished runs: nothing to train" in printed
    # Without --config-dir resuming says what to type.
    command = [sys.executable, "-c", "import sys; from nfexp.cli import resume; sys.exit(resume())", "rings"]
    environment = os.environ | {"PYTHONPATH": str(DOCS.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "type: nfexp-resume rings --config-dir=my_conf" in done.stderr


def test_the_notebook(folder):
    notebook = json.loads((DOCS / "own-data.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    out = run(shorter("\n".join(cells)), folder)
    assert "step 40 of 40: NLL" in out and "held-out log-density:" in out
