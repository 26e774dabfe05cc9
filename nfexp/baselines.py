"""Density estimates without a flow, on the same draws as a sweep's runs: they say when a flow is worth it."""

from __future__ import annotations

import math
import multiprocessing
import signal
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from threadpoolctl import threadpool_limits

from nfexp.analysis.table import ReportError, cannot_write, collect, printable, write_csv
from nfexp.analysis.table.baselines import BASELINES, COLUMNS, DATA, MODELS, data_key, load_baselines
from nfexp.analysis.table.records import rows_of
from nfexp.data import load_data
from nfexp.spec import Data, from_mapping
from nfexp.surroundings import command
from nfexp.sweep.planning import cores
from nfexp.usage import RUNS, Usage, run

USED = 20_000  # points that a mixture and a kernel estimate are fitted to, at most: the first ones
COMPONENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
PER_COMPONENT = 10  # points, at least: below that EM shrinks components onto single points
FOLDS = 5
COARSE = np.geomspace(0.02, 2.0, 12)  # bandwidths to try, times n^(-1/6), the rate of the best one in the plane
FINE = (COARSE[1] / COARSE[0]) ** (np.arange(-2, 3) / 3)  # then, times the best of those
RTOL = 1e-4  # of a kernel density: what its tree may leave out, in nats
PAUSE = 2.0  # seconds between two writings of the table


def fit_mixture(x: np.ndarray, components: Sequence[int] = COMPONENTS, *, random_state: int = 0) -> GaussianMixture:
    """The Gaussian mixture with full covariances of the lowest BIC (Schwarz 1978), fitted to x (n, D) by EM.

    All numbers of components are tried for which there are points enough, for BIC has several minima: on two rings one
    where a component spans both, and a lower one where 32 tell them apart.

    >>> x = np.random.default_rng(0).normal(size=(500, 2))
    >>> fit_mixture(np.concatenate([x, x + 9])).n_components
    2
    """
    models = []
    for k in components:
        if k == 1 or k * PER_COMPONENT <= len(x):
            model = GaussianMixture(k, max_iter=300, n_init=2 if k > 1 else 1, random_state=random_state)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # EM stopped early is a worse fit, and BIC says so
                models.append(model.fit(x))
    return min(models, key=lambda model: model.bic(x))


def fit_kernel(x: np.ndarray) -> KernelDensity:
    """The Gaussian kernel estimate whose bandwidth has the highest held-out likelihood in 5 folds of x (n, D).

    First on a coarse grid, then on a finer one between its best point and the neighbours.

    >>> print(f"{fit_kernel(np.random.default_rng(0).normal(size=(300, 2))).bandwidth_:.2f}")
    0.51
    """
    middle, cv = len(x) ** (-1 / 6), min(FOLDS, len(x))
    for grid in (COARSE, FINE):
        kernel = KernelDensity(rtol=RTOL)
        best = GridSearchCV(kernel, {"bandwidth": middle * grid}, cv=cv, error_score="raise").fit(x).best_estimator_
        middle = best.bandwidth
    return best


@dataclass(frozen=True)
class Baseline:
    """A fitted density, and the columns of baselines.csv that say what was chosen."""

    fitted: GaussianMixture | KernelDensity
    mean: np.ndarray  # (D,), data units
    sd: np.ndarray
    facts: dict[str, float]

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """log q(x) in nats: x (n, D), data units -> (n,)."""
        return self.fitted.score_samples((x - self.mean) / self.sd) - np.log(self.sd).sum()


