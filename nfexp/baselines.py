"""Density estimates without a flow, on the draws of a sweep's runs: when is a flow worth it?"""

from __future__ import annotations

import math
import multiprocessing
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
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
from nfexp.analysis.table.baselines import (
    ALL_MODELS,
    BASELINES,
    DATA,
    KERNELS,
    MODELS,
    WITH_VALIDATION,
    columns_of,
    data_key,
    draws_of,
    load_baselines,
)
from nfexp.analysis.table.records import rows_of
from nfexp.data import Dataset, load_data
from nfexp.image_baselines import fit_images, models_for
from nfexp.spec import Data, SpecError, Words, from_mapping, parameters_in
from nfexp.surroundings import command
from nfexp.sweep.planning import cores
from nfexp.usage import RUNS, Usage, run

USED = 20_000  # points that a mixture and a kernel estimate are fitted to, at most: the first ones
COMPONENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
PER_COMPONENT = 10  # points, at least: below that EM shrinks components onto single points
FOLDS = 5
# bandwidths to try, times n^(-1/6), the rate of the best one in the plane
COARSE = np.geomspace(0.02, 2.0, 12)
FINE = (COARSE[1] / COARSE[0]) ** (np.arange(-2, 3) / 3)  # then, times the best of those
RTOL = 1e-4  # of a kernel density: what its tree may leave out, in nats
PAUSE = 2.0  # seconds between two writings of the table


def fit_mixture(
    x: np.ndarray,
    components: Sequence[int] = COMPONENTS,
    *,
    random_state: int = 0,
) -> GaussianMixture:
    """The Gaussian mixture of the lowest BIC (Schwarz 1978), fitted to x (n, D) by EM.

    Covariances are full. All numbers of components are tried for which there are points enough, for
    BIC has several minima: on two rings one where a component spans both, and a lower one where 32
    tell them apart.

    >>> x = np.random.default_rng(0).normal(size=(500, 2))
    >>> fit_mixture(np.concatenate([x, x + 9])).n_components
    2
    """
    models = []
    for k in components:
        if k > 1 and k * PER_COMPONENT > len(x):
            continue
        n_starts = 2 if k > 1 else 1
        model = GaussianMixture(k, max_iter=300, n_init=n_starts, random_state=random_state)
        with warnings.catch_warnings():
            # EM that stopped early is a worse fit, and BIC says so
            warnings.simplefilter("ignore", ConvergenceWarning)
            models.append(model.fit(x))
    return min(models, key=lambda model: model.bic(x))


def fit_kernel(x: np.ndarray) -> KernelDensity:
    """The Gaussian kernel estimate of x (n, D), its bandwidth by held-out likelihood in 5 folds.

    First on a coarse grid, then on a finer one between its best point and the neighbours.

    >>> print(f"{fit_kernel(np.random.default_rng(0).normal(size=(300, 2))).bandwidth_:.2f}")
    0.51
    """
    n_folds = min(FOLDS, len(x))
    bandwidth = len(x) ** (-1 / 6)
    for factors in (COARSE, FINE):
        search = GridSearchCV(
            KernelDensity(rtol=RTOL),
            {"bandwidth": bandwidth * factors},
            cv=n_folds,
            error_score="raise",
        )
        best = search.fit(x).best_estimator_
        bandwidth = best.bandwidth
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

    def of_last(self, n: int) -> Baseline:
        """The law of the last n coordinates alone: exact, for mixtures and kernel densities have their marginals."""
        marginal = _kernels_of_last if isinstance(self.fitted, KernelDensity) else _mixture_of_last
        return Baseline(marginal(self.fitted, n), self.mean[-n:], self.sd[-n:], {})

    def log_prob_given(self, x: np.ndarray, context: np.ndarray) -> np.ndarray:
        """log q(x | c) = log q(x, c) − log q(c) in nats, of the law of [x, c]: (n, D) and (n, C) -> (n,).

        With one Gaussian that is the linear regression of x on c.
        """
        joint = self.log_prob(np.concatenate([x, context], axis=1))
        if context.shape[1] == 0:
            return joint
        return joint - self.of_last(context.shape[1]).log_prob(context)


