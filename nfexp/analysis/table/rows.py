"""Of a table of runs: its configuration columns, the rows that count, the centre of the study."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nfexp.analysis.table.cells import is_config
from nfexp.record.metrics import METRICS
from nfexp.record.result import STATUSES

RANK = {status: rank for rank, status in enumerate(STATUSES)}  # a missing run comes after them


def config_columns(runs: pd.DataFrame) -> list[str]:
    """The configuration columns of a table of runs, without data.name and seed.

    >>> config_columns(pd.DataFrame(columns=["job", "data.name", "flow.n_flows", "seed", "kl"]))
    ['flow.n_flows']
    """
    others = {"job", "status", "dir", "data.name", "seed", *METRICS}
    return [column for column in runs.columns if column not in others and is_config(column)]


def distinct(runs: pd.DataFrame) -> pd.DataFrame:
    """The independent runs of a table: one row per configuration and seed, in the order they came.

    A run is a fact: copied, moved or trained again, by whatever code, it is the same run repeated,
    and adds nothing to what is known. Every mean, interval, verdict and count is of these rows. The
    row that counts is a completed one before a diverged, a failed and a missing one; of several
    such the first by its directory. In a table without seeds no row is known to repeat another.

    >>> runs = pd.DataFrame({"data.name": "moons", "seed": [0, 0, 1], "status": "completed",
    ...                      "dir": ["b", "a", "b2"]})
    >>> distinct(runs)["dir"].tolist()
    ['a', 'b2']
    """
    if "seed" not in runs:
        return runs
    # By position: the index may repeat.
    standing = pd.DataFrame({"rank": 0, "dir": ""}, index=range(len(runs)))
    if "status" in runs:
        standing["rank"] = [RANK.get(status, len(RANK)) for status in runs["status"]]
    if "dir" in runs:
        standing["dir"] = runs["dir"].to_numpy(object)
    best_first = standing.sort_values(["rank", "dir"], kind="stable").index.to_numpy()
    identity = ["data.name", "seed", *config_columns(runs)]
    repeated = runs.iloc[best_first].duplicated(identity).to_numpy()  # all but the first of each
    kept = np.sort(best_first[~repeated])
    return runs.iloc[kept]


def repetitions(runs: pd.DataFrame) -> str:
    """How many rows :func:`distinct` leaves out, as a line for people; empty if none."""
    n_repeated = len(runs) - len(distinct(runs))
    if not n_repeated:
        return ""
    return (
        f"{n_repeated} of {len(runs)} rows repeat a run (same configuration and seed) and do not "
        "count: of each run one row counts, a completed one before others, then the first by its directory"
    )


def infer_centres(runs: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The most common value of each configuration column per target.

    Of tied numbers it is the (lower) median one. A run that is there twice counts once.

    >>> infer_centres(pd.DataFrame({"data.name": "moons", "flow.n_flows": [3, 6, 9]}))
    {'moons': {'data.name': 'moons', 'flow.n_flows': 6}}
    """
    columns = config_columns(runs)
    centres = {}
    for name, group in distinct(runs).groupby("data.name", sort=True):
        centre = {"data.name": str(name)}
        for column in columns:
            centre[column] = _most_common(group[column])
        centres[str(name)] = centre
    return centres


def _most_common(column: pd.Series) -> Any:
    """The value of the most rows. A missing one counts as a value, but loses every tie."""
    counts = column.value_counts(dropna=False)
    tied = counts.index[counts == counts.max()]
    values = [value for value in tied if not pd.isna(value)]
    if not values:
        return None
    if any(isinstance(value, str) for value in values):
        return min(values, key=str)
    middle = sorted(values)[(len(values) - 1) // 2]
    return middle.item() if isinstance(middle, np.generic) else middle
