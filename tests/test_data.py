"""The targets against oracles that share nothing with them: brute force, scikit-learn, sums on a lattice."""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from scipy import stats
from scipy.special import logsumexp
from sklearn.datasets import make_circles, make_moons

from nfexp.configuration import conf_dir
from nfexp.data import densities, mixtures
from nfexp.data.densities import TARGET_NAMES, make_target
from nfexp.data.own import OwnTarget, check_target
from nfexp.spec import PARAMETERS

DEFAULT_NOISE = {
    "moons": 0.05,
    "circles": 0.05,
    "spiral2": 1.0,
    "spiral4": 1.0,
    "banana": 0.1,
    "gaussians8": 0.5,
    "pinwheel": 0.05,
    "checkerboard": 0.1,
    "text": 0.05,
}
CASES = {
    f"{name}-{size}": (name, noise)
    for name, default in DEFAULT_NOISE.items()
    for size, noise in {"small": 0.005, "default": default, "large": 5 * default}.items()
}
NOT_SMALL = {key: case for key, case in CASES.items() if not key.endswith("small")}
DEFAULTS = {key: case for key, case in CASES.items() if key.endswith("default")}


def cases(table):
    return pytest.mark.parametrize("name, noise", table.values(), ids=table.keys())


def target_of(name, noise, text="SIGGRAPH"):
    return make_target(name, noise=noise, text=text if name == "text" else None)


def draws(target, n, seed=0):
    return target.sample(n, torch.Generator().manual_seed(seed))


# -- against brute force


def isotropic(x, atoms, s, log_weight=None):
    """log of the weighted mean over atoms of N(x; atom, s² I)."""
    square = (x[0] - atoms[..., 0]) ** 2 + (x[1] - atoms[..., 1]) ** 2
    terms = -square.ravel() / (2 * s**2)
    if log_weight is None:
        return logsumexp(terms) - np.log(terms.size) - np.log(2 * np.pi * s**2)
    return logsumexp(terms + log_weight.ravel()) - logsumexp(log_weight) - np.log(2 * np.pi * s**2)


def midpoints(n):
    return (np.arange(n) + 0.5) / n


def circle(t):
    return np.stack([np.cos(t), np.sin(t)], -1)


def oracle_moons(x, s):
    t = np.pi * midpoints(400_000)
    lower = np.stack([1 - np.cos(t), 0.5 - np.sin(t)], -1)
    return isotropic(x, np.stack([circle(t), lower]), s)


def oracle_circles(x, s):
    ring = circle(2 * np.pi * midpoints(200_000))
    return isotropic(x, np.stack([ring, 0.8 * ring]), s)


def oracle_spiral(turns):
    def oracle(x, s):
        # uniform in v = √u, of density 2 v, so that the midpoint rule sees no square root
        v = midpoints(1_000_000)
        t = 2 * np.pi * turns * v
        return isotropic(x, (2 * t + np.pi)[:, None] * circle(t), s, np.log(v))

    return oracle


def oracle_banana(x, s):
    # over the noise e in x₂ instead of over z
    e, step = np.linspace(-12, 12, 200_001, retstep=True)
    z = x[1] - s * e
    terms = stats.norm.logpdf(e) + stats.norm.logpdf(z, 0, 4)
    terms += stats.norm.logpdf(x[0], z**2 / 4, np.sqrt(1 + s**2))
    return logsumexp(terms) + np.log(step)


def oracle_gaussians8(x, s):
    centres = [(4 * np.cos(k * np.pi / 4), 4 * np.sin(k * np.pi / 4)) for k in range(8)]
    return np.log(np.mean([stats.multivariate_normal(c, s**2).pdf(x) for c in centres]))


