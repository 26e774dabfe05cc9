"""Imports go one way, and reports and plug-ins start without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nfexp"
# The rooms of the package in the order in which they may import each other, and within a room its modules.
ROOMS = """
    surroundings files
    spec.errors spec.ranges spec.schema spec.parameters spec.shapes spec.checks spec.mapping spec.identity spec
    mesh image_files image_sets images readers published columns tables targets arguments commands streams
    flows.fusible flows.image.plan flows.cost flows.nn flows.bases flows.layer flows.layers flows.elementwise
    flows.image.maps flows.image.networks flows.image.shapes flows.image.cells flows.image.marginals
    flows.image.couplings flows.image.norms flows.image.layers flows.image
    flows.architecture flows.kernel_protocol flows.flow_stack flows.stack flows.distribution
    flows.ensemble flows.export
    flows.kernels.lanes flows.kernels.vectors flows.kernels.elementary flows.kernels.blocks flows.kernels.products
    flows.kernels.bases flows.kernels.plan flows.kernels.rows flows.kernels.coupling flows.kernels.elementwise
    flows.kernels.moments flows.kernels.ends flows.kernels.member
    flows.kernels.threads flows.kernels.crew flows.kernels.compiled flows.kernels
    data.mixtures data.lettering data.densities data.own data.tables data.images data
    optimisers batches training train
    score.results score.evaluation score.noted score.likelihood score.samples score.layers score.images
    score.arrays score
    checkpoint run
    record.metrics record.formats record.result record.plan record.numbers record.trained record.loading record
    usage usages trackers
    analysis.contrasts analysis.sequential analysis.table.cells analysis.table.spelling analysis.table.records
    analysis.table.arrays analysis.table.index analysis.table.saved analysis.table.rows analysis.table.reading
    analysis.table.gather
    analysis.table analysis.table.baselines
    analysis.statistics.intervals analysis.statistics.ablations analysis.statistics.studies analysis.statistics
    analysis.claims.measures analysis.claims.forecast analysis.claims.catalogue analysis.claims.findings analysis.claims
    analysis.claims.images analysis.claims.own analysis.claims.looks
    report.words report.selection report.exemplar report.planar report.folders
    report.figures.panels report.figures.scales report.figures.ablation report.figures.convergence
    report.figures.clouds report.figures.corner report.figures.density report.figures.animations report.figures.summary
    report.figures.pictures
    report.figures.writing report.figures.worker report.figures.parallel report.figures.catalogue report.figures
    report.verdicts report.results report.explorer.frames report.explorer.charts report.explorer.libraries
    report.explorer.contents report.explorer.page report.explorer
    report.contents report.tex report.layouts report
    configuration
    sweep.stopping sweep.standing sweep.worker sweep.planning sweep.progress sweep.display sweep.views
    sweep.executors sweep.processes sweep.pool sweep.slurm sweep.joblib
    sweep.options sweep.grids sweep.requests sweep.folder sweep.claim sweep.compose
    sweep.dry_run sweep.rounds sweep.stacking sweep.conclusion sweep.intent sweep.running
    export estimator.inputs estimator.stacks estimator
    image_baselines baseline_fits baselines scripting doctor explanations cli entries __main__
"""
ORDER = ROOMS.split()
NUMERIC = (
    "spec",
    "streams",
    "flows",
    "data",
    "optimisers",
    "batches",
    "training",
    "train",
    "score",
    "checkpoint",
    "run",
)


def modules() -> dict[str, Path]:
    """Every module of the package by its name below `nfexp`, but the empty fronts of rooms."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name and name not in ("flows", "analysis", "sweep"):
            found[name] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """The names of all modules that a file may import, at its top or later."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_go_one_way():
    assert set(modules()) == set(ORDER)
    for name, path in modules().items():
        for other in imported(path):
            other = other.removeprefix("nfexp.")
            if other in ORDER and other != name:
                assert ORDER.index(other) < ORDER.index(name), f"{name} imports {other}"


def test_the_package_does_not_import_the_plugins():
    for name, path in modules().items():
        assert not any(other.startswith("hydra_plugins") for other in imported(path)), name


def test_the_numeric_core_knows_nothing_of_hydra_or_pandas():
    for name, path in modules().items():
        if name.split(".")[0] in NUMERIC:
            roots = {other.split(".")[0] for other in imported(path)}
            assert not roots & {"hydra", "omegaconf", "pandas"}, name


def test_reports_and_plugins_start_without_torch():
    plugins = "nfexp.cli, hydra_plugins.nfexp.stack_launcher, hydra_plugins.nfexp.grids_sweeper"
    code = f"import sys, nfexp.report, nfexp.report.figures, {plugins}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
