"""Oracles of image flows: autodiff, index tables, closed forms, sums over all images, the member alone."""

import dataclasses
import itertools
import math

import pytest
import torch

from nfexp.batches import shifted, within_cells
from nfexp.flows.bases import base_log_prob
from nfexp.flows.image.couplings import ChannelCoupling, checkerboard
from nfexp.flows.image.plan import Image, factored_out, stages
from nfexp.flows.image.shapes import CORNERS, squeeze, unsqueeze
from nfexp.flows.layers import Batch
from nfexp.flows.stack import FlowStack, build, from_state, initialise_actnorm
from nfexp.spec import Flow

PLAIN = Flow(
    members=1,
    weights="equal",
    n_flows=1,
    hidden_depth=1,
    hidden_width=4,
    activation="silu",
    mask="both",
    coupling="affine",
    conditioner="shared",
    conditioner_input="masked",
    scale="learned",
    init="identity",
    standardise="moments",
    norm="none",
    norm_every=1,
    base="normal",
    tail_bound=None,
    tail="none",
    kind="image",
    scales=2,
    alpha=0.05,
    dequantisation="uniform",
    mixing="none",
    net_norm="none",
)
VARIANTS = {
    "plain": {},
    "one scale": {"scales": 1},
    "checkerboard": {"mask": "checkerboard"},
    "channel": {"mask": "channel"},
    "channel, one scale": {"mask": "channel", "scales": 1},
    "additive": {"coupling": "additive"},
    "actnorm, mixing": {"norm": "actnorm", "mixing": "conv"},
    "batchnorm": {"norm": "batchnorm"},
    "table": {"dequantisation": "table"},
    "net": {"dequantisation": "net"},
    "weight norm": {"net_norm": "weight"},
    "batch norm in networks": {"net_norm": "batch", "dequantisation": "net"},
    "actnorm in networks": {"net_norm": "act", "scale": "soft"},
    "two colours": {"channels": 2, "mixing": "conv", "norm": "actnorm", "norm_every": 2},
    "three colours, channel, one scale": {"channels": 3, "mask": "channel", "scales": 1},
    "not standardised, logistic": {"standardise": "none", "base": "logistic", "activation": "elu"},
    "marginals": {"standardise": "marginals"},
    "marginals, net": {"standardise": "marginals", "dequantisation": "net"},
    "marginals, table, two colours": {"standardise": "marginals", "dequantisation": "table", "channels": 2},
}
LEVELS = 3


def random_flow(n_members=2, *, channels=1, side=4, seed=0, levels=LEVELS, **changes) -> FlowStack:
    """A float64 stack whose every number is away from its initial value."""
    image = Image(channels, side, side, levels)
    g = torch.Generator().manual_seed(seed)
    data = levels * torch.rand(n_members, 50, image.dim, generator=g, dtype=torch.float64)
    flow = build(
        dataclasses.replace(PLAIN, **changes),
        masks=["both"] * n_members,
        seeds=[seed + e for e in range(n_members)],
        data=data,
        image=image,
    )
    flow.theta.add_(0.2 * torch.randn(flow.theta.shape, generator=g, dtype=torch.float64))
    for name, value in flow.fixed_layout.views(flow.fixed).items():
        if "norm" in name:
            value.add_(torch.rand(value.shape, generator=g, dtype=torch.float64))
    return flow


