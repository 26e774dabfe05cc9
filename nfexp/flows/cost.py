"""What a run costs, estimated from its spec: operations, time and memory. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nfexp.flows.fusible import is_fused
from nfexp.flows.image.plan import Image, image_of, stages
from nfexp.spec import Flow, Spec, batch_points, event_shape, passed_counts

# moving one number of a map of images through a training step, in floating-point operations
PASS_COST = 330.0
DRAWS = 16  # places in its cells at which a test image is evaluated
# activations that keep their input beside their output, for their derivative
KEEP_INPUT = ("silu",)
CHUNK = 500  # points that a trained flow is evaluated at in one go


def dimension(spec: Spec) -> int:
    """D, the numbers in one point."""
    return math.prod(event_shape(spec.data))


def training_flop(spec: Spec) -> float:
    """Floating-point operations of all matrix products of training one run, forward and backward."""
    flow = spec.flow
    dim = dimension(spec)
    image = image_of(spec.data)
    if image is not None:
        per_image = 6 * _products_of_an_image(flow, image)
        return float(spec.train.steps) * batch_points(spec) * flow.members * per_image
    between_hidden = (flow.hidden_depth - 1) * flow.hidden_width**2 * flow.nets
    n_inputs: float = dim
    n_outputs: float = dim
    if flow.conditioner_input == "passed":
        n_inputs = sum(passed_counts(flow, dim)) / flow.n_flows
        n_outputs = dim - n_inputs
    n_inputs += spec.data.context_dim
    first_and_last = flow.hidden_width * (n_inputs * flow.nets + n_outputs * flow.heads)
    per_point = 6 * (between_hidden + first_and_last)  # 2 forward, 4 backward
    return float(spec.train.steps) * batch_points(spec) * flow.n_flows * flow.members * per_point


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Nanoseconds that the parts of a training step take on one core.

    Fitted to measured steps by `python -m benchmarks prices`. Only their ratios matter: the speed
    of a machine is measured (:func:`nfexp.run.training_rate`).
    """

    panel: int  # hidden units that are computed together, and paid for together
    flop: float  # of matrix products
    activation: float  # one hidden unit of one point
    point: float  # one point in one coupling
    layer: float  # calling one layer of one coupling
    weight: float  # moving one weight


FUSED = Prices(panel=16, flop=0.012, activation=0.766, point=68.3, layer=828.0, weight=5.67)
TORCH = Prices(panel=1, flop=0.0104, activation=3.24, point=57.4, layer=22_300.0, weight=8.09)
IMAGE_FLOP = 0.026  # nanoseconds of one operation of a convolution
FORWARD = 1 / 3  # of a training step: evaluating the same points
# points that every run is scored on beside its test points: samples, and those of their comparison
SCORED = 4_000
SCORING_SECONDS = 0.05  # of a run, whatever its flow


def _flop_per_point(spec: Spec) -> float:
    """Floating-point operations of the matrix products of a training step, for each of its points."""
    return training_flop(spec) / (float(spec.train.steps) * batch_points(spec))


def amounts(spec: Spec, points: float, panel: int) -> dict[str, float]:
    """How much there is of each part that has a price, in a training step on so many points that are vectors."""
    flow = spec.flow
    width = panel * math.ceil(flow.hidden_width / panel)
    n_couplings = flow.members * flow.n_flows
    n_nets = n_couplings * flow.nets
    return {
        "flop": points * _flop_per_point(spec) * width / flow.hidden_width,
        "activation": points * n_nets * flow.hidden_depth * width,
        "point": points * n_couplings,
        "layer": float(n_couplings * (flow.hidden_depth + 1)),
        "weight": float(n_nets * (flow.hidden_depth - 1) * flow.hidden_width * width),
    }


def _seconds(spec: Spec, points: float, prices: Prices) -> float:
    """Seconds of a training step on so many points."""
    flow = spec.flow
    image = image_of(spec.data)
    if image is not None:
        maps = sum(
            flow.hidden_width * _maps_per_pixel(flow) * pixels for pixels in _pixels(flow, image)
        )
        flop = _flop_per_point(spec) + PASS_COST * flow.members * maps
        return 1e-9 * points * IMAGE_FLOP * flop
    nanoseconds = 0.0
    for part, amount in amounts(spec, points, prices.panel).items():
        nanoseconds += getattr(prices, part) * amount
    return 1e-9 * nanoseconds


