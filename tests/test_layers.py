"""Imports go one way, and from `table` on nothing needs torch."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "nfexp"
STEPS = (
    "files spec nn data layers flow init train score run record work engines sweep arguments table stats claims "
    "figures report baselines cli __main__"
)
ORDER = tuple(STEPS.split(" "))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{a.name}" for a in node.names)


def test_imports_go_one_way():
    steps = {p.stem if p.parent == PACKAGE else p.parent.name for p in PACKAGE.rglob("*.py")} - {"nfexp", "__init__"}
    assert steps == set(ORDER)
    for path in PACKAGE.rglob("*.py"):
        step = path.stem if path.parent == PACKAGE else path.parent.name
        for name in imported(path):
            parts = name.split(".")
            if step != "__init__" and parts[0] == "nfexp" and len(parts) > 1 and parts[1] in ORDER and parts[1] != step:
                assert ORDER.index(parts[1]) < ORDER.index(step), f"{path.name} imports {name}"


def test_the_numeric_core_knows_nothing_of_hydra_or_pandas():
    for step in ("nn", "data", "layers", "flow", "init", "train", "score", "run"):
        roots = {name.split(".")[0] for name in imported(PACKAGE / f"{step}.py")}
        assert not roots & {"hydra", "omegaconf", "pandas"}


def test_reports_and_plugins_start_without_torch():
    plugins = "nfexp.cli, hydra_plugins.nfexp.stack_launcher, hydra_plugins.nfexp.grids_sweeper"
    code = f"import sys, nfexp.report, nfexp.figures, {plugins}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
