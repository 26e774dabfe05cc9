"""How good a trained stack is.

Every member's metrics on its test points, and the arrays its figures need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nfexp.data import Dataset
from nfexp.flows.ensemble import Ensembles
from nfexp.flows.stack import FlowStack
from nfexp.score.arrays import arrays_for_figures
from nfexp.score.evaluation import log_densities
from nfexp.score.layers import batch_gaps, walk_metrics
from nfexp.score.likelihood import (
    bits_per_dim,
    inverse_errors,
    nll_metrics,
    nlls_now,
    points_to_score,
)
from nfexp.score.noted import (
    Curve,
    Divergence,
    best_step_of,
    curve_of,
    divergence_of,
    members_alone,
    nlls_at,
    steps_to_converge,
)
from nfexp.score.results import Arrays, Metrics, Result, finite_or_none
from nfexp.score.samples import sample_metrics
from nfexp.spec import Spec
from nfexp.train import History, dequantised

__all__ = ["Divergence", "Metrics", "Result", "score"]


def score(
    specs: Sequence[Spec], datasets: Sequence[Dataset], kept: FlowStack, history: History
) -> list[Result]:
    """The result of every run of a stack with the weights `kept`, in the order of the specs.

    Metrics of a completed run: `train_nll`, `val_nll`, `test_nll`, `true_nll` (nats per point, data
    units; the last is the target's own on the same test points), `kl` = test_nll − true_nll paired
    point by point, standard errors, `worst_nll` (largest NLL of one test point: a mean carried by a
    few is seen there), `inverse_error` (largest |x − f(f⁻¹(x))|, data units), `steps_to_converge`,
    and those of the other modules of this room. `true_nll` and `kl` are None where the density is
    not known, and bits/dim but for images. A diverged one has `diverged_at` (step) and
    `diverged_layer` (position in data → base order, 0 the standardisation).

    An ensemble is scored as one density, the mean of those of its members, weighted as
    `flow.weights` says. A member that diverged is left out; the run has diverged when none is left.
    What is told of layers (walk, `coordinates_moved`, `flattening`, `batch_gap`) is told of its
    first member.

    With a context every NLL is of x given c, at each point's own c, and samples are drawn at the
    context of the test rows in turn. What is told of one map from base to data (walk, `flattening`,
    `coordinates_moved`) is None: there is one for each c.
    """
    evaluated = _evaluate(specs, datasets, kept, history)
    return [_result_of(evaluated, r) for r in range(len(specs))]


@dataclass(frozen=True, kw_only=True)
class _Evaluated:
    """A stack of R runs, of K members each, on N test points of each.

    What is computed of all at once.

    `log_q_of_draws` (draws, R, N) has one draw, but of images several: of where in their cells the
    test points lie. `log_q_of_members` (R, K, N) is that of the first draw.
    """

    specs: Sequence[Spec]
    datasets: Sequence[Dataset]
    history: History
    flows: Ensembles
    test: Tensor
    context: Tensor
    log_q_of_draws: Tensor
    log_q_of_members: Tensor
    inverse_errors: Sequence[float]
    of_samples: Sequence[Metrics]
    of_walk: Sequence[Metrics]
    batch_gaps: Sequence[float | None]
    n_parameters: Sequence[int]
    arrays: Arrays


def _evaluate(
    specs: Sequence[Spec], datasets: Sequence[Dataset], kept: FlowStack, history: History
) -> _Evaluated:
    counted = [step is None for step in history.diverged_at]
    flows = _weighted(specs, datasets, Ensembles(kept, specs[0].flow.members, counted=counted))
    draws = points_to_score(specs, datasets, kept)
    context = torch.stack([dataset.context_of("test") for dataset in datasets]).to(kept.theta)
    of_members = [log_densities(flows.of_members, points, context) for points in draws]
    of_draws = torch.stack([flows.mean(log_q) for log_q in of_members]).double().cpu()
    return _Evaluated(
        specs=specs,
        datasets=datasets,
        history=history,
        flows=flows,
        test=draws[0],
        context=context,
        log_q_of_draws=of_draws,
        log_q_of_members=of_members[0],
        inverse_errors=inverse_errors(flows, draws[0], context),
        of_samples=sample_metrics(specs, datasets, flows, of_draws[0]),
        of_walk=walk_metrics(specs, flows.first()),
        batch_gaps=batch_gaps(specs, datasets, flows.first()),
        n_parameters=kept.n_parameters(),
        arrays=arrays_for_figures(specs, datasets, flows, history),
    )


def _weighted(specs: Sequence[Spec], datasets: Sequence[Dataset], flows: Ensembles) -> Ensembles:
    """The ensembles with the weights that `flow.weights` asks for."""
    if specs[0].flow.weights == "equal" or flows.n_members == 1:
        return flows
    of_members = []
    for r, (spec, dataset) in enumerate(zip(specs, datasets, strict=True)):
        val = (
            dequantised(dataset.val, dataset, spec.seed, "val")
            .flatten(1)[None]
            .to(flows.stack.theta)
        )
        context = dataset.context_of("val")[None].to(val)
        of_members.append(log_densities(flows.one(r).of_members, val, context)[0])
    return flows.weighted(of_members)


def _result_of(evaluated: _Evaluated, r: int) -> Result:
    """The result of run `r`."""
    flows = evaluated.flows
    history = evaluated.history
    rows = flows.rows(r)
    curve = curve_of(history, rows)
    # Of images a lower bound on log P: the mean over places in their cells.
    log_q = evaluated.log_q_of_draws[:, r].mean(0)
    divergence = divergence_of(history, flows, r, evaluated.test[r], evaluated.context[r], log_q)
    metrics: Metrics = {
        "n_parameters": sum(evaluated.n_parameters[e] for e in rows),
        "diverged_at": None if divergence is None else divergence.step,
        "diverged_layer": None if divergence is None else divergence.layer,
    }
    if divergence is None:
        metrics |= _metrics_of(evaluated, r, curve, log_q)
    return Result(
        spec=evaluated.specs[r],
        status="completed" if divergence is None else "diverged",
        reason=None if divergence is None else divergence.in_words(flows.stack),
        metrics=finite_or_none(metrics),
        history=curve,
        arrays={key: of_runs[r] for key, of_runs in evaluated.arrays.items()},
        state=flows.state(r),
        members=members_alone(history, flows, r, evaluated.log_q_of_members[r]),
    )


def _metrics_of(evaluated: _Evaluated, r: int, curve: Curve, log_q: Tensor) -> Metrics:
    """The metrics of a completed run; `log_q` (N,) is its log-density at the test points."""
    flows = evaluated.flows
    dataset = evaluated.datasets[r]
    best_step = best_step_of(evaluated.history, flows.rows(r))
    metrics: Metrics = {}
    if flows.n_members == 1:
        metrics |= nlls_at(curve, best_step)
    else:
        metrics |= nlls_now(flows, r, dataset, evaluated.specs[r].seed)
    metrics |= nll_metrics(log_q, dataset.true_log_prob())
    metrics |= bits_per_dim(evaluated.log_q_of_draws[:, r], flows.stack)
    metrics |= evaluated.of_samples[r]
    metrics |= evaluated.of_walk[r]
    metrics["batch_gap"] = evaluated.batch_gaps[r]
    metrics["best_step"] = best_step
    metrics["steps_to_converge"] = steps_to_converge(curve)
    metrics["inverse_error"] = evaluated.inverse_errors[r]
    return metrics