def _kernels_of_last(fitted: KernelDensity, n: int) -> KernelDensity:
    points = np.asarray(fitted.tree_.data)
    return KernelDensity(bandwidth=fitted.bandwidth_, rtol=fitted.rtol).fit(points[:, -n:])


def _mixture_of_last(fitted: GaussianMixture, n: int) -> GaussianMixture:
    made = GaussianMixture(len(fitted.weights_))
    made.weights_ = fitted.weights_
    made.means_ = fitted.means_[:, -n:]
    made.covariances_ = fitted.covariances_[:, -n:, -n:]
    # L with L Lᵀ the precision: scikit-learn's own is another one, and gives the same density
    made.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(made.covariances_))
    return made


def fit(x: np.ndarray, model: str, seed: int) -> Baseline:
    """Fit one of MODELS to x (n, D), data units; a mixture or kernel density to USED points.

    Points are standardised by their own moments first, z = (x − m) / s per axis, so that one
    bandwidth serves all axes and no unit matters; −Σ log s is counted in log_prob.

    >>> fit(np.random.default_rng(0).normal(size=(200, 2)), "gaussian", 0).facts
    {'n_used': 200, 'n_components': 1, 'n_parameters': 5}
    """
    if model != "gaussian":
        x = x[:USED]
    mean = x.mean(0)
    sd = x.std(0)
    z = (x - mean) / sd
    facts: dict[str, float] = {"n_used": len(x)}
    if model in KERNELS:
        fitted = fit_kernel(z)
        facts["bandwidth"] = fitted.bandwidth_
        facts["n_parameters"] = z.size + 1  # it keeps every point
    else:
        components = (1,) if model == "gaussian" else COMPONENTS
        fitted = fit_mixture(z, components, random_state=seed % 2**32)
        k, d = fitted.means_.shape
        n_moments = d + d * (d + 1) // 2  # of each component: its mean and covariance
        facts["n_components"] = k
        facts["n_parameters"] = k * n_moments + k - 1  # the weights sum to 1
    return Baseline(fitted, mean, sd, facts)