def oracle_pinwheel(x, s):
    if s < 0.02:  # two dimensions would take too long: given ρ, Gaussian in the frame of the arm
        rho = np.linspace(-0.8, 2.8, 400_001)
        angle = 2 * np.pi / 5 * np.arange(5)[:, None] + 0.25 * np.exp(rho)
        along = np.cos(angle) * x[0] + np.sin(angle) * x[1] - 2 * rho
        normal = -np.sin(angle) * x[0] + np.cos(angle) * x[1]
        terms = stats.norm.logpdf(along, 0, s) + stats.norm.logpdf(normal, 0, np.sqrt(0.04 + s**2))
        terms += stats.norm.logpdf(rho, 1, 0.3)
        return logsumexp(terms) + np.log((rho[1] - rho[0]) / 5)
    rho, tau = np.linspace(-0.8, 2.8, 1601)[:, None], np.linspace(-0.65, 0.65, 161)
    rows = []
    for k in range(5):
        angle = 2 * np.pi / 5 * k + 0.25 * np.exp(rho)
        first = 2 * (np.cos(angle) * rho - np.sin(angle) * tau)
        rows.append(np.stack([first, 2 * (np.sin(angle) * rho + np.cos(angle) * tau)], -1))
    log_weight = stats.norm.logpdf(rho, 1, 0.3) + stats.norm.logpdf(tau, 0, 0.1)
    return isotropic(x, np.stack(rows), s, np.stack([log_weight] * 5))


def log_interval(x, a, b, s):
    y = a + (b - a) * midpoints(20_000)
    return logsumexp(stats.norm.logpdf(x, y, s)) + np.log((b - a) / 20_000)


def oracle_checkerboard(x, s):
    squares = [(2 * i - 4, 2 * j - 4) for i in range(4) for j in range(4) if (i + j) % 2 == 0]
    terms = [log_interval(x[0], i, i + 2, s) + log_interval(x[1], j, j + 2, s) for i, j in squares]
    return logsumexp(terms) - np.log(32)


def oracle_text(x, s):
    """A 6 × 6 lattice of atoms in every raster cell: the midpoint rule, with Richardson's step."""
    boxes = target_of("text", s).density.boxes.numpy()

    def lattice(per_side):
        side = 1 / 64 / per_side
        atoms = []
        for x0, x1, y0, y1 in boxes:
            counts = round((x1 - x0) / side), round((y1 - y0) / side)
            mesh = np.meshgrid(x0 + (x1 - x0) * midpoints(counts[0]), y0 + (y1 - y0) * midpoints(counts[1]))
            atoms.append(np.stack(mesh, -1).reshape(-1, 2))
        return isotropic(x, np.concatenate(atoms), s)

    coarse, fine = lattice(3), lattice(6)
    return np.log((4 * np.exp(fine) - np.exp(coarse)) / 3)


ORACLES = {
    "moons": oracle_moons,
    "circles": oracle_circles,
    "spiral2": oracle_spiral(1),
    "spiral4": oracle_spiral(2),
    "banana": oracle_banana,
    "gaussians8": oracle_gaussians8,
    "pinwheel": oracle_pinwheel,
    "checkerboard": oracle_checkerboard,
    "text": oracle_text,
}


# -- parameters


CHANGED = {
    "moons": ("moons", {"shift": 1.2}),
    "circles": ("circles", {"factor": 0.3}),
    "spiral2": ("spiral2", {"turns": 0.7}),
    "spiral4": ("spiral4", {"turns": 2.5}),
    "banana": ("banana", {"bend": 0.4}),
    "banana-straight": ("banana", {"bend": 0.0}),
    "gaussians8": ("gaussians8", {"modes": 3}),
    "pinwheel": ("pinwheel", {"arms": 7}),
    "checkerboard": ("checkerboard", {"squares": 5}),
}


@pytest.mark.parametrize("name, parameters", CHANGED.values(), ids=CHANGED)
def test_a_parameter_changes_draws_and_density_alike(name, parameters):
    """Draws against the density by the test that targets of the user's own take, and by integral and window."""
    noise = 0.3 if name == "pinwheel" else DEFAULT_NOISE[name]  # quicker
    target = make_target(name, noise=noise, **parameters)
    usual = make_target(name, noise=noise)
    check_target(OwnTarget("changed", 2, target))
    assert not torch.equal(draws(target, 50), draws(usual, 50))
    x0, x1, y0, y1 = target.extent()
    x = draws(target, 5000)
    inside = (x[:, 0] > x0) & (x[:, 0] < x1) & (x[:, 1] > y0) & (x[:, 1] < y1)
    assert inside.double().mean() >= 0.999
    if name != "banana":  # its window holds 99.9%, not all
        step = min(target.noise / 1.2, 0.2)
        axes = [torch.arange(low + step / 2, high, step, dtype=torch.float64) for low, high in ((x0, x1), (y0, y1))]
        mass = target.log_prob(torch.cartesian_prod(*axes)).exp().sum() * step**2
        assert mass.item() == pytest.approx(1, abs=1e-3)


