"""Base distributions on the line: log-density and its derivative, in float64."""

from __future__ import annotations

import math

import numpy as np

from nfexp.flows.bases import MIX_MEAN, MIX_SD, OUTLIER_SCALE, OUTLIERS, STUDENT_DF
from nfexp.flows.kernels.lanes import inner

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
STUDENT_CONSTANT = (
    math.lgamma((STUDENT_DF + 1) / 2)
    - math.lgamma(STUDENT_DF / 2)
    - 0.5 * math.log(STUDENT_DF * math.pi)
)
LOG_INLIERS = math.log1p(-OUTLIERS)
LOG_OUTLIERS = math.log(OUTLIERS / OUTLIER_SCALE)
NORMAL, LOGISTIC, LAPLACE, STUDENT_T, MIXTURE, CONTAMINATED = range(6)
BASES = {
    "normal": NORMAL,
    "logistic": LOGISTIC,
    "laplace": LAPLACE,
    "student_t": STUDENT_T,
    "mixture": MIXTURE,
    "contaminated": CONTAMINATED,
}


@inner
def normal(z):
    return -0.5 * z * z - HALF_LOG_2PI, -z


@inner
def student_t(z):
    value = STUDENT_CONSTANT - 0.5 * (STUDENT_DF + 1) * math.log1p(z * z / STUDENT_DF)
    return value, -(STUDENT_DF + 1) * z / (STUDENT_DF + z * z)


@inner
def contaminated(z):
    """log(p + q), p the normal's share and q the outliers'.

    The slope is the mean of theirs, weighted by p and q.
    """
    log_p, slope_p = normal(z)
    log_p += LOG_INLIERS
    log_q, slope_q = student_t(z / OUTLIER_SCALE)
    log_q += LOG_OUTLIERS
    gap = log_q - log_p if log_q != log_p else 0.0  # both may be -∞
    e = math.exp(-abs(gap))
    share = 1 / (1 + e) if gap < 0 else e / (1 + e)  # of p
    value = max(log_p, log_q) + math.log1p(e)
    return value, share * slope_p + (1 - share) * slope_q / OUTLIER_SCALE


@inner
def log_law(code, z):
    """The log-density of a base law at z, and its derivative."""
    z = np.float64(z)
    if code == NORMAL:
        return normal(z)
    if code == STUDENT_T:
        return student_t(z)
    if code == CONTAMINATED:
        return contaminated(z)
    size = abs(z)
    sign = np.sign(z)  # 0 at 0
    if code == LAPLACE:
        return -size - math.log(2.0), -sign
    if code == LOGISTIC:
        e = math.exp(-size)
        return -size - 2 * math.log1p(e), -sign * (1 - e) / (1 + e)
    # ½N(-m, s²) + ½N(m, s²) = N(|z|; m, s²) (1 + exp(-2 m |z| / s²)) / 2
    variance = MIX_SD * MIX_SD
    e = math.exp(-2 * MIX_MEAN * size / variance)
    from_centre = (size - MIX_MEAN) / MIX_SD
    value = (
        -0.5 * from_centre * from_centre
        - HALF_LOG_2PI
        - math.log(MIX_SD)
        + math.log1p(e)
        - math.log(2.0)
    )
    return value, -sign * (from_centre / MIX_SD + 2 * MIX_MEAN / variance * e / (1 + e))
