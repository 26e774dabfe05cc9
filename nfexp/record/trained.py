"""A trained flow read back from a run directory, without executing anything."""

from __future__ import annotations

import math
import operator
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfexp.files import read_plain
from nfexp.record.formats import LIMITS, MODEL, RESULT, read_bounded
from nfexp.record.result import parse_result
from nfexp.spec import event_shape, unflatten

if TYPE_CHECKING:  # torch is loaded only where a flow is
    import numpy as np
    from torch import Tensor

    from nfexp.flows.distribution import FlowDistribution
    from nfexp.flows.ensemble import Ensembles
    from nfexp.flows.stack import FlowStack
    from nfexp.spec import Spec

MOST_POINTS = 2**16  # that are evaluated in one go


def _numbers(x: object, name: str) -> np.ndarray:
    """A float64 copy of an array, list or table, which later changes of that do not reach."""
    import numpy as np

    try:
        array = np.asarray(x)
        if array.dtype.kind == "c":
            raise ValueError("complex numbers")
        return np.array(array, dtype=np.float64)
    except (ValueError, TypeError) as error:
        got = " ".join(str(error).split())
        raise ValueError(f"{name}: expected an array of real numbers; got {got}") from None


def _integer(value: object, name: str) -> int:
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]  # TypeError for no integer
    except TypeError:
        pass
    raise ValueError(f"{name}: expected an integer; got {value!r}")


