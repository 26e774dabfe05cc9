"""Ensembles: one density, the mean of its members', whatever trains them, stores them and reads them back."""

import json
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from nfexp.checkpoint import CHECKPOINT
from nfexp.data import load
from nfexp.flows.cost import member_bytes, training_cost, training_flop
from nfexp.flows.ensemble import WEIGHTS, WITHIN, Ensembles, fitted_weights, members_from_state
from nfexp.flows.stack import build
from nfexp.record import load_flow, write_run
from nfexp.run import Interrupted, prepare_runs, run_stack, train_stack
from nfexp.spec import flatten
from nfexp.streams import stream
from nfexp.sweep.planning import plan_stacks
from nfexp.train import fit

K = 3
SHORT = {"train__steps": 20, "train__n_evals": 6}
ARRAYS = SHORT | {"record__samples": 60, "record__grid": 8, "record__walk": 5}
KERNELS = ["torch", "auto"]


def alone(spec, k):
    """Member k trained by itself: the weights of a run with the streams of that position."""
    single = replace(spec, flow=replace(spec.flow, members=1))
    training = prepare_runs([single])
    start = build(
        single.flow, masks=[single.flow.mask], seeds=[single.seed], data=training.train.double(), positions=[k]
    )
    fresh = start.to("cpu", torch.float32).with_kernel(training.fresh.kernel)
    return fit(replace(training, positions=[k], fresh=fresh))[0]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_member_is_the_run_alone_with_its_streams(make_spec, kernel):
    spec = make_spec(flow__members=K, flow__mask="random", train__noise=0.1, train__kernel=kernel, **SHORT)
    stack, _ = train_stack([spec], [load(spec)])
    for k in range(K):
        torch.testing.assert_close(stack.theta[k : k + 1], alone(spec, k).theta, rtol=0, atol=1e-5)
    single = run_stack([replace(spec, flow=replace(spec.flow, members=1))])[0]
    for name, value in single.state.items():
        torch.testing.assert_close(stack.state(0)[name], value, rtol=0, atol=1e-5)
    assert not torch.equal(stack.theta[1], stack.theta[2])


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    """A run of three members, and its folder."""
    from tests.helpers.specs import small_spec

    result = run_stack([small_spec(flow__members=K, **ARRAYS)])[0]
    folder = tmp_path_factory.mktemp("ensemble")
    write_run(folder, result)
    return result, folder


def test_the_density_is_the_mean_of_the_members(ensemble):
    result, folder = ensemble
    flow = load_flow(folder)
    x = load(result.spec).test
    densities = [np.exp(flow.member(k).log_prob(x).double().numpy()) for k in range(K)]
    np.testing.assert_allclose(np.exp(flow.log_prob(x).double().numpy()), np.mean(densities, 0), rtol=1e-4)
    assert result.metrics["test_nll"] == pytest.approx(-flow.log_prob(x).double().mean().item(), abs=1e-5)
    assert result.metrics["val_nll"] == pytest.approx(-flow.log_prob(load(result.spec).val).mean().item(), abs=1e-5)
    for k, member in enumerate(result.members):
        assert member["test_nll"] == pytest.approx(-np.log(densities[k]).mean(), abs=1e-5)
    mean = np.mean([member["test_nll"] for member in result.members])
    assert result.metrics["test_nll"] < mean  # Jensen: the mean of densities is at least their geometric mean
    assert result.metrics["n_parameters"] == K * run_stack([single(result.spec)])[0].metrics["n_parameters"]


def single(spec):
    return replace(spec, flow=replace(spec.flow, members=1))


def test_the_density_integrates_to_one(ensemble):
    flow = load_flow(ensemble[1])
    ticks = torch.linspace(-12, 12, 241)
    mass = flow.log_prob(torch.cartesian_prod(ticks, ticks)).double().exp().sum() * 0.1**2
    assert mass.item() == pytest.approx(1, abs=0.01)


def test_samples_follow_the_density(ensemble):
    flow = load_flow(ensemble[1])
    x = flow.sample(20_000, seed=1)
    assert torch.equal(x, flow.sample(20_000, seed=1))
    ticks = torch.linspace(-12, 12, 241)
    grid = torch.cartesian_prod(ticks, ticks)
    mass = flow.log_prob(grid).double().exp() * 0.1**2
    exact = (mass[:, None] * grid).sum(0)
    assert torch.allclose(x.double().mean(0), exact, atol=0.05)
    # the share of samples in a half plane
    share = mass[grid[:, 0] < 0.55].sum().item()
    assert (x[:, 0] < 0.55).double().mean().item() == pytest.approx(share, abs=0.02)


