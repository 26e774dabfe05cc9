"""A target of the user's own is checked before it is trained on, and named by its source."""

import math
import re
import textwrap
from dataclasses import replace

import pytest
import torch

from nfexp import spec as specs
from nfexp.commands import harmless
from nfexp.data import check_density, density_of, load
from nfexp.data.own import OwnTarget, check_target
from nfexp.spec import SpecError
from nfexp.targets import find_source, settled_target
from tests.helpers.specs import small_spec

NORMAL = """
    import math
    import torch

    class Normal:
        def __init__(self, sd=1.0, dim=3):
            self.sd, self.dim = sd, dim

        def sample(self, n, generator):
            return self.sd * torch.randn(n, self.dim, generator=generator, dtype=torch.float64)

        def log_prob(self, x):
            z = x / self.sd
            return -z.square().sum(1) / 2 - self.dim * math.log(self.sd * math.sqrt(2 * math.pi))

    def half(**parameters):
        return Normal(0.5, **parameters)

    ready = Normal(2.0, 3)
    bare = object()
    """


def own_spec(place, name="Normal", source=NORMAL, **flat):
    (place / "normal.py").write_text(textwrap.dedent(source))
    values = {"data.kind": "own", "data.name": "mine", "data.target": f"normal.py:{name}", "data.dim": 3}
    spec = small_spec(**values | {"data.noise": None} | flat)
    return replace(spec, data=settled_target(spec.data, [str(place)]))


def test_draws_and_density_are_those_of_the_object(tmp_path):
    spec = own_spec(tmp_path, **{"data.sd": 2.0})
    check_density(spec.data)
    dataset = load(spec)
    assert dataset.event_shape == (3,) and dataset.train.shape == (200, 3)
    exact = torch.distributions.Normal(0.0, 2.0).log_prob(dataset.test).sum(1)
    torch.testing.assert_close(dataset.true_log_prob(), exact)
    assert torch.equal(load(spec).val, dataset.val)
    assert torch.equal(load(own_spec(tmp_path, "ready")).test, dataset.test)
    assert load(own_spec(tmp_path, "half")).test.std() < 0.6


def test_a_run_is_known_by_source_and_parameters(tmp_path):
    spec = own_spec(tmp_path)
    other = tmp_path / "elsewhere"
    other.mkdir()
    assert specs.run_id(own_spec(other)) == specs.run_id(spec)
    ids = {
        specs.run_id(spec),
        specs.run_id(own_spec(tmp_path, **{"data.sd": 2.0})),
        specs.run_id(own_spec(tmp_path, "half")),
        specs.run_id(own_spec(tmp_path, source=NORMAL + "# changed\n")),
    }
    assert len(ids) == 4
    flat = specs.flatten(own_spec(tmp_path, **{"data.sd": 2.0}))
    assert flat["data.sd"] == 2.0 and specs.flatten(specs.unflatten(flat)) == flat
    assert specs.stack_key(spec) == specs.stack_key(own_spec(tmp_path, **{"data.sd": 2.0}))


def test_a_source_that_changed_since_is_refused(tmp_path):
    spec = own_spec(tmp_path)
    own_spec(tmp_path, source=NORMAL + "# changed\n")
    with pytest.raises(SpecError, match="as it was when the run was planned; got another content"):
        load(replace(spec, seed=1))


