"""Oracles of the flow: autodiff, inverse round trips, integrals, other libraries with the same weights."""

import dataclasses
import itertools
import math

import normflows
import pytest
import torch
import zuko
from scipy.stats import kstest, norm
from scipy.stats import t as student_t
from torch import nn
from torch.distributions import AffineTransform, Independent, Normal, StudentT
from torch.distributions import Transform as TorchTransform

from nfexp.flows.bases import BASES, base_log_prob, base_sample
from nfexp.flows.cost import KEEP_INPUT
from nfexp.flows.elementwise import Tail
from nfexp.flows.export import to_torch, to_zuko
from nfexp.flows.layers import Batch, draw_mask
from nfexp.flows.nn import ACTIVATIONS
from nfexp.flows.stack import FlowStack, build, from_state, initialise_actnorm
from nfexp.spec import Flow, passed_counts
from nfexp.streams import stream

PLAIN = Flow(
    n_flows=4,
    hidden_depth=2,
    hidden_width=8,
    activation="relu",
    mask="alternating",
    coupling="affine",
    conditioner="separate",
    scale="learned",
    init="identity",
    standardise="moments",
    norm="none",
    norm_every=2,
    base="normal",
    conditioner_input="masked",
    tail_bound=None,
    tail="none",
    members=1,
    weights="equal",
)
VARIANTS = {
    "plain": {},
    "one flow, one hidden layer": {"n_flows": 1, "hidden_depth": 1},
    "shared": {"conditioner": "shared"},
    "additive": {"coupling": "additive"},
    "additive shared": {"coupling": "additive", "conditioner": "shared"},
    "batchnorm": {"norm": "batchnorm"},
    "scale tanh": {"scale": "tanh"},
    "scale soft": {"scale": "soft"},
    "scale exp, random start": {"scale": "exp", "init": "random"},
    "spread start": {"init": "spread"},
    "kaiming start, passed": {"init": "kaiming", "conditioner_input": "passed"},
    "not standardised": {"standardise": "none"},
    "actnorm every layer": {"norm": "actnorm", "norm_every": 1},
    "three dimensions": {"dim": 3},
    "five dimensions, shared, batchnorm": {"dim": 5, "conditioner": "shared", "norm": "batchnorm"},
    "one dimension": {"dim": 1},
    "passed": {"conditioner_input": "passed"},
    "passed, shared, soft, bound": {
        "conditioner_input": "passed",
        "conditioner": "shared",
        "scale": "soft",
        "tail_bound": 0.8,
    },
    "passed, additive, batchnorm": {"conditioner_input": "passed", "coupling": "additive", "norm": "batchnorm"},
    "passed, one dimension": {"conditioner_input": "passed", "dim": 1, "mask": "alternating"},
    "passed, three dimensions": {"conditioner_input": "passed", "dim": 3, "mask": "half"},
    "passed, five dimensions, random": {"conditioner_input": "passed", "dim": 5, "mask": "random", "init": "spread"},
    "tail bound": {"tail_bound": 0.8},
    "tail bound, additive": {"tail_bound": 0.8, "coupling": "additive"},
    "tail bound, five dimensions": {"tail_bound": 0.5, "dim": 5, "norm": "actnorm", "scale": "soft"},
    "all that draws tails in, three dimensions": {
        "conditioner_input": "passed",
        "tail_bound": 0.8,
        "tail": "learned",
        "base": "contaminated",
        "norm": "batchnorm",
        "dim": 3,
        "mask": "once",
    },
    "learned tail": {"tail": "learned"},
    "learned tail, additive, three dimensions": {"tail": "learned", "coupling": "additive", "dim": 3},
    "learned tail, actnorm, tail bound": {"tail": "learned", "norm": "actnorm", "tail_bound": 0.8},
    **{f"activation {a}": {"activation": a} for a in ACTIVATIONS},
    **{f"base {b}": {"base": b} for b in BASES if b != "normal"},
}
MASKS = ("alternating", "fixed", "random", "once", "half")