def test_every_parameter_is_tried_and_has_a_row():
    tried = {(name, key) for name, parameters in CHANGED.values() for key in parameters}
    assert tried == {(name, key) for name, own in PARAMETERS.items() for key in own}
    for name, key in tried:
        usual = yaml.safe_load((Path(conf_dir()) / "data" / f"{name}.yaml").read_text())[key]
        assert usual == PARAMETERS[name][key].usual, "conf/data and spec.PARAMETERS say the same"
    page = (Path(__file__).parents[1] / "docs" / "own-study.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| `data\.(\w+)` \(", page, re.MULTILINE)
    assert tried == {(name, key) for names, key in documented for name in re.findall(r"\w+", names)}


def test_parameters_equal_brute_force():
    x = torch.tensor([[0.4, 0.3], [-1.1, 0.2]], dtype=torch.float64)
    ring = circle(2 * np.pi * midpoints(200_000))
    rings = make_target("circles", noise=0.1, factor=0.3)
    expected = [isotropic(point, np.stack([ring, 0.3 * ring]), 0.1) for point in x.numpy()]
    np.testing.assert_allclose(rings.log_prob(x).numpy(), expected, atol=1e-6)
    three = make_target("gaussians8", noise=0.5, modes=3)
    centres = [(4 * np.cos(k * 2 * np.pi / 3), 4 * np.sin(k * 2 * np.pi / 3)) for k in range(3)]
    expected = [np.log(np.mean([stats.multivariate_normal(c, 0.25).pdf(point) for c in centres])) for point in x]
    np.testing.assert_allclose(three.log_prob(x).numpy(), expected, atol=1e-9)


BAD_PARAMETERS = {
    "unknown": ("moons", {"factor": 0.5}, "data.factor: expected one of the parameters of moons: shift; got 0.5"),
    "of none": ("text", {"arms": 3}, "data.arms: expected one of the parameters of text: it has none; got 3"),
    "too large": ("circles", {"factor": 1.0}, "data.factor: expected a number > 0 .*; got 1.0"),
    "not whole": ("pinwheel", {"arms": 2.5}, "data.arms: expected an integer >= 1 .*; got 2.5"),
}


