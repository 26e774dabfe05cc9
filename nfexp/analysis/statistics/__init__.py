"""Means and shares over seeds with intervals and tests, ablation tables, the cells of a study."""

from nfexp.analysis.statistics.ablations import (
    AVERAGED,
    AXES,
    BITS,
    ablations,
    axis_name,
    deviations,
    has_bits,
    measure_of,
    references,
)
from nfexp.analysis.statistics.intervals import (
    Interval,
    Tails,
    bootstrap_interval,
    holm,
    mean_interval,
    mean_tails,
    share_interval,
    share_tails,
    sign_tails,
    t_interval,
)
from nfexp.analysis.statistics.studies import Absent, Study, cell_name, changes_of, named, studies
from nfexp.analysis.table import distinct

__all__ = [
    "AVERAGED",
    "AXES",
    "BITS",
    "Absent",
    "Interval",
    "Study",
    "Tails",
    "ablations",
    "axis_name",
    "bootstrap_interval",
    "cell_name",
    "changes_of",
    "deviations",
    "distinct",
    "has_bits",
    "holm",
    "mean_interval",
    "mean_tails",
    "measure_of",
    "named",
    "references",
    "share_interval",
    "share_tails",
    "sign_tails",
    "studies",
    "t_interval",
]
