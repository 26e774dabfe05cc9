"""Densities of images without a flow of images.

What bits/dim are easily reached on the same split?
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from nfexp.data import Dataset
from nfexp.estimator import RealNVP
from nfexp.flows.cost import DRAWS
from nfexp.run import train_stack

EDGE = 0.05  # of the logit transform: pixels v go through logit(0.05 + 0.9 v / levels)
# of each training image, each at another place in its cell, that a flat flow learns from
COPIES = 20
SMOOTHING = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # counts that a histogram or a mixture adds
CATEGORIES = (8, 16, 32, 64)  # components of a mixture of categoricals
COMPONENTS = (1, 2, 4, 8, 16)  # of a Gaussian mixture
FLOORS = (0.03, 0.1, 0.3)  # that are added to its variances
ROUNDS = 60  # of EM
# What places in the cells are drawn for: each has a stream of its own
TRAINED = 0
HELD_OUT = 1
SCORED = 9
LARGEST_GAUSSIAN = 256  # pixels: above, covariances have more numbers than there are images
LARGEST_TABLE = 20_000  # pixels × levels of a mixture of categoricals


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A fitted density.

    Log-probabilities, or a bound of them, of images as rows of levels (n, D), in nats.
    """

    log_prob: Callable[[np.ndarray], np.ndarray]
    facts: dict[str, float]


def models_for(dim: int, levels: int) -> list[str]:
    """The baselines that so many pixels and levels allow.

    >>> models_for(64, 17) == list(_FITS)
    True
    >>> models_for(3072, 256)
    ['uniform', 'histogram']
    """
    models = ["uniform", "histogram"]
    if dim <= LARGEST_GAUSSIAN:
        models += ["gaussian_logit", "mixture_logit"]
    if dim * levels <= LARGEST_TABLE:
        models.append("categoricals")
    if dim <= LARGEST_GAUSSIAN:
        models.append("flat")
    return models


def fit_images(dataset: Dataset, model: str, seed: int) -> Fitted:
    """Fit one baseline to the training images of a dataset.

    What it has to choose, validation images choose.
    """
    train = dataset.train.flatten(1).numpy()
    val = dataset.val.flatten(1).numpy()
    return _FITS[model](train, val, int(dataset.levels or 0), seed)


# --- Of levels -------------------------------------------------------------------------------------------------------


def _uniform(train: np.ndarray, val: np.ndarray, levels: int, seed: int) -> Fitted:
    bound = -train.shape[1] * math.log(levels)
    return Fitted(log_prob=lambda x: np.full(len(x), bound), facts={"n_used": len(train)})


def _counts(x: np.ndarray, levels: int) -> np.ndarray:
    """How often each pixel has each level, (D, L)."""
    return np.stack([np.bincount(column, minlength=levels) for column in x.astype(int).T]).astype(
        float
    )


def _histogram(train: np.ndarray, val: np.ndarray, levels: int, seed: int) -> Fitted:
    """Every pixel by itself.

    (count + a / L) / (n + a), the smoothing a by the validation images.
    """
    counts = _counts(train, levels)
    d = train.shape[1]

    def smoothed(a: float) -> np.ndarray:
        return np.log((counts + a / levels) / (len(train) + a))

    def log_prob(table: np.ndarray, x: np.ndarray) -> np.ndarray:
        log_p: np.ndarray = table[np.arange(d), x.astype(int)].sum(axis=1)
        return log_p

    a = max(SMOOTHING, key=lambda a: log_prob(smoothed(a), val).mean())
    table = smoothed(a)
    facts = {"n_used": len(train), "n_parameters": d * (levels - 1)}
    return Fitted(log_prob=lambda x: log_prob(table, x), facts=facts)


def _one_hot(x: np.ndarray, levels: int) -> np.ndarray:
    """Images (n, D) as indicators (n, D · L)."""
    n, d = x.shape
    ones = np.zeros((n, d, levels), dtype=np.float32)
    ones[np.arange(n)[:, None], np.arange(d), x.astype(int)] = 1
    return ones.reshape(n, d * levels)


@dataclass(frozen=True, kw_only=True)
class _Categoricals:
    """A mixture of independent pixels: log-weights (K,) and log-probabilities (D · L, K)."""

    weights: np.ndarray
    table: np.ndarray

    def of_components(self, ones: np.ndarray) -> np.ndarray:
        return np.asarray(ones @ self.table + self.weights, dtype=float)

    def log_prob(self, ones: np.ndarray) -> np.ndarray:
        log_p: np.ndarray = np.logaddexp.reduce(self.of_components(ones), axis=1)
        return log_p


def _em(ones: np.ndarray, k: int, a: float, overall: np.ndarray, seed: int) -> _Categoricals:
    """EM for `k` components.

    Each adds `a` images as the whole set has them (`overall`, (D · L,)) to its own.
    """
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(k, 0.1), size=len(ones))
    for _ in range(ROUNDS):
        sizes = shares.sum(axis=0)
        table = np.log((ones.T @ shares.astype(np.float32) + a * overall[:, None]) / (sizes + a))
        model = _Categoricals(weights=np.log(sizes + 1e-9) - math.log(sizes.sum()), table=table)
        joint = model.of_components(ones)
        shares = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))
    return model


