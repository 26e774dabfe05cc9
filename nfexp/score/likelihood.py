"""Test NLLs, bits per dimension, and how exactly a flow is inverted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nfexp.data import Dataset
from nfexp.flows.cost import DRAWS
from nfexp.flows.ensemble import Ensembles
from nfexp.flows.stack import FlowStack
from nfexp.score.evaluation import moved
from nfexp.score.results import Metrics
from nfexp.spec import Spec
from nfexp.train import dequantised, mean_nll

INVERSE_POINTS = 1000


def points_to_score(
    specs: Sequence[Spec], datasets: Sequence[Dataset], kept: FlowStack
) -> list[Tensor]:
    """The test points (R, N, D); of images several draws of where in their cells they lie."""
    draws = []
    for k in range(DRAWS if kept.image is not None else 1):
        parts = []
        for spec, dataset in zip(specs, datasets, strict=True):
            points = dequantised(dataset.test, dataset, spec.seed, f"test/{k}")
            parts.append(points.flatten(1))
        draws.append(torch.stack(parts).to(kept.theta))
    return draws


def nlls_now(flows: Ensembles, r: int, dataset: Dataset, seed: int) -> Metrics:
    """Training and validation NLL of ensemble `r`, on the points that its members' were noted for."""
    ensemble = flows.one(r)
    like = flows.stack.theta
    n_watched = len(dataset.val)
    train = dequantised(dataset.train, dataset, seed, "train")[:n_watched]
    val = dequantised(dataset.val, dataset, seed, "val")
    context_of_train = dataset.context_of("train")[:n_watched]
    context_of_val = dataset.context_of("val")
    train_nll = mean_nll(ensemble, train.flatten(1)[None].to(like), context_of_train[None].to(like))
    val_nll = mean_nll(ensemble, val.flatten(1)[None].to(like), context_of_val[None].to(like))
    return {"train_nll": train_nll.item(), "val_nll": val_nll.item()}


def nll_metrics(log_q: Tensor, log_p: Tensor | None) -> Metrics:
    """The NLLs on the test points.

    `log_q`, `log_p` (N,) are the flow's and the exact log-density there.

    KL(p ‖ q) = E_p[log p − log q]: its terms are paired point by point, so that its standard error
    is that of the differences.
    """
    root_n = math.sqrt(len(log_q))
    metrics: Metrics = {
        "test_nll": -log_q.mean().item(),
        "test_nll_se": log_q.std().item() / root_n,
        "worst_nll": -log_q.min().item(),
        "true_nll": None,
        "kl": None,
        "kl_se": None,
    }
    if log_p is not None:
        difference = log_p - log_q
        metrics["true_nll"] = -log_p.mean().item()
        metrics["kl"] = difference.mean().item()
        metrics["kl_se"] = difference.std().item() / root_n
    return metrics


def bits_per_dim(log_q: Tensor, kept: FlowStack) -> Metrics:
    """Two bounds on −log P of the test images in bits per dimension.

    `log_q` (K, N) is that of K draws of each.

    `test_bpd` is the mean of single draws, −E[log q] (Theis et al. 2016), `test_bpd_iw` that of
    −log (1/K) Σ_k q_k, which is nearer to the truth (Burda et al. 2016). A point is counted in
    levels, so that nothing but the dimension and log 2 divides. None but for images.
    """
    names = ("test_bpd", "test_bpd_se", "test_bpd_iw", "test_bpd_iw_se")
    if kept.image is None:
        return dict.fromkeys(names)
    n_draws, n = log_q.shape
    unit = kept.dim * math.log(2)
    single = -log_q.mean(0) / unit
    weighted = -(log_q.logsumexp(0) - math.log(n_draws)) / unit
    values = []
    for bits in (single, weighted):
        values.append(bits.mean().item())
        values.append(bits.std().item() / math.sqrt(n))
    return dict(zip(names, values, strict=True))


def inverse_errors(flows: Ensembles, x: Tensor, context: Tensor) -> list[float]:
    """The largest |x − f(f⁻¹(x))| of each run, over its members that count, data units."""

    def there_and_back(points: Tensor, given: Tensor) -> Tensor:
        z, _ = flows.stack.inverse(points, given)
        back, _ = flows.stack.forward(z, given)
        return back

    x = x[:, :INVERSE_POINTS].repeat_interleave(flows.n_members, 0)
    context = context[:, :INVERSE_POINTS].repeat_interleave(flows.n_members, 0)
    errors_of_rows = (moved(there_and_back, x, context) - x).abs().amax((1, 2))
    of_members = errors_of_rows.view(-1, flows.n_members)
    counted = flows.counted.to(of_members.device)
    errors: list[float] = torch.where(counted, of_members, 0.0).amax(1).tolist()
    return errors
