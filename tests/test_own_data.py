"""The lines of docs/own-data.md and of its notebook work as printed, in an empty folder."""

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
COMMAND = '{name}() {{ "{python}" -c "import sys; from {module} import main; sys.exit(main())" "$@"; }}\n'
MODULES = {
    "nfexp": "nfexp.cli",
    "nfexp-report": "nfexp.report",
    "nfexp-baselines": "nfexp.baselines",
}
COMMANDS = "".join(COMMAND.format(name=name, python=sys.executable, module=module) for name, module in MODULES.items())


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


def test_the_page(folder):
    blocks = BLOCK.findall((DOCS / "own-data.md").read_text())
    assert len(blocks) >= 9
    for language, group in groupby(blocks, key=lambda block: block[0]):
        text = "\n".join(text for _, text in group)
        if language == "sh":
            run(["bash", "-e", "-c", COMMANDS + text], folder)
        else:
            run([sys.executable, "-"], folder, text)
    for name in ("report.html", "runs.csv", "baselines.csv"):
        assert (folder / "sweep" / name).exists()


def test_the_notebook(folder):
    notebook = json.loads((DOCS / "own-data.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    out = run([sys.executable, "-"], folder, "\n".join(cells))
    assert "step 400 of 400: NLL" in out and "held-out log-density:" in out