def test_a_source_is_found_but_not_executed(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit")
    source = find_source("evil.py:X", [str(tmp_path)])
    assert source.name == "X" and source.is_file
    assert find_source("nfexp.data.densities:make_target").digest
    for argument in ("data.target=evil.py:X", "+data.target=evil.py:X", "hydra.sweeper.params={data.target: 'e.py:X'}"):
        assert not harmless(argument)


BAD = {
    "no such file": ({"data.target": "absent.py:X"}, "data.target: expected a Python file in .*; got 'absent.py'"),
    "no such module": ({"data.target": "no_such.part:X"}, "data.target: expected a module .*; got no module 'no_such'"),
    "no name": ({"data.target": "normal.py"}, "data.target: expected a density as file.py:Name .*; got 'normal.py'"),
    "near name": ({"data.target": "normal.py:Norma"}, r"data.target: .* got 'Norma' \(near: 'Normal'\)"),
    "no methods": ({"data.target": "normal.py:bare"}, "data.target: expected bare with the methods .* without sample"),
    "unknown parameter": ({"data.sdd": 1.0}, "data.sdd: expected one of the parameters of Normal: sd, dim; got 1.0"),
    "name of a key": (
        {"data.width": 2},
        "data.width: expected another name for this parameter of data.target, .*; got 2",
    ),
    "name of a key, no whole number": ({"data.width": 0.5}, "data.width: expected another name .*; got 0.5"),
    "list for a parameter": ({"data.sd": [1]}, r"data.sd: expected a finite number or a short text, .*; got \[1\]"),
    "noise that it does not take": ({"data.noise": 0.1}, "data.noise: expected one of the parameters .*; got 0.1"),
    "built-in name": ({"data.name": "moons"}, "data.name: expected a name that no built-in target has; got 'moons'"),
    "dimension": (
        {"data.dim": 2},
        r"data.target: expected .* of shape \(2000, 2\) .* got float64 of shape \(2000, 3\)",
    ),
}


@pytest.mark.parametrize(("flat", "message"), BAD.values(), ids=BAD)
def test_bad_targets(tmp_path, flat, message):
    with pytest.raises(SpecError) as caught:
        check_density(own_spec(tmp_path, **flat).data)
    assert re.fullmatch(message, str(caught.value)), caught.value


SOURCES = {
    "syntax": (
        "class Normal(\n",
        r"data.target: expected .*normal.py to be a Python file that runs; got SyntaxError: .*",
    ),
    "import": ("import no_such_module\n", r".* got ModuleNotFoundError: No module named 'no_such_module' \(line 1\)"),
    "raises": (
        "class Normal:\n    def __init__(self):\n        1 / 0\n",
        r".*Normal\(\) to be made; got ZeroDivision.*3\)",
    ),
}


@pytest.mark.parametrize(("source", "message"), SOURCES.values(), ids=SOURCES)
def test_bad_sources(tmp_path, source, message):
    with pytest.raises(SpecError) as caught:
        density_of(own_spec(tmp_path, source=source).data)
    assert re.fullmatch(message, str(caught.value)), caught.value


class Normal:
    """A standard normal law whose parts can be made wrong."""

    def __init__(self, dim=2, spread=1.0, add=0.0):
        self.dim, self.spread, self.add = dim, spread, add

    def sample(self, n, generator):
        return self.spread * torch.randn(n, self.dim, generator=generator, dtype=torch.float64)

    def log_prob(self, x):
        return -x.square().sum(1) / 2 - self.dim / 2 * math.log(2 * math.pi) + self.add


class Uniform(Normal):
    def sample(self, n, generator):
        return torch.rand(n, self.dim, generator=generator, dtype=torch.float64)

    def log_prob(self, x):
        return torch.where(((x >= 0) & (x < 1)).all(1), 0.0, -math.inf).double()


class Global(Normal):
    def sample(self, n, generator):
        return torch.randn(n, self.dim, dtype=torch.float64)


class Constant(Normal):
    def sample(self, n, generator):
        return torch.linspace(-1, 1, n * self.dim, dtype=torch.float64).reshape(n, -1)


class Batch(Normal):
    def log_prob(self, x):
        return super().log_prob(x - x.mean(0))


class Whole(Normal):
    def log_prob(self, x):
        return super().log_prob(x).long()


class NotANumber(Normal):
    def log_prob(self, x):
        return super().log_prob(x) * math.nan


class Below(Normal):
    def log_prob(self, x):
        return torch.where(x[:, 0] > 0, super().log_prob(x), -math.inf)


@pytest.mark.parametrize("target", [Normal(1), Normal(5), Normal(20), Uniform(3)], ids=["1", "5", "20", "box"])
def test_a_density_that_is_right_passes(target):
    check_target(OwnTarget("right", target.dim, target))


WRONG = {
    "constant": (Normal(add=0.1), r"integrates to 1; got one whose logarithm is off by .*: an integral of about 1.1"),
    "constant in 10 dimensions": (Normal(10, add=0.5), "integrates to 1"),
    "spread": (Normal(spread=1.3), "draws of sample that follow log_prob; got others"),
    "global generator": (Global(), "draw from its generator alone; got other points"),
    "no generator": (Constant(), "draw from its generator; got the same points from another"),
    "points together": (Batch(), "log_prob of a point to be its own"),
    "whole numbers": (Whole(), r"floating-point numbers of shape \(2000,\) .* got int64"),
    "nan": (NotANumber(), "log_prob to be finite, or -inf where the density is 0; got nan or inf"),
    "no density at draws": (Below(), "a density above 0 at its own draws; got log_prob = -inf at 4"),
}


@pytest.mark.parametrize(("target", "message"), WRONG.values(), ids=WRONG)
def test_a_density_that_is_wrong_is_refused(target, message):
    with pytest.raises(SpecError, match=message):
        check_target(OwnTarget("wrong", target.dim, target))


def test_a_window_holds_the_mass():
    target = OwnTarget("right", 2, Normal())
    left, right, bottom, top = target.extent()
    assert right - left == pytest.approx(top - bottom) and left < -3 and right > 3
    assert target.draw is None
