"""A trained flow as its users call it: any array, no points at all, and densities that are numbers."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from nfexp.flows import stack as flows
from nfexp.flows.stack import build
from nfexp.record import TrainedFlow, load_flow


def trained(make_spec, dtype=torch.float32, gain=1.0, **flat):
    spec = make_spec(**flat)
    data = torch.randn(1, 100, 2, generator=torch.Generator().manual_seed(0))
    stack = build(spec.flow, masks=["alternating"], seeds=[0], data=data)
    theta = torch.randn(stack.theta.shape, generator=torch.Generator().manual_seed(1)) * gain
    return TrainedFlow(spec, stack.with_rows(theta, stack.fixed).to("cpu", dtype))


POINTS = np.array([[0.5, -1.0], [2.0, 0.25], [0.0, 0.0]])


def read_only():
    array = POINTS.copy()
    array.flags.writeable = False
    return array


INPUTS = {
    "read-only": read_only,
    "of pandas": lambda: pd.DataFrame(POINTS, columns=["x", "y"]),
    "values of pandas": lambda: pd.DataFrame(POINTS).to_numpy(),
    "a list": POINTS.tolist,
    "backwards": lambda: POINTS[::-1].copy()[::-1],
    "big-endian": lambda: POINTS.astype(">f8"),
    "single": lambda: POINTS.astype(np.float32),
    "a tensor": lambda: torch.tensor(POINTS),
}


def test_a_folder_that_is_not_there_is_told_from_one_without_a_run(tmp_path):
    for folder, got in ((tmp_path, "a folder without result.json"), (tmp_path / "absent", "no folder")):
        with pytest.raises(FileNotFoundError, match=f"expected a finished run; got {got}"):
            load_flow(folder)


@pytest.mark.parametrize("points", INPUTS.values(), ids=INPUTS)
def test_every_kind_of_array_is_taken(make_spec, points):
    flow, x = trained(make_spec, gain=0.1), points()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(flow.log_prob(x), flow.log_prob(torch.tensor(POINTS)))
        assert flow.forward(x).shape == flow.inverse(x).shape == (3, 2)


@pytest.mark.parametrize("conditioner", ["separate", "shared"])
@pytest.mark.parametrize("coupling", ["affine", "additive"])
def test_no_points_give_no_points(make_spec, coupling, conditioner):
    flow = trained(make_spec, flow__coupling=coupling, flow__conditioner=conditioner)
    assert flow.sample(0).shape == (0, 2)
    assert flow.log_prob(np.empty((0, 2))).shape == (0,)
    assert flow.forward(np.empty((0, 2))).shape == flow.inverse(torch.empty(0, 2)).shape == (0, 2)
    x = torch.empty(1, 0, 2, requires_grad=True)
    flow.stack.log_prob(x).sum().backward()
    assert x.grad.shape == x.shape


def test_points_far_out_are_told_if_asked(make_spec):
    flow = trained(make_spec, gain=0.1)
    x = torch.tensor([[0.0, 0.0], [0.0, 9.0], [-7.0, 1.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = flow.log_prob(x)
        assert torch.equal(flow.log_prob(x[:1], warn_beyond=6), expected[:1])
    with pytest.warns(UserWarning, match=r"2 of 3 points lie more than 6 standard .*, row 1 by \d\.?\d* in column 1"):
        assert torch.equal(flow.log_prob(x, warn_beyond=6), expected)
    with pytest.raises(ValueError, match=r"warn_beyond: expected a flow with flow\.standardise=moments"):
        trained(make_spec, flow__standardise="none").log_prob(x, warn_beyond=6)


def test_a_trained_flow_is_exported(make_spec):
    flow = trained(make_spec, gain=0.1)
    torch.testing.assert_close(flow.export().log_prob(torch.tensor(POINTS).float()), flow.log_prob(POINTS))
    pytest.importorskip("zuko")
    torch.testing.assert_close(flow.export("zuko")().log_prob(torch.tensor(POINTS).float()), flow.log_prob(POINTS))


BAD = {
    "another library": (lambda f: f.export("jax"), "to: expected one of torch, zuko; got 'jax'"),
    "a negative n": (lambda f: f.sample(-1), "n: expected an integer >= 0; got -1"),
    "half an n": (lambda f: f.sample(2.5), "n: expected an integer; got 2.5"),
    "a yes": (lambda f: f.sample(True), "n: expected an integer; got True"),
    "no seed": (lambda f: f.sample(2, seed=None), "seed: expected an integer; got None"),
    "one point": (lambda f: f.log_prob([1.0, 2.0]), r"x: expected shape \(N, 2\); got \(2,\)"),
    "nothing": (lambda f: f.log_prob([]), r"x: expected shape \(N, 2\); got \(0,\)"),
    "words": (lambda f: f.forward([["a", "b"]]), "z: expected an array of real numbers; got could not convert"),
    "complex": (lambda f: f.inverse(POINTS * 1j), "x: expected an array of real numbers; got complex numbers"),
    "ragged": (lambda f: f.inverse([[1.0], [1.0, 2.0]]), "x: expected an array of real numbers; got"),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_arguments_are_named(make_spec, call, message):
    with pytest.raises(ValueError, match=message):
        call(trained(make_spec))


def grid():
    line = torch.linspace(-2, 2, 60)
    return torch.cartesian_prod(line, line)


@pytest.mark.parametrize("gain", [1.0, 3.0, 30.0])
def test_an_exploding_scale_gives_a_density(make_spec, gain):
    flow, x = trained(make_spec, gain=gain, flow__scale="exp", flow__n_flows=6), grid()
    raw, found = flow.stack.log_prob(x[None])[0], flow.log_prob(x)
    assert not found.isnan().any()
    assert torch.equal(found[~raw.isnan()], raw[~raw.isnan()]), "what was a number stays the same bits"
    wide = flow.stack.to("cpu", torch.float64).log_prob(x[None].double())[0]
    lost = raw.isnan() & ~wide.isnan()
    torch.testing.assert_close(found[lost].double(), wide[lost].to(torch.float32).double())
    if gain > 1:
        assert raw.isnan().any() and (found == -math.inf).any(), "the case this test is for"


def test_only_points_that_are_no_numbers_have_no_density(make_spec):
    flow = trained(make_spec, gain=0.1)
    found = flow.log_prob([[math.nan, 0.0], [math.inf, 0.0], [0.0, -math.inf], [0.0, 0.0]])
    assert found[0].isnan() and (found[1:3] == -math.inf).all() and found[3].isfinite()


def test_each_member_of_a_stack_is_repaired_alone(make_spec):
    one, x = trained(make_spec, gain=3.0, flow__scale="exp"), grid()
    calm = trained(make_spec, gain=0.1, flow__scale="exp")
    pair = one.stack.with_rows(
        torch.cat([one.stack.theta, calm.stack.theta]), torch.cat([one.stack.fixed, calm.stack.fixed])
    )
    both = pair.log_density(x.expand(2, -1, -1))
    assert isinstance(pair, flows.FlowStack) and not both.isnan().any()
    torch.testing.assert_close(both, torch.stack([one.log_prob(x), calm.log_prob(x)]))
