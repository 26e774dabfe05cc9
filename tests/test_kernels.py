"""The fused kernel against the torch path in float64, for every option; and where its machine code is kept."""

import fcntl
import logging
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import astuple, fields, replace
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from nfexp import spec as specs
from nfexp import train
from nfexp.flows import kernels
from nfexp.flows.kernel_protocol import Course, Rows
from nfexp.flows.kernels import compiled, elementary
from nfexp.flows.kernels.compiled import Fused
from nfexp.flows.kernels.lanes import LANES, load, store
from nfexp.flows.kernels.moments import move, norm_of_sum
from nfexp.flows.layers import Batch
from nfexp.flows.stack import FlowStack
from nfexp.optimisers import OPTIMISERS
from nfexp.run import check, run_stack
from nfexp.spec import Flow, SpecError, run_id
from nfexp.streams import stream
from tests.helpers.fused import ALL_LAYERS, BATCH_NORMS, BITS, N, by_autodiff, random_flow
from tests.helpers.specs import image_spec, small_spec

VARIANTS = {
    "plain": {},
    "one layer": {"hidden_depth": 1},
    "four layers": {"hidden_depth": 4},
    **{f"{width} units": {"hidden_width": width, "hidden_depth": 3} for width in (24, 48, 64, 70, 100, 128)},
    "one unit": {"hidden_width": 1},
    "one coupling": {"n_flows": 1},
    "shared": {"conditioner": "shared"},
    "additive": {"coupling": "additive"},
    "additive, shared": {"coupling": "additive", "conditioner": "shared"},
    "not standardised": {"standardise": "none"},
    "one dimension": {"dim": 1},
    "five dimensions": {"dim": 5},
    "five dimensions, shared": {"dim": 5, "conditioner": "shared"},
    "masks": {"masks": ["once", "half"]},
    **{f"activation {name}": {"activation": name, "hidden_depth": 3} for name in elementary.ACTIVATIONS},
    **{f"scale {name}": {"scale": name} for name in ("tanh", "soft", "exp")},
    **{f"base {name}": {"base": name} for name in ("logistic", "laplace", "student_t", "mixture", "contaminated")},
    "passed": {"conditioner_input": "passed", "dim": 4},
    "passed, shared": {"conditioner_input": "passed", "conditioner": "shared", "dim": 4, "masks": ["random", "half"]},
    "passed, odd": {"conditioner_input": "passed", "dim": 5, "masks": ["alternating", "alternating"]},
    "passed, additive": {"conditioner_input": "passed", "coupling": "additive", "dim": 2},
    "passed, one dimension": {"conditioner_input": "passed", "dim": 1, "masks": ["alternating", "alternating"]},
    "bounded": {"tail_bound": 0.7},
    "bounded, passed": {"tail_bound": 0.7, "conditioner_input": "passed", "dim": 4},
    "tail": {"tail": "learned"},
    "tail, additive": {"tail": "learned", "coupling": "additive", "base": "contaminated"},
    "actnorm": {"norm": "actnorm"},
    "actnorm everywhere": {"norm": "actnorm", "norm_every": 1, "coupling": "additive", "tail": "learned"},
    "batch norm": {"norm": "batchnorm"},
    "batch norm everywhere": {"norm": "batchnorm", "norm_every": 1},
    "batch norm last": {"norm": "batchnorm", "norm_every": 3},
    "batch norm nowhere": {"norm": "batchnorm", "norm_every": 4},
    "batch norm, additive": {"norm": "batchnorm", "norm_every": 1, "coupling": "additive", "tail": "learned"},
    "batch norm, passed": {"norm": "batchnorm", "conditioner_input": "passed", "dim": 4, "masks": ["random", "half"]},
    "batch norm, bounded silu": {"norm": "batchnorm", "tail_bound": 0.7, "activation": "silu", "dim": 5},
    "batch norm, raw points": {"norm": "batchnorm", "standardise": "none", "scale": "exp"},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_density_and_gradient_equal_those_of_torch_in_float64(changes):
    flow, x = random_flow(**changes)
    log_q, grad = by_autodiff(flow, x)
    evaluated = flow.to("cpu", torch.float64).log_prob(x.double())
    fused = Fused(flow)
    loss, fused_grad = fused.gradient(flow.theta, flow.fixed, x)
    scale = evaluated.abs().amax()
    torch.testing.assert_close(
        fused.log_prob(flow.theta, flow.fixed, x).double() / scale, evaluated / scale, rtol=0, atol=2e-6
    )
    torch.testing.assert_close(loss.double(), -log_q.mean(1), rtol=2e-6, atol=0)
    largest = grad.abs().amax(1, keepdim=True)
    torch.testing.assert_close(fused_grad / largest, grad / largest, rtol=0, atol=3e-6, check_dtype=False)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_both_ways_equal_those_of_torch_in_float64(changes):
    flow, x = random_flow(**changes)
    precise = flow.to("cpu", torch.float64)
    fused = flow.with_kernel(Fused(flow))
    z, log_det = fused.inverse(x)
    there_and_back, log_det_back = fused.forward(z)
    expected = *precise.inverse(x.double()), *precise.forward(z.double())
    for got, wanted in zip((z, log_det, there_and_back, log_det_back), expected, strict=True):
        scale = wanted.abs().amax().clamp(min=1)
        torch.testing.assert_close(got.double() / scale, wanted / scale, rtol=0, atol=2e-6)
    torch.testing.assert_close(there_and_back, x, rtol=1e-3, atol=1e-3)


def test_the_kernel_knows_every_key_of_an_architecture():
    known = set(kernels.KNOWN) | {key.removeprefix("flow.") for key in specs.ADDED}
    of_images = set(specs.OF_IMAGES["flow"])  # null for what the kernel knows, flow.kind=vector
    assert {f.name for f in fields(Flow)} <= known | of_images
    assert kernels.KNOWN["activation"] == tuple(elementary.ACTIVATIONS)


@pytest.mark.parametrize("changes", BITS.values(), ids=BITS)
def test_bits_do_not_depend_on_tiles_or_on_the_stack(changes):
    flow, x = random_flow(**changes, masks=("alternating", "random", "half"))
    narrow = Fused(flow).gradient(flow.theta, flow.fixed, x)
    wide = Fused(flow, tile=3 * 64).gradient(flow.theta, flow.fixed, x)
    for a, b in zip(narrow, wide, strict=True):
        assert torch.equal(a, b)
    log_q = Fused(flow).log_prob(flow.theta, flow.fixed, x)
    assert torch.equal(log_q[:, 7:], Fused(flow).log_prob(flow.theta, flow.fixed, x[:, 7:]))
    for way in ("inverse", "forward"):
        whole = getattr(Fused(flow), way)(flow.theta, flow.fixed, x)
        part = getattr(Fused(flow, tile=3 * 64), way)(flow.theta, flow.fixed, x[:, 7:])
        for a, b in zip(whole, part, strict=True):
            assert torch.equal(a[:, 7:], b)
    for e in range(3):
        one = flow.member(e)
        loss, grad = Fused(one).gradient(one.theta, one.fixed, x[e : e + 1])
        assert torch.equal(loss[0], narrow[0][e]) and torch.equal(grad[0], narrow[1][e])


FED = {"plain": {}, "layers": ALL_LAYERS, "base": {"base": "contaminated"}, "batch norms": BATCH_NORMS}


@pytest.mark.parametrize("changes", FED.values(), ids=FED)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so_and_touches_nothing_else(bad, changes):
    flow, x = random_flow(**changes)
    fused = Fused(flow)
    loss, grad = fused.gradient(flow.theta, flow.fixed, x)
    log_q = fused.log_prob(flow.theta, flow.fixed, x)
    spoilt = x.clone()
    spoilt[0, 70, 1] = bad
    spoilt_loss, spoilt_grad = fused.gradient(flow.theta, flow.fixed, spoilt)
    assert not spoilt_loss[0].isfinite()  # which is what freezes a member; a clamped infinity has a finite gradient
    assert "tail_bound" in changes or not spoilt_grad[0].isfinite().all()
    assert torch.equal(spoilt_loss[1], loss[1]) and torch.equal(spoilt_grad[1], grad[1])
    spoilt_log_q = fused.log_prob(flow.theta, flow.fixed, spoilt)
    assert not spoilt_log_q[0, 70].isfinite()
    others = torch.arange(N) != 70
    assert torch.equal(spoilt_log_q[:, others], log_q[:, others])


@pytest.mark.parametrize("activation", elementary.ACTIVATIONS)
@pytest.mark.parametrize("tensor", ["net.0.weight", "net.1.bias", "net.2.bias", "log_scale"])
def test_a_weight_that_is_no_number_is_seen(tensor, activation):
    flow, x = random_flow(activation=activation, conditioner="shared")
    flow.tensors()[f"coupling.1.{tensor}"][1] = math.nan
    loss, grad = Fused(flow).gradient(flow.theta, flow.fixed, x)
    assert loss[0].isfinite() and grad[0].isfinite().all()
    assert loss[1].isnan() and grad[1].isnan().any()


def one_step(flow: FlowStack, x: torch.Tensor, *, members: Sequence[int], lr: float) -> FlowStack:
    """The stack after a step of some of its members on the points x, all of them."""
    rows = [flow.theta.clone(), flow.fixed.clone(), torch.zeros_like(flow.theta), torch.zeros_like(flow.theta)]
    n = flow.n_members
    adam = OPTIMISERS["adam"](*rows[:1], *rows[2:], [small_spec().train] * n)
    course = Course(
        members=members, clip=[math.inf] * n, lr=[lr] * n, decay=[0.0] * n, factors=[1.0], laws=[adam.law(1)], begun=0
    )
    named = Rows(theta=rows[0], fixed=rows[1], first=rows[2], second=rows[3])
    Fused(flow).steps(named, x, x[..., :0], torch.arange(x.shape[1]).view(1, 1, -1), course)
    return flow.with_rows(rows[0], rows[1])


def test_a_step_keeps_the_moments_of_its_batch_as_torch_does():
    flow, x = random_flow(**BATCH_NORMS, masks=("alternating", "random", "half"))
    x[2, 70, 1] = math.nan  # this member is lost
    batch = Batch()
    flow.to("cpu", torch.float64).log_prob(x.double(), batch=batch)
    after = one_step(flow, x, members=[1, 2], lr=0.1)
    blocks = after.fixed_layout.blocks(after.fixed)
    assert len(batch.updates) == 2 * (flow.flow.n_flows // flow.flow.norm_every)
    for name, expected in batch.updates.items():
        torch.testing.assert_close(blocks[name][1], expected[1].float(), rtol=2e-6, atol=2e-6)
        assert not torch.equal(blocks[name][1], flow.fixed_layout.blocks(flow.fixed)[name][1])
    assert torch.equal(after.fixed[[0, 2]], flow.fixed[[0, 2]])
    assert torch.equal(after.theta[[0, 2]], flow.theta[[0, 2]])


def test_a_batch_of_one_point_has_no_variance():
    flow, x = random_flow(norm="batchnorm")
    _, grad = by_autodiff(flow, x[:, :1])
    _, fused_grad = Fused(flow).gradient(flow.theta, flow.fixed, x[:, :1])
    largest = grad.abs().amax(1, keepdim=True)
    torch.testing.assert_close(fused_grad / largest, grad / largest, rtol=0, atol=3e-6, check_dtype=False)


def over_lanes(function):
    """An elementary function of float32 arrays."""

    @numba.njit
    def run(x, y):
        for i in range(x.shape[0]):
            store(y, i, 0, function(load(x, i, 0)))

    def call(x: np.ndarray) -> np.ndarray:
        rows = np.zeros((-(-len(x) // LANES), LANES), dtype=np.float32)
        rows.reshape(-1)[: len(x)] = x
        y = np.empty_like(rows)
        run(rows, y)
        return y.reshape(-1)[: len(x)]

    return call


def sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1 + e)


ELEMENTARY = {  # name: exact, largest error in ulp as the docstring says it
    "exp": (np.exp, 1.1),
    "expm1_of_negative": (np.expm1, 0.9),
    "tanh": (np.tanh, 2.5),
    "sigmoid": (sigmoid, 2.1),
}


@pytest.mark.parametrize("name", ELEMENTARY)
def test_elementary_functions_are_as_exact_as_they_say(name):
    exact, ulp = ELEMENTARY[name]
    assert f"{ulp}" in str(elementary.__doc__)
    positive = np.arange(0, 0x7F800000, 997, dtype=np.uint32).view(np.float32)  # over all exponents
    x = -positive if name == "expm1_of_negative" else np.concatenate([positive, -positive])
    with np.errstate(over="ignore", under="ignore"):
        expected = exact(x.astype(np.float64))
        rounded = expected.astype(np.float32)
    got = over_lanes(getattr(elementary, name))(x)
    normal = np.isfinite(rounded) & (np.abs(rounded) >= np.finfo(np.float32).tiny)
    error = np.abs(got[normal] - expected[normal]) / np.spacing(np.abs(rounded[normal]))
    assert ulp - 0.2 < error.max() < ulp
    assert np.array_equal(np.isinf(got), np.isinf(rounded))
    nan = over_lanes(getattr(elementary, name))(np.array([math.nan], dtype=np.float32))
    assert np.isnan(nan).all()


# Shifts ahead of a batch norm change nothing: their gradients are rounding, of which Adam makes whole steps. In float64
# torch's path moves away from that in float32 by as much.
@pytest.mark.parametrize(("norm", "tolerance"), [("none", 1e-5), ("batchnorm", 3e-3)])
def test_runs_are_the_same_up_to_rounding_and_say_what_computed_them(norm, tolerance):
    of = {}
    for kernel in ("auto", "fused", "torch"):
        of[kernel] = run_stack([small_spec(train__kernel=kernel, flow__norm=norm)])[0]
    assert [of[kernel].kernel for kernel in of] == ["fused", "fused", "torch"]
    for metric in ("train_nll", "val_nll", "test_nll"):
        assert of["fused"].metrics[metric] == pytest.approx(of["torch"].metrics[metric], abs=tolerance)
        assert of["fused"].metrics[metric] == of["auto"].metrics[metric]


@pytest.mark.parametrize("norm", ["none", "batchnorm"])
def test_a_member_of_a_fused_stack_equals_that_run_alone(norm):
    stack = []
    for seed, mask in enumerate(("half", "random")):
        stack.append(small_spec(train__kernel="fused", seed=seed, flow__mask=mask, flow__norm=norm))
    for spec, member in zip(stack, run_stack(stack), strict=True):
        alone = run_stack([spec])[0]
        for name, tensor in alone.state.items():
            assert torch.equal(tensor, member.state[name]), name
        np.testing.assert_array_equal(alone.history["val_nll"], member.history["val_nll"])


def test_a_diverging_member_is_frozen_and_its_mates_go_on():
    good = small_spec(train__kernel="fused")
    bad = replace(good, train=replace(good.train, lr=1e3, grad_clip=None), flow=good.flow)
    results = run_stack([bad, good])
    assert [result.status for result in results] == ["diverged", "completed"]
    assert results[1].metrics["test_nll"] == run_stack([good])[0].metrics["test_nll"]


@pytest.mark.parametrize("optimizer", ["adam", "nadam"])
def test_an_optimiser_moves_rows_as_its_torch_form_does(make_spec, optimizer):
    recipes = [make_spec(train__lr=lr, train__weight_decay=decay).train for lr, decay in ((1e-2, 0.0), (1e-3, 0.3))]
    draws = stream(0, "rows")
    start = torch.randn(2, 101, generator=draws)
    by_torch = OPTIMISERS[optimizer](start.clone(), torch.zeros_like(start), torch.zeros_like(start), recipes)
    rows = [start.clone().numpy(), np.zeros((2, 101), np.float32), np.zeros((2, 101), np.float32)]

    @numba.njit
    def by_kernel(theta, first, second, e, grad, clip, lr, decay, law, step):
        move(theta, first, second, e, grad, e, clip, lr, decay, law, step)

    for step in range(1, 30):
        grad = torch.randn(2, 101, generator=draws)
        if step == 20:
            by_torch.train([1])
        by_torch.step(0.5 * grad, step=step, factor=1 / step)
        law = astuple(by_torch.law(step))
        for e in by_torch.members:
            clip = np.float32(0.5)
            by_kernel(*rows, e, grad.numpy(), clip, recipes[e].lr / step, recipes[e].weight_decay, law, step)
    for part, row in zip(("theta", "first", "second"), rows, strict=True):
        torch.testing.assert_close(getattr(by_torch, part), torch.from_numpy(row), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("n", [1, LANES, 5 * LANES + 3])
def test_rows_are_added_to_the_first_and_the_norm_is_that_of_their_sum(n, n_rows):
    rows = torch.randn(n_rows, n, generator=stream(0, "rows"))
    summed = rows.double().sum(0)
    added = numba.njit(lambda rows: norm_of_sum(rows))
    assert added(rows.numpy()) == pytest.approx(summed.norm().item(), rel=1e-6)
    torch.testing.assert_close(rows[0].double(), summed, rtol=1e-6, atol=1e-6)


CUT_SHORT = {
    "plain": {},
    "noise": {"train__noise": 0.1},
    "actnorm, nadam": {"flow__norm": "actnorm", "train__optimizer": "nadam"},
    "batch norm": {"flow__norm": "batchnorm", "train__batch_size": 80},
}


@pytest.mark.parametrize("changes", CUT_SHORT.values(), ids=CUT_SHORT)
def test_steps_made_in_one_go_equal_single_ones(changes, monkeypatch):
    spec = small_spec(train__kernel="fused", **changes)
    together = run_stack([spec])[0].state
    monkeypatch.setattr(train, "AT_ONCE", 1)
    single = run_stack([spec])[0].state
    for name, tensor in together.items():
        assert torch.equal(tensor, single[name]), name


def test_the_kernel_is_no_part_of_a_runs_identity():
    assert len({run_id(small_spec(train__kernel=kernel)) for kernel in ("auto", "fused", "torch")}) == 1


def test_what_the_kernel_does_not_know_goes_the_torch_way_or_is_refused(monkeypatch):
    assert kernels.obstacle(image_spec().flow, torch.device("cpu"), torch.float32) == "flow.kind is 'image'"
    monkeypatch.setitem(kernels.KNOWN, "norm", ("none",))
    of_unknown = small_spec(train__steps=3, train__warmup=0, train__n_evals=2, flow__norm="batchnorm")
    assert run_stack([of_unknown])[0].kernel == "torch"
    reason = "flow.norm is 'batchnorm'"
    with pytest.raises(SpecError, match=rf"train.kernel: expected 'auto' or 'torch', .*; got {reason}"):
        check(small_spec(train__kernel="fused", flow__norm="batchnorm"))


def test_other_devices_and_types_are_refused_by_name():
    flow = small_spec().flow
    assert kernels.obstacle(flow, torch.device("cuda"), torch.float32) == "device is cuda"
    assert kernels.obstacle(flow, torch.device("cpu"), torch.float64) == "the weights are float64"
    assert kernels.obstacle(flow, torch.device("cpu"), torch.float32) is None
    assert (
        run_stack([small_spec(train__steps=3, train__warmup=0, train__n_evals=2)], dtype=torch.float64)[0].kernel
        == "torch"
    )


def test_without_numba_auto_says_so_once_and_uses_torch(monkeypatch, caplog):
    kernels.missing.cache_clear()
    monkeypatch.setitem(sys.modules, "nfexp.flows.kernels.lanes", None)
    kernels._say_once.cache_clear()
    caplog.set_level(logging.INFO)
    for _ in range(2):
        assert run_stack([small_spec(train__steps=3, train__warmup=0, train__n_evals=2)])[0].kernel == "torch"
    assert caplog.text.count("numba cannot be imported") == 1
    with pytest.raises(SpecError, match=r"train.kernel: .*numba cannot be imported .*: pip install numba"):
        check(small_spec(train__kernel="fused"))
    kernels.missing.cache_clear()


def doubled(x):
    return 2.0 * x


@pytest.fixture
def small_kernel(monkeypatch, tmp_path, caplog):
    """Compiles a small function as if it were the kernel, into a cache folder below `tmp_path`."""
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)

    def compile_it() -> float:
        caplog.clear()
        (function,) = compiled.machine_code.__wrapped__(((doubled, (numba.float64,)),))
        return function(21.0)

    return compile_it


def test_a_kernel_is_compiled_once_and_kept(small_kernel, caplog, tmp_path):
    assert small_kernel() == 42.0
    assert caplog.text.index("compiling the fused kernel") < caplog.text.index("compiled the fused kernel in")
    assert str(tmp_path) in caplog.text
    assert small_kernel() == 42.0
    assert "compil" not in caplog.text


def test_what_another_kernel_left_in_the_cache_is_not_taken_for_it(small_kernel, caplog):
    folder = compiled.cache_folder()
    (folder / "member.other-1.py311.nbi").touch()
    assert small_kernel() == 42.0
    assert "compiling the fused kernel" in caplog.text


def test_a_wait_for_a_process_that_compiles_is_told(small_kernel, caplog, monkeypatch):
    monkeypatch.setattr(compiled, "PATIENCE", 0.01)
    lock = os.open(compiled.cache_folder() / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)  # as another process holds it
    threading.Timer(0.2, os.close, [lock]).start()
    assert small_kernel() == 42.0
    assert "another process is compiling the fused kernel" in caplog.text


@pytest.mark.parametrize("kind", ["*.nbi", "*.nbc"])
def test_a_broken_cache_is_made_anew_with_one_line(small_kernel, caplog, tmp_path, kind):
    small_kernel()
    (broken,) = tmp_path.rglob(kind)
    broken.write_bytes(broken.read_bytes()[:50])
    assert small_kernel() == 42.0
    assert caplog.text.count("expected compiled kernels; got") == 1
    assert small_kernel() == 42.0
    assert caplog.text == ""


def test_without_a_home_the_cache_is_a_temporary_folder(monkeypatch, small_kernel, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = compiled.cache_folder()
    assert folder is not None and tmp_path in folder.parents
    assert small_kernel() == 42.0
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null/nowhere")
    assert compiled.cache_folder() is None
    assert small_kernel() == 42.0  # compiled for this process alone


def test_a_folder_of_somebody_else_is_not_trusted(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mine = compiled.cache_folder()
    assert mine is not None and tmp_path in mine.parents
    uid = Path(tmp_path).stat().st_uid
    monkeypatch.setattr(compiled, "_user", lambda: uid + 1)
    assert compiled.cache_folder() is None or tmp_path not in compiled.cache_folder().parents


def test_machine_code_that_nobody_used_for_a_month_is_removed(tmp_path):
    for name, days in {"kernels-mine": 90, "kernels-old": 31, "kernels-new": 3, "other": 90}.items():
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, time.time() - 86_400 * days))
    compiled.prune(tmp_path / "kernels-mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kernels-mine", "kernels-new", "other"]