def fit_draws(data: Data, seed: int, models: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of baselines.csv: `models` fitted to a seed's training draws, scored on its test draws.

    Those of WITH_VALIDATION are fitted to its validation draws, too: a flow sees them when it
    chooses its step. The draws are those of :func:`nfexp.data.load`; the test draws choose nothing.
    `seconds` are those of choosing and fitting. Of images the NLL is a bound of −log P, and
    validation images choose what there is to choose. Given a context, a law of both together is fitted, and its
    log q(x | c) is scored.
    """
    dataset = load_data(data, seed)
    train = _with_context(dataset, "train")
    both = np.concatenate([train, _with_context(dataset, "val")])
    test = dataset.test.flatten(1).numpy()
    of_test = dataset.given("test").numpy()
    exact = dataset.true_log_prob()
    log_p = None if exact is None else exact.numpy()
    draws = draws_of(data)
    rows = []
    for model in models:
        begun = time.perf_counter()
        if dataset.levels is None:
            fitted = fit(both if model in WITH_VALIDATION else train, model, seed)
            seconds = time.perf_counter() - begun
            log_q = fitted.log_prob_given(test, of_test)
            facts = fitted.facts
        else:
            of_images = fit_images(dataset, model, seed)
            seconds = time.perf_counter() - begun
            log_q = of_images.log_prob(test)
            facts = of_images.facts
        row = draws | {"seed": seed, "model": model} | facts | score(log_q, log_p)
        row["seconds"] = seconds
        rows.append(row)
    return rows


def _with_context(dataset: Dataset, part: str) -> np.ndarray:
    """The points of "train" or "val" with their context beside them, (n, D + C), data units."""
    points: torch.Tensor = getattr(dataset, part)
    return np.concatenate([points.flatten(1).numpy(), dataset.given(part).numpy()], axis=1)


def score(log_q: np.ndarray, log_p: np.ndarray | None) -> dict[str, float | None]:
    """NLL and KL on test points in nats, from log q and, where it is known, log p at each (n,)."""
    if log_p is None:
        return {"test_nll": -log_q.mean(), "true_nll": None, "kl": None, "kl_se": None}
    log_ratio = log_p - log_q  # paired point by point
    return {
        "test_nll": -log_q.mean(),
        "true_nll": -log_p.mean(),
        "kl": log_ratio.mean(),
        "kl_se": log_ratio.std(ddof=1) / math.sqrt(len(log_ratio)),
    }


@dataclass(frozen=True)
class Task:
    """Draws that some models are to be fitted to."""

    data: Data
    seed: int
    models: list[str]

    def run(self) -> list[dict[str, Any]]:
        return fit_draws(self.data, self.seed, self.models)

    def __str__(self) -> str:
        data = self.data
        noise = "" if data.noise is None else f", noise {data.noise:g}"
        return f"{data.name}{noise}, {data.n_samples:,} points, seed {self.seed}"


def wanted(runs: pd.DataFrame, fits: pd.DataFrame) -> tuple[list[Task], list[str]]:
    """What `fits` lacks for the table `runs`, each draw once; and what cannot be drawn.

    Validation draws are as many as of the first run with these draws.

    >>> runs = pd.DataFrame({"data.name": "moons", "data.n_samples": 9, "data.noise": 0.1, "data.n_test": 9,
    ...                      "data.n_val": 9, "data.text": None, "seed": [0, 0, 1]})
    >>> [(task.data.name, task.seed, len(task.models)) for task in wanted(runs, pd.DataFrame())[0]]
    [('moons', 0, 5), ('moons', 1, 5)]
    """
    fitted = set()
    for row in rows_of(fits):
        fitted.add((data_key(row), row["seed"], row["model"]))
    lacking: dict[tuple[tuple[Any, ...], Any], list[str]] = {}  # models by data_key and seed
    tables: dict[tuple[Any, ...], Mapping[str, Any]] = {}  # a run with these draws
    for row in rows_of(runs):
        key = data_key(row)
        seed = row["seed"]
        models = [model for model in _models_of(row) if (key, seed, model) not in fitted]
        if models:
            lacking[key, seed] = models
            tables.setdefault(key, row)
    tasks = []
    refused: dict[str, None] = {}  # each reason once, in order
    for (key, seed), models in lacking.items():
        try:
            tasks.append(Task(_data_of(tables[key]), int(seed), models))
        except ValueError as error:
            refused[str(error)] = None
    return tasks, list(refused)


def _models_of(row: Mapping[str, Any]) -> list[str]:
    """The baselines for the draws of a run."""
    if row.get("data.kind") != "image":
        return list(MODELS)
    return models_for(int(row["data.dim"]), int(row["data.levels"]))


def _data_of(row: Mapping[str, Any]) -> Data:
    """The checked data of a run; whole numbers may be floats, as a table of runs has them.

    Raises
    ------
    SpecError
        Of a target of the user's own, too: a record is not trusted to name code.
    """
    digest = row.get("data.digest")
    is_table = isinstance(digest, str) and bool(digest)
    given: dict[str, Any] = {"noise": None, "text": None}
    for column, value in row.items():
        is_wanted = column in (*DATA, "data.n_val") or is_table
        if column.startswith("data.") and is_wanted and value is not None and value == value:
            is_whole = isinstance(value, float) and value.is_integer() and column not in ("data.jitter", "data.noise")
            given[column.removeprefix("data.")] = int(value) if is_whole else value
    given |= parameters_in(row)
    if given.get("kind") == "own":
        raise SpecError(str(given["name"]), "a built-in target or a table", Words("a density of your own"))
    return from_mapping(given, Data, "data.")


def _begin() -> None:
    """Every process fits on one core."""
    threadpool_limits(1)
    torch.set_num_threads(1)


def fit_all(folder: Path, workers: int) -> int:
    """Add to `folder`/baselines.csv what it lacks for the runs there.

    Returns how many could not be fitted. The table is written whole, every few seconds and at the
    end, however that comes.
    """
    fits = load_baselines(folder)
    tasks, refused = wanted(collect(folder).runs, fits)
    for line in refused:
        print(f"{folder}: {printable(line, 300)}", file=sys.stderr)
    results = Results(folder, rows_of(fits))
    results.write()  # what cannot be written shows before anything is fitted
    context = multiprocessing.get_context("spawn")
    n_workers = max(1, min(workers, len(tasks)))
    with ProcessPoolExecutor(n_workers, mp_context=context, initializer=_begin) as pool:
        try:
            with _deaf_to_interrupts():  # processes start here, and inherit it
                pending = {pool.submit(task.run): task for task in tasks}
            for future in as_completed(pending):
                results.add(pending.pop(future), future)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            # what is being fitted is not waited for
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        finally:
            results.write()
    return len(refused) + results.n_failed


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C is for this process alone: it ends the others."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class Results:
    """The rows of a folder's baselines.csv while fits are added to it."""

    folder: Path
    rows: list[dict[str, Any]]
    n_failed: int = 0
    written: float = 0.0  # when, by the monotonic clock

    def add(self, task: Task, future: Future[list[dict[str, Any]]]) -> None:
        """Take over what a finished task gives; one that failed is named, and the others go on."""
        try:
            new = future.result()
        except BrokenProcessPool as error:
            raise ReportError(self.folder, "processes that live", error) from error
        except Exception as error:  # of this fit alone
            self.n_failed += 1
            print(f"{task}: {printable(error, 300)}", file=sys.stderr)
        else:
            self.rows += new
            print(f"{task}: {_said(new)}", flush=True)
        if time.monotonic() > self.written + PAUSE:
            self.write()

    def write(self) -> None:
        """Write the table in an order that does not depend on which fit came first."""
        ordered = sorted(self.rows, key=_place)
        columns = list(columns_of(ordered))
        table = pd.DataFrame(ordered, columns=columns).astype({"n_components": "Int64"})
        write_csv(table, self.folder / BASELINES)
        self.written = time.monotonic()


def _said(rows: Sequence[Mapping[str, Any]]) -> str:
    """The scores of a finished task: KL, or NLL where no density is known."""
    metric = "test_nll" if rows[0]["kl"] is None else "kl"
    name = {"kl": "KL", "test_nll": "test NLL"}[metric]
    scores = [f"{row['model']} {row[metric]:.3f}" for row in rows]
    return f"{name} {', '.join(scores)}"


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where a row stands in the table: by its draws, its seed, its model."""
    draws = map(str, data_key(row))
    return (*draws, row["seed"], list(ALL_MODELS).index(row["model"]))


USAGE = Usage(
    command="nfexp-baselines",
    purpose="Fit densities without a flow to the draws of a sweep's runs, into baselines.csv; the report shows them.",
    folders=f"{RUNS}; what its baselines.csv lacks is fitted",
    options={
        "workers=N": "fits at a time, each in a process of its own; one per core if not given",
    },
    examples=[
        "nfexp-baselines outputs/sweeps/ablations/2026-01-31_12-00-00",
        "nfexp-baselines outputs/sweeps/ablations/2026-01-31_12-00-00 workers=1",
    ],
)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """``nfexp-baselines DIR… [workers=N]``: fit what DIR/baselines.csv lacks; print its path.

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