class TrainedFlow:
    """A trained flow and the spec of its run, read from a run directory by :func:`load_flow`.

    `metrics` are those of its record, and `folder` is where it was read. Of an ensemble
    (``flow.members``) the density is the mean of its members', and a draw comes from one of them;
    `members` are the positions of those that did not diverge. The way from base to data is each
    member's own: :meth:`member`.
    """

    def __init__(
        self,
        spec: Spec,
        stack: FlowStack,
        *,
        folder: Path | None = None,
        metrics: Mapping[str, Any] | None = None,
        members: Sequence[int] = (0,),
    ) -> None:
        self.spec = spec
        self.stack = stack
        self.members = list(members)
        self.dim = stack.dim
        self.folder = folder
        self.metrics = dict(metrics or {})

    def __repr__(self) -> str:
        flow = self.spec.flow
        what = f"{self.spec.data.name}, D = {self.dim}, {flow.n_flows} {flow.coupling} couplings"
        if flow.members > 1:
            which = "member" if len(self.members) == 1 else "members"
            what += f", {which} {', '.join(map(str, self.members))} of {flow.members}"
        test_nll = self.metrics.get("test_nll")
        if test_nll is not None:
            what += f", test NLL {test_nll:.4f} nats"
        return f"TrainedFlow({what})"

    def member(self, k: int) -> TrainedFlow:
        """Member `k` of an ensemble, by itself; a single flow is its own member 0."""
        k = _integer(k, "k")
        if k not in self.members:
            raise ValueError(f"k: expected one of the members {', '.join(map(str, self.members))}; got {k}")
        stack = self.stack.member(self.members.index(k))
        return TrainedFlow(self.spec, stack, folder=self.folder, members=[k])

    def _single(self, what: str) -> FlowStack:
        """The stack, if it is of one flow; each of several has a way of its own."""
        if len(self.members) > 1:
            hint = f"flow.member({self.members[0]}).{what}"
            raise ValueError(f"{what}: expected one flow; got an ensemble of {len(self.members)}: take {hint}")
        return self.stack

    def distribution(self) -> FlowDistribution:
        """The flow as a distribution of PyTorch, with weights of its own; of an ensemble a member's."""
        from nfexp.flows.distribution import FlowDistribution

        self._single("distribution")
        theta = self.stack.theta.clone()
        fixed = self.stack.fixed.clone()
        return FlowDistribution(self.stack.with_rows(theta, fixed))

    def export(self, to: str = "torch") -> Any:
        """The flow in the modules of another library, with weights of its own; log-densities agree to rounding.

        ``"torch"`` gives an ``nn.Module`` of ``nn.Linear`` layers with `log_prob`, `sample`, `forward` and `inverse`
        (:class:`nfexp.flows.export.PlainFlow`), ``"zuko"`` a ``zuko.lazy.Flow``, where zuko is installed and has the
        parts.
        """
        from nfexp.flows.export import EXPORTS

        if to not in EXPORTS:
            raise ValueError(f"to: expected one of {', '.join(EXPORTS)}; got {to!r}")
        return EXPORTS[to](self.stack)

    def _points(self, x: object, name: str) -> Tensor:
        import torch

        if isinstance(x, torch.Tensor):
            points = x
        else:
            points = torch.from_numpy(_numbers(x, name))
        points = points.to(self.stack.theta)  # its precision and device
        if points.ndim != 2 or points.shape[1] != self.dim:
            raise ValueError(f"{name}: expected shape (N, {self.dim}); got {tuple(points.shape)}")
        return points[None]  # (1, N, D): a stack of one

    def log_prob(self, x: object, *, warn_beyond: float | None = None) -> Tensor:
        """log q(x) in nats, data units: array or tensor (N, D) to tensor (N,).

        Many points are evaluated a part at a time. It is −inf where the density is too small for
        the precision of the weights, also where a scale overflows on the way (``flow.scale=exp``).
        It is NaN only where `x` is NaN.

        Parameters
        ----------
        warn_beyond
            Warn of points with a coordinate that is more than so many standard deviations of the
            training points away from their mean: there nothing has told the flow anything.

        Raises
        ------
        ValueError
            For another shape; for `warn_beyond` where the flow does not know those moments, because
            of ``flow.standardise=none``.
        """
        import torch

        points = self._points(x, "x")
        if warn_beyond is not None:
            self._warn_of_far(points[0], warn_beyond)
        parts = points.split(MOST_POINTS, dim=1)
        return torch.cat([self._ensemble().log_density(part)[0] for part in parts])

    def _ensemble(self) -> Ensembles:
        from nfexp.flows.ensemble import Ensembles

        return Ensembles(self.stack, len(self.members))

    def _warn_of_far(self, x: Tensor, beyond: float) -> None:
        """Warn of points (N, D) that lie further than `beyond` standard deviations from the training points' mean."""
        import torch

        if self.spec.flow.standardise != "moments":
            raise ValueError("warn_beyond: expected a flow with flow.standardise=moments; got one without moments")
        own = self.stack.tensors()
        with torch.no_grad():
            distance = ((x - own["standardise.mean"][0]) / own["standardise.var"][0].sqrt()).abs()
        is_far = (distance > beyond).any(1)
        if bool(is_far.any()):
            row, column = divmod(int(distance.nan_to_num(nan=-1.0).argmax()), self.dim)
            warnings.warn(
                f"{int(is_far.sum())} of {len(x)} points lie more than {beyond:g} standard deviations of the training "
                f"points from their mean, row {row} by {float(distance[row, column]):.3g} in column {column}: log_prob "
                "extrapolates there",
                stacklevel=3,
            )

    def forward(self, z: object) -> Tensor:
        """Base to data, (N, D) to (N, D); of an ensemble a member's."""
        return self._single("forward").forward(self._points(z, "z"))[0][0]

    def inverse(self, x: object) -> Tensor:
        """Data to base, (N, D) to (N, D); of an ensemble a member's."""
        return self._single("inverse").inverse(self._points(x, "x"))[0][0]

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """`n` draws, (n, D), the same for the same seed; of an ensemble each from a member drawn at random."""
        from nfexp.flows.ensemble import CHOICE
        from nfexp.streams import stream

        n = _integer(n, "n")
        seed = _integer(seed, "seed")
        if n < 0:
            raise ValueError(f"n: expected an integer >= 0; got {n}")
        return self._ensemble().sample(n, [stream(seed, "sample")], [stream(seed, CHOICE)])[0]


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
    from safetensors import SafetensorError
    from safetensors.torch import load

    from nfexp.flows.ensemble import members_from_state

    folder = Path(run_dir)
    for name in (RESULT, MODEL):
        if not (folder / name).is_file():
            got = f"a folder without {name}"
            raise FileNotFoundError(f"{folder}: expected a finished run; got {got}")
    record = parse_result(folder / RESULT, read_bounded(folder / RESULT)[0])
    try:
        state = load(read_plain(folder / MODEL, LIMITS[MODEL])[0])
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: expected weights that can be read; got {error}") from None
    for name, weights in state.items():
        if not weights.is_floating_point():
            got = f"{name} of {weights.dtype}"
            raise ValueError(f"{folder}: expected floating-point weights; got {got:.60}")
    spec = unflatten(record["config"])
    dim = math.prod(event_shape(spec))
    stack, members = members_from_state(spec.flow, dim, state)
    return TrainedFlow(spec, stack, folder=folder, metrics=record["metrics"], members=members)
