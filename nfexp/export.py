"""The `nfexp-export` command: runs that are finished, for TensorBoard or MLflow."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nfexp import usages
from nfexp.analysis.table import cannot_write, load_runs
from nfexp.analysis.table.records import read_history, rows_of
from nfexp.record.formats import HISTORY_FILE, RESULT, read_bounded
from nfexp.record.metrics import HISTORY, METRICS
from nfexp.record.result import STATUSES, parse_result
from nfexp.spec import SpecError, Words, counted, unflatten
from nfexp.surroundings import command
from nfexp.trackers import MODULES, OPEN, check_tracker
from nfexp.usage import run


def export(dirs: Sequence[str | Path], kind: str, out: str | Path | None = None) -> int:
    """Export the runs below some folders; how many there were.

    Raises
    ------
    SpecError
        If there is no such tracker, or several folders and no place for them.
    ReportError
        If there are no readable runs.
    """
    check_tracker("to", kind)
    if out is None and len(dirs) > 1:
        raise SpecError("out", "a folder, for there are several to read", Words("none"))
    store = Path(out if out is not None else dirs[0])
    ended = [row for row in rows_of(load_runs(*dirs)) if row["status"] in STATUSES]
    try:
        store.mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(ended):
            folder = Path(row["dir"])
            name = (
                os.path.relpath(folder, dirs[0])
                if len(dirs) == 1
                else f"{number:04d}-{folder.name}"
            )
            _export_run(folder, kind, store, name)
    except OSError as error:
        raise cannot_write(store, error) from error
    return len(ended)


def _export_run(folder: Path, kind: str, store: Path, name: str) -> None:
    """Export one run under a name."""
    path = folder / RESULT
    record = parse_result(path, read_bounded(path)[0])
    spec = unflatten(record["config"])
    _clear_events(store / kind / name)
    tracker = OPEN[kind](store, name, spec)
    if (folder / HISTORY_FILE).exists():
        for row in read_history(folder / HISTORY_FILE).tolist():
            values = dict(zip(HISTORY, row, strict=True))
            tracker.note(int(values.pop("step")), values)
    tracker.end(record["status"], {key: record["metrics"].get(key) for key in METRICS})


def _clear_events(folder: Path) -> None:
    """Remove what an earlier export, or training itself, has left of a run."""
    for path in folder.glob("events.out.tfevents.*"):
        path.unlink()


def _main(folders: list[str], options: dict[str, str]) -> int:
    kind = options.get("to")
    if kind is None:
        raise SpecError("to", f"one of {', '.join(MODULES)}", Words("nothing"))
    out = options.get("out")
    n_runs = export(folders, kind, out)
    store = Path(out or folders[0])
    if kind == "tensorboard":
        how = f"tensorboard --logdir {store / 'tensorboard'}"
    else:
        # nfexp[mlflow] is its small part, which can write and not show
        how = f"mlflow ui --backend-store-uri sqlite:///{(store / 'mlflow.db').resolve()} (after pip install mlflow)"
    print(f"{counted(n_runs, 'run')} for {kind}; look at them with: {how}")
    return 0


def _with_equals(words: Sequence[str]) -> list[str]:
    """``--to mlflow`` and ``--to=mlflow`` as ``to=mlflow``, as all options are spelled here.

    >>> _with_equals(["s", "--to", "mlflow"]), _with_equals(["--out=x"])
    (['s', 'to=mlflow'], ['out=x'])
    """
    words_with_equals: list[str] = []
    pending = ""
    for word in words:
        if pending:
            words_with_equals.append(f"{pending}={word}")
            pending = ""
        elif word in ("--to", "--out"):
            pending = word[2:]
        elif word.startswith(("--to=", "--out=")):
            words_with_equals.append(word[2:])
        else:
            words_with_equals.append(word)
    return [*words_with_equals, f"--{pending}"] if pending else words_with_equals


@command
def main(argv: Sequence[str] | None = None) -> int:
    """``nfexp-export DIR… to=tensorboard|mlflow [out=PATH]``."""
    words = _with_equals(sys.argv[1:] if argv is None else argv)
    return run(usages.EXPORT, words, _main)
