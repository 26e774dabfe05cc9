"""Closed forms and second implementations of what a trained flow is scored by."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, wasserstein_distance

from nfexp.data import load, make_target
from nfexp.flows.ensemble import Ensembles
from nfexp.flows.layers import Batch
from nfexp.flows.stack import build, from_state
from nfexp.run import run_stack
from nfexp.score.layers import batch_gaps, walk_metrics
from nfexp.score.samples import DIRECTIONS, _coverage, sample_metrics, slices_of
from nfexp.streams import stream


def standard_normal(spec, **changes):
    """A flow that is its base, the standard normal, in float64."""
    spec = dataclasses.replace(spec, flow=dataclasses.replace(spec.flow, standardise="none", **changes))
    x = load(spec).train[None]
    return spec, build(spec.flow, masks=[spec.flow.mask], seeds=[spec.seed], data=x)


OF_SAMPLES = {
    "densities that vanish": ([-math.inf] * 50 + [0.0] * 50, [-math.inf, 1.0], (1.0, 1.0)),
    "some that are no numbers": ([0.0] * 50 + [math.nan] * 50, [0.0, 1.0], (math.nan, math.nan)),
}


@pytest.mark.parametrize(("of_samples", "of_test", "expected"), OF_SAMPLES.values(), ids=OF_SAMPLES)
def test_coverage_where_samples_have_no_finite_density(of_samples, of_test, expected):
    found = _coverage(np.array(of_samples), np.array(of_test))
    np.testing.assert_equal((found["coverage_50"], found["coverage_90"]), expected)


@pytest.mark.parametrize("wider", [1.0, 2.0, 0.5])
def test_coverage_of_a_normal_flow_has_a_closed_form(make_spec, wider):
    spec, flow = standard_normal(make_spec())
    x = wider * torch.randn(1, 40_000, 2, generator=stream(0, "x"), dtype=torch.float64)
    found = sample_metrics([spec], [load(spec)], Ensembles(flow, 1), flow.log_prob(x))[0]
    # the region of mass m is |x|² < −2 log(1 − m), and |x / wider|² is chi-squared with 2 degrees of freedom
    for mass in (50, 90):
        expected = 1 - (1 - mass / 100) ** (1 / wider**2)
        assert found[f"coverage_{mass}"] == pytest.approx(expected, abs=0.04)
    own = flow.log_prob(torch.randn(1, 40_000, 2, generator=stream(1, "x"), dtype=torch.float64))[0]
    expected = ks_2samp(own.numpy(), flow.log_prob(x)[0].numpy()).statistic
    assert found["calibration_error"] == pytest.approx(expected, abs=0.04)


def test_sliced_distances_are_means_of_wasserstein_distances(make_spec):
    spec, flow = standard_normal(make_spec())
    found = sample_metrics([spec], [load(spec)], Ensembles(flow, 1), torch.zeros(1, 10))[0]
    target = make_target("moons", noise=spec.data.noise)
    normal, other = (np.random.default_rng(seed).standard_normal((2000, 2)) for seed in (0, 1))
    angles = np.arange(DIRECTIONS) * math.pi / DIRECTIONS

    def sliced(a, b):
        return np.mean([wasserstein_distance(*(p @ [np.cos(t), np.sin(t)] for p in (a, b))) for t in angles])

    noisy, clean = target.sample(2000, stream(7, "a")).numpy(), target.draw(2000, stream(7, "b")).numpy()
    assert found["sample_distance"] == pytest.approx(sliced(normal, noisy), abs=0.1)
    assert found["clean_distance"] == pytest.approx(sliced(normal, clean), abs=0.1)
    assert 0 < found["sample_floor"] < 0.1 * found["sample_distance"]
    slices = [slices_of(torch.from_numpy(x)) for x in (normal, other)]
    assert np.abs(slices[0] - slices[1]).mean() == pytest.approx(sliced(normal, other), rel=1e-9)


def test_flattening_is_the_ratio_of_the_least_to_the_greatest_spread(make_spec):
    spec, flow = standard_normal(make_spec(), norm="actnorm", norm_every=1)
    assert walk_metrics([spec], flow)[0]["flattening"] == pytest.approx(1, abs=0.12)
    flow.learned_layout.views(flow.theta)["norm.1.log_gain"][0] = torch.tensor([0.0, 2.0], dtype=torch.float64)
    flow.learned_layout.views(flow.theta)["norm.2.log_gain"][0] = torch.tensor([0.0, -1.0], dtype=torch.float64)
    # from base to data layer 2 stretches by e, then layer 1 shrinks by e²: ratios 1/e and 1/e
    assert walk_metrics([spec], flow)[0]["flattening"] == pytest.approx(math.exp(-1), rel=0.12)


def test_couplings_move_what_their_mask_says(make_spec):
    spec, flow = standard_normal(make_spec())
    assert walk_metrics([spec], flow)[0]["coordinates_moved"] == 0
    flow.theta.add_(0.1)
    assert walk_metrics([spec], flow)[0]["coordinates_moved"] == 1


def test_batch_gap_is_nothing_where_the_running_statistics_are_the_batch(make_spec):
    spec, flow = standard_normal(make_spec(), norm="batchnorm", norm_every=1)
    x = load(spec).train[None, :32]
    assert batch_gaps([spec], [load(spec)], flow)[0] < -0.01  # its own statistics suit a batch better
    for _ in range(400):  # the running statistics come ever closer
        batch = Batch()
        flow.log_prob(x, batch=batch)
        for name, value in batch.updates.items():
            flow.fixed_layout.blocks(flow.fixed)[name].copy_(value)
    assert batch_gaps([spec], [load(spec)], flow)[0] == pytest.approx(0, abs=1e-9)
    assert batch_gaps([spec], [load(spec)], standard_normal(make_spec())[1]) == [None]


def test_the_worst_point_is_the_one_that_the_stored_flow_finds_least_likely(make_spec):
    spec = make_spec()
    result = run_stack([spec], dtype=torch.float64)[0]
    log_q = from_state(spec.flow, 2, result.state).log_prob(load(spec).test[None])
    assert result.metrics["worst_nll"] == pytest.approx(-log_q.min().item(), abs=1e-9)
    assert result.metrics["worst_nll"] > result.metrics["test_nll"]


def test_a_diverged_run_names_the_layer(make_spec):
    wild = make_spec(train__lr=1e3, train__grad_clip=None, flow__scale="exp", flow__init="random", seed=1)
    result = run_stack([wild])[0]
    assert result.status == "diverged" and 0 <= result.metrics["diverged_layer"] <= wild.flow.n_flows + 1
    assert f"at step {result.metrics['diverged_at']}, first in " in result.reason
    assert run_stack([make_spec()])[0].metrics["diverged_layer"] is None
