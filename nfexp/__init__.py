"""nfexp: sweeps of RealNVP normalizing flows, trained as stacks and scored against exact densities."""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["RealNVP", "fit_many", "load_flow", "load_runs", "read_runs", "train_run", "train_sweep"]

_HOMES = {
    "RealNVP": "nfexp.estimator",
    "fit_many": "nfexp.estimator",
    "load_flow": "nfexp.record",
    "load_runs": "nfexp.analysis.table",
    "read_runs": "nfexp.analysis.table",
    "train_run": "nfexp.scripting",
    "train_sweep": "nfexp.scripting",
}


def __getattr__(name: str) -> object:
    """Import on first use, so that reports and plots start without torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nfexp' has no attribute {name!r}")
