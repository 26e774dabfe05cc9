"""The fused kernel has the same bits with any number of threads, and a split batch the gradient of torch in float64."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from nfexp.flows.kernel_protocol import Course, Rows
from nfexp.flows.kernels.compiled import Fused, _all, _results, _steps
from nfexp.flows.kernels.member import GRADIENT
from nfexp.flows.kernels.threads import side_by_side
from nfexp.flows.stack import FlowStack
from nfexp.optimisers import OPTIMISERS
from nfexp.run import run_stack
from tests.helpers.fused import BITS, by_autodiff, random_flow
from tests.helpers.specs import small_spec

STEPS = 3
THREADS = (1, 2, 3)


def use_threads(monkeypatch, n: int) -> None:
    """Have the kernel use `n` threads; torch itself is not told, for some builds take no more than there are cores."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: n)


def trained(flow: FlowStack, x: torch.Tensor, batch: int, fused: Fused) -> dict[str, torch.Tensor]:
    """All that steps change, by name, after three of them on batches of consecutive points."""
    n = flow.n_members
    rows = Rows(
        theta=flow.theta.clone(),
        fixed=flow.fixed.clone(),
        first=torch.zeros_like(flow.theta),
        second=torch.zeros_like(flow.theta),
    )
    adam = OPTIMISERS["nadam"](rows.theta, rows.first, rows.second, [small_spec().train] * n)
    course = Course(
        members=range(n),
        clip=[1.0] * n,
        lr=[0.01] * n,
        decay=[0.0] * n,
        factors=[1.0] * STEPS,
        laws=[adam.law(step) for step in range(1, STEPS + 1)],
        begun=0,
    )
    order = torch.arange(STEPS * batch).view(STEPS, 1, batch)
    made = fused.steps(rows, x, x[..., :0], order, course)
    return {**vars(rows), "norm": made.norm, "made": torch.tensor(made.made)}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two trainings ended with the same bits; what is not a number equals itself."""
    return all(torch.equal(a[name].nan_to_num(1e9), b[name].nan_to_num(1e9)) for name in a)


@pytest.mark.parametrize("batch", [64, 256, 257, 1000, 4096])
def test_steps_of_one_member(monkeypatch, batch):
    flow, x = random_flow(masks=("random",), n=STEPS * batch)
    by_threads = []
    for threads in THREADS:
        use_threads(monkeypatch, threads)
        fused = Fused(flow)
        by_threads.append(trained(flow, x, batch, fused))
        assert len(fused.crew.rooms) == min(threads, math.ceil(batch / 256))  # so many had work
    assert not torch.equal(by_threads[0]["theta"], flow.theta)
    assert by_threads[0]["made"].tolist() == [STEPS]
    for other in by_threads[1:]:
        assert equal(by_threads[0], other)


@pytest.mark.parametrize("batch", [50, 600])
@pytest.mark.parametrize("changes", BITS.values(), ids=BITS)
def test_steps_of_several_members(monkeypatch, changes, batch):
    flow, x = random_flow(masks=("alternating", "random"), n=STEPS * batch, **changes)
    by_threads = []
    for threads in THREADS:
        use_threads(monkeypatch, threads)
        by_threads.append(trained(flow, x, batch, Fused(flow)))
    for other in by_threads[1:]:
        assert equal(by_threads[0], other)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("batch", [50, 600])
def test_a_member_that_is_lost_on_the_way_stops_there_and_its_mates_go_on(monkeypatch, threads, batch):
    flow, x = random_flow(masks=("alternating", "random"), n=STEPS * batch)
    use_threads(monkeypatch, 1)
    whole = trained(flow, x, batch, Fused(flow))
    one_step = trained(flow, x.clone().index_fill_(1, torch.tensor([batch]), math.nan), batch, Fused(flow))
    x[0, 2 * batch - 1] = math.nan  # the last point of the second step
    use_threads(monkeypatch, threads)
    lost = trained(flow, x, batch, Fused(flow))
    assert lost["made"].tolist() == [1, STEPS]
    assert not lost["norm"][0].isfinite()
    for name in ("theta", "fixed", "first", "second"):
        assert torch.equal(lost[name][0], one_step[name][0]), name
        assert torch.equal(lost[name][1], whole[name][1]), name


@pytest.mark.parametrize("n", [1, 63, 500, 5000])
@pytest.mark.parametrize("members", [1, 2, 3])
def test_evaluation(monkeypatch, n, members):
    flow, x = random_flow(masks=("alternating", "random", "half")[:members], n=5000, tail="learned")
    x = x[:, :n]
    use_threads(monkeypatch, 1)
    fused = Fused(flow)
    alone = evaluated(fused, flow, x)
    for threads in THREADS[1:]:
        use_threads(monkeypatch, threads)
        for a, b in zip(alone, evaluated(fused, flow, x), strict=True):
            assert torch.equal(a, b)
    in_parts = 1 if n <= 256 else min(3, math.ceil(n / 256))
    assert len(fused.crew.rooms) == max(members, in_parts)


def evaluated(fused: Fused, flow: FlowStack, x: torch.Tensor) -> list[torch.Tensor]:
    """Densities, and both ways, of the points x."""
    rows = flow.theta, flow.fixed
    return [fused.log_prob(*rows, x), *fused.inverse(*rows, x), *fused.forward(*rows, x)]


@pytest.mark.parametrize("changes", BITS.values(), ids=BITS)
def test_a_batch_of_several_shares_has_the_gradient_of_torch_in_float64(monkeypatch, changes):
    flow, x = random_flow(n=700, **changes)
    log_q, grad = by_autodiff(flow, x)
    largest = grad.abs().amax(1, keepdim=True)
    for threads in (1, 3):
        use_threads(monkeypatch, threads)
        loss, fused_grad = Fused(flow).gradient(flow.theta, flow.fixed, x)
        torch.testing.assert_close(loss.double(), -log_q.mean(1), rtol=2e-6, atol=0)
        torch.testing.assert_close(fused_grad / largest, grad / largest, rtol=0, atol=3e-6, check_dtype=False)


@pytest.mark.parametrize("width", [1, 15, 16, 17, 31, 33, 64, 100])
def test_gradients_fill_their_rows_and_touch_nothing_else(monkeypatch, width):
    """Vectors are stored whole where another row of a matrix comes: never where another share's gradient does."""
    flow, x = random_flow(masks=("random",), n=600, hidden_width=width, hidden_depth=3, n_flows=2)
    fused = Fused(flow)
    n = flow.theta.shape[1]
    draws = np.random.default_rng(0).normal(size=(2, 64 + 3 * n + 64)).astype(np.float32)
    for threads in THREADS:
        use_threads(monkeypatch, threads)
        written = draws.copy()
        for memory in written:
            steps = _steps(members=[0], order=_all(600), share=256, grad=memory[64:-64].reshape(3, n))
            fused._run(flow.theta, flow.fixed, x, None, steps, _results(1, 600, 0), GRADIENT)
        assert np.array_equal(written[:, :64], draws[:, :64])
        assert np.array_equal(written[:, -64:], draws[:, -64:])
        assert np.array_equal(written[0, 64:-64], written[1, 64:-64])  # whatever was there before


