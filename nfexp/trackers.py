"""What labs watch runs with, TensorBoard and MLflow, behind one small interface; off by default.

Both write below the folder of the sweep or the run, and nothing is sent anywhere. A tracker that
fails ends with a warning; the run goes on.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nfexp.record.metrics import HISTORY
from nfexp.spec import Spec, SpecError, flatten, run_id

if TYPE_CHECKING:
    from nfexp.train import State, Training

log = logging.getLogger(__name__)

MODULES = {"tensorboard": "tensorboard", "mlflow": "mlflow"}  # by tracker, which is also its extra
IDENTITY = "nfexp.run_id"  # the tag by which a run of MLflow's is found again


def check_tracker(key: str, kind: str) -> None:
    """Raise SpecError for a tracker that does not exist or is not installed."""
    if kind not in MODULES:
        raise SpecError(key, f"one of {', '.join(MODULES)}", kind)
    if not find_spec(MODULES[kind]):
        raise SpecError(key, f"one that is installed (pip install 'nfexp[{kind}]')", kind)


class Tracker(Protocol):
    """Is told of one run."""

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """What an evaluation found after this step."""

    def end(self, status: str, metrics: Mapping[str, Any]) -> None:
        """How the run ended, with its metrics; those that are None or no number are left out."""


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among some values.

    >>> numbers({"kl": 0.5, "true_nll": None, "best_step": 3, "diverged_layer": "coupling 1"})
    {'kl': 0.5, 'best_step': 3.0}
    """
    named = {}
    for name, value in values.items():
        if isinstance(value, int | float) and math.isfinite(value):
            named[name] = float(value)
    return named


# --- TensorBoard -----------------------------------------------------------------------


class TensorBoard:
    """Event files in a folder of the run's own: ``tensorboard --logdir STORE``."""

    def __init__(self, store: Path, name: str, spec: Spec) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.summary = Summary
        self.writer = EventFileWriter(str(store / "tensorboard" / name))
        text = "  \n".join(f"`{key}={value}`" for key, value in flatten(spec).items())
        self._add(0, [self._text("configuration", text)])

    def note(self, step: int, values: Mapping[str, float]) -> None:
        entries = []
        for name, value in numbers(values).items():
            entries.append(self.summary.Value(tag=f"training/{name}", simple_value=value))
        self._add(step, entries)

    def end(self, status: str, metrics: Mapping[str, Any]) -> None:
        entries = [self._text("status", status)]
        for name, value in numbers(metrics).items():
            entries.append(self.summary.Value(tag=f"metrics/{name}", simple_value=value))
        self._add(int(metrics.get("best_step") or 0), entries)
        self.writer.close()

    def _text(self, tag: str, text: str) -> Any:
        from tensorboard.compat.proto.summary_pb2 import SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto

        plugin = SummaryMetadata.PluginData(plugin_name="text")
        tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()])
        return self.summary.Value(
            tag=tag, metadata=SummaryMetadata(plugin_data=plugin), tensor=tensor
        )

    def _add(self, step: int, values: Sequence[Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=step, summary=self.summary(value=values))
        self.writer.add_event(event)
        self.writer.flush()


# --- MLflow ----------------------------------------------------------------------------


class MLflow:
    """A run in a local data base: ``mlflow ui --backend-store-uri sqlite:///STORE/mlflow.db``.

    A run that is met again, by the tag `nfexp.run_id`, goes on.
    """

    def __init__(self, store: Path, name: str, spec: Spec) -> None:
        from filelock import FileLock

        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it is on unless one says so
        os.environ.setdefault("DO_NOT_TRACK", "true")
        from mlflow.entities import Param, RunTag
        from mlflow.tracking import MlflowClient

        store = store.resolve()
        with FileLock(store / ".mlflow.lock"):  # the first one makes the tables
            self.client = MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")
            experiment = self._experiment(spec.name, store)
            # An identity is hexadecimal: nothing in it needs quoting
            same = f"tags.`{IDENTITY}` = '{run_id(spec)}'"
            runs = self.client.search_runs([experiment], filter_string=same, max_results=1)
            if runs:
                self.run = runs[0].info.run_id
                self.client.set_terminated(self.run, status="RUNNING")
                return
            made = self.client.create_run(experiment, run_name=name)
            self.run = made.info.run_id
            params = [Param(key, str(value)) for key, value in flatten(spec).items()]
            tags = [RunTag(IDENTITY, run_id(spec)), RunTag("nfexp.job", name)]
            self.client.log_batch(self.run, params=params, tags=tags)

    def _experiment(self, name: str, store: Path) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        artifacts = (store / "mlartifacts").as_uri()
        return str(self.client.create_experiment(name, artifact_location=artifacts))

    def note(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, numbers(values))

    def end(self, status: str, metrics: Mapping[str, Any]) -> None:
        self._log(int(metrics.get("best_step") or 0), numbers(metrics), prefix="final_")
        self.client.set_tag(self.run, "nfexp.status", status)
        ended = "FAILED" if status == "failed" else "FINISHED"
        self.client.set_terminated(self.run, status=ended)

    def _log(self, step: int, values: Mapping[str, float], prefix: str = "") -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(f"{prefix}{name}", value, now, step) for name, value in values.items()]
        self.client.log_batch(self.run, metrics=metrics)


OPEN: dict[str, Callable[[Path, str, Spec], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
}


# --- The runs of a stack ---------------------------------------------------------------


def _note(one: Tracker, *, step: int, values: Mapping[str, float]) -> None:
    one.note(step, values)


class Tracking:
    """Trackers of the runs that train in this process, by identity.

    Without a `kind` there are none.
    """

    def __init__(self, kind: str | None, store: Path, names: Mapping[str, str]) -> None:
        self.kind = kind
        self.store = store
        self.names = names  # of each run, by identity
        self._trackers: dict[str, Tracker] = {}
        self._noted: dict[str, int] = {}  # evaluations

    def observe(self, training: Training, state: State) -> None:
        """Note the evaluations since the last call; what :func:`nfexp.run.run_stack` calls."""
        if self.kind is None:
            return
        steps = training.evaluation_steps()
        reached = sum(step <= state.step for step in steps)
        for e, spec in enumerate(training.specs):
            identity = run_id(spec)
            first = self._noted.get(identity, 0)
            if reached == first:
                continue
            self._noted[identity] = reached
            rows = state.curves[e, first:reached].tolist()
            for step, row in zip(steps[first:reached], rows, strict=True):
                values = dict(zip(HISTORY[1:], row, strict=True))
                self._say(spec, partial(_note, step=step, values=values))

    def end(self, spec: Spec, status: str, metrics: Mapping[str, Any]) -> None:
        if self.kind is not None:
            self._say(spec, lambda one: one.end(status, metrics))

    def _say(self, spec: Spec, what: Callable[[Tracker], None]) -> None:
        """Tell the tracker of a run; after its first error nothing is told to any."""
        if self.kind is None:
            return
        identity = run_id(spec)
        try:
            if identity not in self._trackers:
                name = self.names.get(identity, identity)
                self._trackers[identity] = OPEN[self.kind](self.store, name, spec)
            what(self._trackers[identity])
        except Exception as error:  # whatever a library raises, the run is worth more
            said = " ".join(str(error).split())[:300]
            log.warning(f"tracker={self.kind} ends: {type(error).__name__}: {said}")
            self.kind = None
