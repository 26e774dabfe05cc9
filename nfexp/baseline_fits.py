"""Densities without a flow, fitted to one draw: Gaussians, mixtures, kernels.

Those of images: `image_baselines`.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity

from nfexp.analysis.table.baselines import KERNELS, WITH_VALIDATION, draws_of
from nfexp.data import Dataset, load_data
from nfexp.image_baselines import fit_images
from nfexp.spec import Data

USED = 20_000  # points that a mixture and a kernel estimate are fitted to, at most: the first ones
COMPONENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
PER_COMPONENT = 10  # points, at least: below that EM shrinks components onto single points
FOLDS = 5
# bandwidths to try, times n^(-1/6), the rate of the best one in the plane
COARSE = np.geomspace(0.02, 2.0, 12)
FINE = (COARSE[1] / COARSE[0]) ** (np.arange(-2, 3) / 3)  # then, times the best of those
RTOL = 1e-4  # of a kernel density: what its tree may leave out, in nats


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
        """The law of the last n coordinates alone.

        Exact, for mixtures and kernel densities have their marginals.
        """
        marginal = _kernels_of_last if isinstance(self.fitted, KernelDensity) else _mixture_of_last
        return Baseline(marginal(self.fitted, n), self.mean[-n:], self.sd[-n:], {})

    def log_prob_given(self, x: np.ndarray, context: np.ndarray) -> np.ndarray:
        """log q(x | c) = log q(x, c) − log q(c) in nats, of the law of [x, c].

        (n, D) and (n, C) -> (n,).

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
    validation images choose what there is to choose. Given a context, a law of both together is
    fitted, and its log q(x | c) is scored.
    """
    dataset = load_data(data, seed)
    train = _with_context(dataset, "train")
    both = np.concatenate([train, _with_context(dataset, "val")])
    test = dataset.test.flatten(1).numpy()
    of_test = dataset.context_of("test").numpy()
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
    return np.concatenate([points.flatten(1).numpy(), dataset.context_of(part).numpy()], axis=1)


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