@pytest.mark.parametrize("name, parameters, message", BAD_PARAMETERS.values(), ids=BAD_PARAMETERS)
def test_bad_parameters(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        make_target(name, noise=0.1, text="A" if name == "text" else None, **parameters)


def test_every_name_has_a_case():
    assert set(TARGET_NAMES) == set(DEFAULT_NOISE) == set(ORACLES)


def test_every_name_has_a_row_in_the_docstring():
    rows = re.findall(r"^ *\| ([\w, ]+) \|", make_target.__doc__, re.MULTILINE)
    assert {name for row in rows[1:] for name in row.split(", ")} == set(TARGET_NAMES)


@cases({key: case for key, case in CASES.items() if key != "text-small"})
def test_log_prob_equals_brute_force(name, noise):
    target = target_of(name, noise)
    near = draws(target, 3)
    off = torch.tensor([[3.0, 2.0], [-4.5, 0.0], [0.5, 4.0]]) * noise  # up to 4.5 sd, on top of the noise
    x = torch.cat([near, draws(target, 3, seed=1) + off])
    expected = [ORACLES[name](point, noise) for point in x.numpy()]
    np.testing.assert_allclose(target.log_prob(x).numpy(), expected, rtol=0, atol=1e-6)


def test_text_equals_a_product_of_cdfs_at_small_noise():
    target = target_of("text", 0.005)
    x = draws(target, 20)
    a, b, c, d = target.density.boxes.numpy().T
    u, v = x.numpy()[:, :1] / 0.005, x.numpy()[:, 1:] / 0.005
    sides = [stats.norm.cdf(hi / 0.005 - w) - stats.norm.cdf(lo / 0.005 - w) for w, lo, hi in [(u, a, b), (v, c, d)]]
    expected = np.log((sides[0] * sides[1]).sum(1) / ((b - a) * (d - c)).sum())
    np.testing.assert_allclose(target.log_prob(x).numpy(), expected, rtol=0, atol=1e-9)


TAILS = {
    "inside": (0.3, -1.0, 1.0),
    "edge": (1.0, -1.0, 1.0),
    "narrow": (0.5, 0.5, 0.5 + 1e-4),
    "tail": (-4.0, 1.0, 3.0),
    "narrow in the tail": (4.0, 1.0, 1.0 + 1e-3),
}


@pytest.mark.parametrize("x, low, high", TAILS.values(), ids=TAILS.keys())
def test_interval_equals_brute_force(x, low, high):
    sides = torch.tensor([[low, high]], dtype=torch.float64)
    got = mixtures.log_interval(torch.tensor([[x]], dtype=torch.float64), sides, 0.1).item()
    y = low + (high - low) * midpoints(4_000_000)
    expected = logsumexp(-0.5 * ((x - y) / 0.1) ** 2) + np.log((high - low) / 4e6 / (0.1 * np.sqrt(2 * np.pi)))
    assert got == pytest.approx(expected, abs=1e-7)


# -- a density: on a lattice of step ≤ noise the sum of a blurred law equals its integral to 1e-8


@lru_cache
def lattice(name, noise):
    """Points (ny, nx, 2), log p (ny, nx), and the steps, at most the noise (0.4 along banana's x₁)."""
    target = target_of(name, noise)
    x0, x1, y0, y1 = (-6.0 - 5 * noise, 110.0, -20.0, 20.0) if name == "banana" else target.extent()
    fine = min(noise, max(noise / 8, (y1 - y0) / 200))
    step = (0.4 if name == "banana" else fine, fine)
    axes = [
        torch.arange(lo + h / 2, hi, h, dtype=torch.float64) for lo, hi, h in [(x0, x1, step[0]), (y0, y1, step[1])]
    ]
    points = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1)
    log_p = target.log_prob(points.reshape(-1, 2)).reshape(points.shape[:2])
    return points, log_p, step


@cases(NOT_SMALL)
def test_density_integrates_to_one(name, noise):
    _, log_p, step = lattice(name, noise)
    assert log_p.exp().sum().item() * step[0] * step[1] == pytest.approx(1, abs=1e-4)


@cases({key: case for key, case in CASES.items() if key.endswith("small")})
def test_density_integrates_to_one_at_small_noise(name, noise):
    """E_q[p / q] = 1, with q the same target at 1.2 times the noise."""
    p, q = target_of(name, noise), target_of(name, 1.2 * noise)
    x = draws(q, 1500)
    ratio = (p.log_prob(x) - q.log_prob(x)).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 1500**0.5


@cases(NOT_SMALL)
def test_mean_log_prob_of_draws_is_the_entropy(name, noise):
    _, log_p, step = lattice(name, noise)
    entropy = -(log_p.exp() * log_p).sum() * step[0] * step[1]
    values = target_of(name, noise).log_prob(draws(target_of(name, noise), 4000))
    assert abs(-values.mean() - entropy) < 5 * values.std() / 4000**0.5


