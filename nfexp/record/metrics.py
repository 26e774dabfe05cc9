"""What is measured of a run: every metric with its meaning, in the order of the columns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One number of a run. Every NLL is in nats per point, in data units.

    W1 is the Wasserstein-1 distance, sliced as by Bonneel et al. (2015).
    """

    meaning: str
    whole: bool = False  # a whole number


METRICS = {
    "train_nll": Metric("NLL of the training points at the kept step"),
    "val_nll": Metric("NLL of the validation points at the kept step"),
    "test_nll": Metric("NLL of the test points"),
    "test_nll_se": Metric("standard error of test_nll over the test points"),
    "worst_nll": Metric("largest NLL of a single test point"),
    "true_nll": Metric("the target's own NLL on the same test points, from its exact density"),
    "kl": Metric("test_nll − true_nll: an estimate of KL(target ‖ flow)"),
    "kl_se": Metric("standard error of kl, paired point by point"),
    "test_bpd": Metric("bits/dim of the test images: the single-sample bound"),
    "test_bpd_se": Metric("standard error of test_bpd over the test images"),
    "test_bpd_iw": Metric("bits/dim of the test images: importance-weighted, 16 draws"),
    "test_bpd_iw_se": Metric("standard error of test_bpd_iw over the test images"),
    "clean_distance": Metric("sliced W1 distance of samples to noise-free draws, data units"),
    "sample_distance": Metric("sliced W1 distance of samples to draws of the target, data units"),
    "sample_floor": Metric("sliced W1 distance of two sets of draws of the target, data units"),
    "coverage_50": Metric("share of test points in the flow's densest region of mass 0.5"),
    "coverage_90": Metric("share of test points in the flow's densest region of mass 0.9"),
    "calibration_error": Metric("Kolmogorov distance of log q at test points and at samples"),
    "coordinates_moved": Metric("most coordinates of a point that a coupling changed", whole=True),
    "flattening": Metric("least over greatest spread of the points after a layer, at the flattest"),
    "batch_gap": Metric("batch norm: NLL of a batch by its own statistics − by the running ones"),
    "best_step": Metric("the step whose weights were kept", whole=True),
    "steps_to_converge": Metric("first step with a val_nll within 0.05 of the lowest", whole=True),
    "inverse_error": Metric("largest |x − f(f⁻¹(x))| of the test points, data units"),
    "n_parameters": Metric("trained weights", whole=True),
    "seconds": Metric("time of its stack, training and scoring, divided by stack_size"),
    "stack_size": Metric("runs that were trained together", whole=True),
    "diverged_at": Metric("the step at which a number was no longer finite", whole=True),
    "diverged_layer": Metric("first layer that was not finite, counted from the data", whole=True),
}
COUNTS = tuple(name for name, metric in METRICS.items() if metric.whole)
HISTORY = ("step", "train_nll", "val_nll", "grad_norm", "lr")  # the columns of history.csv