def random_flow(n_members=2, *, masks=None, seed=0, dim=2, **changes) -> FlowStack:
    """A float64 stack whose every number is away from its initial value."""
    arch = dataclasses.replace(PLAIN, **changes)
    g = torch.Generator().manual_seed(seed)
    data = torch.randn(n_members, 50, dim, generator=g, dtype=torch.float64) * 1.5 + 0.5
    masks = masks or [MASKS[e % len(MASKS)] for e in range(n_members)]
    if "mask" in changes:  # the one that all members have
        masks = [changes["mask"]] * n_members
    flow = build(arch, masks=masks, seeds=[seed + e for e in range(n_members)], data=data)
    flow.theta.add_(0.3 * torch.randn(flow.theta.shape, generator=g, dtype=torch.float64))
    for name, value in flow.fixed_layout.views(flow.fixed).items():
        if name.startswith("norm."):
            value.add_(torch.rand(value.shape, generator=g, dtype=torch.float64))
    return flow


def points(flow: FlowStack, n: int, seed: int = 1) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(flow.n_members, n, flow.dim, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_log_det_equals_autodiff(changes):
    flow = random_flow(5, **changes)
    for method in (flow.inverse, flow.forward):
        x = points(flow, 3)
        _, log_det = method(x)
        for e, n in itertools.product(range(flow.n_members), range(3)):

            def one(point, e=e, n=n, method=method, x=x):
                moved = x.clone()
                moved[e, n] = point
                return method(moved)[0][e, n]

            jacobian = torch.autograd.functional.jacobian(one, x[e, n])
            assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(log_det[e, n].item(), abs=1e-9)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_gradients_equal_finite_differences(changes):
    flow = random_flow(2, **{"hidden_width": 4, "n_flows": 2, "norm_every": 1} | changes)
    x = points(flow, 3).requires_grad_()
    batch = Batch() if flow.flow.norm == "batchnorm" else None
    log_prob = lambda theta, x: flow.with_rows(theta, flow.fixed).log_prob(x, batch=batch)  # noqa: E731
    assert torch.autograd.gradcheck(log_prob, (flow.theta.requires_grad_(), x))


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_inverse_round_trip(changes):
    flow = random_flow(5, **changes)
    x = points(flow, 20)
    z, log_det = flow.inverse(x)
    back, log_det_back = flow.forward(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(log_det + log_det_back, torch.zeros_like(log_det), rtol=0, atol=1e-9)
    frames = flow.walk(z)
    assert [frames[0][0], frames[-1][0]] == ["base", "data"] and len(frames) == len(flow.layers) + 1
    torch.testing.assert_close(frames[-1][1], back, rtol=0, atol=0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_estimate_of_memory_knows_what_an_activation_keeps(name):
    y, kept = ACTIVATIONS[name].forward(torch.ones(3))
    assert (kept is not y) == (name in KEEP_INPUT), "see KEEP_INPUT in nfexp/flows/cost.py"


INTEGRATED = {
    **{f"base {b}": {"base": b} for b in ("normal", "laplace", "logistic", "mixture", "contaminated")},
    "tail bound": {"tail_bound": 0.7},
    "learned tail": {"tail": "learned"},
}


@pytest.mark.parametrize("changes", INTEGRATED.values(), ids=INTEGRATED)
def test_density_integrates_to_one(changes):
    flow = random_flow(2, n_flows=3, activation="tanh", seed=3, **changes)
    if "tail" in changes:
        flow.tensors()["tail.log_power"].abs_()  # heavier tails than those of the base leave any grid
    with torch.no_grad():
        spread = flow.sample(4000, [stream(e, "spread") for e in range(2)]).abs().amax().item()
        ticks = torch.linspace(-1.6 * spread, 1.6 * spread, 1201, dtype=torch.float64)
        grid = torch.cartesian_prod(ticks, ticks).expand(2, -1, -1)
        mass = flow.log_prob(grid).exp().sum(1) * (ticks[1] - ticks[0]) ** 2
    torch.testing.assert_close(mass, torch.ones(2, dtype=torch.float64), rtol=0, atol=2e-3)


@pytest.mark.parametrize("base", BASES)
def test_base_is_normalised_and_sampled_from_its_density(base):
    z = torch.linspace(-4000, 4000, 4_000_001, dtype=torch.float64)[:, None]
    assert base_log_prob(base, z).exp().sum().item() * 0.002 == pytest.approx(1, abs=1e-6)
    draws = base_sample(base, (200_000, 1), stream(0, "base"))
    inner = torch.linspace(-8, 8, 16_001, dtype=torch.float64)[:, None]
    cdf = base_log_prob(base, inner).exp().cumsum(0) * 0.001
    lost = (1 - cdf[-1]) / 2  # symmetric
    for q in (-2.0, -1.0, -0.3, 0.0, 0.5, 1.5):
        expected = (cdf[round((q + 8) * 1000)] + lost).item()
        assert (draws < q).double().mean().item() == pytest.approx(expected, abs=0.006)


def test_a_contaminated_normal_equals_its_mixture_in_torch():
    z = torch.linspace(-30, 30, 601, dtype=torch.float64)
    parts = torch.stack([Normal(0.0, 1.0).log_prob(z), StudentT(5.0, 0.0, 2.0).log_prob(z)])
    expected = torch.logsumexp(parts + torch.tensor([[0.99], [0.01]]).double().log(), 0)
    torch.testing.assert_close(base_log_prob("contaminated", z[:, None]), expected)


def test_a_far_point_of_a_contaminated_normal_has_a_finite_loss_and_gradient():
    z = torch.tensor([[1e3], [1e15]], dtype=torch.float32, requires_grad=True)
    log_prob = base_log_prob("contaminated", z)
    log_prob.sum().backward()
    assert log_prob[1] > -250  # a normal says -5e29
    torch.testing.assert_close(z.grad[:, 0], -6 / z.detach()[:, 0])  # (ν + 1) / z, as of Student's


def test_draws_of_a_contaminated_normal_are_of_its_law():
    draws = base_sample("contaminated", (100_000, 1), stream(0, "base"))[:, 0].numpy()
    law = lambda z: 0.99 * norm.cdf(z) + 0.01 * student_t.cdf(z / 2, 5)  # noqa: E731
    assert kstest(draws, law).pvalue > 0.01
    far = (abs(draws) > 5).mean()  # of a normal 6e-7
    assert far == pytest.approx(0.02 * student_t.sf(2.5, 5), rel=0.2)


def test_members_do_not_depend_on_the_stack():
    flow = random_flow(4)
    x = points(flow, 7)
    for e in range(4):
        alone = flow.member(e)
        torch.testing.assert_close(alone.log_prob(x[e : e + 1])[0], flow.log_prob(x)[e], rtol=0, atol=1e-12)
    mixed = random_flow(4, conditioner_input="passed")  # four masks, one shape
    for e in range(4):
        torch.testing.assert_close(mixed.member(e).log_prob(x[e : e + 1])[0], mixed.log_prob(x)[e])
    fresh = {n: build(PLAIN, masks=["random"] * n, seeds=list(range(n)), data=x[:n]) for n in (1, 3)}
    torch.testing.assert_close(fresh[1].theta[0], fresh[3].theta[0], rtol=0, atol=0)
    torch.testing.assert_close(fresh[1].fixed[0], fresh[3].fixed[0], rtol=0, atol=0)


MASK_ROWS = {
    "alternating": [[1, 0], [0, 1], [1, 0], [0, 1]],
    "fixed": [[1, 0]] * 4,
    "once": [[1, 0], [1, 0], [0, 1], [0, 1]],
    "half": [[1, 0], [0, 1], [1, 0], [0, 1]],
}


@pytest.mark.parametrize("schedule", MASK_ROWS)
def test_mask_schedules(schedule):
    assert draw_mask(schedule, 4, 2, stream(0, "mask")).tolist() == MASK_ROWS[schedule]


def test_half_masks_split_in_the_middle():
    assert draw_mask("half", 2, 4, stream(0, "mask")).tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]


def test_random_masks_pass_a_half_and_vary():
    masks = torch.stack([draw_mask("random", 6, 2, stream(seed, "mask")) for seed in range(200)])
    assert (masks.sum(-1) == 1).all()
    assert masks[..., 0].mean().item() == pytest.approx(0.5, abs=0.05)


def test_training_statistics_of_batchnorm_standardise_and_update():
    flow = random_flow(2, norm="batchnorm", norm_every=1, n_flows=1)
    for name, value in flow.learned_layout.views(flow.theta).items():
        if name.startswith("norm."):
            value.zero_()
    batch = Batch()
    z, _ = flow.inverse(points(flow, 400) * 3, batch=batch)
    torch.testing.assert_close(z.mean(1), torch.zeros(2, 2, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.var(1, correction=0), torch.ones(2, 2, dtype=torch.float64), rtol=1e-3, atol=0)
    before = flow.fixed_layout.views(flow.fixed)["norm.0.mean"]
    assert set(batch.updates) == {"norm.0.mean", "norm.0.var"}
    assert not torch.equal(batch.updates["norm.0.mean"], before)


def test_actnorm_starts_standardised():
    flow = random_flow(2, norm="actnorm", norm_every=2)
    x = points(flow, 300) * 2 + 1
    initialise_actnorm(flow, x)
    z, _ = flow.inverse(x)  # the last layer is an actnorm
    torch.testing.assert_close(z.mean(1), torch.zeros(2, 2, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.var(1, correction=0), torch.ones(2, 2, dtype=torch.float64), rtol=1e-4, atol=0)


def test_a_fresh_flow_is_the_standardisation():
    data = torch.randn(1, 500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 2
    flow = build(PLAIN, masks=["alternating"], seeds=[0], data=data)
    z, log_det = flow.inverse(data)
    torch.testing.assert_close(z, (data - data.mean(1)) / data.std(1, correction=0))
    torch.testing.assert_close(log_det, -data.std(1, correction=0).log().sum(-1, keepdim=True).expand(1, 500))


def test_without_standardisation_a_fresh_flow_is_the_identity():
    data = points(random_flow(1), 50) * 3 + 2
    flow = build(dataclasses.replace(PLAIN, standardise="none"), masks=["alternating"], seeds=[0], data=data)
    z, log_det = flow.inverse(data)
    torch.testing.assert_close(z, data)
    assert not log_det.any()


def test_a_random_start_draws_the_last_layer_as_the_others():
    data = torch.randn(1, 50, 2, dtype=torch.float64)
    flow = build(dataclasses.replace(PLAIN, init="random"), masks=["half"], seeds=[0], data=data)
    for name, value in flow.learned_layout.views(flow.theta).items():
        if ".net." in name:
            fan_in = {"0": 2}.get(name.split(".")[3], PLAIN.hidden_width)
            assert 0.5 / math.sqrt(fan_in) < value.abs().max() <= 1 / math.sqrt(fan_in), name


def test_a_kaiming_start_keeps_the_size_of_what_passes_through_hidden_layers():
    arch = dataclasses.replace(PLAIN, init="kaiming", n_flows=1, hidden_depth=4, hidden_width=400)
    p = build(arch, masks=["fixed"], seeds=[0], data=torch.randn(1, 50, 2, dtype=torch.float64)).tensors()
    x = torch.randn(200, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).relu()
    squares = [x.square().mean().item()]
    for i in (1, 2, 3):
        x = (x @ p[f"coupling.0.net.{i}.weight"][0, 0]).relu()
        squares.append(x.square().mean().item())
    assert all(0.7 < square / squares[0] < 1.4 for square in squares), squares
    random = build(
        dataclasses.replace(arch, init="random"), masks=["fixed"], seeds=[0], data=torch.randn(1, 50, 2).double()
    ).tensors()
    for name in ("coupling.0.net.0.weight", "coupling.0.net.4.weight", "coupling.0.net.2.bias"):
        torch.testing.assert_close(p[name], random[name], rtol=0, atol=0)


@pytest.mark.parametrize("dim, activation, slope", [(2, "relu", 1), (2, "silu", 3), (6, "relu", 1)])
def test_a_spread_start_bends_all_over_the_data(dim, activation, slope):
    data = torch.randn(1, 50, dim, dtype=torch.float64)
    arch = dataclasses.replace(PLAIN, init="spread", hidden_width=500, activation=activation)
    p = build(arch, masks=["alternating"], seeds=[0], data=data).tensors()
    passed = p["coupling.1.mask"][0, 0].bool()
    w, b = p["coupling.1.net.0.weight"][0][:, passed], p["coupling.1.net.0.bias"][0]  # (G, d, H), (G, 1, H)
    largest = slope / math.sqrt(passed.sum())
    assert 0.95 * largest < w.abs().max() <= largest
    bends = -b / w  # of one passing coordinate; of more, as if the others were 0
    assert passed.sum() > 1 or (bends.abs().max() <= 2.5 and abs(bends.std() - 2.5 / math.sqrt(3)) < 0.1)
    assert abs(b.std() - w.std() * 2.5 / math.sqrt(3) * math.sqrt(passed.sum())) < 0.1 * b.std()
    assert not p["coupling.1.net.2.weight"].any() and not p["coupling.1.net.2.bias"].any()


def test_a_spread_start_follows_raw_data():
    data = 5 + 10 * torch.randn(1, 400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    arch = dataclasses.replace(PLAIN, init="spread", hidden_width=500)
    raw, scaled = (
        build(dataclasses.replace(arch, standardise=s), masks=["fixed"], seeds=[0], data=data).tensors()
        for s in ("none", "moments")
    )
    x = data[0, :, :1]
    y = (x - x.mean()) / x.std(correction=0)
    first = {
        kind: v @ p["coupling.0.net.0.weight"][0, :, :1] + p["coupling.0.net.0.bias"][0]
        for kind, v, p in (("raw", x, raw), ("scaled", y, scaled))
    }
    torch.testing.assert_close(first["raw"], first["scaled"])


def test_an_unbounded_scale_is_the_output_of_its_network():
    flow = random_flow(1, masks=["half"], scale="exp", n_flows=1)
    x, p = points(flow, 9), flow.tensors()
    mean, sd, mask = p["standardise.mean"], p["standardise.var"].sqrt(), p["coupling.0.mask"][0]
    y = (x[0] - mean[0]) / sd[0]
    h = (y * mask).expand(2, -1, -1)  # both networks
    for i in range(3):
        h = h @ p[f"coupling.0.net.{i}.weight"][0] + p[f"coupling.0.net.{i}.bias"][0]
        h = torch.relu(h) if i < 2 else h
    s, t = h * (1 - mask)
    z, log_det = flow.inverse(x)
    torch.testing.assert_close(z[0], y * s.exp() + t)
    torch.testing.assert_close(log_det[0], s.sum(-1) - sd.log().sum())


def standardised(flow: FlowStack, z: torch.Tensor) -> torch.Tensor:
    """The points of data that standardisation maps to z."""
    p = flow.tensors()
    return z * p["standardise.var"].sqrt() + p["standardise.mean"]


def test_a_tail_bound_makes_a_coupling_affine_beyond_it_and_leaves_it_alone_within():
    free = random_flow(1, masks=["fixed"], n_flows=1)
    bounded = FlowStack(dataclasses.replace(free.flow, tail_bound=3.0), free.dim, free.theta, free.fixed)
    inside = standardised(free, points(free, 50).clamp(-3, 3))
    assert torch.equal(bounded.log_prob(inside), free.log_prob(inside))
    passed = torch.tensor([3.0, 4.0, 400.0], dtype=torch.float64)
    outside = standardised(free, torch.stack([passed, torch.full_like(passed, 0.7)], 1)[None])
    z, log_det = bounded.inverse(outside)
    # what passes is kept, the other is scaled and shifted as at the edge
    torch.testing.assert_close(z[0, :, 0], passed)
    torch.testing.assert_close(z[0, :, 1], z[0, :1, 1].expand(3))
    torch.testing.assert_close(log_det[0], log_det[0, :1].expand(3))
    _, other = free.inverse(outside)
    assert abs(other[0, 2] - other[0, 0]) > 1e-3


def test_a_learned_tail_starts_as_the_identity_and_has_a_closed_form():
    tail = Tail("tail", 1)
    x = torch.linspace(-50, 50, 101, dtype=torch.float64).view(1, 1, -1)
    z, log_det = tail.inverse({"tail.log_power": torch.zeros(1, 1).double()}, x)
    torch.testing.assert_close(z, x)
    torch.testing.assert_close(log_det, torch.zeros_like(log_det))
    z, log_det = tail.inverse({"tail.log_power": torch.full((1, 1), 2.0).double().log()}, x)
    root = torch.sqrt(1 + x.square())
    torch.testing.assert_close(z, 2 * x * root)  # sinh(2 a) = 2 sinh(a) cosh(a)
    torch.testing.assert_close(log_det, (2 * root + 2 * x.square() / root).log()[:, 0])


def test_a_learned_tail_draws_in_what_is_far():
    tail = Tail("tail", 1)
    far = torch.tensor([[[-1e30, 1e30]]])  # its square is beyond float32
    z, log_det = tail.inverse({"tail.log_power": torch.full((1, 1), 0.5).log()}, far)
    torch.testing.assert_close(z, torch.tensor([[[-1e15, 1e15]]]) / math.sqrt(2), rtol=1e-4, atol=0)
    assert log_det.isfinite().all()
    back, _ = tail.forward({"tail.log_power": torch.full((1, 1), 0.5).log()}, z)
    torch.testing.assert_close(back, far, rtol=1e-3, atol=0)


def test_first_nonfinite_names_the_layer():
    flow = random_flow(3, masks=["alternating"] * 3, scale="exp", norm="actnorm")
    names = [layer.name for layer in flow.layers]
    flow.learned_layout.views(flow.theta)["coupling.2.net.2.bias"][0] = 1e300
    flow.learned_layout.views(flow.theta)["norm.1.shift"][2] = math.nan
    found = flow.first_nonfinite(points(flow, 8)).tolist()
    assert found == [names.index("coupling.2"), len(names), names.index("norm.1")]
    assert [flow.layer_name(i) for i in found[::2]] == ["coupling.2", "norm.1"]


def test_state_round_trip_and_its_errors():
    flow = random_flow(3, norm="batchnorm")
    state = flow.state(1)
    again = from_state(flow.flow, flow.dim, state)
    torch.testing.assert_close(again.log_prob(points(flow, 5)[1:2]), flow.log_prob(points(flow, 5))[1:2])
    with pytest.raises(ValueError, match=r"expected coupling\.0\.mask of shape .*; got nothing"):
        from_state(flow.flow, flow.dim, {k: v for k, v in state.items() if k != "coupling.0.mask"})
    with pytest.raises(ValueError, match="unknown one, extra"):
        from_state(flow.flow, flow.dim, state | {"extra": torch.zeros(1)})


def test_n_parameters_counts_what_the_mask_lets_act():
    flow = random_flow(1, n_flows=1, hidden_depth=1, hidden_width=8)
    # two networks 1 → 8 → 1 (25 numbers each) and one log-scale
    assert flow.n_parameters() == [2 * (8 + 8 + 8 + 1) + 1]
    before = flow.log_prob(points(flow, 9))
    grad = torch.autograd.grad(
        flow.with_rows(flow.theta.requires_grad_(), flow.fixed).log_prob(points(flow, 9)).sum(), flow.theta
    )
    assert int((grad[0] != 0).sum()) <= flow.n_parameters()[0] and before.shape == (1, 9)


def compact(flow: FlowStack) -> FlowStack:
    """The same stack of one with networks that read what passes alone: its weights without those of no effect."""
    small = dict(flow.state(0))
    arch = dataclasses.replace(flow.flow, conditioner_input="passed")
    last = flow.flow.hidden_depth
    for i in range(flow.flow.n_flows):
        passed = small[f"coupling.{i}.mask"][0].bool()
        moved = (~passed).repeat(flow.flow.heads // flow.flow.nets)
        small[f"coupling.{i}.net.0.weight"] = small[f"coupling.{i}.net.0.weight"][:, passed]
        small[f"coupling.{i}.net.{last}.weight"] = small[f"coupling.{i}.net.{last}.weight"][..., moved]
        small[f"coupling.{i}.net.{last}.bias"] = small[f"coupling.{i}.net.{last}.bias"][..., moved]
        if f"coupling.{i}.log_scale" in small:
            small[f"coupling.{i}.log_scale"] = small[f"coupling.{i}.log_scale"][:, ~passed]
    return from_state(arch, flow.dim, small)


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("conditioner", ["separate", "shared"])
def test_networks_of_what_passes_say_the_same_with_the_same_weights(dim, mask, conditioner):
    whole = random_flow(1, dim=dim, mask=mask, conditioner=conditioner, norm="batchnorm")
    small = compact(whole)
    x = points(whole, 9)
    torch.testing.assert_close(small.log_prob(x), whole.log_prob(x))
    torch.testing.assert_close(small.forward(x)[0], whole.forward(x)[0])
    assert small.n_parameters() == whole.n_parameters() == [small.theta.shape[1]]


@pytest.mark.parametrize("mask", MASKS)
def test_the_counts_of_what_passes_are_those_of_the_masks(mask):
    for dim, n_flows in itertools.product(range(1, 7), range(1, 6)):
        flow = dataclasses.replace(PLAIN, mask=mask, n_flows=n_flows)
        drawn = draw_mask(mask, n_flows, dim, stream(0, "mask")).sum(1)
        assert list(passed_counts(flow, dim)) == drawn.tolist()


def linear(weight, bias, like: nn.Linear) -> nn.Linear:
    like.weight.data, like.bias.data = weight.T.clone(), bias[0].clone()
    return like


@pytest.mark.parametrize("kind", ["learned", "soft"])
def test_log_prob_equals_zuko_with_the_same_weights(kind):
    flow = random_flow(1, masks=["alternating"], conditioner="shared", n_flows=3, scale=kind).member(0)
    p = {k: v[0] for k, v in flow.tensors().items()}

    def bounded(scale):
        def univariate(raw_s, t) -> TorchTransform:
            return AffineTransform(t, torch.exp(scale * torch.tanh(raw_s)))

        return univariate

    mean, sd, transforms = p["standardise.mean"][0], p["standardise.var"][0].sqrt(), []
    for i in range(3):
        passed = p[f"coupling.{i}.mask"][0].bool()
        free = int(torch.nonzero(~passed))
        if kind == "soft":
            univariate = lambda raw_s, t: zuko.transforms.MonotonicAffineTransform(t, raw_s)  # noqa: E731
        else:
            univariate = bounded(p[f"coupling.{i}.log_scale"][0, free].exp())
        t = zuko.flows.GeneralCouplingTransform(2, mask=passed, univariate=univariate, hidden_features=(8, 8))
        t.double()
        layers = [m for m in t.hyper if hasattr(m, "weight")]
        weights = [(p[f"coupling.{i}.net.{k}.weight"][0], p[f"coupling.{i}.net.{k}.bias"][0]) for k in range(3)]
        linear(weights[0][0][passed], weights[0][1], layers[0])
        linear(*weights[1], layers[1])
        heads = [free, 2 + free]  # our heads: s of both coordinates, then t of both
        linear(weights[2][0][:, heads], weights[2][1][:, heads], layers[2])
        transforms.append(t)
    base = zuko.lazy.UnconditionalDistribution(
        lambda loc, sd: Independent(Normal(loc, sd), 1),
        torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), buffer=True,
    )  # fmt: skip
    x = points(flow, 50)
    with torch.no_grad():
        z = (x[0] - mean) / sd
        other = zuko.lazy.Flow(transforms, base)().log_prob(z) - sd.log().sum()
        torch.testing.assert_close(flow.log_prob(x)[0], other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_plain_module_says_the_same(changes):
    flow = random_flow(1, **changes).member(0)
    plain = to_torch(flow)
    x = points(flow, 20)
    z, log_det = plain.inverse(x[0])
    torch.testing.assert_close(plain.log_prob(x[0]), flow.log_prob(x)[0])
    torch.testing.assert_close(z, flow.inverse(x)[0][0])
    back, log_det_back = plain(z)
    torch.testing.assert_close(back, x[0], rtol=0, atol=1e-7)
    torch.testing.assert_close(log_det_back, -log_det)
    assert plain.log_prob(x.reshape(4, 5, -1)).shape == (4, 5)  # any batch shape
    assert plain.sample(3).shape == (3, flow.dim)
    used = sum(isinstance(part, nn.Linear) for part in plain.modules())
    assert used == flow.flow.n_flows * flow.flow.nets * (flow.flow.hidden_depth + 1)


def test_a_plain_module_learns_and_is_stored(tmp_path):
    flow = random_flow(1).member(0)
    plain = to_torch(flow)
    before = flow.log_prob(points(flow, 5))[0]
    plain.log_prob(points(flow, 5)[0]).mean().backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())
    torch.save(plain.state_dict(), tmp_path / "weights.pt")
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(flow.log_prob(points(flow, 5))[0], before)  # its weights are its own
    plain.load_state_dict(torch.load(tmp_path / "weights.pt"))
    torch.testing.assert_close(plain.log_prob(points(flow, 5)[0]), before)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_zuko_says_the_same(changes):
    flow = random_flow(1, **changes).member(0)
    has_no_part = flow.flow.tail == "learned" or flow.dim == 1 or flow.flow.base not in ("normal", "laplace")
    if has_no_part:
        with pytest.raises(ValueError, match=r"flow\.(tail|base|mask): expected .* for zuko"):
            to_zuko(flow)
        return
    x = points(flow, 20)
    state = torch.get_rng_state()
    other = to_zuko(flow)
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(other().log_prob(x[0]), flow.log_prob(x)[0])
    assert other().sample((3,)).shape == (3, flow.dim)


def test_log_prob_equals_normflows_with_the_same_weights():
    flow = random_flow(1, masks=["alternating"], n_flows=4).member(0)
    p = {k: v[0] for k, v in flow.tensors().items()}

    class Net(nn.Module):
        def __init__(self, i: int, g: int, scale: torch.Tensor | None):
            super().__init__()
            sizes = [(2, 8), (8, 8), (8, 2)]
            weights = [(p[f"coupling.{i}.net.{k}.weight"][g], p[f"coupling.{i}.net.{k}.bias"][g]) for k in range(3)]
            layers = [linear(*w, nn.Linear(*s).double()) for w, s in zip(weights, sizes, strict=True)]
            self.net, self.scale = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]), scale

        def forward(self, x):
            out = self.net(x)
            return out if self.scale is None else self.scale * torch.tanh(out)

    x = points(flow, 50)
    z = (x[0] - p["standardise.mean"][0]) / p["standardise.var"][0].sqrt()
    total = -0.5 * p["standardise.var"][0].log().sum()
    with torch.no_grad():
        for i in range(4):
            scale = p[f"coupling.{i}.log_scale"][0].exp()
            layer = normflows.flows.MaskedAffineFlow(p[f"coupling.{i}.mask"][0], t=Net(i, 1, None), s=Net(i, 0, scale))
            z, log_det = layer(z)
            total = total + log_det
        other = normflows.distributions.DiagGaussian(2, trainable=False).double().log_prob(z) + total
        torch.testing.assert_close(flow.log_prob(x)[0], other, rtol=0, atol=1e-9)


def test_closed_form_of_a_constant_coupling():
    """With s and t constant, the flow is an affine map of a Gaussian."""
    flow = random_flow(1, n_flows=1, hidden_depth=1, masks=["fixed"])
    v, f = flow.learned_layout.views(flow.theta), flow.fixed_layout.views(flow.fixed)
    for value in v.values():
        value.zero_()
    v["coupling.0.net.1.bias"][0, 0, 0, 1] = 0.7  # s = exp(0) tanh(0.7)
    v["coupling.0.net.1.bias"][0, 1, 0, 1] = -0.4  # t
    f["standardise.mean"].zero_(), f["standardise.var"].fill_(1.0)
    s, t = math.tanh(0.7), -0.4
    law = Normal(torch.tensor([0.0, -t * math.exp(-s)]).double(), torch.tensor([1.0, math.exp(-s)]).double())
    x = points(flow, 20)
    torch.testing.assert_close(flow.log_prob(x)[0], law.log_prob(x[0]).sum(-1))