def fit(x: np.ndarray, model: str, seed: int) -> Baseline:
    """Fit one of MODELS to x (n, D), data units, a mixture or kernel density to the first USED points.

    Points are standardised by their own moments first, z = (x − m) / s per axis, so that one bandwidth serves all axes
    and no unit matters; −Σ log s is counted in log_prob.

    >>> fit(np.random.default_rng(0).normal(size=(200, 2)), "gaussian", 0).facts
    {'n_used': 200, 'n_components': 1, 'n_parameters': 5}
    """
    x = x if model == "gaussian" else x[:USED]
    mean, sd = x.mean(0), x.std(0)
    z = (x - mean) / sd
    if model == "kde":
        fitted = fit_kernel(z)
        facts = {"bandwidth": fitted.bandwidth_, "n_parameters": z.size + 1}  # it keeps every point
    else:
        components = COMPONENTS[:1] if model == "gaussian" else COMPONENTS
        fitted = fit_mixture(z, components, random_state=seed % 2**32)
        k, d = fitted.means_.shape
        facts = {"n_components": k, "n_parameters": k * (d + d * (d + 1) // 2) + k - 1}
    return Baseline(fitted, mean, sd, {"n_used": len(x)} | facts)


def fit_draws(data: Data, seed: int, models: Sequence[str]) -> list[dict[str, Any]]:
    """Fit `models` to the training draws of a seed, score them on its test draws: rows of baselines.csv.

    The draws are those of :func:`nfexp.data.load`; the test draws choose nothing. `seconds` are those of choosing and
    fitting.
    """
    dataset = load_data(data, seed)
    train = dataset.train.numpy()
    test = dataset.test.numpy()
    log_p = dataset.true_log_prob()
    rows = []
    for model in models:
        begun = time.perf_counter()
        baseline = fit(train, model, seed)
        seconds = time.perf_counter() - begun
        log_q = baseline.log_prob(test)
        scores: dict[str, float | None] = {"test_nll": -log_q.mean(), "true_nll": None, "kl": None, "kl_se": None}
        if log_p is not None:
            kl = log_p.numpy() - log_q
            scores |= {
                "true_nll": -log_p.numpy().mean(),
                "kl": kl.mean(),
                "kl_se": kl.std(ddof=1) / math.sqrt(len(kl)),
            }
        scores["seconds"] = seconds
        own = {k: getattr(data, k.removeprefix("data.")) for k in DATA}
        rows.append(own | {"seed": seed, "model": model} | baseline.facts | scores)
    return rows


def wanted(runs: pd.DataFrame, fits: pd.DataFrame) -> tuple[list[tuple[Data, int, list[str]]], list[str]]:
    """What `fits` lacks for the table `runs`: target and sizes, seed and models, once each; and what cannot be drawn.

    >>> runs = pd.DataFrame({"data.name": "moons", "data.n_samples": 9, "data.noise": 0.1, "data.n_test": 9,
    ...                      "data.text": None, "seed": [0, 0, 1]})
    >>> [(data.name, seed, len(models)) for data, seed, models in wanted(runs, pd.DataFrame())[0]]
    [('moons', 0, 3), ('moons', 1, 3)]
    """
    there = {(data_key(row), row["seed"], row["model"]) for row in rows_of(fits)}
    tasks: dict[tuple[tuple[Any, ...], Any], list[str]] = {}  # models by data_key and seed
    refused: list[str] = []
    for row in rows_of(runs):
        key = data_key(row)
        lacking = [m for m in MODELS if (key, row["seed"], m) not in there]
        if lacking:
            tasks.setdefault((key, row["seed"]), lacking)
    found = []
    for (key, seed), models in tasks.items():
        given = {k.removeprefix("data."): v for k, v in zip(DATA, key, strict=True)}
        given |= {k: int(v) for k, v in given.items() if k.startswith("n_") and v is not None and v == int(v)}
        try:
            found.append((from_mapping(given | {"n_val": 2}, Data, "data."), int(seed), models))
        except ValueError as error:
            refused.append(str(error))
    return found, list(dict.fromkeys(refused))


def _begin() -> None:
    threadpool_limits(1)  # one fit per core
    torch.set_num_threads(1)


def fit_all(folder: Path, workers: int) -> int:
    """Add to `folder`/baselines.csv what it lacks for the runs below `folder`; how many could not be fitted.

    The table is written whole, every few seconds and at the end, however that comes.
    """
    fits = load_baselines(folder)
    tasks, refused = wanted(collect(folder).runs, fits)
    for line in refused:
        print(f"{folder}: {printable(line, 300)}", file=sys.stderr)
    rows = rows_of(fits)
    failed = len(refused)
    _write(rows, folder)  # what cannot be written shows before anything is fitted
    saved = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(workers, len(tasks))), mp_context=context, initializer=_begin) as pool:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # processes start here, and stay deaf to Ctrl-C
        pending = {pool.submit(fit_draws, *task): task for task in tasks}
        try:
            signal.signal(signal.SIGINT, before)
            for future in as_completed(pending):
                data, seed, _ = pending.pop(future)
                what = f"{data.name}, noise {data.noise:g}, {data.n_samples:,} points, seed {seed}"
                try:
                    new = future.result()
                except BrokenProcessPool as error:
                    raise ReportError(folder, "processes that live", error) from error
                except Exception as error:  # of this fit alone
                    failed += 1
                    print(f"{what}: {printable(error, 300)}", file=sys.stderr)
                else:
                    rows += new
                    print(f"{what}: KL " + ", ".join(f"{row['model']} {row['kl']:.3f}" for row in new), flush=True)
                if time.monotonic() > saved + PAUSE:
                    _write(rows, folder)
                    saved = time.monotonic()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():  # what is being fitted is not waited for
                process.terminate()
            raise
        finally:
            _write(rows, folder)
    return failed


def _write(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """In an order of its own, so that the table does not depend on which fit came first."""
    ordered = sorted(rows, key=lambda row: (*map(str, data_key(row)), row["seed"], list(MODELS).index(row["model"])))
    table = pd.DataFrame(ordered, columns=list(COLUMNS)).astype({"n_components": "Int64"})
    write_csv(table, folder / BASELINES)


USAGE = Usage(
    command="nfexp-baselines",
    purpose="Fit densities without a flow to the draws of a sweep's runs, into baselines.csv; the report shows them.",
    folders=f"{RUNS}; what its baselines.csv lacks is fitted",
    options={"workers=N": "fits at a time, each in a process of its own; one per core if not given"},
    examples=[
        "nfexp-baselines outputs/sweeps/ablations/2026-01-31_12-00-00",
        "nfexp-baselines outputs/sweeps/ablations/2026-01-31_12-00-00 workers=1",
    ],
)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """``nfexp-baselines DIR… [workers=N]``: fit what each DIR/baselines.csv lacks for the runs in DIR; print its path.

    Ctrl-C keeps what is finished; given again, the command goes on from there.
    """
    return run(USAGE, argv, _fit_folders)


def _fit_folders(folders: list[str], options: dict[str, str]) -> int:
    workers = options.get("workers", str(cores()))
    if not (workers.isdecimal() and 0 < int(workers) <= 1000):
        raise ReportError("workers", "a whole number from 1 to 1000", repr(workers))
    failed = 0
    for folder in folders:
        try:
            failed += fit_all(Path(folder), int(workers))
        except OSError as error:
            raise cannot_write(folder, error) from error
        print(printable(Path(folder) / BASELINES, 4096))
    return 1 if failed else 0
