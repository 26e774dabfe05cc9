"""The benchmark's code at tiny sizes, with whatever peers are there; no time is asserted."""

import math
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import cases, children, contenders, kernel, ledger, pieces, prices, sweeps, tables, threads, training
from benchmarks.cases import Case, stack_of
from nfexp.flows.cost import FUSED, TORCH, amounts
from reproduction import others


@pytest.fixture(autouse=True)
def one_thread():
    """As in the benchmark; and two threads that wait for each other are slow where others compute too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


TINY = {"width": 8, "depth": 1, "n_flows": 2, "batch": 64}


@pytest.mark.filterwarnings("ignore")  # of the peers and of what they import
@pytest.mark.parametrize("library", ["nfexp", *cases.PEERS])
def test_every_contender_trains(library):
    if not find_spec(library):
        pytest.skip("not installed")
    members = 2 if library in ("nfexp", "flowjax") else 1
    conditioner = cases.PEERS.get(library, "separate")
    train = contenders.BUILDERS[library](Case(library=library, members=members, conditioner=conditioner, **TINY))
    first = train(1)
    assert train(40) < first - 0.01


@pytest.mark.filterwarnings("ignore")  # of the peers and of what they import
@pytest.mark.parametrize("library", ["zuko", "zuko_nsf", "normflows", "nflows"])
def test_a_peer_is_scored_as_our_runs_are(library):
    pytest.importorskip(library.partition("_")[0])
    tiny = {"data__n_samples": 1024, "train__batch_size": 64, "train__warmup": 2, "flow__n_flows": 2}
    few, more = (
        others.trained(library, "nfexp's", "moons", 0.1, 0, **tiny, train__steps=steps)["kl"] for steps in (2, 60)
    )
    assert 0 < more < few - 0.1


def test_a_missing_peer_is_skipped_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(cases, "find_spec", lambda name: None if name in ("zuko", "flowjax") else object())
    assert cases.installed() == ["normflows", "nflows"]
    assert "skipped: zuko, flowjax" in capsys.readouterr().out


def test_useful_arithmetic_is_what_a_step_multiplies():
    pytest.importorskip("zuko")
    case = Case(library="zuko", conditioner="shared", width=32, depth=2, n_flows=3, batch=64)
    kinds = ledger.count(contenders.BUILDERS["zuko"](case), 2)
    counted = sum(kinds[kind][2] for kind in ("products", "thin products"))
    first_input = 2 * case.batch * case.width  # the gradient that the first coupling does not need
    assert counted == pytest.approx(case.flop - first_input, rel=1e-6)


def test_rounds_in_a_child_process():
    case = Case(members=2, **TINY)
    with children.Bench() as bench:
        raw = bench.rounds([case, replace(case, n_flows=1)], repeats=2, seconds=0.02, budget=1.0)
        kinds = bench.count(replace(case, kernel="torch"), 2)  # torch's operations are what it counts
    assert list(raw["n_flows"]) == [2, 1] * 2 and list(raw["round"]) == [0, 0, 1, 1]
    assert (raw["loss_last"] < raw["loss_first"]).all() and raw["seconds"].notna().all()
    assert kinds["thin products"][2] >= case.members * case.flop * 0.9


def test_ratios_are_taken_inside_a_round():
    rows = [
        {"library": library, "case": case, "conditioner": "separate", "members": 1, "flop": 1e9, "round": k,
         "seconds": seconds * slow, "loss_first": 2.0, "loss_last": 1.0}
        for k, slow in enumerate((1, 3, 10))
        for library, case, seconds in (("sgemm", "sgemm", 0.01), ("nfexp", "a", 0.04), ("nfexp", "b", 0.02),
                                       ("normflows", "normflows", 0.1))
    ]  # fmt: skip
    table = training.summary(pd.DataFrame(rows)).set_index("contender")
    assert table["ratio"].to_dict() == pytest.approx({"sgemm": 0.5, "a": 2, "b": 1, "normflows": 5})
    assert table["percent_of_sgemm"].to_dict() == pytest.approx({"sgemm": 100, "a": 25, "b": 50, "normflows": 10})


def test_stacked_and_alone_and_a_step_on_a_device():
    one = training.deviation(seeds=1, steps=5, flow__n_flows=2, flow__hidden_width=8, data__n_test=20)
    assert one["runs"].item() == 4 and 0 <= one["largest"].item() < 1e-3
    paper = {"flow__hidden_depth": (1,), "flow__hidden_width": (8,), "data__n_samples": (20,)}
    frame = training.gpu(device="cpu", hidden=("64x2",), stacks=(1, 2), paper=paper, steps=2, seeds=1)
    assert set(frame["what"]) == {"step", "paper's grid, minutes"} and "times solo" in tables.shown("gpu", frame)


def test_the_fused_kernel_and_torch_in_one_process():
    norm = kernel.Setting(case=Case(**TINY), norm="batchnorm")
    frame = kernel.kernel(settings=[norm], rounds=1)
    assert frame["network"].item() == "8x1 separate, 2 couplings, batchnorm" and frame["fused"].item() > 0
    assert "8x1 separate, 2 couplings, batchnorm" in tables.shown("kernel", frame)


@pytest.mark.slow
def test_one_thread_and_two():
    frame = threads.threads(settings=[kernel.Setting(case=Case(**TINY | {"batch": 600}))], rounds=1)
    assert (frame[["one", "two"]] > 0).all(axis=None)
    assert torch.get_num_threads() == 1
    assert "8x1 separate, 2 couplings" in tables.shown("threads", frame)


def test_the_parts_of_the_kernel():
    frame = pieces.pieces(widths=(8, 24), rounds=1)
    assert (frame["us"] > 0).all() and (frame["gflops"] > 0).sum() == 4
    assert "| product " in tables.shown("pieces", frame)


@pytest.mark.parametrize("of_kernel", [FUSED, TORCH], ids=["fused", "torch"])
def test_prices_are_found_again_in_what_they_make(of_kernel):
    seconds = []
    for case in prices.CASES:
        (spec,) = stack_of(replace(case, members=1))
        priced = [getattr(of_kernel, part) * n for part, n in amounts(spec, case.batch, of_kernel.panel).items()]
        seconds.append(1e-9 * sum(priced))
    found, estimated = prices.fitted(prices.CASES, np.array(seconds), of_kernel.panel)
    for part, price in found.items():
        assert price == pytest.approx(getattr(of_kernel, part), rel=1e-4, abs=1e-4)
    assert estimated == pytest.approx(seconds)


def test_a_command_is_measured_and_a_failed_one_raises(tmp_path):
    used = sweeps.command("-c", "b = bytearray(50_000_000); print('hello')", folder=tmp_path)
    assert used.said == "hello\n" and used.peak_mb > 50 and used.cpu > 0
    with pytest.raises(RuntimeError, match="no such thing"):
        sweeps.command("-c", "raise SystemExit('no such thing')", folder=tmp_path)


def test_numbers_as_they_are_shown():
    shown = {0.0123456: "0.0123", 12.345: "12.3", 1234.5: "1,234", 1e-7: "1.0e-07", 0: "0", 6: "6", math.nan: "–"}
    assert [tables.number(value) for value in shown] == list(shown.values())


def test_a_narrow_column_has_a_rule():
    assert tables.markdown(["of", "E"], [["a", "1"]]).splitlines() == ["| of |  E |", "| -- | -: |", "| a  |  1 |"]


def test_the_page_shows_what_was_measured():
    page = tables.PAGE.read_text()
    assert tables.refreshed(page) == page, "run: python -m benchmarks docs"
    assert page.count("<!-- end -->") == len(tables.TABLES) + 2
