"""Row operations against PyTorch's own optimisers on the same gradients."""

from dataclasses import replace

import pytest
import torch

from nfexp.optimisers import OPTIMISERS
from nfexp.run import run_stack
from nfexp.streams import stream

PEERS = {
    "adam": lambda weights, lr, decay: torch.optim.AdamW(weights, lr=lr, weight_decay=decay),
    "nadam": lambda weights, lr, decay: torch.optim.NAdam(
        weights, lr=lr, weight_decay=decay, decoupled_weight_decay=True
    ),
}
STEPS = 60


def factor(step):
    return 1 / step


@pytest.fixture
def double():
    """PyTorch keeps what it counts in its default precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def start(make_spec, name):
    """Three members with recipes of their own; the weights, and the gradients of all steps."""
    recipes = [make_spec(train__lr=lr).train for lr in (0.1, 0.01, 0.1)]
    recipes[1] = replace(recipes[1], weight_decay=0.5)
    theta = torch.randn(3, 7, generator=stream(0, "theta"), dtype=torch.float64)
    optimiser = OPTIMISERS[name](theta, torch.zeros_like(theta), torch.zeros_like(theta), recipes)
    grads = torch.randn(STEPS, 3, 7, generator=stream(0, "grad"), dtype=torch.float64)
    return optimiser, grads


@pytest.mark.parametrize("name", OPTIMISERS)
def test_steps_equal_those_of_pytorch(make_spec, name, double):
    optimiser, grads = start(make_spec, name)
    weights = [row.clone().requires_grad_() for row in optimiser.theta]
    peers = []
    for own, recipe in zip(weights, optimiser.recipes, strict=True):
        peers.append(PEERS[name]([own], recipe.lr, recipe.weight_decay))
    for i, grad in enumerate(grads, start=1):
        optimiser.step(grad, step=i, factor=factor(i))
        for e, peer in enumerate(peers):
            peer.param_groups[0]["lr"] = optimiser.recipes[e].lr * factor(i)
            weights[e].grad = grad[e].clone()
            peer.step()
        for e in range(3):
            torch.testing.assert_close(optimiser.theta[e], weights[e].detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_frozen_rows_stay_and_the_others_move_as_before(make_spec, name):
    whole, grads = start(make_spec, name)
    frozen, _ = start(make_spec, name)
    for i, grad in enumerate(grads, start=1):
        whole.step(grad, step=i, factor=1.0)
        if i == 10:
            frozen.train([0, 2])
            kept = frozen.theta[1].clone()
        if i >= 10:
            grad = grad.clone()
            grad[1] = float("nan")
        frozen.step(grad, step=i, factor=1.0)
    assert torch.equal(frozen.theta[1], kept)
    torch.testing.assert_close(frozen.theta[[0, 2]], whole.theta[[0, 2]], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_carried_on_is_as_in_one_go(make_spec, name):
    whole, grads = start(make_spec, name)
    first, _ = start(make_spec, name)
    for i, grad in enumerate(grads, start=1):
        whole.step(grad, step=i, factor=1.0)
        if i == 31:
            first = type(first)(first.theta, first.first, first.second, first.recipes)
        first.step(grad, step=i, factor=1.0)
    assert torch.equal(first.theta, whole.theta)


def test_a_stack_by_nadam_equals_the_runs_alone_and_one_may_diverge(make_spec):
    calm = make_spec(train__optimizer="nadam", seed=1)
    wild = make_spec(train__optimizer="nadam", train__lr=1e3, train__grad_clip=None, seed=2, flow__scale="exp")
    calm = replace(calm, flow=wild.flow)
    together = run_stack([wild, calm], dtype=torch.float64)
    alone = run_stack([calm], dtype=torch.float64)[0]
    assert [result.status for result in together] == ["diverged", "completed"]
    assert alone.metrics["test_nll"] == pytest.approx(together[1].metrics["test_nll"], abs=1e-9)
