"""What the evaluations during training noted of a run.

Its curve, its best step, how it diverged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nfexp.flows.ensemble import Ensembles
from nfexp.flows.stack import FlowStack
from nfexp.score.results import Metrics, finite_or_none
from nfexp.train import History

CONVERGED_WITHIN = 0.05  # nats above a run's lowest validation NLL

Curve = dict[str, np.ndarray]  # "step", "train_nll", … → one value per evaluation


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """At which step a run ceased to be finite, in which layer (position, data → base), in what it showed."""

    step: int
    layer: int
    what: str

    def in_words(self, flows: FlowStack) -> str:
        where = flows.layer_name(self.layer)
        return f"non-finite {self.what} at step {self.step}, first in {where}"


def curve_of(history: History, rows: range) -> Curve:
    """The curve of a run up to its divergence: means over its members that had not diverged."""
    curve = {"step": np.array(history.steps)}
    for key in ("train_nll", "val_nll", "grad_norm", "lr"):
        of_members = getattr(history, key)[rows.start : rows.stop]
        curve[key] = torch.nanmean(of_members, 0).cpu().numpy()
    reached = np.isfinite(curve["val_nll"])
    return {key: values[reached] for key, values in curve.items()}


def best_step_of(history: History, rows: range) -> int:
    """The latest of the best steps of the members of a run that have not diverged."""
    steps = []
    for e in rows:
        if history.diverged_at[e] is None:
            steps.append(history.best_step[e])
    return max(steps)


def nlls_at(curve: Curve, best_step: int) -> Metrics:
    """Training and validation NLL of a flow at its best step, as training noted them."""
    at_best = curve["step"] == best_step
    return {
        "train_nll": float(curve["train_nll"][at_best][0]),
        "val_nll": float(curve["val_nll"][at_best][0]),
    }


def steps_to_converge(curve: Curve) -> int:
    """The first evaluated step whose validation NLL is within 0.05 nats of the lowest."""
    near = curve["val_nll"] <= curve["val_nll"].min() + CONVERGED_WITHIN
    return int(curve["step"][near][0])


def divergence_of(
    history: History, flows: Ensembles, r: int, test: Tensor, context: Tensor, log_q: Tensor
) -> Divergence | None:
    """How run `r` diverged.

    All members in training, or the kept weights on its test points (N, D).
    """
    rows = flows.rows(r)
    in_training = []
    for e in rows:
        step = history.diverged_at[e]
        layer = history.diverged_in[e]
        if step is not None and layer is not None:
            what = "loss, gradient or validation NLL"
            in_training.append(Divergence(step=step, layer=layer, what=what))
    if len(in_training) == flows.n_members:
        return max(in_training, key=lambda divergence: divergence.step)
    if bool(torch.isfinite(log_q).all()):
        return None
    layer = int(flows.first().member(r).first_nonfinite(test[None], context[None]))
    last_best = max(history.best_step[e] for e in rows)
    return Divergence(step=last_best, layer=layer, what="test NLL")


def members_alone(history: History, flows: Ensembles, r: int, log_q: Tensor) -> list[Metrics]:
    """What each member of ensemble `r` is alone, and its weight if it has one.

    Nothing for a single flow; no weights where all members diverged.

    `log_q` (K, N) are the members' log-densities at the test points.
    """
    if flows.n_members == 1:
        return []
    members = []
    for k, (e, log_q_of_member) in enumerate(zip(flows.rows(r), log_q.double().cpu(), strict=True)):
        diverged_at = history.diverged_at[e]
        metrics: Metrics = {
            "val_nll": None,
            "test_nll": None,
            "best_step": None,
            "diverged_at": diverged_at,
        }
        if diverged_at is None:
            best_step = history.best_step[e]
            position = history.steps.index(best_step)
            metrics["val_nll"] = float(history.val_nll[e, position])
            metrics["test_nll"] = -log_q_of_member.mean().item()
            metrics["best_step"] = best_step
        if flows.weights is not None:
            metrics["weight"] = None if flows.is_lost[r] else float(flows.weights[r, k])
        members.append(finite_or_none(metrics))
    return members