def test_draws_come_from_every_member_and_are_what_the_record_shows(ensemble):
    result, folder = ensemble
    flow = load_flow(folder)
    flows = Ensembles(flow.stack, K)
    base = torch.from_numpy(result.arrays["base"])[None]
    chosen = flows.choose(60, [stream(result.spec.seed, "members")])
    assert set(chosen[0].tolist()) == set(range(K))
    np.testing.assert_allclose(result.arrays["best"], flows.forward(base, chosen)[0].numpy(), atol=1e-5)
    last = result.arrays["snapshots"][-1]
    if {member["best_step"] for member in result.members} == {result.spec.train.steps}:
        np.testing.assert_allclose(last, result.arrays["best"], atol=1e-5)
    x = result.arrays["walk"][-1]
    np.testing.assert_allclose(flow.member(0).forward(result.arrays["walk"][0]).numpy(), x, atol=1e-5)


def test_the_record_and_what_is_read_back(ensemble):
    result, folder = ensemble
    record = json.loads((folder / "result.json").read_text())
    assert record["config"]["flow.members"] == K and len(record["members"]) == K
    flow = load_flow(folder)
    assert flow.members == [0, 1, 2] and "members 0, 1, 2 of 3" in repr(flow)
    for name, value in flow.member(2).stack.state(0).items():
        assert torch.equal(value, result.state[f"members.2.{name}"])
    for wrong in (lambda: flow.forward([[0, 0]]), lambda: flow.inverse([[0, 0]]), flow.distribution, flow.export):
        with pytest.raises(ValueError, match=r"expected one flow; got an ensemble of 3: take flow.member\(0\)"):
            wrong()
    assert flow.member(1).distribution().log_prob(torch.zeros(4, 2)).shape == (4,)
    with pytest.raises(ValueError, match="k: expected one of the members 0, 1, 2; got 3"):
        flow.member(3)


SPOILT = {
    "a member too many": {"members.3.coupling.0.mask": torch.zeros(1, 2)},
    "no member": {"coupling.0.mask": torch.zeros(1, 2)},
    "a member twice": {"members.01.coupling.0.mask": torch.zeros(1, 2)},
}


@pytest.mark.parametrize("extra", SPOILT.values(), ids=SPOILT)
def test_weights_that_do_not_fit_are_refused(ensemble, extra):
    result, _ = ensemble
    with pytest.raises(ValueError, match="weights: expected those of 3 members; got an unknown one"):
        members_from_state(result.spec.flow, 2, result.state | extra)
    with pytest.raises(ValueError, match="weights: expected those of 3 members; got nothing"):
        members_from_state(result.spec.flow, 2, {})


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("weights", ["equal", "val"])
def test_a_stack_of_ensembles_equals_each_alone(make_spec, kernel, weights):
    changes = {"flow__members": 2, "flow__weights": weights, "train__kernel": kernel}
    specs = [make_spec(seed=seed, **changes, **ARRAYS) for seed in (0, 1)]
    specs[1] = replace(specs[1], data=replace(specs[1].data, name="circles", n_samples=100))
    for spec, result in zip(specs, run_stack(specs), strict=True):
        own = run_stack([spec])[0]
        for key, value in own.metrics.items():
            if key not in ("seconds", "stack_size"):
                assert value == pytest.approx(result.metrics[key], abs=1e-4), key
        for name, array in own.arrays.items():
            if array.dtype.kind == "f":
                np.testing.assert_allclose(array, result.arrays[name], rtol=1e-3, atol=1e-4)
        assert result.metrics["stack_size"] == 2


def test_an_interrupted_ensemble_gives_the_same_numbers(make_spec, tmp_path):
    specs = [make_spec(seed=seed, flow__members=2, record__samples=9, **SHORT) for seed in (0, 1)]
    folders = [tmp_path / "0", tmp_path / "1"]
    whole = run_stack(specs)
    with pytest.raises(Interrupted):
        run_stack(specs, folders=folders, code="a", stop=lambda: True)
    (folders[1] / CHECKPOINT).unlink()
    for before, after in zip(whole, run_stack(specs, folders=folders, code="a"), strict=True):
        assert before.metrics["test_nll"] == pytest.approx(after.metrics["test_nll"], abs=1e-6)
        np.testing.assert_array_equal(before.arrays["snapshots"], after.arrays["snapshots"])


