"""Runs on images: stacks, checkpoints, bits/dim, loading, and what is refused before training."""

import math
import re
from dataclasses import replace

import pytest
import torch

from nfexp.data import load
from nfexp.flows.cost import member_bytes, training_cost, training_flop
from nfexp.record import load_flow, write_run
from nfexp.run import Interrupted, prepare_runs, run_stack
from nfexp.spec import SpecError, check_shape, flatten, from_mapping, run_id, stack_key, unflatten
from nfexp.sweep.planning import check_room
from nfexp.train import advance, begin, dequantised, finish
from tests.helpers.specs import image_spec, small_spec

FULL = {
    "flow.norm": "batchnorm",
    "flow.net_norm": "act",
    "flow.mixing": "conv",
    "flow.dequantisation": "net",
    "train.augment": "shift",
}


@pytest.mark.parametrize("changes", [{}, FULL], ids=["plain", "full"])
def test_a_member_is_its_run_alone(changes):
    specs = [image_spec(seed=seed, **changes) for seed in range(3)]
    specs[1] = replace(specs[1], train=replace(specs[1].train, lr=0.01))
    together = run_stack(specs)
    assert (together[0].metrics["batch_gap"] is None) == (not changes)  # batch norm in evaluation against training
    for e in (0, 1):
        alone = run_stack([specs[e]])[0]
        for name, value in alone.state.items():
            assert torch.equal(value, together[e].state[name]), name
        for key, value in alone.metrics.items():
            if key not in ("seconds", "stack_size"):
                assert value == together[e].metrics[key], key


def test_an_interrupted_training_gives_the_same_numbers(tmp_path):
    specs = [image_spec(seed=seed, **FULL) for seed in range(2)]
    whole = run_stack(specs)
    folders = [tmp_path / str(e) for e in range(2)]
    looks = iter([False, True])
    with pytest.raises(Interrupted):
        run_stack(specs, folders=folders, stop=lambda: next(looks))
    again = run_stack(specs, folders=folders)
    for one, other in zip(whole, again, strict=True):
        for name, value in one.state.items():
            assert torch.equal(value, other.state[name]), name
        assert one.metrics["test_bpd"] == other.metrics["test_bpd"]


@pytest.mark.parametrize("kernel", ["torch", "fused", None], ids=["vectors", "vectors, fused", "images"])
def test_what_is_evaluated_is_the_running_mean_of_the_weights(kernel):
    recipe = {"train__ema": 0.5, "train__select": "last", "train__steps": 5, "train__warmup": 2}
    spec = image_spec(**recipe) if kernel is None else small_spec(**recipe, train__kernel=kernel)
    training = prepare_runs([spec])
    state = begin(training)
    average = state.theta.clone()
    for step in range(1, 6):
        advance(training, state, until=step)
        average = torch.lerp(average, state.theta, 1 - min(0.5, (1 + step) / (10 + step)))
    kept, _ = finish(training, state)
    assert torch.equal(kept.theta, average) and not torch.equal(kept.theta, state.theta)
    at_once = begin(training)
    advance(training, at_once, until=5)
    assert torch.equal(at_once.average, average)


def test_an_ensemble_of_images_is_one_density(tmp_path):
    spec = image_spec(flow__members=2, train__dropout=0.3, train__augment="shift", **{"flow.dequantisation": "net"})
    single = replace(spec, flow=replace(spec.flow, members=1))
    for estimate in (training_flop, training_cost, member_bytes):
        assert estimate(spec) == pytest.approx(2 * estimate(single))
    alone = run_stack([single])[0]
    result = run_stack([spec])[0]
    for name, value in alone.state.items():
        assert torch.equal(value, result.state[f"members.0.{name}"]), name
    assert any(not torch.equal(value, result.state[f"members.1.{name}"]) for name, value in alone.state.items())
    write_run(tmp_path / "run", result)
    flow = load_flow(tmp_path / "run")
    images = load(spec).test
    each = torch.stack([flow.member(k).log_prob(images, draws=1) for k in (0, 1)])
    torch.testing.assert_close(flow.log_prob(images, draws=1), each.logsumexp(0) - math.log(2))
    assert result.metrics["val_nll"] < 64 * math.log(17)
    samples = flow.sample(20)
    assert samples.shape == (20, 1, 8, 8) and torch.equal(samples, samples.floor())


