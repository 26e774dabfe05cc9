"""Densities of x given c: closed forms, autodiff, integrals; what is read, refused, stacked and stored."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal

from nfexp import tables
from nfexp.data import load
from nfexp.flows.distribution import FlowDistribution
from nfexp.flows.ensemble import Ensembles
from nfexp.flows.export import to_torch, to_zuko
from nfexp.flows.kernels.compiled import Fused
from nfexp.flows.layers import Batch
from nfexp.flows.stack import FlowStack, build
from nfexp.record import load_flow, write_run
from nfexp.run import prepare_runs, run_stack
from nfexp.spec import SpecError, flatten, run_id, stack_key, unflatten
from nfexp.tables import settled
from tests.helpers.specs import small_spec, table_spec
from tests.test_flow import PLAIN

# x | c ~ N(A c + b, S): everything about it is known
A = np.array([[2.0, 0.5], [-1.0, 1.0]])
OFFSET = np.array([3.0, -2.0])
S = np.array([[0.5, 0.2], [0.2, 0.3]])
ENTROPY = 0.5 * math.log(np.linalg.det(2 * math.pi * math.e * S))  # of x given c, nats
LEARN = {
    "data__path": "linear.csv", "data__context": ["u", "v"], "train__steps": 400, "train__lr": 5e-3,
    "train__batch_size": 128, "flow__n_flows": 4, "train__kernel": "auto",
}  # fmt: skip


def linear(n, seed=0):
    """Rows (x, y, u, v) of the linear Gaussian, c = (u, v) in units of its own."""
    rng = np.random.default_rng(seed)
    c = rng.normal(size=(n, 2)) * [1.0, 0.7] + [0.0, 5.0]
    x = c @ A.T + OFFSET + rng.multivariate_normal(np.zeros(2), S, n)
    return pd.DataFrame(np.column_stack([x, c]), columns=["x", "y", "u", "v"])


def exact(x, c):
    """log p(x | c) of the linear Gaussian, (N,)."""
    return multivariate_normal(np.zeros(2), S).logpdf(x - c @ A.T - OFFSET)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run on the linear Gaussian in a folder of its own: its spec, its result and the flow read back."""
    folder = tmp_path_factory.mktemp("linear")
    linear(3000).to_csv(folder / "linear.csv", index=False)
    spec = settled(table_spec(**(LEARN | {"data__path": str(folder / "linear.csv"), "record__samples": 300})))
    (result,) = run_stack([spec])
    write_run(folder / "run", result)
    return spec, result, load_flow(folder / "run")


# --- The density -----------------------------------------------------------------------------------------------------

VARIANTS = {
    "plain": {},
    "three dimensions, shared": {"dim": 3, "conditioner": "shared"},
    "passed, tail bound": {"conditioner_input": "passed", "tail_bound": 0.8, "dim": 3, "mask": "half"},
    "additive, batchnorm": {"coupling": "additive", "norm": "batchnorm"},
    "spread start, raw": {"init": "spread", "standardise": "none"},
    "spread start, passed, actnorm": {"init": "spread", "conditioner_input": "passed", "norm": "actnorm"},
    "one dimension": {"dim": 1},
    "learned tail, Student's t": {"tail": "learned", "base": "student_t"},
}


def conditioned(n_members=2, *, dim=2, n_context=3, **changes) -> FlowStack:
    """A float64 stack whose every number is away from its initial value."""
    g = torch.Generator().manual_seed(0)
    data = torch.randn(n_members, 50, dim, generator=g, dtype=torch.float64)
    context = 10 + 3 * torch.randn(n_members, 50, n_context, generator=g, dtype=torch.float64)
    arch = dataclasses.replace(PLAIN, **changes)
    masks = [changes.get("mask", mask) for mask in ("alternating", "random")[:n_members]]
    flow = build(arch, masks=masks, seeds=range(n_members), data=data, context=context)
    flow.theta.add_(0.3 * torch.randn(flow.theta.shape, generator=g, dtype=torch.float64))
    return flow