def points(flow: FlowStack, n: int, seed: int = 1) -> torch.Tensor:
    """Points in cells, away from their edges."""
    g = torch.Generator().manual_seed(seed)
    shape = (flow.n_members, n, flow.dim)
    level = torch.randint(flow.image.levels, shape, generator=g)
    return level + 0.05 + 0.9 * torch.rand(shape, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_log_det_equals_autodiff(changes):
    flow = random_flow(2, **changes)
    x = points(flow, 2)
    p = flow._blocks()
    for layer in flow.layers:
        z, log_det = layer.inverse(p, x)
        back, log_det_back = layer.forward(p, z)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
        torch.testing.assert_close(log_det + log_det_back, torch.zeros_like(log_det), rtol=0, atol=1e-8)
        log_det = log_det.expand(2, 2)
        for e, n in ((0, 0), (1, 1)):

            def one(point, e=e, n=n, layer=layer, x=x):
                moved = x.clone()
                moved[e, n] = point
                return layer.inverse(p, moved)[0][e, n]

            jacobian = torch.autograd.functional.jacobian(one, x[e, n])
            expected = torch.linalg.slogdet(jacobian).logabsdet.item()
            assert expected == pytest.approx(log_det[e, n].item(), abs=1e-9), layer.name
        x = z.detach()


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_whole_network_equals_autodiff_and_comes_back(changes):
    flow = random_flow(2, **changes)
    x = points(flow, 4)
    z, log_det = flow.inverse(x)
    back, log_det_back = flow.forward(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-8)
    torch.testing.assert_close(log_det + log_det_back, torch.zeros_like(log_det), rtol=0, atol=1e-8)

    def one(point):
        moved = x.clone()
        moved[1, 2] = point
        return flow.inverse(moved)[0][1, 2]

    jacobian = torch.autograd.functional.jacobian(one, x[1, 2])
    assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(log_det[1, 2].item(), abs=1e-8)
    frames = flow.walk(z)
    assert [frames[0][0], frames[-1][0]] == ["base", "data"] and len(frames) == len(flow.layers) + 1


GRADIENTS = {
    "affine, actnorm, table": {"norm": "actnorm", "dequantisation": "table"},
    "batch norms, net, mixing": {
        "norm": "batchnorm",
        "net_norm": "batch",
        "dequantisation": "net",
        "mixing": "conv",
    },
    "additive, weight norm": {"coupling": "additive", "net_norm": "weight"},
}


@pytest.mark.parametrize("changes", GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_equal_finite_differences(changes):
    flow = random_flow(2, side=2, scales=1, hidden_width=2, hidden_depth=1, **changes)
    x = points(flow, 3)
    batch = Batch() if flow.flow.norm == "batchnorm" else None
    log_prob = lambda theta: flow.with_rows(theta, flow.fixed).log_prob(x, batch=batch)  # noqa: E731
    assert torch.autograd.gradcheck(log_prob, (flow.theta.requires_grad_(),), fast_mode=True)


def test_squeeze_by_an_index_table():
    channels, height, width = 2, 4, 6
    x = torch.arange(channels * height * width).reshape(channels, height, width)
    small = squeeze(x)
    assert small.shape == (8, 2, 3)
    for c, h, w in itertools.product(range(channels), range(height), range(width)):
        corner = CORNERS.index((h % 2, w % 2))
        assert small[4 * c + corner, h // 2, w // 2] == x[c, h, w]
    assert torch.equal(unsqueeze(small), x)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_factored_out_by_an_index_table(channels):
    """Couplings that do nothing leave the pixels themselves: the table says which number of the base is which."""
    flow = random_flow(1, channels=channels, scales=3, side=8, standardise="none")
    shapes = [layer for layer in flow.layers if layer.name.startswith(("squeeze", "reorder"))]
    x = torch.arange(float(flow.dim))[None, None]
    z = x
    for layer in shapes:
        z, _ = layer.inverse({}, z)
    z = z[0, 0].tolist()

    def expected(pixels):
        """What a scale makes of a (C, H, W) table of pixels: what stays active and what is factored out."""
        n, height, width = len(pixels), len(pixels[0]), len(pixels[0][0])
        halves = {0: [], 1: []}
        for corners, half in ((((0, 0), (1, 1)), 0), (((0, 1), (1, 0)), 1)):
            for i, j in corners:
                for c in range(n):
                    part = [[pixels[c][2 * h + i][2 * w + j] for w in range(width // 2)] for h in range(height // 2)]
                    halves[half].append(part)
        return halves[0], halves[1]

    table = x.view(channels, 8, 8).tolist()
    active, first = expected(table)
    active, second = expected(active)
    flat = lambda part: [number for plane in part for row in plane for number in row]  # noqa: E731
    assert z == flat(active) + flat(second) + flat(first)
    assert factored_out(flow.flow, flow.image.shape) == [len(flat(first)), len(flat(second)), len(flat(active))]


def test_the_pixels_of_a_first_factoring_out_are_a_checkerboard():
    flow = random_flow(1, standardise="none")
    shapes = [layer for layer in flow.layers if layer.name.startswith(("squeeze", "reorder"))]
    x = torch.arange(16.0)[None, None]
    for layer in shapes:
        x, _ = layer.inverse({}, x)
    stays = torch.zeros(16)
    stays[x[0, 0, :8].long()] = 1
    assert torch.equal(stays.view(4, 4), checkerboard(4, 4, 0))


MASKED = {
    "checkerboard": {"mask": "checkerboard", "scales": 1},
    "channel": {"mask": "channel", "scales": 1, "channels": 3},
    "one channel": {"mask": "channel", "scales": 1},
}


@pytest.mark.parametrize("changes", MASKED.values(), ids=MASKED)
def test_what_moves_depends_on_what_passes_alone(changes):
    flow = random_flow(1, n_flows=2, **changes)
    p = flow._blocks()
    couplings = [layer for layer in flow.layers if layer.name.startswith("coupling")]
    assert len(couplings) == 3
    for layer in couplings:
        x = torch.randn(1, 1, flow.dim, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda x, a=layer: a.inverse(p, x)[0], x)[0, 0, :, 0, 0]
        passes = torch.eye(flow.dim).eq(jacobian).all(1)
        channels, height, width = layer.shape
        if isinstance(layer, ChannelCoupling):
            channel = torch.arange(channels)[:, None, None].expand(layer.shape)
            first = channel < channels - channels // 2
            expected = first if layer.stage.parity == 0 else ~first
        else:
            expected = checkerboard(height, width, layer.stage.parity).bool().expand(layer.shape)
        assert torch.equal(passes, expected.flatten())
        off_diagonal = jacobian - jacobian.diag().diag()
        assert not off_diagonal[:, ~passes].any()


def test_the_identity_has_the_logistic_density_of_its_logit():
    flow = build(
        dataclasses.replace(PLAIN, standardise="none", base="logistic", dequantisation="net"),
        masks=["both"],
        seeds=[0],
        data=LEVELS * torch.rand(1, 9, 16, dtype=torch.float64),
        image=Image(1, 4, 4, LEVELS),
    )
    x = points(flow, 5)
    # y = α + (1 − 2α) v / L is uniform where its logit is logistic: the density of v is a constant.
    density = 16 * math.log((1 - 2 * 0.05) / LEVELS)
    torch.testing.assert_close(flow.log_prob(x), torch.full((1, 5), density, dtype=torch.float64))


@pytest.mark.parametrize("levels", [2, 17, 32, 256])
def test_bits_per_dimension_count_levels_whatever_their_number(levels):
    """The identity with a logistic base is uniform over (1 − 2α)⁻¹ times the range of the levels."""
    image = Image(3, 4, 4, levels)
    flow = build(
        dataclasses.replace(PLAIN, standardise="none", base="logistic"),
        masks=["both"],
        seeds=[0],
        data=levels * torch.rand(1, 9, image.dim, dtype=torch.float64),
        image=image,
    )
    bits = -flow.log_prob(points(flow, 3)) / (image.dim * math.log(2))
    torch.testing.assert_close(bits, torch.full_like(bits, math.log2(levels / 0.9)))


def of_counts(dtype=torch.float64) -> tuple[FlowStack, torch.Tensor]:
    """The identity after the marginals of 200 images whose pixels have lopsided levels, and these images."""
    g = torch.Generator().manual_seed(0)
    levels = (17 * torch.rand(200, 16, generator=g, dtype=torch.float64) ** 3).floor()
    levels[:, 0] = 0  # a pixel that is never set
    data = (levels + 0.5)[None].to(dtype)
    flow = dataclasses.replace(PLAIN, standardise="marginals")
    return build(flow, masks=["both"], seeds=[0], data=data, image=Image(1, 4, 4, 17)), levels


def test_the_identity_after_the_marginals_is_a_histogram_of_each_pixel():
    flow, levels = of_counts()
    log_q = flow.log_prob((levels + 0.3)[None])[0]
    for n in range(5):
        expected = 0.0
        for pixel in range(16):
            count = (levels[:, pixel] == levels[n, pixel]).sum().item()
            expected += math.log((count + 1 / 17) / 201)
        assert log_q[n].item() == pytest.approx(expected, abs=1e-9)
    outside = torch.full((1, 2, 16), 3.5, dtype=torch.float64)
    outside[0, 0, 3] = -0.01
    outside[0, 1, 4] = 17.0
    assert flow.log_prob(outside).tolist() == [[-math.inf, -math.inf]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_marginals_hold_to_the_edges_of_their_cells(dtype):
    flow, _ = of_counts(dtype)
    layer = flow.layers[1]
    p = flow._blocks()
    inside = torch.tensor([0.0, 1e-6, 0.5, 1 - 1e-6])
    x = (torch.arange(17.0)[:, None] + inside).to(dtype).reshape(1, -1, 1).expand(1, -1, 16).contiguous()
    z, log_det = layer.inverse(p, x)
    back, log_det_back = layer.forward(p, z)
    assert z.isfinite().all() and (z.diff(dim=1) >= 0).all()
    near = 1e-3 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(back, x.clamp(torch.finfo(dtype).eps * 17), rtol=0, atol=near)
    # What lies at an edge is carried by a rounding to the next cell, of another slope: the middles alone.
    both = (log_det + log_det_back)[:, 2::4]
    torch.testing.assert_close(both, torch.zeros_like(both), rtol=0, atol=16 * near)


@pytest.mark.parametrize("dequantisation", ["uniform", "table", "net"])
@pytest.mark.parametrize("standardise", ["moments", "marginals"])
def test_samples_of_far_base_points_are_levels_all_the_same(dequantisation, standardise):
    flow = random_flow(1, dequantisation=dequantisation, standardise=standardise, levels=17, scale="tanh")
    z = 30 * torch.randn(1, 50, flow.dim, dtype=torch.float64)
    x = flow.as_levels(flow.forward(z)[0])
    assert torch.equal(x, x.round()) and x.min() >= 0 and x.max() <= 16


@pytest.mark.parametrize("dequantisation", ["uniform", "table", "net"])
def test_a_cell_is_mapped_onto_itself(dequantisation):
    flow = random_flow(1, dequantisation=dequantisation)
    first = flow.layers[0]
    p = flow._blocks()
    x = points(flow, 200)
    moved, _ = first.inverse(p, x)
    assert torch.equal(moved.floor(), x.floor())
    outside = torch.tensor([-0.5, LEVELS + 0.5], dtype=torch.float64)[:, None].expand(1, 2, 16)
    assert torch.equal(first.forward(p, outside.contiguous())[0], outside)


@pytest.mark.parametrize("standardise", ["moments", "marginals"])
@pytest.mark.parametrize("dequantisation", ["uniform", "table", "net"])
def test_the_bound_over_all_images_sums_to_at_most_one(dequantisation, standardise):
    """All 81 images of 2 x 2 pixels with 3 levels: the bound is below log P, and importance weighting nears it."""
    changes = {"dequantisation": dequantisation, "standardise": standardise, "scale": "tanh"}
    flow = random_flow(1, side=2, scales=1, n_flows=1, **changes)
    levels = torch.tensor(list(itertools.product(range(LEVELS), repeat=4)), dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    places = within_cells((2000, *levels.shape), LEVELS, g)
    log_q = flow.log_prob((levels + places).flatten(0, 1)[None]).view(len(places), -1)
    bound = log_q.mean(0).exp().sum().item()
    weighted = (log_q.logsumexp(0) - math.log(len(log_q))).exp().sum().item()
    z = torch.randn(1, 5000, 4, generator=g, dtype=torch.float64)
    x = flow.forward(z)[0]
    inside = ((x >= 0) & (x < LEVELS)).all(-1).double().mean().item()  # the mass of all images
    se = (log_q.exp().sum(1).std() / math.sqrt(len(log_q))).item()
    assert bound < weighted <= 1 + 3 * se
    assert se < 0.008 and weighted == pytest.approx(inside, abs=3 * se + 0.015)


def trained_pieces(flow: FlowStack, x: torch.Tensor, *, dropout=0.0) -> list[torch.Tensor]:
    """Loss and gradient of a batch, log-densities, running statistics and samples, each with a row per member."""
    theta = flow.theta.detach().requires_grad_()
    generators = [torch.Generator().manual_seed(e) for e in range(flow.n_members)]
    batch = Batch(dropout=dropout, generators=generators)
    loss = -flow.with_rows(theta, flow.fixed).log_prob(x, batch=batch).mean(1)
    (grad,) = torch.autograd.grad(loss.sum(), theta)
    z, _ = flow.inverse(x)
    stored = [batch.updates[name] for name in sorted(batch.updates)]
    return [loss.detach(), grad, flow.log_prob(x).detach(), z.detach(), flow.forward(z)[0].detach(), *stored]


STACKED = {
    "plain": {},
    "actnorm, table, mixing": {"norm": "actnorm", "dequantisation": "table", "mixing": "conv"},
    "batch norms, net": {"norm": "batchnorm", "net_norm": "batch", "dequantisation": "net"},
    "marginals, net": {"standardise": "marginals", "dequantisation": "net"},
    "additive, weight norm, odd width": {"coupling": "additive", "net_norm": "weight", "hidden_width": 20},
    "actnorm in networks, colours": {"net_norm": "act", "channels": 3, "mask": "channel"},
}


@pytest.mark.parametrize("changes", STACKED.values(), ids=STACKED)
def test_a_member_has_the_bits_of_its_run_alone(changes):
    flow = random_flow(3, side=8, levels=17, n_flows=2, **({"hidden_width": 16} | changes)).to("cpu", torch.float32)
    x = points(flow, 12).float()
    initialise_actnorm(flow, x)
    together = trained_pieces(flow, x, dropout=0.3)
    for e in (0, 2):
        own = flow.member(e)
        generators = [torch.Generator().manual_seed(e)]
        theta = own.theta.detach().clone().requires_grad_()
        batch = Batch(dropout=0.3, generators=generators)
        loss = -own.with_rows(theta, own.fixed).log_prob(x[e : e + 1], batch=batch).mean(1)
        (grad,) = torch.autograd.grad(loss.sum(), theta)
        z, _ = own.inverse(x[e : e + 1])
        stored = [batch.updates[name] for name in sorted(batch.updates)]
        alone = [loss.detach(), grad, own.log_prob(x[e : e + 1]), z, own.forward(z)[0], *stored]
        for a, b in zip(together, alone, strict=True):
            if changes.get("channels") == 3:  # six channels are padded to 16, and sums may be blocked otherwise
                torch.testing.assert_close(a[e : e + 1], b, rtol=1e-5, atol=1e-5)
            else:
                assert torch.equal(a[e : e + 1], b)


def test_actnorm_sets_itself_by_the_first_batch():
    flow = random_flow(2, norm="actnorm", net_norm="act")
    x = points(flow, 100)
    initialise_actnorm(flow, x)
    p = flow._blocks()
    for layer in flow.layers:
        x, _ = layer.inverse(p, x)
        if layer.name.startswith("norm"):
            active = x[..., : layer.n_active].unflatten(-1, layer.shape)
            torch.testing.assert_close(active.mean((1, 3, 4)), torch.zeros(2, layer.shape[0], dtype=x.dtype))
            std = active.std((1, 3, 4), correction=0)
            torch.testing.assert_close(std, torch.ones_like(std), rtol=1e-3, atol=0)


def test_weights_come_back_from_a_state():
    flow = random_flow(2, dequantisation="net", norm="batchnorm", net_norm="weight")
    other = from_state(flow.flow, flow.dim, flow.state(1), flow.image)
    x = points(flow, 3)
    assert torch.equal(other.log_prob(x[1:]), flow.log_prob(x)[1:])


def test_samples_are_whole_levels():
    flow = random_flow(1, levels=17)
    samples = flow.sample(50, [torch.Generator().manual_seed(0)])
    assert torch.equal(samples, samples.round()) and samples.min() >= 0 and samples.max() <= 16


@pytest.mark.parametrize("changes", [{}, {"mixing": "conv", "net_norm": "weight", "dequantisation": "net"}])
def test_no_images_have_no_density(changes):
    flow = random_flow(1, **changes)
    none = points(flow, 2)[:, :0]
    assert flow.log_prob(none).shape == (1, 0)
    assert flow.sample(0, [torch.Generator()]).shape == none.shape


def test_the_dequantised_never_reach_the_next_level():
    places = within_cells((100_000,), 65_536, torch.Generator().manual_seed(0))
    points = (65_535 + places).float()
    assert points.min() >= 65_535 and points.max() < 65_536
    fine = within_cells((100_000,), 17, torch.Generator().manual_seed(0))
    assert fine.mean().item() == pytest.approx(0.5, abs=0.005) and fine.min() > 0 and fine.max() < 1


def test_a_shift_loses_no_pixel():
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 3, (500, 2, 5, 5), generator=g).double() * (torch.rand(500, 1, 5, 5, generator=g) < 0.1)
    moved = shifted(images, 1.0, g)
    assert torch.equal(moved.flatten(2).sort(-1).values, images.flatten(2).sort(-1).values)
    changed = (moved != images).flatten(1).any(1)
    assert 0.3 < changed.double().mean() < 1.0
    assert torch.equal(shifted(images, 0.0, g), images)


def test_stages_of_the_paper():
    """Dinh et al. 2017, sec. 4.1: three checkerboards, squeeze, three channel masks; four checkerboards at the end."""
    flow = dataclasses.replace(PLAIN, n_flows=3, scales=2)
    kinds = [(stage.kind, stage.shape) for stage in stages(flow, (3, 32, 32))]
    expected = [("checkerboard", (3, 32, 32))] * 3 + [("squeeze", (3, 32, 32))] + [("channel", (12, 16, 16))] * 3
    expected += [("reorder", (12, 16, 16))] + [("checkerboard", (6, 16, 16))] * 4
    assert kinds == expected


def test_the_base_of_a_scale_is_independent_of_the_picture():
    """What is factored out is drawn with the rest: the density of a base point is that of its D numbers."""
    flow = random_flow(1)
    z = torch.randn(1, 6, flow.dim, dtype=torch.float64)
    x, log_det = flow.forward(z)
    assert torch.allclose(flow.log_prob(x), base_log_prob("normal", z) - log_det)