def training_cost(spec: Spec) -> float:
    """Estimated work of training one run with its evaluations, in seconds of one core of the machine of the prices."""
    prices = FUSED if is_fused(spec) else TORCH
    n_train, n_val, _ = spec.data.points
    steps = spec.train.steps * _seconds(spec, batch_points(spec), prices)
    evaluated = n_val + min(n_val, n_train)
    return steps + spec.train.n_evals * FORWARD * _seconds(spec, evaluated, prices)


def scoring_cost(spec: Spec) -> float:
    """Estimated work of scoring one run once it is trained, in the same seconds."""
    prices = FUSED if is_fused(spec) else TORCH
    record = spec.record
    is_image = image_of(spec.data) is not None
    by_density = spec.data.points[2] * DRAWS if is_image else spec.data.points[2] + record.grid**2
    by_samples = SCORED + 2 * record.walk + record.samples  # samples and walks are torch's
    seconds = _seconds(spec, by_density, prices) + _seconds(spec, by_samples, TORCH)
    return SCORING_SECONDS + FORWARD * seconds


def member_bytes(spec: Spec) -> float:
    """Estimated peak memory of training and scoring one run in a stack, in bytes.

    Four bytes a number, and a quarter more to spare. What is held: the points, the weights with
    their moments, gradients and copies, the activations of one training step of all layers, and
    what the run records; all of it for each member of an ensemble.
    """
    flow = spec.flow
    record = spec.record
    dim = dimension(spec)
    image = image_of(spec.data)
    if image is not None:
        return _image_bytes(spec, image)
    ends = dim * 2 + spec.data.context_dim
    per_net = (flow.hidden_depth - 1) * flow.hidden_width**2 + flow.hidden_width * (
        ends + flow.hidden_depth
    )
    learned = flow.n_flows * flow.nets * per_net
    hidden = flow.nets * flow.hidden_width
    if flow.activation in KEEP_INPUT:
        hidden *= 2
    pointwise = 12 * dim * flow.heads
    step = batch_points(spec) * (
        flow.n_flows * (hidden * flow.hidden_depth + pointwise) + 3 * hidden
    )
    scoring = CHUNK * (hidden * (flow.hidden_depth + 1) + pointwise)
    samples = record.samples * (record.snapshots + 3)
    walk = record.walk * (2 * flow.n_flows + 4)
    kept = dim * (samples + walk) + 6 * record.grid**2
    points = (dim + spec.data.context_dim) * 4 * sum(spec.data.points)
    # the fused step has no gradient of the whole stack, nor what Adam makes of it
    copies = 8 if is_fused(spec) else 12
    return 5.0 * flow.members * (copies * learned + max(step, scoring) + 2 * kept + points)


# --- Images -----------------------------------------------------------------------------------------------------------


def _pixels(flow: Flow, image: Image) -> list[int]:
    """Pixels of a map in each coupling's network."""
    return [
        stage.shape[1] * stage.shape[2] for stage in stages(flow, image.shape) if stage.is_coupling
    ]


def _maps_per_pixel(flow: Flow) -> int:
    """Maps that a network holds for its derivative (for σ, dropout, sums), over its width, as measured.

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
    """As :func:`member_bytes`, with the maps of all networks in a training step.

    Or with those of one network while many points are evaluated.
    """
    flow = spec.flow
    pixels = _pixels(flow, image)
    learned = len(pixels) * _weights_of_a_network(flow)
    maps = _maps_per_pixel(flow) * flow.hidden_width
    step = batch_points(spec) * sum(maps * each + 12 * image.dim for each in pixels)
    scoring = CHUNK * (4 * flow.hidden_width * max(pixels) + 12 * image.dim)
    points = image.dim * (4 * sum(spec.data.points) + 16 * spec.data.points[2])
    kept = 64 * 8 * image.dim
    return 5.0 * flow.members * (13 * learned + max(step, scoring) + 2 * kept + points)