def points(flow, n, seed=1):
    """Points (E, n, D) and their context (E, n, C)."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(flow.n_members, n, flow.dim, generator=g, dtype=torch.float64)
    c = 10 + 3 * torch.randn(flow.n_members, n, flow.n_context, generator=g, dtype=torch.float64)
    return x, c


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_log_det_at_a_fixed_context_equals_autodiff(changes):
    flow = conditioned(**changes)
    x, c = points(flow, 3)
    for method in (flow.inverse, flow.forward):
        _, log_det = method(x, c)
        jacobian = torch.autograd.functional.jacobian(lambda own, method=method: method(own, c)[0], x)
        for e in range(flow.n_members):
            for n in range(3):
                own = torch.linalg.slogdet(jacobian[e, n, :, e, n]).logabsdet
                assert own.item() == pytest.approx(log_det[e, n].item(), abs=1e-9)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_there_and_back_at_a_context(changes):
    flow = conditioned(**changes)
    x, c = points(flow, 20)
    z, log_det = flow.inverse(x, c)
    back, other = flow.forward(z, c)
    torch.testing.assert_close(back, x, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(other, -log_det, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(flow.walk(z, c)[-1][1], x, atol=1e-9, rtol=1e-9)
    assert not torch.allclose(flow.inverse(x, c + 3.0)[0], z)  # the context matters


@pytest.mark.parametrize("changes", [{}, {"init": "spread", "tail_bound": 1.0}], ids=["plain", "tail bound"])
def test_a_density_at_each_context(changes):
    flow = conditioned(1, **changes)
    line = torch.linspace(-20, 20, 201, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)[None]
    cell = (line[1] - line[0]) ** 2
    densities = []
    for c in ([8.0, 10.0, 12.0], [13.0, 9.0, 4.0]):
        given = torch.tensor(c, dtype=torch.float64).expand(1, grid.shape[1], 3)
        densities.append(flow.log_prob(grid, given).exp())
        assert (densities[-1].sum() * cell).item() == pytest.approx(1, abs=1e-3)
    assert ((densities[0] - densities[1]).abs().sum() * cell).item() > 0.1


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_fused_kernel_equals_torch_in_float64(changes):
    precise = conditioned(**changes)
    flow = precise.to("cpu", torch.float32)
    fused = Fused(flow)
    x, c = points(flow, 150)
    # the same numbers in both precisions
    precise = flow.to("cpu", torch.float64)
    x, c = x.float(), c.float()

    theta = precise.theta.clone().requires_grad_()
    log_q = precise.with_rows(theta, precise.fixed).log_prob(x.double(), c.double(), batch=Batch())
    (grad,) = torch.autograd.grad(-log_q.mean(1).sum(), theta)
    loss, fused_grad = fused.gradient(flow.theta, flow.fixed, x, c)
    torch.testing.assert_close(loss.double(), -log_q.mean(1).detach(), rtol=2e-6, atol=0)
    largest = grad.abs().amax(1, keepdim=True)
    torch.testing.assert_close(fused_grad / largest, grad / largest, rtol=0, atol=3e-6, check_dtype=False)

    with_kernel = flow.with_kernel(fused)
    found = [with_kernel.log_prob(x, c), *with_kernel.inverse(x, c), *with_kernel.forward(x, c)]
    expected = [
        precise.log_prob(x.double(), c.double()),
        *precise.inverse(x.double(), c.double()),
        *precise.forward(x.double(), c.double()),
    ]
    for got, wanted in zip(found, expected, strict=True):
        scale = wanted.abs().amax().clamp(min=1)
        torch.testing.assert_close(got.double() / scale, wanted / scale, rtol=0, atol=2e-6)


def test_the_fused_kernel_has_the_same_bits_in_every_stack():
    flow = conditioned(conditioner_input="passed", dim=3, mask="half").to("cpu", torch.float32)
    x, c = (each.float() for each in points(flow, 150))
    together = Fused(flow).gradient(flow.theta, flow.fixed, x, c)
    for e in range(2):
        own = flow.pick([e])
        alone = Fused(own).gradient(own.theta, own.fixed, x[[e]], c[[e]])
        for whole, part in zip(together, alone, strict=True):
            assert torch.equal(whole[[e]], part)


def test_the_fused_kernel_refuses_another_context():
    flow = conditioned().to("cpu", torch.float32)
    x, c = (each.float() for each in points(flow, 5))
    with_kernel = flow.with_kernel(Fused(flow))
    for method in (with_kernel.log_prob, with_kernel.inverse, with_kernel.forward):
        with pytest.raises(ValueError, match=r"context: expected shape \(2, 5, 3\); got \(2, 5, 2\)"):
            method(x, c[..., :2])
        with pytest.raises(ValueError, match=r"context: expected shape \(2, 5, 3\); got none"):
            method(x)


def test_gradients_equal_finite_differences():
    flow = conditioned(1, n_flows=2, hidden_width=4)
    x, c = points(flow, 4)

    def nll(theta):
        return -flow.with_rows(theta, flow.fixed).log_prob(x, c).sum()

    theta = flow.theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nll(theta), theta)
    step = 1e-6
    for i in range(0, theta.shape[1], 7):
        moved = torch.zeros_like(flow.theta)
        moved[0, i] = step
        slope = (nll(flow.theta + moved) - nll(flow.theta - moved)) / (2 * step)
        assert slope.item() == pytest.approx(gradient[0, i].item(), abs=1e-5)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_plain_module_has_the_same_density(changes):
    flow = conditioned(1, **changes)
    module = to_torch(flow)
    x, c = points(flow, 6)
    torch.testing.assert_close(module.log_prob(x[0], c[0]), flow.log_prob(x, c)[0])
    z, log_det = module.inverse(x[0], c[0, 0])  # one context for all
    torch.testing.assert_close(module(z, c[0, 0])[0], x[0])
    torch.testing.assert_close(log_det, flow.inverse(x, c[:, :1].expand(-1, 6, -1))[1][0])
    again = to_torch(conditioned(1, **changes))
    again.load_state_dict(module.state_dict())
    assert module.sample(4, c[0, 0]).shape == (4, flow.dim)


@pytest.mark.parametrize("changes", [{"tail_bound": 0.8}, {"dim": 3, "norm": "batchnorm"}], ids=["bound", "batchnorm"])
def test_zuko_has_the_same_density(changes):
    flow = conditioned(1, **changes)
    other = to_zuko(flow)
    x, c = points(flow, 6)
    torch.testing.assert_close(other(c[0]).log_prob(x[0]), flow.log_prob(x, c)[0])
    assert other(c[0, 0]).sample((5,)).shape == (5, flow.dim)


def test_a_distribution_of_pytorch_at_a_context():
    flow = conditioned(1)
    x, c = points(flow, 6)
    given = c[0, :1].clone().requires_grad_()
    law = FlowDistribution(flow, given)
    torch.testing.assert_close(law.log_prob(x[0]), flow.log_prob(x, given.expand(1, 6, 3))[0])
    assert law.sample((2, 3)).shape == (2, 3, 2)
    law.log_prob(x[0]).sum().backward()
    step = torch.tensor([[1e-6, 0.0, 0.0]], dtype=torch.float64)

    def total(context):
        return FlowDistribution(flow, context.detach()).log_prob(x[0]).sum()

    slope = (total(given + step) - total(given - step)) / 2e-6
    assert given.grad[0, 0].item() == pytest.approx(slope.item(), rel=1e-4)


def test_a_member_of_a_stack_is_the_flow_alone():
    flow = conditioned(2)
    x, c = points(flow, 10)
    together = flow.log_prob(x, c)
    for e in range(2):
        assert torch.equal(flow.member(e).log_prob(x[e : e + 1], c[e : e + 1])[0], together[e])


def test_an_ensemble_has_the_mean_density():
    flow = conditioned(2)
    x, c = points(flow, 5)
    both = Ensembles(flow, 2)
    rows = flow.log_prob(x[:1].repeat(2, 1, 1), c[:1].repeat(2, 1, 1))
    torch.testing.assert_close(both.log_prob(x[:1], c[:1])[0], rows.exp().mean(0).log())
    z = torch.randn(1, 5, 2, dtype=torch.float64)
    chosen = torch.tensor([[0, 1, 1, 0, 1]])
    moved = both.forward(z, chosen, c[:1])
    for n, k in enumerate(chosen[0].tolist()):
        own = flow.member(k).forward(z[:, n : n + 1], c[:1, n : n + 1])[0]
        torch.testing.assert_close(moved[:, n : n + 1], own)


@pytest.mark.parametrize("context", [None, torch.zeros(1, 4, 2), torch.zeros(1, 3, 3)], ids=["none", "width", "rows"])
def test_a_map_wants_its_context(context):
    flow = conditioned(1)
    with pytest.raises(ValueError, match=r"context: expected shape \(1, 4, 3\); got"):
        flow.inverse(torch.zeros(1, 4, 2, dtype=torch.float64), context)


# --- Training --------------------------------------------------------------------------------------------------------


def test_a_linear_gaussian_is_learned_to_its_closed_form(learned):
    spec, result, flow = learned
    dataset = load(spec)
    x, c = dataset.test.numpy(), dataset.context_of("test").numpy()
    log_q = flow.log_prob(x, c).double().numpy()
    kl = exact(x, c) - log_q  # paired
    assert result.metrics["test_nll"] == pytest.approx(-log_q.mean(), abs=1e-5)
    assert abs(kl.mean()) < 0.05
    marginal = A @ np.diag([1.0, 0.49]) @ A.T + S  # of x alone: what no flow without c can go below
    unconditional = 0.5 * math.log(np.linalg.det(2 * math.pi * math.e * marginal))
    assert result.metrics["test_nll"] < unconditional - 1.0
    # in the pairs lies what c tells: with the context of other rows nothing is left of it
    assert -flow.log_prob(x, np.roll(c, 1, 0)).mean() > unconditional


def test_samples_at_a_context_have_its_moments(learned):
    _, result, flow = learned
    c = np.array([[1.0, 5.5]])
    samples = flow.sample(4000, c, seed=1).double().numpy()
    assert np.abs(samples.mean(0) - (A @ c[0] + OFFSET)).max() < 0.15
    assert np.abs(np.cov(samples.T) - S).max() < 0.15
    one_each = flow.sample(2, [[1.0, 5.5], [-1.0, 4.0]], seed=1)
    assert torch.equal(one_each[0], flow.sample(2, c, seed=1)[0])
    # those of a record are drawn at the test rows' context, in turn
    dataset = load(result.spec)
    given = dataset.context_of("test").numpy()[np.arange(300) % len(dataset.test)]
    residuals = result.arrays["best"] - given @ A.T - OFFSET
    assert np.abs(np.cov(residuals.T) - S).max() < 0.2
    last = result.arrays["snapshots"][-1] - given @ A.T - OFFSET
    assert np.abs(np.cov(last.T) - S).max() < 0.2


def test_what_is_scored_and_kept(learned):
    _, result, flow = learned
    metrics = result.metrics
    for key in ("kl", "true_nll", "sample_distance", "flattening", "coordinates_moved"):
        assert metrics[key] is None
    assert abs(metrics["coverage_90"] - 0.9) < 0.06 and metrics["calibration_error"] < 0.1
    assert metrics["inverse_error"] < 1e-3
    assert not {"walk", "grid_log_q"} & set(result.arrays)
    assert result.arrays["columns"].tolist() == ["x", "y"]
    assert result.kernel == "fused"
    assert repr(flow).startswith("TrainedFlow(linear_given_u_v, D = 2, C = 2, 4 affine couplings")
    assert flow.context == ["u", "v"]


def test_units_of_the_context_do_not_matter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = linear(200)
    frame.to_csv("linear.csv", index=False)
    frame.assign(u=1000 * frame["u"] - 70, v=frame["v"] / 64).to_csv("other.csv", index=False)
    found = []
    for path in ("linear.csv", "other.csv"):
        spec = settled(table_spec(**(LEARN | {"data__path": path, "train__steps": 20})))
        found.append(run_stack([spec], dtype=torch.float64)[0].metrics["test_nll"])
    assert found[0] == pytest.approx(found[1], abs=1e-8)


def test_a_member_of_a_run_is_the_run_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    linear(300).to_csv("linear.csv", index=False)
    linear(300, seed=1).to_csv("other.csv", index=False)
    few = LEARN | {"train__steps": 12, "record__samples": 10}
    specs = [
        settled(table_spec(**few, seed=0)),
        settled(table_spec(**few, seed=1, flow__mask="random", train__noise=0.1)),
        settled(table_spec(**(few | {"data__path": "other.csv"}), seed=2)),
    ]
    together = run_stack(specs)
    for spec, mate in zip(specs, together, strict=True):
        (alone,) = run_stack([spec])
        for name, value in alone.state.items():
            assert torch.equal(value, mate.state[name]), name
        for name, value in alone.arrays.items():
            assert np.array_equal(value, mate.arrays[name]), name
        assert alone.metrics["test_nll"] == mate.metrics["test_nll"]


def test_batches_bring_the_context_of_their_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    linear(100).to_csv("linear.csv", index=False)
    training = prepare_runs([settled(table_spec(**LEARN, train__noise=0.5))], torch.float64)
    batches = training.batches
    positions = batches.positions(1)
    dataset = load(training.lead)
    noisy = batches.points(1, positions)[0]
    assert torch.equal(batches.context(positions)[0], dataset.context_of("train")[positions[0]])  # no noise on it
    moved = noisy - dataset.train[positions[0]]
    assert 0.1 < (moved / dataset.train.std(0)).std().item() < 1.0


def test_an_ensemble_and_norms_train_with_a_context(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    linear(200).to_csv("linear.csv", index=False)
    few = LEARN | {"train__steps": 12, "record__samples": 10, "train__batch_size": 64}
    for changes in ({"flow__members": 2}, {"flow__norm": "batchnorm"}, {"flow__norm": "actnorm", "train__ema": 0.9}):
        (result,) = run_stack([settled(table_spec(**few, **changes))])
        assert result.status == "completed"
        assert math.isfinite(result.metrics["val_nll"])
        write_run(tmp_path / str(changes), result)
        flow = load_flow(tmp_path / str(changes))
        dataset = load(result.spec)
        log_q = flow.log_prob(dataset.test, dataset.context_of("test"))
        assert -log_q.mean().item() == pytest.approx(result.metrics["test_nll"], abs=1e-4)


# What an actnorm takes away again has gradients of pure rounding, which Adam turns into whole steps
@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [({}, 1e-5), ({"train__noise": 0.2, "flow__members": 2}, 1e-5), ({"flow__norm": "actnorm"}, 5e-3)],
)
def test_a_run_by_the_kernel_is_that_by_torch_up_to_rounding(changes, tolerance, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    linear(300).to_csv("linear.csv", index=False)
    few = LEARN | {"train__steps": 12, "record__samples": 10} | changes
    found = {}
    for kernel in ("fused", "torch"):
        (result,) = run_stack([settled(table_spec(**(few | {"train__kernel": kernel})))])
        assert result.kernel == kernel
        found[kernel] = result.metrics["test_nll"]
    assert found["fused"] == pytest.approx(found["torch"], abs=tolerance)


# --- What is read ----------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    linear(60).to_csv("linear.csv", index=False)
    return "linear.csv"


def test_columns_are_set_apart(table):
    spec = settled(table_spec(data__path=table, data__context=["v"], data__drop=["x"]))
    assert (spec.data.dim, spec.data.context_dim) == (2, 1)
    dataset = load(spec)
    assert dataset.names == ("y", "u")
    rows = {tuple(row) for row in pd.read_csv(table)[["y", "u", "v"]].to_numpy().tolist()}
    for part in ("train", "val", "test"):
        both = torch.cat([getattr(dataset, part), dataset.context_of(part)], 1)
        assert {tuple(row) for row in both.tolist()} <= rows
    by_position = settled(table_spec(data__path=table, data__context="3", data__columns=[1, 2]))
    assert run_id(by_position) == run_id(spec)
    assert unflatten(flatten(spec)) == spec
    assert tables.facts(spec.data).startswith("linear_given_v: 60 rows, 2 columns (y, u) given 1 (v)")
    named = settled(table_spec(data__path=table, data__name="mine", data__context=["v"]))
    assert named.data.name == "mine"
    iris = settled(table_spec("iris", data__context=[2, 3]))
    assert iris.data.name == "iris_given_petal_length_cm_petal_width_cm"
    assert load(iris).event_shape == (2,) and settled(iris) == iris


def test_what_is_given_is_part_of_a_run(table):
    whole = settled(table_spec(data__path=table))
    one = settled(table_spec(data__path=table, data__context=["v"]))
    two = settled(table_spec(data__path=table, data__context=["u", "v"]))
    assert len({run_id(spec) for spec in (whole, one, two)}) == 3
    assert len({spec.data.digest for spec in (whole, one, two)}) == 3  # the same numbers in the same order
    assert len({stack_key(spec) for spec in (whole, one, two)}) == 3
    other = settled(table_spec(data__path=table, data__context=["u"], data__columns=["y", "x", "v"]))
    assert stack_key(other) == stack_key(one)


def test_a_run_without_a_context_knows_nothing_of_it(table):
    for spec in (small_spec(), settled(table_spec(data__path=table))):
        assert not [key for key in flatten(spec) if "context" in key]
    assert run_id(small_spec()) == "75c9c62c76b4f9ec"


def test_few_values_of_a_context_are_no_trouble(table):
    frame = pd.read_csv(table).assign(v=np.arange(60) % 2)
    frame.to_csv("classes.csv", index=False)
    spec = settled(table_spec(data__path="classes.csv", data__context=["v"], data__jitter="gap"))
    assert set(load(spec).context_of("train")[:, 0].tolist()) == {0.0, 1.0}  # no jitter
    assert tables.warnings_of(settled(table_spec(data__path="classes.csv", data__context="v")).data) == []
    (warning,) = tables.warnings_of(settled(table_spec(data__path=table, data__context=["y", "u", "v"])).data)
    assert "whose mean and width follow the context" in warning


def test_a_context_that_does_not_vary(table):
    frame = pd.read_csv(table).assign(one=1.0, late=lambda rows: 1.7e9 + rows["u"])
    frame.to_csv("given.csv", index=False)
    with pytest.raises(SpecError, match=r"data.context: expected columns that vary; got the same value in .*: one"):
        settled(table_spec(data__path="given.csv", data__drop=["late"], data__context=["one"]))
    with pytest.raises(SpecError, match=r"data.context: expected columns that float32 holds: .* in column 'late'"):
        settled(table_spec(data__path="given.csv", data__drop=["one"], data__context=["late"]))
    with pytest.raises(SpecError, match=r"data.path: expected columns that float32 holds: .* in column 'late'"):
        settled(table_spec(data__path="given.csv", data__drop=["one"]))


def test_words_in_a_context(table):
    pd.read_csv(table).assign(colour="red").to_csv("given.csv", index=False)
    message = r"data.context: expected columns of numbers \(name others, .*\); got 'red' in column 'colour', row 1"
    with pytest.raises(SpecError, match=message):
        settled(table_spec(data__path="given.csv", data__context=["u", "colour"]))
    with pytest.raises(SpecError, match=r"data.path: expected .*data.drop=colour leaves one out"):
        settled(table_spec(data__path="given.csv", data__context=["u"]))


REFUSED = {
    "near": (["u", "vv"], {}, r"data.context: expected columns of linear.csv: x, y, u, v; got 'vv' \(near: 'v'\)"),
    "twice": (["u", 2], {}, "data.context: expected columns of their own, .*; got 'u' again"),
    "learned, too": (["u"], {"data__columns": ["x", "u"]}, "data.context: expected columns of their own, .*'u' again"),
    "dropped": (["u"], {"data__drop": ["u"]}, "data.context: expected columns of their own, .*; got 'u' again"),
    "all": (["x", "y", "u", "v"], {}, "data.context: expected some columns of linear.csv, .*; got all of them"),
    "nothing": ("", {}, "data.context: expected printable text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_context_that_cannot_be(case, table):
    context, others, message = REFUSED[case]
    with pytest.raises(SpecError, match=message):
        settled(table_spec(data__path=table, data__context=context, **others))


@pytest.mark.parametrize("changes", [{"data.context": None}, {"data.context": "u"}, {"data.context_dim": 3}])
def test_a_record_counts_the_columns_it_names(changes, table):
    spec = settled(table_spec(data__path=table, data__context=["u", "v"]))
    with pytest.raises(SpecError, match=r"data.context_dim: expected \d, the columns that data.context names; got \d"):
        unflatten(flatten(spec) | changes)


@pytest.mark.parametrize("data", ["moons", "digits", "power"])
def test_only_a_table_has_columns_to_give(data):
    with pytest.raises(SpecError, match=r"data.context: expected null here, .*; got 'x'"):
        table_spec(data, data__context=["x"])


def test_a_test_file_has_the_context_too(table):
    linear(30, seed=2).drop(columns="v").to_csv("test.csv", index=False)
    with pytest.raises(SpecError, match=r"data.context: expected columns of test.csv: x, y, u; got 'v'"):
        settled(table_spec(data__path=table, data__test_path="test.csv", data__context=["v"]))


# --- A trained flow --------------------------------------------------------------------------------------------------

ASKED = {
    "missing": (lambda f: f.log_prob([[0.0, 0.0]]), r"context: expected rows of 2 numbers \(u, v\); got none"),
    "width": (lambda f: f.log_prob([[0.0, 0.0]], [[1.0]]), r"context: expected shape \(1, 2\), .*; got \(1, 1\)"),
    "rows": (
        lambda f: f.sample(3, [[1.0, 1.0]] * 2),
        r"context: expected shape \(3, 2\), or \(1, 2\) .*\(2, 2\)",
    ),
    "one dimension": (lambda f: f.inverse([[0.0, 0.0]], [1.0, 1.0]), r"context: expected shape .*; got \(2,\)"),
    "no numbers": (lambda f: f.sample(1, "a"), r"context: expected an array of real numbers; got .*"),
    "distribution": (lambda f: f.distribution(), r"context: expected rows of 2 numbers \(u, v\); got none"),
    "module": (lambda f: f.export().log_prob(torch.zeros(1, 2)), r"context: expected 2 numbers for each point; got 0"),
}


@pytest.mark.parametrize("case", ASKED)
def test_a_trained_flow_wants_its_context(case, learned):
    ask, message = ASKED[case]
    with pytest.raises(ValueError, match=message):
        ask(learned[2])


def test_columns_of_pandas_in_another_order_are_refused(learned):
    flow, x = learned[2], [[3.0, -2.0]]
    context = pd.DataFrame([[1.0, 5.0]], columns=flow.context)
    plain = flow.log_prob(x, context.to_numpy())
    assert torch.equal(flow.log_prob(x, context), plain)
    assert torch.equal(flow.log_prob(x, context.set_axis(["a", "b"], axis=1)), plain)
    with pytest.raises(ValueError, match=r"context: expected the columns in the order .*; got v, "):
        flow.log_prob(x, context[context.columns[::-1]])


def test_a_flow_without_a_context_wants_none(tmp_path):
    write_run(tmp_path, run_stack([small_spec()])[0])
    flow = load_flow(tmp_path)
    with pytest.raises(ValueError, match=r"context: expected none, for this flow has no data.context; got one"):
        flow.log_prob([[0.0, 0.0]], [[1.0]])


def test_one_row_serves_all_points_and_back(learned):
    flow = learned[2]
    x = [[3.0, -2.0], [4.0, 1.0]]
    assert torch.equal(flow.log_prob(x, [[1.0, 5.0]]), flow.log_prob(x, [[1.0, 5.0]] * 2))
    z = flow.inverse(x, [[1.0, 5.0]])
    torch.testing.assert_close(flow.forward(z, [[1.0, 5.0]]), torch.tensor(x), atol=1e-4, rtol=1e-4)
    with pytest.warns(UserWarning, match=r"row 1 by .* in column v of the context"):
        flow.log_prob(x, [[0.0, 5.0], [0.0, 500.0]], warn_beyond=8)