RUNS = {
    "an ensemble": {"flow__members": 4},
    "a large batch": {"train__batch_size": 600, "data__n_samples": 2000},
    "noise on points": {"train__batch_size": 600, "data__n_samples": 2000, "train__noise": 0.1},
    "batch norm": {"train__batch_size": 600, "data__n_samples": 2000, "flow__norm": "batchnorm"},
}


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_a_run_is_the_same_with_any_number_of_threads(monkeypatch, changes):
    spec = small_spec(train__kernel="fused", **changes)
    results = []
    for threads in (1, 2):
        use_threads(monkeypatch, threads)
        results.append(run_stack([spec])[0])
    alone, by_two = results
    for name, tensor in alone.state.items():
        assert torch.equal(tensor, by_two.state[name]), name
    assert alone.metrics["test_nll"] == by_two.metrics["test_nll"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_process_that_is_forked_afterwards_has_threads_of_its_own(monkeypatch):
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork on this system")
    flow, x = random_flow(n=600)
    fused = Fused(flow)
    use_threads(monkeypatch, 2)
    log_q = fused.log_prob(flow.theta, flow.fixed, x)
    context = multiprocessing.get_context("fork")
    found = context.Value("i", 0)

    def evaluate() -> None:
        found.value = int(torch.equal(fused.log_prob(flow.theta, flow.fixed, x), log_q))

    child = context.Process(target=evaluate, daemon=True)
    child.start()
    child.join(60)
    alive = child.is_alive()
    child.kill()
    child.join()
    assert not alive and found.value == 1


# --- Errors, Ctrl-C and the end of a program --------------------------------------------------------------------------


def fail() -> None:
    raise ValueError("it failed")


def nothing() -> None:
    pass


@pytest.mark.parametrize("calls", [[nothing, fail], [fail, nothing]], ids=["elsewhere", "here"])
def test_an_error_waits_for_the_other_threads(calls):
    begun = threading.Event()
    ended = []

    def slow() -> None:
        begun.set()
        time.sleep(0.2)
        ended.append(True)

    first, second = calls
    with pytest.raises(ValueError, match="it failed"):
        side_by_side([lambda: (begun.wait(10), first()), second, slow], 3)
    assert ended


def test_ctrl_c_waits_for_the_other_threads():
    begun = threading.Event()
    ended = []

    def slow() -> None:
        begun.set()
        time.sleep(0.1)  # the caller waits for it by now
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        side_by_side([lambda: begun.wait(10), slow], 2)
    assert ended


def test_where_no_thread_can_be_started_all_is_done_here(monkeypatch):
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        side_by_side([lambda: done.append(0), lambda: done.append(1), lambda: done.append(2)], 17)  # a pool of its own
    assert done == [0, 1, 2]
    side_by_side([lambda: done.append(3), lambda: done.append(4)], 17)
    assert sorted(done) == [0, 1, 2, 3, 4]


AT_THE_END = """
import atexit
from nfexp.flows.kernels.threads import side_by_side
side_by_side([lambda: None, lambda: None], 2)
atexit.register(lambda: side_by_side([lambda: print("here"), lambda: print("there")], 2))
"""


def test_what_is_computed_while_a_program_ends_needs_no_other_thread():
    ended = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True, check=True, timeout=60)
    assert (ended.stdout.split(), ended.stderr) == (["here", "there"], "")
