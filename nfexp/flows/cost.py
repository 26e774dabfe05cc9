"""What a run costs, estimated from its spec: floating-point operations and memory. Needs no torch."""

from __future__ import annotations

import math

from nfexp.spec import Spec, batch_points, event_shape, passed_counts

PASS_COST = 330.0  # moving one hidden activation through a training step, in floating-point operations
KEEP_INPUT = ("silu",)  # activations that keep their input beside their output, for their derivative
CHUNK = 500  # points that a trained flow is evaluated at in one go


def dimension(spec: Spec) -> int:
    """D, the numbers in one point."""
    return math.prod(event_shape(spec.data))


def training_flop(spec: Spec) -> float:
    """Floating-point operations of all matrix products of training one run, forward and backward."""
    flow, dim = spec.flow, dimension(spec)
    between_hidden = (flow.hidden_depth - 1) * flow.hidden_width**2 * flow.nets
    n_inputs: float = dim
    n_outputs: float = dim
    if flow.conditioner_input == "passed":
        n_inputs = sum(passed_counts(flow, dim)) / flow.n_flows
        n_outputs = dim - n_inputs
    first_and_last = flow.hidden_width * (n_inputs * flow.nets + n_outputs * flow.heads)
    per_point = 6 * (between_hidden + first_and_last)  # 2 forward, 4 backward
    return float(spec.train.steps) * batch_points(spec) * flow.n_flows * per_point


def training_cost(spec: Spec) -> float:
    """Estimated work of training one run, in floating-point operations: matrix products and passes over memory."""
    flow = spec.flow
    passes = PASS_COST * flow.hidden_depth * flow.hidden_width * flow.nets
    return training_flop(spec) + float(spec.train.steps) * batch_points(spec) * flow.n_flows * passes


def member_bytes(spec: Spec) -> float:
    """Estimated peak memory of training and scoring one run in a stack, in bytes: four a number and a fifth to spare.

    What is held: the points, the weights with their moments, gradients and copies, the activations of one training
    step of all layers, and what the run records.
    """
    flow, record, dim = spec.flow, spec.record, dimension(spec)
    per_net = (flow.hidden_depth - 1) * flow.hidden_width**2 + flow.hidden_width * (dim * 2 + flow.hidden_depth)
    learned = flow.n_flows * flow.nets * per_net
    hidden = flow.nets * flow.hidden_width
    if flow.activation in KEEP_INPUT:
        hidden *= 2
    pointwise = 12 * dim * flow.heads
    step = batch_points(spec) * (flow.n_flows * (hidden * flow.hidden_depth + pointwise) + 3 * hidden)
    scoring = CHUNK * (hidden * (flow.hidden_depth + 1) + pointwise)
    samples = record.samples * (record.snapshots + 3)
    walk = record.walk * (2 * flow.n_flows + 4)
    kept = dim * (samples + walk) + 6 * record.grid**2
    points = dim * 4 * sum(spec.data.points)
    return 5.0 * (12 * learned + max(step, scoring) + 2 * kept + points)
