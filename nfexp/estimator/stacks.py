"""Training for the estimator: those of one architecture as one stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from nfexp.data import Dataset
from nfexp.flows.ensemble import Ensembles
from nfexp.flows.stack import FlowStack
from nfexp.run import train_stack
from nfexp.score.evaluation import log_densities
from nfexp.spec import Spec
from nfexp.sweep.planning import plan_stacks
from nfexp.training import History, State, Training


@dataclass(frozen=True, kw_only=True)
class Task:
    """What there is to train for one estimator: a run, of as many members as it has."""

    spec: Spec
    dataset: Dataset
    context_names: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Member:
    """One trained flow as plain numbers, and what its training saw."""

    theta: np.ndarray
    fixed: np.ndarray
    best_step: int
    diverged_at: int | None
    history: dict[str, np.ndarray]


def train_together(tasks: Sequence[Task], *, verbose: bool = False) -> list[list[Member]]:
    """Train estimators, those of one architecture as one stack; the members of each, in the order of `tasks`."""
    specs = [task.spec for task in tasks]
    of_tasks: dict[int, list[Member]] = {}
    for positions in plan_stacks(specs):
        stack, history = train_stack(
            [specs[i] for i in positions],
            [tasks[i].dataset for i in positions],
            observer=_print_progress if verbose else None,
        )
        rows = iter(_members_of(stack, history))
        for i in positions:
            of_tasks[i] = list(islice(rows, specs[i].flow.members))
    return [of_tasks[i] for i in range(len(specs))]


def shares_of(task: Task, stack: FlowStack, *, can_fit: bool) -> np.ndarray:
    """The share (K,) of each trained flow of an ensemble in its density, as `flow.weights` asks.

    They are equal where `can_fit` is false: all of them diverged.
    """
    n = stack.n_members
    if task.spec.flow.weights == "equal" or n == 1 or not can_fit:
        return np.full(n, 1 / n)
    flows = Ensembles(stack, n)
    val = task.dataset.val[None].to(stack.theta)
    context = task.dataset.context_of("val")[None].to(val)
    with torch.no_grad():
        log_q = log_densities(flows.of_members, val, context)[0]
    return flows.fitted([log_q])[0].numpy()


def _members_of(stack: FlowStack, history: History) -> list[Member]:
    """The flows of a stack, row by row."""
    theta = stack.theta.detach().float().cpu().numpy()
    fixed = stack.fixed.float().cpu().numpy()
    members = []
    for e in range(stack.n_members):
        seen = {
            "step": np.array(history.steps),
            "train_nll": history.train_nll[e].cpu().numpy(),
            "val_nll": history.val_nll[e].cpu().numpy(),
        }
        member = Member(
            theta=theta[e],
            fixed=fixed[e],
            best_step=history.best_step[e],
            diverged_at=history.diverged_at[e],
            history=seen,
        )
        members.append(member)
    return members


def _print_progress(training: Training, state: State) -> None:
    """One line for an evaluation: the mean NLLs of the members."""
    position = training.evaluation_steps().index(state.step)
    train_nll, val_nll = state.curves[:, position, :2].mean(0).tolist()
    n_steps = training.lead.train.steps
    print(
        f"step {state.step} of {n_steps}: NLL {train_nll:.4f} train, {val_nll:.4f} validation",
        flush=True,
    )
