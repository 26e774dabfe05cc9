"""A trained flow read back from a run directory, without executing anything."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from nfexp.files import read_plain
from nfexp.record.formats import LIMITS, MODEL, RESULT, read_bounded
from nfexp.record.result import parse_result
from nfexp.record.trained import TrainedFlow
from nfexp.spec import event_shape, unflatten

if TYPE_CHECKING:  # torch is loaded only where a flow is
    from torch import Tensor


def load_flow(run_dir: str | os.PathLike[str]) -> TrainedFlow:
    """The trained flow of a run directory, with the weights that the run kept.

    >>> flow = load_flow("outputs/runs/2026-01-01_12-00-00")  # doctest: +SKIP
    >>> flow.log_prob(flow.sample(1000)).mean()  # doctest: +SKIP

    Raises
    ------
    FileNotFoundError
        If the folder holds no finished run.
    ValueError
        If its record is damaged or of a newer schema, or its weights do not fit its configuration.
    """
    from nfexp.flows.ensemble import members_from_state
    from nfexp.flows.image.plan import image_of

    folder = Path(run_dir)
    for name in (RESULT, MODEL):
        if not (folder / name).is_file():
            got = f"a folder without {name}" if folder.is_dir() else "no folder"
            raise FileNotFoundError(f"{folder}: expected a finished run; got {got}")
    record = parse_result(folder / RESULT, read_bounded(folder / RESULT)[0])
    state = _stored_weights(folder)
    spec = unflatten(record["config"])
    dim = math.prod(event_shape(spec.data))
    kept = members_from_state(spec.flow, dim, state, image_of(spec.data), spec.data.context_dim)
    return TrainedFlow(
        spec,
        kept.stack,
        folder=folder,
        metrics=record["metrics"],
        members=kept.positions,
        weights=kept.weights,
    )


def _stored_weights(folder: Path) -> dict[str, Tensor]:
    """The named tensors of a run directory, all of them floating-point."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        state = load(read_plain(folder / MODEL, LIMITS[MODEL])[0])
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: expected weights that can be read; got {error}") from None
    for name, weights in state.items():
        if not weights.is_floating_point():
            got = f"{name} of {weights.dtype}"
            raise ValueError(f"{folder}: expected floating-point weights; got {got:.60}")
    return state
