"""The lines of docs/own-data.md, of its notebook and of docs/own-study.md work as printed, in an empty folder."""

import json
import os
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# The commands as they stand in a fresh environment
COMMAND = '{name}() {{ "{python}" -c "import sys; from {module} import {entry}; sys.exit({entry}())" "$@"; }}\n'
ENTRIES = {
    "nfexp": ("nfexp.cli", "main"),
    "nfexp-resume": ("nfexp.cli", "resume"),
    "nfexp-report": ("nfexp.report", "main"),
    "nfexp-baselines": ("nfexp.baselines", "main"),
}
COMMANDS = "".join(
    COMMAND.format(name=name, python=sys.executable, module=module, entry=entry)
    for name, (module, entry) in ENTRIES.items()
)


def run(command, folder, text=None):
    environment = os.environ | {
        "PYTHONPATH": str(DOCS.parent), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default",
    }  # fmt: skip
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        input=text,
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
    """Run the blocks of a page from top to bottom; what each group of one language printed."""
    printed = []
    blocks = BLOCK.findall((DOCS / name).read_text())
    for language, group in groupby(blocks, key=lambda block: block[0]):
        text = "\n".join(text for _, text in group)
        if language == "sh":
            printed.append(run(["bash", "-e", "-c", COMMANDS + text], folder))
        else:
            printed.append(run([sys.executable, "-"], folder, text))
    return printed


def test_the_page(folder):
    assert len(run_page("own-data.md", folder)) >= 5
    for name in ("report.html", "runs.csv", "baselines.csv"):
        assert (folder / "sweep" / name).exists()


def test_the_page_of_a_study(tmp_path):
    trained, judged, planned = run_page("own-study.md", tmp_path)
    assert "ring seed 0: test NLL" in trained and "several_flows" in trained
    assert re.search(r"several_flows +ring .*(supported|inconclusive|contradicted)", judged)
    assert "until every claim is decided" in planned and "12 runs are finished: nothing to train" in planned
    # Without --config-dir resuming says what to type.
    command = [sys.executable, "-c", "import sys; from nfexp.cli import resume; sys.exit(resume())", "rings"]
    environment = os.environ | {"PYTHONPATH": str(DOCS.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "type: nfexp-resume rings --config-dir=my_conf" in done.stderr


def test_the_notebook(folder):
    notebook = json.loads((DOCS / "own-data.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    out = run([sys.executable, "-"], folder, "\n".join(cells))
    assert "step 400 of 400: NLL" in out and "held-out log-density:" in out