def chi_square(name, noise, sampled_noise):
    """p-value of the counts of 20,000 draws in blocks of lattice cells, sparse blocks pooled."""
    points, log_p, step = lattice(name, noise)
    n, ny, nx = 20_000, *log_p.shape
    by, bx = -(-ny // 12), -(-nx // 12)
    low = points[0, 0] - torch.tensor(step) / 2
    cell = ((draws(target_of(name, sampled_noise), n) - low) / torch.tensor(step)).floor().long()
    inside = ((cell >= 0) & (cell < torch.tensor([nx, ny]))).all(1)
    width = -(-nx // bx)
    counts = torch.bincount(cell[inside, 1] // by * width + cell[inside, 0] // bx, minlength=width * 12).double()
    block = torch.arange(ny)[:, None] // by * width + torch.arange(nx) // bx
    expected = torch.zeros_like(counts).index_add_(0, block.ravel(), log_p.exp().ravel() * step[0] * step[1] * n)
    dense = expected >= 10
    observed = torch.cat([counts[dense], (n - counts[dense].sum())[None]])
    expected = torch.cat([expected[dense], (n - expected[dense].sum())[None]]).clamp(min=1)
    return stats.chi2.sf(((observed - expected) ** 2 / expected).sum().item(), len(observed) - 1)


@cases(NOT_SMALL)
def test_draws_fill_the_cells_as_the_density_says(name, noise):
    assert chi_square(name, noise, noise) > 1e-3


def test_chi_square_rejects_a_wrong_noise():
    assert chi_square("checkerboard", 0.1, 0.2) < 1e-6


# -- draws


def two_sample(target, x, y):
    """Smallest Kolmogorov-Smirnov p-value over 12 directions, the radius and log p, times their number."""
    angle = np.pi * np.arange(12) / 12
    features = [z @ np.stack([np.cos(angle), np.sin(angle)]) for z in (x, y)]
    extra = [np.stack([np.hypot(*z.T), target.log_prob(torch.from_numpy(z))], 1) for z in (x, y)]
    x, y = (np.concatenate(pair, 1) for pair in zip(features, extra, strict=True))
    return x.shape[1] * min(stats.ks_2samp(x[:, k], y[:, k]).pvalue for k in range(x.shape[1]))


SKLEARN = {
    "moons": lambda noise: make_moons(4000, noise=noise, random_state=0)[0],
    "circles": lambda noise: make_circles(4000, noise=noise, factor=0.8, random_state=0)[0],
}


@pytest.mark.parametrize("noise", [0.02, 0.1])
@pytest.mark.parametrize("name", SKLEARN)
def test_draws_match_scikit_learn(name, noise):
    target = make_target(name, noise=noise)
    x = draws(target, 4000).numpy()
    assert two_sample(target, x, SKLEARN[name](noise)) > 1e-3
    assert two_sample(target, x, SKLEARN[name](1.3 * noise)) < 1e-4


@cases(DEFAULTS)
def test_draws_come_from_the_generator_alone(name, noise):
    target, state = target_of(name, noise), torch.get_rng_state()
    x = draws(target, 100, seed=3)
    assert x.shape == (100, 2) and x.dtype == torch.float64
    assert torch.equal(x, draws(target, 100, seed=3))
    assert not torch.equal(x, draws(target, 100, seed=4))
    assert torch.equal(state, torch.get_rng_state())
    assert draws(target, 0).shape == (0, 2)


@cases(CASES)
def test_window_is_square_and_holds_the_mass(name, noise):
    target = target_of(name, noise)
    x0, x1, y0, y1 = target.extent()
    x, y = draws(target, 5000).unbind(1)
    assert x1 - x0 == pytest.approx(y1 - y0)
    assert ((x > x0) & (x < x1) & (y > y0) & (y < y1)).double().mean() >= 0.999


# -- log_prob as a function


@cases(CASES)
def test_far_points_are_finite(name, noise):
    target = target_of(name, noise)
    far = torch.tensor([[1e3, 0], [-1e3, 1e3], [1e6, -1e6], [0, 1e15], [1e30, 1e30], [-3e38, 3e38]])
    log_p = target.log_prob(far)
    assert log_p.isfinite().all() and (log_p < -1e2).all()


@cases(DEFAULTS)
def test_float32_is_accepted(name, noise):
    target = target_of(name, noise)
    x = draws(target, 50).float()
    assert target.log_prob(x).dtype == torch.float64
    assert torch.equal(target.log_prob(x), target.log_prob(x.double()))
    assert target.log_prob(x[:0]).shape == (0,)


@cases(DEFAULTS)
def test_chunks_do_not_matter(name, noise, monkeypatch):
    target = target_of(name, noise)
    x = draws(target, 300)
    whole = target.log_prob(x)
    monkeypatch.setattr(densities, "_BLOCK", 7 * target.density.size)
    torch.testing.assert_close(target.log_prob(x), whole, rtol=0, atol=1e-10)


def test_targets_are_cached():
    assert make_target("moons", noise=0.05) is make_target("moons", noise=0.05)


# -- text

TEXTS = {
    **{letter: letter for letter in "ARPBO8%iöØ"},
    "word": "SIGGRAPH",
    "two words": "Real NVP",
    "no mathtext": "$A$",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_ink_has_the_area_of_the_glyphs(text):
    path = TextPath((0, 0), text.replace("$", r"\$"), 1000, FontProperties(family="DejaVu Sans", weight="bold"))
    area = 0.0  # contours of holes run the other way round
    for x, y in (polygon.T for polygon in path.to_polygons()):
        area += (x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2
    scale = min(8 / path.get_extents().width, 4 / path.get_extents().height)
    x0, x1, y0, y1 = make_target("text", noise=0.05, text=text).density.boxes.T
    assert ((x1 - x0) * (y1 - y0)).sum().item() == pytest.approx(abs(area) * scale**2, rel=0.03)
    width, height = (x1.max() - x0.min()).item(), (y1.max() - y0.min()).item()
    assert max(width / 8, height / 4) == pytest.approx(1, abs=0.02)
    assert (x1.max() + x0.min()).abs() < 0.05 and (y1.max() + y0.min()).abs() < 0.05


@pytest.mark.parametrize("text", ["SIGGRAPH", "%"])
def test_rectangles_are_disjoint_and_on_the_raster(text):
    target = make_target("text", noise=0.05, text=text)
    cells = ((target.density.boxes - target.density.boxes.amin(0)[[0, 0, 2, 2]]) * 64).numpy()
    np.testing.assert_array_equal(cells, cells.round())
    cover = np.zeros((300, 600), int)
    for x0, x1, y0, y1 in cells.astype(int):
        cover[y0:y1, x0:x1] += 1
    assert cover.max() == 1


def test_hole_is_empty():
    target = make_target("text", noise=0.02, text="O")
    x = target.density.boxes
    ring = torch.stack([x[:, :2].mean(1), x[:, 2:].mean(1)], 1)
    assert target.log_prob(torch.zeros(1, 2)) < target.log_prob(ring).max() - 100


def test_letters_are_upright():
    x = draws(make_target("text", noise=0.01, text="L"), 2000)
    bottom_left, top_right = (x < 0).all(1).double().mean(), (x > 0).all(1).double().mean()
    assert bottom_left > 0.4 and top_right < 0.01


# -- errors

NAME, NOISE = "data.name: expected one of moons, circles, ", "data.noise: expected a finite number > 0; got "
TEXT = "data.text: expected 1 to 40 printable characters with ink, all in DejaVu Sans Bold; got "
ERRORS = {
    "name": (("ring", 0.1), NAME),
    "zero noise": (("moons", 0), NOISE + "0"),
    "negative noise": (("moons", -0.1), NOISE + "-0.1"),
    "infinite noise": (("moons", float("inf")), NOISE + "inf"),
    "nan noise": (("moons", float("nan")), NOISE + "nan"),
    "word for noise": (("moons", "0.1"), NOISE + "'0.1'"),
    "truth for noise": (("moons", True), NOISE + "True"),
    "too small noise": (
        ("spiral4", 1e-6),
        "data.noise: expected at most 4194304 quadrature nodes; got a noise so small that it takes ",
    ),
    "no text": (("text", 0.1), TEXT + "None"),
    "empty text": (("text", 0.1, ""), TEXT + "''"),
    "blank text": (("text", 0.1, "   "), TEXT + "'   '"),
    "two lines": (("text", 0.1, "A\nB"), TEXT + r"'A\nB'"),
    "no glyph": (("text", 0.1, "語"), TEXT + "'語'"),
    "long text": (("text", 0.1, "A" * 41), TEXT + "'AAA"),
    "text for moons": (("moons", 0.1, "A"), "data.text: expected no text for data.name=moons; got 'A'"),
}


@pytest.mark.parametrize("arguments, message", ERRORS.values(), ids=ERRORS.keys())
def test_errors(arguments, message):
    name, noise, *text = arguments
    with pytest.raises(ValueError) as error:
        make_target(name, noise=noise, text=text[0] if text else None)
    assert str(error.value).startswith(message)


def test_error_of_shape():
    with pytest.raises(ValueError, match=r"x: expected shape \(n, 2\); got \(5, 3\)"):
        make_target("moons", noise=0.1).log_prob(torch.zeros(5, 3))