def diverging(monkeypatch, members):
    """Spoil the training points of these rows of a stack after a while."""
    from nfexp import train

    whole = train._Stepper._gradient

    def spoilt(self, *batch):
        loss, grad = whole(self, *batch)
        if self.state.step == 10:
            grad[members] = math.nan
        return loss, grad

    monkeypatch.setattr(train._Stepper, "_gradient", spoilt)


def test_a_member_that_diverges_is_left_out(make_spec, monkeypatch, tmp_path, caplog):
    from nfexp.sweep.worker import keep

    spec = make_spec(flow__members=K, train__kernel="torch", **ARRAYS)
    diverging(monkeypatch, [1])
    result = run_stack([spec])[0]
    assert result.status == "completed" and result.metrics["diverged_at"] is None
    assert [member["diverged_at"] for member in result.members] == [None, 10, None]
    assert result.members[1]["test_nll"] is None
    with caplog.at_level(logging.WARNING):
        keep(tmp_path, result)
    assert "of 3 members these diverged and are left out: 1" in caplog.text
    flow = load_flow(tmp_path)
    assert flow.members == [0, 2]
    x = load(spec).test
    mean = torch.logsumexp(torch.stack([flow.member(k).log_prob(x) for k in (0, 2)]), 0) - math.log(2)
    torch.testing.assert_close(flow.log_prob(x), mean)
    assert result.metrics["test_nll"] == pytest.approx(-mean.double().mean().item(), abs=1e-5)


LOG_Q = {
    "several that count": torch.randn(5, 300, generator=torch.Generator().manual_seed(0)),
    "one far ahead": torch.tensor([[0.0], [-2.0], [-50.0]]).expand(3, 40),
    "one without a density somewhere": torch.tensor([[0.0, -math.inf, -1.0], [-3.0, -1.0, -1.0]]),
    "alike": torch.zeros(4, 10),
}


@pytest.mark.parametrize("log_q", LOG_Q.values(), ids=LOG_Q)
def test_weights_are_those_of_a_direct_optimiser(log_q):
    q = log_q.double().exp().numpy()

    def loss(logits):
        w = np.exp(logits - logits.max())
        return -np.log(w @ q / w.sum()).mean()

    found = fitted_weights(log_q).numpy()
    assert found.sum() == pytest.approx(1) and (found >= 0).all()
    direct = minimize(loss, np.zeros(len(q)), method="BFGS")
    assert -np.log(found @ q).mean() == pytest.approx(direct.fun, abs=2 * WITHIN)


@pytest.fixture(scope="module")
def weighted(tmp_path_factory):
    """The run of `ensemble` with weights by its validation points, and its folder."""
    from tests.helpers.specs import small_spec

    result = run_stack([small_spec(flow__members=K, flow__weights="val", **ARRAYS)])[0]
    folder = tmp_path_factory.mktemp("weighted")
    write_run(folder, result)
    return result, folder


def test_weights_make_validation_points_most_likely_and_change_no_member(ensemble, weighted):
    flow, equal = load_flow(weighted[1]), load_flow(ensemble[1])
    data = load(weighted[0].spec)
    assert torch.equal(flow.stack.theta, equal.stack.theta)
    of_val = torch.stack([flow.member(k).log_prob(data.val) for k in range(K)])
    np.testing.assert_allclose(flow.weights, fitted_weights(of_val), atol=1e-3)
    assert flow.weights == [member["weight"] for member in weighted[0].members]
    assert equal.weights == [1 / K] * K
    assert weighted[0].metrics["val_nll"] <= ensemble[0].metrics["val_nll"] + WITHIN
    of_test = torch.stack([flow.member(k).log_prob(data.test) for k in range(K)]).double()
    log_q = torch.log(torch.tensor(flow.weights).double() @ of_test.exp())
    torch.testing.assert_close(flow.log_prob(data.test).double(), log_q, rtol=0, atol=1e-4)
    assert weighted[0].metrics["test_nll"] == pytest.approx(-log_q.mean().item(), abs=1e-5)