def _categoricals(train: np.ndarray, val: np.ndarray, levels: int, seed: int) -> Fitted:
    """A mixture of categoricals by EM; components and smoothing by the validation images."""
    ones = _one_hot(train, levels)
    ones_val = _one_hot(val, levels)
    d = train.shape[1]
    overall = (_counts(train, levels) + 1 / levels) / (len(train) + 1)
    best: tuple[float, int, _Categoricals] | None = None
    for k in CATEGORIES:
        for a in (0.3, 1.0, 3.0):
            model = _em(ones, k, a, overall.ravel(), seed)
            reached = float(model.log_prob(ones_val).mean())
            if best is None or reached > best[0]:
                best = (reached, k, model)
    assert best is not None
    _, k, chosen = best
    facts = {"n_used": len(train), "n_components": k, "n_parameters": k * d * (levels - 1) + k - 1}
    return Fitted(log_prob=lambda x: chosen.log_prob(_one_hot(x, levels)), facts=facts)


# --- In logit space --------------------------------------------------------------------------------------------------


def to_logits(places: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of the cells, (n, D) in (0, L), as y = logit(0.05 + 0.9 v / L), and log|det ∂y/∂v|, (n,)."""
    p = EDGE + (1 - 2 * EDGE) * places / levels
    logits = np.log(p) - np.log1p(-p)
    slopes = math.log((1 - 2 * EDGE) / levels) - np.log(p) - np.log1p(-p)
    return logits, slopes.sum(axis=1)


def _placed(x: np.ndarray, seed: int, purpose: int, copies: int = 1) -> np.ndarray:
    """Images (n, D), `copies` times, each at a place of its own in its cell, (copies · n, D)."""
    rng = np.random.default_rng([seed, purpose])
    again = np.tile(x, (copies, 1))
    return again + rng.random(again.shape)


def _bound(
    density: Callable[[np.ndarray], np.ndarray], levels: int, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
    """The single-sample bound of log P by a density of logits.

    The mean over DRAWS places in the cells.
    """

    def log_prob(x: np.ndarray) -> np.ndarray:
        logits, log_det = to_logits(_placed(x, seed, SCORED, DRAWS), levels)
        log_p: np.ndarray = (density(logits) + log_det).reshape(DRAWS, len(x)).mean(axis=0)
        return log_p

    return log_prob


def _gaussian_mixture(
    components: Sequence[int],
) -> Callable[[np.ndarray, np.ndarray, int, int], Fitted]:
    """Gaussians of full covariance over logits.

    Components and the floor of variances by the validation images.
    """

    def fit(train: np.ndarray, val: np.ndarray, levels: int, seed: int) -> Fitted:
        logits, _ = to_logits(_placed(train, seed, TRAINED, 4), levels)
        held_out, _ = to_logits(_placed(val, seed, HELD_OUT, 4), levels)
        best: tuple[float, GaussianMixture] | None = None
        for k in components:
            for floor in FLOORS if k > 1 else (1e-4, *FLOORS):
                model = GaussianMixture(k, reg_covar=floor, max_iter=60, random_state=seed % 2**32)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    reached = float(model.fit(logits).score(held_out))
                if best is None or reached > best[0]:
                    best = (reached, model)
        assert best is not None
        chosen = best[1]
        k, d = chosen.means_.shape
        facts = {
            "n_used": len(train),
            "n_components": k,
            "n_parameters": k * (d + d * (d + 1) // 2) + k - 1,
        }
        return Fitted(log_prob=_bound(chosen.score_samples, levels, seed), facts=facts)

    return fit


def _flat(train: np.ndarray, val: np.ndarray, levels: int, seed: int) -> Fitted:
    """RealNVP on the pixels as a vector.

    The default flow for tables, its weights by the validation images.
    """
    logits, _ = to_logits(_placed(train, seed, TRAINED, COPIES), levels)
    held_out, _ = to_logits(_placed(val, seed, HELD_OUT, 4), levels)
    model = RealNVP(
        conditioner="shared", scale="soft", steps=1000, weight_decay=0.1, noise=0.0, device="cpu"
    )
    both = np.concatenate([logits, held_out])
    model.set_params(validation_fraction=len(held_out) / len(both))
    spec = model._spec(both, seed)
    parts = [torch.from_numpy(part) for part in (logits, held_out, held_out[:0])]
    dataset = Dataset(event_shape=(logits.shape[1],), train=parts[0], val=parts[1], test=parts[2])
    stack, _ = train_stack([spec], [dataset])
    flow = stack.to("cpu", torch.float64)

    def density(y: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return flow.log_prob(torch.from_numpy(y)[None])[0].numpy()

    facts: dict[str, float] = {"n_used": len(train), "n_parameters": flow.n_parameters()[0]}
    return Fitted(log_prob=_bound(density, levels, seed), facts=facts)


_FITS: dict[str, Callable[[np.ndarray, np.ndarray, int, int], Fitted]] = {
    "uniform": _uniform,
    "histogram": _histogram,
    "gaussian_logit": _gaussian_mixture((1,)),
    "mixture_logit": _gaussian_mixture(COMPONENTS),
    "categoricals": _categoricals,
    "flat": _flat,
}
