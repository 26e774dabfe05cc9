"""From run directories to one tidy DataFrame: every file is checked once, and none is executed.

A file that does not hold what it should is skipped with one warning line; the rest stands.
"""

from nfexp.analysis.table.arrays import load_arrays
from nfexp.analysis.table.cells import CONFIG
from nfexp.analysis.table.gather import (
    Collection,
    Sweep,
    collect,
    load_histories,
    load_runs,
    load_sweep,
    read_runs,
    skip,
)
from nfexp.analysis.table.index import CACHE
from nfexp.analysis.table.reading import MANY
from nfexp.analysis.table.records import cannot_write
from nfexp.analysis.table.rows import config_columns, distinct, infer_centres, repetitions
from nfexp.analysis.table.saved import write_csv, write_runs
from nfexp.record.formats import ReportError, printable
from nfexp.record.metrics import COUNTS, HISTORY, METRICS
from nfexp.record.result import STATUSES

__all__ = [
    "CACHE",
    "CONFIG",
    "COUNTS",
    "HISTORY",
    "MANY",
    "METRICS",
    "STATUSES",
    "Collection",
    "ReportError",
    "Sweep",
    "cannot_write",
    "collect",
    "config_columns",
    "distinct",
    "infer_centres",
    "load_arrays",
    "load_histories",
    "load_runs",
    "load_sweep",
    "printable",
    "read_runs",
    "repetitions",
    "skip",
    "write_csv",
    "write_runs",
]