def test_a_run_is_scored_in_bits_and_comes_back(tmp_path):
    spec = image_spec(flow__dequantisation="table")
    result = run_stack([spec])[0]
    metrics = result.metrics
    assert metrics["test_bpd"] == pytest.approx(metrics["test_nll"] / (64 * math.log(2)))
    assert metrics["test_bpd_iw"] < metrics["test_bpd"] < math.log2(17)
    assert metrics["flattening"] is None and metrics["kl"] is None and metrics["coordinates_moved"] is None
    write_run(tmp_path / "run", result)
    flow = load_flow(tmp_path / "run")
    images = load(spec).test
    assert images.shape == (20, 1, 8, 8)
    weighted = flow.bits_per_dim(images).double()
    assert weighted.mean().item() == pytest.approx(metrics["test_bpd_iw"], abs=0.02)
    assert (flow.log_prob(images, draws=1) != flow.log_prob(images, draws=1, seed=1)).all()
    samples = flow.sample(6, seed=3)
    assert samples.shape == (6, 1, 8, 8) and torch.equal(samples, samples.round())
    z = flow.inverse(images + 0.5)
    assert z.shape == (20, 64)
    torch.testing.assert_close(flow.forward(z), (images + 0.5).float(), rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="x: expected points in the cells of the levels, from 0 to below 17; got 25"):
        flow.inverse(images * 0 + 25.5)
    assert "bits/dim" in repr(flow)
    law = flow.distribution()
    middles = (images + 0.5).float().flatten(1)
    torch.testing.assert_close(law.log_prob(middles), flow.stack.log_prob(middles[None])[0])
    with pytest.raises(ValueError, match=r"value: expected shape \(…, 64\); got \(20, 1, 8, 8\)"):
        law.log_prob(images + 0.5)
    with pytest.raises(ValueError, match="export: expected a flow of vectors; got one of images"):
        flow.export("torch")
    assert flow.sample(0).shape == (0, 1, 8, 8) and flow.log_prob(images[:0]).shape == (0,)
    with pytest.raises(ValueError, match=r"x: expected whole levels from 0 to 16; got 0\.5"):
        flow.log_prob(images + 0.5)
    with pytest.raises(ValueError, match=r"x: expected whole levels from 0 to 16; got 17"):
        flow.log_prob(images * 0 + 17)
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 1, 8, 8\); got \(20, 64\)"):
        flow.log_prob(images.flatten(1))


def test_dequantised_images_stay_in_their_cells():
    spec = image_spec()
    dataset = load(spec)
    points = dequantised(dataset.val, dataset, 0, "val").float()
    assert torch.equal(points.floor().double(), dataset.val)
    assert torch.equal(points, dequantised(dataset.val, dataset, 0, "val").float())


def test_training_is_dequantised_anew_at_each_step(monkeypatch):
    spec = image_spec(train__batch_size=60, train__dropout=0.0)
    training = prepare_runs([spec])
    seen = []
    flow_type = type(training.fresh)
    log_prob = flow_type.log_prob
    monkeypatch.setattr(flow_type, "log_prob", lambda self, x, *a, **k: (seen.append(x), log_prob(self, x, *a, **k))[1])
    state = begin(training)
    advance(training, state, until=2)
    first, second = (x for x in seen if x.shape[1] == 60)
    level = lambda x: x.floor().sort(1).values  # noqa: E731
    assert torch.equal(level(first), level(second)) and not torch.equal(first.sort(1).values, second.sort(1).values)


def test_a_record_says_all_of_an_image_flow():
    spec = image_spec()
    assert unflatten(flatten(spec)) == spec
    assert run_id(spec) != run_id(image_spec(flow__scales=1))
    assert stack_key(spec) != stack_key(image_spec(flow__mask="channel"))
    assert not any(key.startswith(("flow.scales", "train.dropout")) for key in flatten(small_spec()))


def test_a_larger_flow_of_images_costs_more():
    small, large = image_spec(), image_spec(flow__hidden_width=32, flow__hidden_depth=2)
    assert 0 < training_flop(small) < training_flop(large)
    assert 0 < member_bytes(small) < member_bytes(large) < 1e9


def test_a_run_that_no_memory_holds_is_refused():
    spec = shaped(1, 1024, 1024, train__batch_size="full")
    needed = member_bytes(spec)
    check_room([image_spec(), spec], needed)
    with pytest.raises(
        SpecError, match=r"^train.batch_size: .* fits into 1 GB of .* of \d+ images of 1 × 1024 × 1024 and .*$"
    ):
        check_room([image_spec(), spec], 1e9)
    check_room([small_spec()], 0.0)  # vectors are left to the planner