def test_draws_come_from_members_by_their_weights(ensemble):
    stack = load_flow(ensemble[1]).stack
    weights = torch.tensor([[0.7, 0.0, 0.3]]).double()
    flows = Ensembles(stack, K, weights=weights)
    n = 20_000
    chosen = flows.choose(n, [stream(0, "members")])
    shares = torch.bincount(chosen[0], minlength=K) / n
    torch.testing.assert_close(shares.double(), weights[0], rtol=0, atol=4 * 0.5 / math.sqrt(n))
    x = flows.sample(9, [stream(0, "sample")], [stream(0, "members")])
    z = stack.base_draws(9, [stream(0, "sample")])
    assert torch.equal(x, flows.forward(z, flows.choose(9, [stream(0, "members")])))


WRONG_WEIGHTS = {
    "none": None,
    "too few": torch.tensor([0.5, 0.5]),
    "negative": torch.tensor([-0.5, 0.5, 1.0]),
    "not 1": torch.tensor([0.5, 0.5, 0.5]),
    "no number": torch.tensor([math.nan, 0.5, 0.5]),
    "not 1, of a type that cannot be compared": torch.tensor([0.5, 0.5, 0.5]).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("wrong", WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_shares_that_are_none_are_refused(weighted, wrong):
    result, _ = weighted
    state = {name: value for name, value in result.state.items() if name != WEIGHTS}
    if wrong is not None:
        state[WEIGHTS] = wrong
    with pytest.raises(ValueError, match=r"weights: expected members\.weights, 3 shares that sum to 1; got"):
        members_from_state(result.spec.flow, 2, state)


def test_a_member_that_diverges_has_no_weight(make_spec, monkeypatch, tmp_path):
    diverging(monkeypatch, [1])
    result = run_stack([make_spec(flow__members=K, flow__weights="val", train__kernel="torch", **ARRAYS)])[0]
    assert result.members[1]["weight"] == 0
    write_run(tmp_path, result)
    flow = load_flow(tmp_path)
    assert flow.members == [0, 2] and sum(flow.weights) == pytest.approx(1)
    log_q = flow.log_prob(load(result.spec).test)
    assert result.metrics["test_nll"] == pytest.approx(-log_q.double().mean().item(), abs=1e-5)


@pytest.mark.parametrize("weights", ["equal", "val"])
def test_an_ensemble_diverges_with_its_last_member(make_spec, monkeypatch, weights):
    diverging(monkeypatch, [0, 1])
    changes = {"flow__members": 2, "flow__weights": weights, "train__kernel": "torch"}
    lost, whole = run_stack([make_spec(seed=seed, **changes, **SHORT) for seed in (0, 1)])
    assert lost.status == "diverged" and lost.metrics["diverged_at"] == 10
    assert "test_nll" not in lost.metrics
    assert [member.get("weight") for member in lost.members] == [None, None]
    assert whole.status == "completed"
    if weights == "val":
        assert lost.state[WEIGHTS].tolist() == [0.5, 0.5]
        assert sum(member["weight"] for member in whole.members) == pytest.approx(1)


def test_cost_and_stacks_count_members(make_spec):
    one = make_spec()
    four = make_spec(flow__members=4)
    for estimate in (training_flop, training_cost, member_bytes):
        assert estimate(four) == pytest.approx(4 * estimate(one))
    specs = [make_spec(seed=seed, flow__members=4) for seed in range(16)]
    assert sorted(map(len, plan_stacks(specs))) == [8, 8]  # of 32 flows
    assert max(map(len, plan_stacks([make_spec(flow__members=100, seed=seed) for seed in range(2)]))) == 1
    assert "flow.members" in flatten(one)


def test_one_of_several_ensembles_knows_that_its_members_are_lost(make_spec):
    flow = make_spec().flow
    x = torch.randn(1, 40, 2, generator=stream(0, "x")).expand(4, 40, 2)
    stack = build(flow, masks=["alternating"] * 4, seeds=range(4), data=x)
    of_members = [torch.tensor([[-1.0, -1.0], [-9.0, -9.0]])]
    for lost, expected in ((True, [0.5, 0.5]), (False, [1.0, 0.0])):
        both = Ensembles(stack, 2, [True, True, not lost, not lost])
        assert both.one(1).fitted(of_members)[0].tolist() == pytest.approx(expected, abs=1e-3)
