"""Held-out NLL of the estimator on tables, against densities without a flow: the last table of docs/own-data.md.

python -m reproduction.tables docs/own-data.csv
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler

from nfexp import RealNVP, fit_many
from nfexp.baseline_fits import fit_mixture

SEEDS = range(5)
TEST_SHARE = 0.2
BANDWIDTHS = np.geomspace(0.05, 3.0, 25)  # of standardised columns
# The settings of the small flows are chosen on each split anew, by a rule that stands here: the
# training rows are divided again, CHOOSING of them are put aside, each of CANDIDATES (two members,
# with BESIDE) learns the others, and the one with the highest log-density on the rows put aside
# learns all training rows, as five members. Test rows are looked at once, by what was chosen.
CHOOSING = 0.2
BESIDE = {"n_flows": 4, "steps": 600, "lr": 0.002, "scale": "tanh"}
CANDIDATES = [
    {"hidden_width": width, "weight_decay": decay} for width in (16, 32, 64) for decay in (0.0, 0.1)
]
# zuko's flows, each three transforms with networks of two layers of 64, by one recipe; nothing of it is chosen
ZUKO = {"transforms": 3, "hidden_features": (64, 64)}
ZUKO_STEPS, ZUKO_BATCH, ZUKO_LR, ZUKO_EVALS = 600, 256, 0.002, 30


def correlated(dim: int, n: int, seed: int) -> np.ndarray:
    """Rows with a known density: normal coordinates, each shifted by a bend in the one before.

    x₁ = z₁, x_d = z_d + 2 x_{d−1}² / (1 + x_{d−1}²): the Jacobian is 1, so that the entropy is that of z ~ N(0, I).
    """
    z = np.random.default_rng(seed).normal(size=(n, dim))
    x = z.copy()
    for d in range(1, dim):
        x[:, d] = z[:, d] + 2 * x[:, d - 1] ** 2 / (1 + x[:, d - 1] ** 2)
    return x


def entropy(dim: int) -> float:
    """Of the law of `correlated`, nats."""
    return dim / 2 * float(np.log(2 * np.pi * np.e))


TABLES: dict[str, Callable[[], np.ndarray]] = {
    "wine": lambda: load_wine().data,
    "breast_cancer, 10 columns": lambda: load_breast_cancer().data[:, :10],
    "diabetes": lambda: load_diabetes(scaled=False).data,
    "digits, 10 components": lambda: PCA(10).fit_transform(load_digits().data),
    "bent normal, D = 8": lambda: correlated(8, 2000, 0),
    "bent normal, D = 20": lambda: correlated(20, 2000, 0),
}


def mixture(x: np.ndarray, seed: int) -> GaussianMixture:
    return fit_mixture(x, random_state=seed)


def kernel(x: np.ndarray, seed: int) -> KernelDensity:
    return GridSearchCV(KernelDensity(), {"bandwidth": BANDWIDTHS}, cv=5).fit(x).best_estimator_


def flow(x: np.ndarray, seed: int) -> RealNVP:
    return RealNVP(random_state=seed).fit(x)


def small_flow(x: np.ndarray, seed: int) -> RealNVP:
    """The candidate that does best on rows put aside, fitted to all rows as an ensemble of five."""
    rest, aside = train_test_split(x, test_size=CHOOSING, random_state=seed)
    tried = fit_many(
        [RealNVP(random_state=seed, n_members=2, **BESIDE, **own) for own in CANDIDATES], rest
    )
    best = int(np.argmax([model.score(aside) for model in tried]))
    return RealNVP(random_state=seed, n_members=5, **BESIDE, **CANDIDATES[best]).fit(x)


class Zuko:
    """A flow of zuko, trained by Adam; a tenth of the rows chooses the step whose weights are kept."""

    def __init__(self, x: np.ndarray, seed: int, name: str) -> None:
        import torch
        import zuko

        torch.manual_seed(seed)  # zuko draws its weights from the global generator
        generator = torch.Generator().manual_seed(seed)
        rows = torch.from_numpy(x).float()[torch.randperm(len(x), generator=generator)]
        n_val = max(2, round(0.1 * len(rows)))
        val = rows[:n_val]
        train = rows[n_val:]
        self.flow = getattr(zuko.flows, name)(x.shape[1], **ZUKO)
        optimizer = torch.optim.Adam(self.flow.parameters(), lr=ZUKO_LR)
        lowest = float("inf")
        for step in range(1, ZUKO_STEPS + 1):
            batch = train[torch.randint(len(train), (ZUKO_BATCH,), generator=generator)]
            optimizer.zero_grad()
            (-self.flow().log_prob(batch).mean()).backward()
            optimizer.step()
            if step % (ZUKO_STEPS // ZUKO_EVALS) == 0:
                with torch.no_grad():
                    nll = -self.flow().log_prob(val).mean().item()
                if nll < lowest:
                    lowest = nll
                    kept = {key: value.clone() for key, value in self.flow.state_dict().items()}
        self.flow.load_state_dict(kept)

    def score_samples(self, x: np.ndarray) -> np.ndarray:
        import torch

        with torch.no_grad():
            found: np.ndarray = self.flow().log_prob(torch.from_numpy(x).float()).double().numpy()
        return found


def zuko_realnvp(x: np.ndarray, seed: int) -> Zuko:
    return Zuko(x, seed, "RealNVP")


def zuko_nsf(x: np.ndarray, seed: int) -> Zuko:
    return Zuko(x, seed, "NSF")


MODELS = {
    "RealNVP()": flow,
    "5 small flows": small_flow,
    "Gaussian mixture (BIC)": mixture,
    "kernel (5 folds)": kernel,
    "zuko RealNVP": zuko_realnvp,
    "zuko NSF": zuko_nsf,
}


def scores(table: str, seed: int) -> list[dict[str, object]]:
    """The held-out NLL of every model on one split, nats per row in the units of the table."""
    x = TABLES[table]()
    train, test = train_test_split(x, test_size=TEST_SHARE, random_state=seed)
    scaler = StandardScaler().fit(train)  # counted below: −log |det|
    log_det = np.log(scaler.scale_).sum()
    rows: list[dict[str, object]] = []
    for name, fit in MODELS.items():
        begun = time.process_time()
        model = fit(scaler.transform(train), seed)
        nll = log_det - model.score_samples(scaler.transform(test)).mean()
        seconds = time.process_time() - begun
        rows.append({"table": table, "rows": len(train), "columns": x.shape[1], "seed": seed, "model": name, "nll": nll,
                     "cpu_seconds": seconds})  # fmt: skip
        print(f"{table}, seed {seed}, {name}: {nll:.3f} nats, {seconds:.1f} s", flush=True)
    return rows


def main(out: str) -> None:
    rows = []
    for table in TABLES:
        for seed in SEEDS:
            rows += scores(table, seed)
    pd.DataFrame(rows).to_csv(Path(out), index=False, float_format="%.6g", lineterminator="\n")


if __name__ == "__main__":
    main(sys.argv[1])
