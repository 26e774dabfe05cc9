"""The format of `sweep.json`, the plan of a sweep."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nfexp.files import replacing
from nfexp.record.formats import PLAN, ReportError, parse_document, read_if_there
from nfexp.spec import SCHEMA_VERSION, Spec, relevant, run_id


@dataclass(kw_only=True)
class Plan:
    """What `sweep.json` holds.

    The jobs by number, the centre of the study per target, and the command's arguments. `mixed`
    says when, by which code and command, jobs were added that the first command did not plan.
    `rounds` is the rule of a sweep whose seeds come in rounds, as
    :class:`nfexp.analysis.sequential.Rounds` writes it, and empty for any other. `contrasts` are
    those of the study's own by name, as :class:`nfexp.analysis.contrasts.OwnContrast` writes them.
    """

    name: str = ""
    arguments: list[str] = field(default_factory=list)
    centres: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    mixed: list[dict[str, Any]] = field(default_factory=list)
    rounds: dict[str, Any] = field(default_factory=dict)
    contrasts: dict[str, Any] = field(default_factory=dict)

    def entry(self, folder: str, spec: Spec, overrides: Sequence[str]) -> dict[str, Any]:
        """The entry of a job in `jobs`; its config is what differs from its target's centre."""
        centre = self.centres[spec.data.name]
        differs = {}
        for key, value in relevant(spec).items():
            if key != "seed" and (key not in centre or value != centre[key]):
                differs[key] = value
        return {
            "job": folder,
            "run_id": run_id(spec),
            "data.name": spec.data.name,
            "seed": spec.seed,
            "overrides": list(overrides),
            "config": differs,
        }

    def write(self, folder: Path) -> None:
        """Write the plan into the folder of its sweep, over an earlier one."""
        document = {"schema_version": SCHEMA_VERSION} | vars(self)
        for key in ("rounds", "contrasts"):
            if not document[key]:
                del document[key]
        with replacing(folder / PLAN) as path:
            path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def read_plan(folder: str | os.PathLike[str]) -> Plan | None:
    """The plan of the sweep in a folder; None if it holds none.

    It names the study, gives a centre for each target, and of each job the folder, target, seed and
    what differs from the centre. The values of configurations are not checked here, and a plan of
    an early version may lack the rest: see :func:`require_commands`.

    Raises
    ------
    ReportError
        If its `sweep.json` cannot be read or is not of this schema.
    """
    path = os.path.join(folder, PLAN)
    raw = read_if_there(path)
    if raw is None:
        return None
    document = parse_document(path, raw, ("name", "centres", "jobs"))
    empty = vars(Plan())
    fields = {}
    for key, default in empty.items():
        value = document.get(key, default)
        kind = type(default)
        if not isinstance(value, kind):
            raise ReportError(path, f"{key} to be a JSON {kind.__name__}", type(value).__name__)
        fields[key] = value
    plan = Plan(**fields)
    for centre in plan.centres.values():
        if not isinstance(centre, dict):
            raise ReportError(path, "config to be an object", type(centre).__name__)
    for job in plan.jobs:
        _check_job(path, job, plan)
    return plan


def _check_job(path: str, job: object, plan: Plan) -> None:
    if not isinstance(job, dict) or not {"job", "data.name", "seed", "config"} <= job.keys():
        raise ReportError(path, "each job to have job, data.name, seed and config", repr(job))
    target = job["data.name"]
    has_centre = isinstance(target, str) and target in plan.centres
    if not has_centre or not isinstance(job["config"], dict):
        expected = f"job {job['job']} to have a target with a centre, and its config"
        raise ReportError(path, expected, repr(job))


def require_commands(folder: str | os.PathLike[str], plan: Plan) -> None:
    """Raise ReportError unless a plan says by which arguments and overrides its jobs are made."""
    path = os.path.join(folder, PLAN)
    if not _are_texts(plan.arguments):
        raise ReportError(path, "arguments that are text", repr(plan.arguments))
    for job in plan.jobs:
        identity = job.get("run_id")
        overrides = job.get("overrides")
        has_overrides = isinstance(overrides, list) and _are_texts(overrides)
        if not isinstance(identity, str) or not has_overrides:
            expected = f"job {job['job']} to have a run_id and overrides that are text"
            raise ReportError(path, expected, repr(job))


def _are_texts(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) for value in values)
