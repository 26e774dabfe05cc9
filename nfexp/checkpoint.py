"""Where a training stood when it was interrupted: one file in each run's directory."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nfexp.files import replacing

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The step a run stands at, the seconds that took, its rows of :class:`nfexp.train.State`."""

    step: int = 0
    seconds: float = 0.0
    tensors: dict[str, Tensor] = field(default_factory=dict)


def read_checkpoint(folder: Path | None, tag: str) -> Checkpoint:
    """The checkpoint in a directory; at step 0 if there is none of this tag, of run and code."""
    if folder is None or not (folder / CHECKPOINT).is_file():
        return Checkpoint()
    path = folder / CHECKPOINT
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("tag") == tag:
                tensors = {}
                for name in file.keys():  # noqa: SIM118  # it is no mapping
                    tensors[name] = file.get_tensor(name)
                step = int(about["step"])
                seconds = float(about["seconds"])
                return Checkpoint(step=step, seconds=seconds, tensors=tensors)
        log.warning(f"{path}: expected one of this run and code version; begun again")
    except (OSError, ValueError, SafetensorError) as error:
        log.warning(f"{path}: expected a checkpoint; got {error}; begun again")
    return Checkpoint()


def write_checkpoint(folder: Path, tag: str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint into a directory, whole or not at all."""
    about = {"tag": tag, "step": str(checkpoint.step), "seconds": str(checkpoint.seconds)}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / CHECKPOINT) as path:
        path.write_bytes(save(checkpoint.tensors, metadata=about))
