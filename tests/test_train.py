"""The trainer: stacks equal single runs, divergence stays with its member, weights are kept as asked."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from nfexp import run
from nfexp.batches import Noise, Order, noise_share
from nfexp.checkpoint import CHECKPOINT
from nfexp.data import load
from nfexp.flows.cost import member_bytes
from nfexp.flows.stack import from_state
from nfexp.run import Interrupted, prepare_runs, run_stack
from nfexp.spec import SpecError, flatten
from nfexp.streams import stream
from nfexp.train import advance, begin, fit, log_spaced, lr_factor, mean_nll


def metrics(spec, **kwargs):
    return run_stack([spec], **kwargs)[0].metrics


def mixed(make_spec):
    return [
        make_spec(seed=0),
        make_spec(seed=1, data__name="circles", data__n_samples=50),
        make_spec(seed=2, data__noise=0.2, flow__mask="random", train__lr=1e-2),
        make_spec(seed=3, data__name="spiral4", data__noise=1.0, flow__mask="once", train__select="last"),
        make_spec(seed=4, train__grad_clip=None, train__select="train"),
    ]


@pytest.mark.parametrize("norm", ["none", "batchnorm", "actnorm"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_member_equals_the_run_alone(make_spec, norm, dtype):
    specs = [replace(s, flow=replace(s.flow, norm=norm)) for s in mixed(make_spec)]
    tolerance = 1e-9 if dtype is torch.float64 else 1e-4
    together = run_stack(specs, dtype=dtype)
    for spec, result in zip(specs, together, strict=True):
        alone = run_stack([spec], dtype=dtype)[0]
        for key in ("train_nll", "val_nll", "test_nll", "kl", "clean_distance", "coverage_50", "flattening"):
            assert alone.metrics[key] == pytest.approx(result.metrics[key], abs=tolerance), key
        assert alone.metrics["best_step"] == result.metrics["best_step"]
        for name, value in alone.state.items():
            torch.testing.assert_close(value, result.state[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("norm", ["batchnorm", "actnorm"])
def test_a_member_of_compact_networks_with_tails_equals_the_run_alone(make_spec, norm):
    changes = {
        "conditioner_input": "passed",
        "tail_bound": 3.0,
        "tail": "learned",
        "base": "contaminated",
        "norm": norm,
    }
    specs = []
    for spec in mixed(make_spec):
        recipe = replace(spec.train, optimizer="nadam", noise=0.05 * spec.seed)
        specs.append(replace(spec, flow=replace(spec.flow, **changes), train=recipe))
    together = run_stack(specs, dtype=torch.float64)
    for spec, result in zip(specs, together, strict=True):
        alone = run_stack([spec], dtype=torch.float64)[0]
        assert alone.metrics["worst_nll"] == pytest.approx(result.metrics["worst_nll"], abs=1e-9)
        for name, value in alone.state.items():
            torch.testing.assert_close(value, result.state[name], rtol=0, atol=1e-9)


def test_training_learns(make_spec):
    m = metrics(
        make_spec(train__steps=400, flow__n_flows=4, data__n_samples=1000, data__noise=0.2, train__batch_size=128)
    )
    assert m["kl"] < 0.15
    assert m["test_nll"] == pytest.approx(m["true_nll"] + m["kl"])
    assert m["kl_se"] < m["test_nll_se"]
    assert m["inverse_error"] < 1e-3


def test_a_diverging_member_is_frozen_and_harms_nobody(make_spec):
    wild = make_spec(train__lr=1e3, train__grad_clip=None, seed=1, flow__norm="batchnorm")
    calm = make_spec(seed=2, flow__norm="batchnorm")
    together = run_stack([wild, calm])
    assert together[0].status == "diverged"
    assert together[0].metrics["diverged_at"] >= 1
    assert together[0].metrics.get("test_nll") is None
    assert together[1].status == "completed"
    assert together[1].metrics["test_nll"] == pytest.approx(metrics(calm)["test_nll"], abs=1e-4)
    for value in together[0].state.values():
        assert torch.isfinite(value).all()


def test_what_a_diverged_run_stores_does_not_depend_on_its_mates(make_spec):
    wild = make_spec(train__lr=1e3, train__grad_clip=None, seed=1, flow__norm="batchnorm", record__samples=10)
    alone = run_stack([wild])[0]
    beside = run_stack([wild, make_spec(seed=2, flow__norm="batchnorm", record__samples=10)])[0]
    assert alone.status == beside.status == "diverged"
    assert alone.arrays["snapshot_steps"].tolist() == beside.arrays["snapshot_steps"].tolist()
    assert alone.arrays["snapshots"].shape == beside.arrays["snapshots"].shape
    assert len(beside.arrays["snapshot_steps"]) < 13


def test_a_flow_that_cannot_sample_is_still_a_record(make_spec, monkeypatch, tmp_path):
    from nfexp import record
    from nfexp.score import samples

    monkeypatch.setattr(samples, "slices_of", lambda x: np.full((samples.DIRECTIONS, len(x)), math.nan))
    result = run_stack([make_spec()])[0]
    record.write_run(tmp_path, result)
    assert result.status == "completed" and result.metrics["clean_distance"] is None
    assert (tmp_path / "result.json").is_file()


def test_everything_may_diverge(make_spec):
    results = run_stack(
        [make_spec(train__lr=1e3, train__grad_clip=None, seed=s, flow__norm="batchnorm") for s in (1, 1)]
    )
    assert [r.status for r in results] == ["diverged"] * 2


def test_selection_keeps_what_it_says(make_spec):
    small = {"data__n_samples": 20, "train__steps": 300, "train__schedule": "constant", "train__n_evals": 40}
    kept = {s: run_stack([make_spec(train__select=s, **small)])[0] for s in ("val", "train", "last")}
    history = kept["val"].history
    assert kept["val"].metrics["best_step"] == history["step"][history["val_nll"].argmin()]
    assert kept["train"].metrics["best_step"] == history["step"][history["train_nll"].argmin()]
    assert kept["last"].metrics["best_step"] == 300
    assert kept["train"].metrics["test_nll"] > kept["val"].metrics["test_nll"]  # 20 points: memorised


def test_kept_weights_give_the_recorded_numbers(make_spec):
    spec = make_spec(train__schedule="constant")
    result = run_stack([spec])[0]
    flow = from_state(spec.flow, 2, result.state)
    for split in ("val", "test"):
        x = getattr(load(spec), split).float()[None]
        assert mean_nll(flow, x).item() == pytest.approx(result.metrics[f"{split}_nll"], abs=1e-5)


def test_padding_and_chunks_do_not_change_the_mean(make_spec):
    flow = run_stack([make_spec()])[0]
    flow = from_state(make_spec().flow, 2, flow.state)
    x = torch.randn(1, 90, 2, generator=stream(0, "x"))
    padded = torch.cat([x, torch.full((1, 33, 2), math.nan)], 1)
    assert mean_nll(flow, padded, chunk=7).item() == pytest.approx(mean_nll(flow, x).item(), abs=1e-6)


def test_batches_are_passes_without_replacement():
    order = Order(n=10, batch=4, seed=0)
    taken = order.of(range(1, 6)).flatten()
    assert sorted(taken[:10].tolist()) == list(range(10)) == sorted(taken[10:].tolist())
    assert taken[:10].tolist() != taken[10:].tolist()
    assert torch.equal(Order(n=10, batch=4, seed=0).of(range(4, 5))[0], taken[12:16])
    assert torch.equal(Order(n=10, batch=4, seed=0).of(range(3, 6)), taken[8:20].view(3, 4))
    assert Order(n=3, batch=9, seed=0).of(range(2, 3))[0].sort().values.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_slices_of_a_training_share_its_passes(make_spec, monkeypatch):
    drawn = []

    def noted(self, k):
        drawn.append(k)
        return torch.arange(self.n)

    monkeypatch.setattr(Order, "drawn", noted)
    training = prepare_runs([make_spec()])
    state = begin(training)
    for step in range(1, 6):
        advance(training, state, until=step)
    assert drawn == [0]


def test_training_noise_goes_in_a_straight_line(make_spec):
    recipe = make_spec(train__noise=0.2, train__noise_end=0.1, train__steps=101).train
    assert [noise_share(recipe, step) for step in (1, 51, 101)] == pytest.approx([0.2, 0.15, 0.1])
    once = make_spec(train__noise=0.2, train__steps=1, train__warmup=1).train
    assert noise_share(once, 1) == 0.2


def test_training_noise_is_as_wide_as_the_points_and_fresh():
    sd = torch.tensor([1.0, 5.0], dtype=torch.float64)
    noise = Noise(n=5000, batch=4000, seed=0, sd=sd)
    drawn = torch.cat([noise.of(range(step, step + 1))[0] for step in range(1, 6)])
    torch.testing.assert_close(drawn.std(0), sd, rtol=0.05, atol=0)
    assert (drawn.mean(0) / sd).abs().max() < 5 / math.sqrt(len(drawn))
    assert len(drawn.unique(dim=0)) == len(drawn)
    assert torch.equal(Noise(n=5000, batch=4000, seed=0, sd=sd).of(range(4, 5))[0], drawn[12_000:16_000])


def test_training_noise_changes_its_run_and_no_mate(make_spec):
    noisy = make_spec(train__noise=0.1, train__noise_end=0.02, seed=1)
    plain = make_spec(seed=2)
    together = run_stack([noisy, plain])
    for spec, result in zip((noisy, plain), together, strict=True):
        alone = run_stack([spec])[0]
        assert alone.metrics["test_nll"] == pytest.approx(result.metrics["test_nll"], abs=1e-4)
    quiet = metrics(make_spec(seed=1))
    assert abs(quiet["test_nll"] - together[0].metrics["test_nll"]) > 1e-3


def test_a_flow_trained_with_noise_learns_the_points_and_the_noise(make_spec):
    """On ever fresh noise it learns the law of point plus noise, whose variance is the sum of both."""
    long = {"train__steps": 600, "train__batch_size": 200, "train__select": "last", "flow__n_flows": 2}
    spec = make_spec(train__noise=1.0, train__noise_end=1.0, **long)
    flow = from_state(spec.flow, 2, run_stack([spec])[0].state)
    spread = load(spec).train.std(0).float()
    sampled = flow.sample(20_000, [stream(0, "x")])[0].std(0)
    torch.testing.assert_close(sampled, math.sqrt(2) * spread, rtol=0.08, atol=0)


def test_splits_are_fresh_and_paired_over_architectures(make_spec):
    a, b = make_spec(), make_spec(flow__n_flows=1, train__lr=1e-4)
    for split in ("train", "val", "test"):
        assert torch.equal(getattr(load(a), split), getattr(load(b), split))
    assert not torch.equal(load(a).train[:50], load(a).val[:50])
    assert not torch.equal(load(a).train, load(make_spec(seed=1)).train)


def test_schedules():
    at = lambda step, schedule: lr_factor(step, steps=100, warmup=10, schedule=schedule)  # noqa: E731
    assert [at(1, "cosine"), at(5, "constant"), at(10, "cosine"), at(60, "constant")] == [0.1, 0.5, 1.0, 1.0]
    assert at(55, "cosine") == pytest.approx(0.5, abs=0.02) and 0 < at(100, "cosine") < 0.01
    assert lr_factor(1, steps=1, warmup=0, schedule="cosine") > 0.0
    assert log_spaced(7, 40) == [1, 2, 3, 4, 5, 6, 7] and log_spaced(1, 5) == [1]


def test_a_stack_has_one_key(make_spec):
    with pytest.raises(ValueError, match="one stack_key; got several"):
        run_stack([make_spec(), make_spec(flow__n_flows=1)])


def test_an_absent_device_is_said(make_spec, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match=r"device: expected a CUDA device .*; got 'cuda'"):
        run.check(make_spec(device="cuda"))


def test_fit_leaves_its_input_alone(make_spec):
    training = prepare_runs([make_spec(train__steps=3, train__n_evals=3, train__warmup=0, record__samples=4)])
    before = training.fresh.theta.clone()
    kept, history = fit(training)
    assert torch.equal(training.fresh.theta, before) and not torch.equal(kept.theta, before)
    assert history.steps == [1, 2, 3] == history.snapshot_steps
    assert history.snapshots.shape == (1, 3, 4, 2)


CARRIED_ON = {
    "plain": {},
    "batchnorm": {"flow__norm": "batchnorm"},
    "nadam with noise": {"train__optimizer": "nadam", "train__noise": 0.1, "train__noise_end": 0.02},
}


@pytest.mark.parametrize("changes", CARRIED_ON.values(), ids=CARRIED_ON)
def test_an_interrupted_training_gives_the_same_numbers(make_spec, tmp_path, changes):
    specs = [make_spec(seed=s, record__samples=20, train__n_evals=9, **changes) for s in range(3)]
    folders = [tmp_path / str(s) for s in range(3)]
    whole = run_stack(specs)
    with pytest.raises(Interrupted, match="told to stop at step"):
        run_stack(specs, folders=folders, code="a", stop=lambda: True)
    (folders[1] / CHECKPOINT).unlink()  # this one begins again, the others go on
    resumed = run_stack(specs, folders=folders, code="a")
    for a, b in zip(whole, resumed, strict=True):
        timed = {"seconds", "stack_size"}
        assert {k: v for k, v in a.metrics.items() if k not in timed} == pytest.approx(
            {k: v for k, v in b.metrics.items() if k not in timed}, abs=1e-6
        )
        for name, array in a.arrays.items():
            np.testing.assert_array_equal(array, b.arrays[name])
    assert resumed[0].metrics["stack_size"] == 2 and resumed[1].metrics["stack_size"] == 1


@pytest.mark.parametrize("spoil", ["truncated", "other code", "other run"])
def test_a_checkpoint_that_does_not_fit_is_said_and_not_used(make_spec, tmp_path, spoil, caplog):
    spec = make_spec(seed=int(spoil == "other run"))
    with pytest.raises(Interrupted):
        run_stack([make_spec()], folders=[tmp_path], code="a", stop=lambda: True)
    if spoil == "truncated":
        (tmp_path / CHECKPOINT).write_bytes((tmp_path / CHECKPOINT).read_bytes()[:100])
    result = run_stack([spec], folders=[tmp_path], code="b" if spoil == "other code" else "a")[0]
    assert "begun again" in caplog.text
    assert result.metrics["test_nll"] == run_stack([spec])[0].metrics["test_nll"]


def test_precision_holds_while_a_stack_trains_and_no_longer(make_spec, monkeypatch):
    seen = []

    def spy(*args, **kwargs):
        seen.append(torch.get_float32_matmul_precision())
        advance(*args, **kwargs)

    monkeypatch.setattr(run, "advance", spy)
    run_stack([make_spec(train__matmul_precision="high", train__steps=5)])
    assert set(seen) == {"high"} and torch.get_float32_matmul_precision() == "highest"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; a child's ru_maxrss starts at its parent's")
def test_estimated_memory_is_near_what_a_member_takes(make_spec):
    spec = make_spec(flow__hidden_width=256, train__batch_size=256, train__steps=5, train__n_evals=2)
    program = (
        "import sys; from nfexp.run import *; from nfexp.spec import unflatten; reuse_freed_memory()\n"
        f"run_stack([unflatten({flatten(spec)!r} | {{'seed': s}}) for s in range(int(sys.argv[1]))])\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    peak = {
        n: 1024 * int(subprocess.check_output([sys.executable, "-c", program, str(n)], text=True).split()[-1])
        for n in (2, 10)
    }
    assert 0.8 < member_bytes(spec) / ((peak[10] - peak[2]) / 8) < 2.5