def shaped(channels, height, width, **flat):
    spec = image_spec(**flat)
    data = replace(spec.data, channels=channels, height=height, width=width, dim=channels * height * width)
    return replace(spec, data=data)


BAD_SHAPES = {
    "odd side": ((1, 7, 7), {}, "flow.scales: expected scales for whose squeezing 2 divides both sides of 7 x 7 .*"),
    "scales": ((1, 8, 8), {"flow.scales": 4}, "flow.scales: expected at most 3 for images of 8 x 8 pixels; got 4"),
    "not divisible twice": ((3, 10, 10), {"flow.scales": 3}, "flow.scales: expected scales .* 4 divides .*; got 3"),
    "one channel": ((1, 7, 7), {"flow.mask": "channel", "flow.scales": 1}, "flow.scales: expected .* 2 divides .*"),
    "a line": ((1, 8, 1), {"flow.scales": 1}, "data: expected images of at least 2 x 2 pixels; got 8 x 1"),
}


@pytest.mark.parametrize(("shape", "changes", "message"), BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_shapes_that_do_not_fit(shape, changes, message):
    flat = dict(changes)
    scales = flat.pop("flow.scales", 2)
    spec = shaped(*shape, **flat)
    with pytest.raises(SpecError) as caught:
        check_shape(replace(spec, flow=replace(spec.flow, scales=scales)))
    assert re.fullmatch(message, str(caught.value))


BAD = {
    "vectors": (
        {"flow.kind": "vector"},
        "flow.kind: expected 'image' .flow=image., for data.name=digits holds images.*",
    ),
    "mask": ({"flow.mask": "random"}, "flow.mask: expected one of checkerboard, channel, both where .*; got 'random'"),
    "conditioner": ({"flow.conditioner": "separate"}, "flow.conditioner: expected 'shared' where .*; got 'separate'"),
    "tail": ({"flow.tail": "learned"}, "flow.tail: expected 'none' where flow.kind is 'image'; got 'learned'"),
    "spread": ({"flow.init": "spread"}, "flow.init: expected identity or random where .*; got 'spread'"),
    "no scales": ({"flow.scales": None}, "flow.scales: expected a value where flow.kind is 'image'; got None"),
    "scales of no sort": ({"flow.scales": 0}, "flow.scales: expected an integer >= 1 .* or null for a vector.*; got 0"),
    "dequantisation": ({"flow.dequantisation": "flat"}, "flow.dequantisation: expected one of uniform, .*; got 'flat'"),
    "alpha": ({"flow.alpha": 0}, "flow.alpha: expected a number > 0 .*; got 0"),
    "dropout": ({"train.dropout": 1}, "train.dropout: expected a number >= 0 and <= 0.95.*; got 1"),
    "augment": ({"train.augment": "turn"}, "train.augment: expected one of none, shift, flip.*; got 'turn'"),
    "noise": ({"train.noise": 0.1}, "train.noise: expected 0 for images, .*; got 0.1"),
    "mean of weights": ({"train.ema": 1.0}, "train.ema: expected a number >= 0 .*; got 1.0"),
}


def regrouped(flat):
    out = {}
    for key, value in flat.items():
        group, _, leaf = key.rpartition(".")
        (out.setdefault(group, {}) if group else out)[leaf] = value
    return out


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_values(changes, message):
    with pytest.raises(SpecError) as caught:
        from_mapping(regrouped(flatten(image_spec()) | changes))
    assert re.fullmatch(message, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("key", ["flow.scales", "flow.alpha", "train.dropout"])
def test_keys_of_images_are_refused_for_vectors(key):
    with pytest.raises(SpecError, match=f"{key}: expected null where flow.kind is 'vector'; got "):
        from_mapping(regrouped(flatten(small_spec()) | {key: {"flow.scales": 2}.get(key, 0.1)}))


def test_an_image_flow_is_refused_for_vectors():
    flow = {k: v for k, v in flatten(image_spec()).items() if k.startswith("flow.")}
    with pytest.raises(
        SpecError, match=r"flow.kind: expected 'vector' \(flow=realnvp\), for data.name=moons holds vec"
    ):
        from_mapping(regrouped(flatten(small_spec()) | flow))
