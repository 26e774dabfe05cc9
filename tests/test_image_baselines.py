"""Densities of images without a flow of images: they sum to one, and reach what is known of digits."""

import math

import numpy as np
import pytest
import torch

from nfexp import image_baselines
from nfexp.data import Dataset
from nfexp.image_baselines import _FITS, fit_images, models_for, to_logits
from nfexp.mesh import mesh_of

LEVELS = 3
MESH = mesh_of(1, 1, 2, LEVELS)
ALL = np.stack(np.divmod(np.arange(LEVELS**2), LEVELS), -1).astype(float)  # every image of two pixels


@pytest.fixture(autouse=True)
def few_choices(monkeypatch):
    monkeypatch.setattr(image_baselines, "CATEGORIES", (6,))
    monkeypatch.setattr(image_baselines, "FLOORS", (0.03,))
    monkeypatch.setattr(image_baselines, "ROUNDS", 40)


@pytest.fixture(scope="module")
def toy():
    rng = np.random.default_rng(0)
    parts = [torch.from_numpy(MESH.sample(n, rng)) for n in (1000, 300, 10)]
    return Dataset(event_shape=(1, 1, 2), train=parts[0], val=parts[1], test=parts[2], levels=LEVELS)


@pytest.mark.parametrize("model", ["uniform", "histogram", "categoricals"])
def test_probabilities_of_all_images_sum_to_one(toy, model):
    assert np.exp(fit_images(toy, model, 0).log_prob(ALL)).sum() == pytest.approx(1, abs=1e-5)


def test_a_mixture_of_categoricals_comes_near_the_truth(toy):
    log_p = MESH.log_prob(ALL.reshape(-1, 1, 1, 2))
    gaps = {}
    for model in ("uniform", "histogram", "categoricals"):
        log_q = fit_images(toy, model, 0).log_prob(ALL)
        gaps[model] = float((np.exp(log_p) * (log_p - log_q)).sum())  # KL, nats
    assert gaps["uniform"] > gaps["histogram"] > gaps["categoricals"]
    assert gaps["categoricals"] < 0.02


@pytest.mark.parametrize("model", ["gaussian_logit"])
def test_bounds_of_all_images_sum_to_at_most_one(toy, model):
    total = np.exp(fit_images(toy, model, 0).log_prob(ALL)).sum()
    assert 0.5 < total <= 1


def test_logits_and_their_log_det():
    v = torch.tensor([[0.5, 16.9, 8.0]], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: torch.logit(0.05 + 0.9 * v / 17).sum(0), v)  # diagonal
    logits, log_det = to_logits(v.numpy(), 17)
    np.testing.assert_allclose(logits, torch.logit(0.05 + 0.9 * v / 17))
    assert log_det[0] == pytest.approx(jacobian.diagonal(dim1=0, dim2=2).log().sum().item())


def test_baselines_of_digits_reach_what_others_report(monkeypatch):
    """2.42 bits/dim by histograms, 2.45 by a Gaussian of logits: on the same split."""
    from nfexp.data import load
    from nfexp.tables import settled
    from tests.helpers.specs import table_spec

    data = load(settled(table_spec("digits")))
    for model, known in (("uniform", math.log2(17)), ("histogram", 2.42), ("gaussian_logit", 2.45)):
        log_q = fit_images(data, model, 0).log_prob(data.test.flatten(1).numpy())
        assert -log_q.mean() / 64 / math.log(2) == pytest.approx(known, abs=0.03)


def test_what_large_images_allow():
    assert models_for(64, 17) == list(_FITS)
    assert models_for(3072, 256) == ["uniform", "histogram"]
