"""What a run costs, estimated from its spec: floating-point operations and memory. Needs no torch."""

from __future__ import annotations

import math

from nfexp.flows.image.plan import Image, image_of, stages
from nfexp.spec import Flow, Spec, batch_points, event_shape, passed_counts

PASS_COST = 330.0  # moving one hidden activation through a training step, in floating-point operations
KEEP_INPUT = ("silu",)  # activations that keep their input beside their output, for their derivative
CHUNK = 500  # points that a trained flow is evaluated at in one go


def dimension(spec: Spec) -> int:
    """D, the numbers in one point."""
    return math.prod(event_shape(spec.data))


def training_flop(spec: Spec) -> float:
    """Floating-point operations of all matrix products of training one run, forward and backward."""
    flow, dim = spec.flow, dimension(spec)
    image = image_of(spec.data)
    if image is not None:
        return float(spec.train.steps) * batch_points(spec) * 6 * _products_of_an_image(flow, image)
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
    image = image_of(spec.data)
    if image is not None:
        moved = sum(flow.hidden_width * _maps_per_pixel(flow) * pixels for pixels in _pixels(flow, image))
        return training_flop(spec) + float(spec.train.steps) * batch_points(spec) * PASS_COST * moved
    passes = PASS_COST * flow.hidden_depth * flow.hidden_width * flow.nets
    return training_flop(spec) + float(spec.train.steps) * batch_points(spec) * flow.n_flows * passes


def member_bytes(spec: Spec) -> float:
    """Estimated peak memory of training and scoring one run in a stack, in bytes: four a number and a fifth to spare.

    What is held: the points, the weights with their moments, gradients and copies, the activations of one training
    step of all layers, and what the run records.
    """
    flow, record, dim = spec.flow, spec.record, dimension(spec)
    image = image_of(spec.data)
    if image is not None:
        return _image_bytes(spec, image)
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


# --- Images -----------------------------------------------------------------------------------------------------------


def _pixels(flow: Flow, image: Image) -> list[int]:
    """Pixels of a map in each coupling's network."""
    return [stage.shape[1] * stage.shape[2] for stage in stages(flow, image.shape) if stage.is_coupling]


def _maps_per_pixel(flow: Flow) -> int:
    """Maps that a network holds for its derivative, over its width, as measured: for σ, dropout and its sums.

    A norm in the network holds four more before each σ.
    """
    of_norms = 4 * (2 * flow.hidden_depth + 1) if flow.net_norm in ("batch", "act") else 0
    return 6 * flow.hidden_depth + 6 + of_norms


def _weights_of_a_network(flow: Flow) -> int:
    """Weights of the residual blocks, and of a first convolution that sees 16 channels at least."""
    width = flow.hidden_width
    return 9 * (2 * flow.hidden_depth * width**2 + 16 * width)


def _products_of_an_image(flow: Flow, image: Image) -> float:
    """Multiplications of all convolutions on one image's way to the base."""
    return float(sum(_weights_of_a_network(flow) * pixels for pixels in _pixels(flow, image)))


def _image_bytes(spec: Spec, image: Image) -> float:
    """As :func:`member_bytes`: maps of all networks in a training step, or of one while many points are evaluated."""
    flow = spec.flow
    pixels = _pixels(flow, image)
    learned = len(pixels) * _weights_of_a_network(flow)
    maps = _maps_per_pixel(flow) * flow.hidden_width
    step = batch_points(spec) * sum(maps * each + 12 * image.dim for each in pixels)
    scoring = CHUNK * (4 * flow.hidden_width * max(pixels) + 12 * image.dim)
    points = image.dim * (4 * sum(spec.data.points) + 16 * spec.data.points[2])
    kept = 64 * 8 * image.dim
    return 5.0 * (13 * learned + max(step, scoring) + 2 * kept + points)
