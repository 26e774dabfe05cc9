"""Values as the pages and figures write them."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

TROUBLES = ("diverged", "failed", "missing")  # what may become of a run that does not complete


def plain(value: object) -> str:
    """A swept value as people write it; a missing one (null in YAML) is none.

    >>> plain(0.0005), plain(5e-5), plain(2000), plain("relu"), plain(None)
    ('0.0005', '5e-5', '2000', 'relu', 'none')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "none"
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        return f"{float(value):.6g}".replace("e-0", "e-").replace("e+0", "e")
    return str(value)


def number(value: Any) -> str:
    """Three decimals, fewer from 10 on, scientific where neither says anything; "–" if missing.

    >>> number(0.04123), number(0.00023), number(0.00002), number(386.42), number(None)
    ('0.041', '0.0002', '2e-05', '386', '–')
    """
    if value is None or value != value:
        return "–"
    x = float(value)
    size = abs(x)
    if x != 0 and not 1e-4 <= size < 1e6:
        return f"{x:.1e}".replace(".0e", "e")
    if size >= 100:
        return f"{x:.0f}"
    if size >= 10:
        return f"{x:.1f}"
    if 0 < size < 1e-3:
        return f"{x:.4f}"
    return f"{x:.3f}"


def interval(mean: Any, low: Any, high: Any) -> str:
    """A mean with its interval; the mean alone where there is none.

    >>> interval(0.0412, 0.0362, 0.0487), interval(0.04, float("nan"), float("nan"))
    ('0.041 [0.036, 0.049]', '0.040')
    >>> interval(10.0521, 9.9274, 10.1768)
    '10.05 [9.93, 10.18]'
    """
    if low is None or low != low:
        return number(mean)
    width = abs(high - low)
    if abs(mean) >= 10 and 2e-3 < width < 2:
        decimals = 1 - math.floor(math.log10(width / 2))  # two digits of what is uncertain
        return f"{mean:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"
    return f"{number(mean)} [{number(low)}, {number(high)}]"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(12.34), duration(270), duration(7560)
    ('12.3 s', '4.5 min', '2.1 h')
    """
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.1f} s"


def troubles(counts: Mapping[str, Any]) -> list[str]:
    """What did not complete of the runs planned for a cell, from its counts.

    >>> troubles({"n": 1, "n_diverged": 2, "n_failed": 0, "n_missing": 0})
    ['2/3 diverged']
    """
    planned = counts["n"]
    for status in TROUBLES:
        planned += counts[f"n_{status}"]
    words = []
    for status in TROUBLES:
        count = counts[f"n_{status}"]
        if count:
            words.append(f"{count:.0f}/{planned:.0f} {status}")
    return words


def file_name(name: object) -> str:
    """A name that is fit for a file: letters, digits, dot, dash and underscore.

    A name that had to be changed ends in a hash, so that two names stay two files.

    >>> file_name("flow.norm_every"), file_name("../x")
    ('flow.norm_every', '_x-1fb8ad98')
    """
    fit = re.sub(r"[^\w.-]", "_", str(name), flags=re.ASCII).lstrip(".")[:80]
    if fit == name:
        return fit
    digest = zlib.crc32(str(name).encode(errors="replace"))
    return f"{fit}-{digest:08x}"
