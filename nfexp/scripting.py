"""Runs and sweeps from a script or a notebook, by the command `nfexp` in its own process.

The command is what it is in a shell, so that a run has the same number, record and folder wherever
it was asked for. Nothing stays behind, and a script needs no ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfexp.commands import hydra_text

if TYPE_CHECKING:
    import os

    import pandas as pd

    from nfexp.record import TrainedFlow

Overrides = Iterable[str] | Mapping[str, Any]


def train_run(
    overrides: Overrides = (), *, folder: str | os.PathLike[str] | None = None, verbose: bool = True
) -> TrainedFlow:
    """Train one run, as ``nfexp OVERRIDES`` does; gives its flow.

    What is known of the run are its `spec`, `metrics` and `folder`.

    Parameters
    ----------
    overrides
        As on the command line, ``["data=moons", "flow.n_flows=8"]``, or by key,
        ``{"data": "moons", "seed": 3}``.
    folder
        Where the run goes; by default a new folder below ``outputs/runs``.
    verbose
        Print what the command prints, while it does.

    Raises
    ------
    RuntimeError
        With the command's own message, where it fails.

    >>> train_run({"data": "moons", "flow.n_flows": 8})  # doctest: +SKIP
    TrainedFlow(moons, D = 2, 8 affine couplings, test NLL 0.4231 nats)
    """
    from nfexp.record import load_flow

    run_folder = Path(folder) if folder is not None else _new_folder(Path("outputs/runs"))
    _call([*_lines(overrides), f"hydra.run.dir={hydra_text(str(run_folder))}"], verbose=verbose)
    return load_flow(run_folder)


def train_sweep(
    overrides: Overrides, *, folder: str | os.PathLike[str] | None = None, verbose: bool = True
) -> pd.DataFrame:
    """Train a sweep, as ``nfexp -m OVERRIDES`` does; gives its table of runs, one row a run.

    In a mapping a list of values is swept: ``{"data": "moons", "flow.n_flows": [2, 4]}``. A folder
    that holds runs of this sweep keeps them. Otherwise as :func:`train_run`.

    >>> train_sweep(["data=moons", "flow.n_flows=2,4"])[["flow.n_flows", "kl"]]  # doctest: +SKIP
    """
    from nfexp.analysis.table import load_runs

    sweep_folder = Path(folder) if folder is not None else _new_folder(Path("outputs/sweeps/adhoc"))
    _call(
        ["-m", *_lines(overrides), f"hydra.sweep.dir={hydra_text(str(sweep_folder))}"],
        verbose=verbose,
    )
    return load_runs(sweep_folder)


def _new_folder(above: Path) -> Path:
    """A folder named by the clock, as the command names it, that is not there yet."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    new = above / stamp
    number = 2
    while new.exists():
        new = above / f"{stamp}_{number}"
        number += 1
    return new


def _lines(overrides: Overrides) -> list[str]:
    if isinstance(overrides, str):
        raise TypeError(
            f"overrides: expected a list of overrides or a mapping; got the text {overrides!r}"
        )
    if isinstance(overrides, Mapping):
        return [f"{key}={_text(value)}" for key, value in overrides.items()]
    return list(overrides)


def _text(value: Any) -> str:
    """A value as Hydra's command line takes it; a list is swept.

    >>> _text([1, 2.5, "a b"]), _text(None), _text(True)
    ("1,2.5,'a b'", 'null', 'true')
    """
    if isinstance(value, list | tuple | range):
        return ",".join(_text(one) for one in value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value if value.replace("_", "").isalnum() else hydra_text(value)
    return str(value)


def _call(arguments: Sequence[str], *, verbose: bool) -> None:
    """Run the command to its end; raise with its last line if it fails. Ctrl-C stops it."""
    command = [sys.executable, "-m", "nfexp", *arguments]
    last = ""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None  # as asked for
        try:
            for line in process.stdout:
                last = line.strip() or last
                if verbose:
                    print(line, end="", flush=True)
        except BaseException:
            process.send_signal(signal.SIGINT)
            raise
    code = process.returncode
    if code:
        raise RuntimeError(last.removeprefix("nfexp: ") or f"nfexp ended with {code}")
