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
from nfexp.flows.cost import DRAWS
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
MOST_PIXELS = 2**16  # of images


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
        self.event_shape = (stack.dim,) if stack.image is None else stack.image.shape
        self.folder = folder
        self.metrics = dict(metrics or {})

    def __repr__(self) -> str:
        flow = self.spec.flow
        n_couplings = sum(layer.name.startswith("coupling") for layer in self.stack.layers)
        what = f"{self.spec.data.name}, D = {self.dim}, {n_couplings} {flow.coupling} couplings"
        if flow.members > 1:
            which = "member" if len(self.members) == 1 else "members"
            what += f", {which} {', '.join(map(str, self.members))} of {flow.members}"
        test_nll = self.metrics.get("test_nll")
        if test_nll is not None:
            what += f", test NLL {test_nll:.4f} nats"
        test_bpd = self.metrics.get("test_bpd")
        if test_bpd is not None:
            what += f" an image, {test_bpd:.4f} bits/dim"
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
        shape = (self.dim,) if name == "z" else self.event_shape
        if points.ndim != len(shape) + 1 or tuple(points.shape[1:]) != shape:
            expected = ", ".join(str(length) for length in shape)
            raise ValueError(f"{name}: expected shape (N, {expected}); got {tuple(points.shape)}")
        return points.flatten(1)[None]  # (1, N, D): a stack of one

    def _levels(self, x: object) -> Tensor:
        """Images (N, C, H, W) of whole levels as (1, N, D)."""
        levels = self._points(x, "x")
        image = self.stack.image
        assert image is not None
        strange = (levels != levels.floor()) | (levels < 0) | (levels >= image.levels)
        if bool(strange.any()):
            got = levels[strange][0].item()
            raise ValueError(f"x: expected whole levels from 0 to {image.levels - 1}; got {got:g}")
        return levels

    def _in_cells(self, levels: Tensor, *, draws: int, seed: int) -> list[Tensor]:
        """Images (1, N, D) with as many draws of where in their cells they lie."""
        from nfexp.batches import within_cells
        from nfexp.streams import stream

        assert self.stack.image is not None
        found = []
        for k in range(draws):
            generator = stream(seed, f"dequantise/log_prob/{k}")
            places = within_cells(tuple(levels.shape), self.stack.image.levels, generator)
            found.append(levels + places.to(levels))
        return found

    def log_prob(self, x: object, *, warn_beyond: float | None = None, draws: int = DRAWS, seed: int = 0) -> Tensor:
        """log q(x) in nats, data units: array or tensor (N, D) to tensor (N,).

        Of images, whole levels (N, C, H, W), it is an estimate of log P(x) from below: log (1/K) Σ_k q(x + u_k) with
        K = `draws` places u_k in the cells of the levels (Burda et al. 2016). One draw is the single-sample bound,
        and `seed` says which they are.

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

        if self.stack.image is None:
            points = self._points(x, "x")
            if warn_beyond is not None:
                self._warn_of_far(points[0], warn_beyond)
            return self._log_density(points)
        draws = _integer(draws, "draws")
        if draws < 1:
            raise ValueError(f"draws: expected an integer >= 1; got {draws}")
        places = self._in_cells(self._levels(x), draws=draws, seed=_integer(seed, "seed"))
        found = torch.stack([self._log_density(points) for points in places])
        return found.logsumexp(0) - math.log(draws)

    def _log_density(self, points: Tensor) -> Tensor:
        """Of points (1, N, D), a part at a time."""
        import torch

        most = MOST_POINTS if self.stack.image is None else max(MOST_PIXELS // self.dim, 1)
        parts = points.split(most, dim=1)
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

    def bits_per_dim(self, x: object, *, draws: int = DRAWS, seed: int = 0) -> Tensor:
        """−log₂ P(x) / D of images (N, C, H, W) of whole levels, (N,), from :meth:`log_prob`."""
        if self.stack.image is None:
            raise ValueError("bits_per_dim: expected a flow of images; got one of vectors")
        return -self.log_prob(x, draws=draws, seed=seed) / (self.dim * math.log(2))

    def forward(self, z: object) -> Tensor:
        """Base to data, (N, D) to (N, *event_shape); of images, to points in the cells of their levels.

        `stack.as_levels` makes levels of them. Of an ensemble it is a member's.
        """
        return self._shaped(self._single("forward").forward(self._points(z, "z"))[0])

    def inverse(self, x: object) -> Tensor:
        """Data to base, (N, *event_shape) to (N, D); of images, points in cells: level + ½ is the middle of one.

        Of an ensemble it is a member's.
        """
        return self._single("inverse").inverse(self._points(x, "x"))[0][0]

    def _shaped(self, points: Tensor) -> Tensor:
        """(1, N, D) to (N, *event_shape)."""
        return points[0].unflatten(1, self.event_shape)

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """`n` draws, (n, *event_shape), the same for the same seed; images are whole levels.

        Of an ensemble each is from a member drawn at random.
        """
        from nfexp.flows.ensemble import CHOICE
        from nfexp.streams import stream

        n = _integer(n, "n")
        seed = _integer(seed, "seed")
        if n < 0:
            raise ValueError(f"n: expected an integer >= 0; got {n}")
        draws = self._ensemble().sample(n, [stream(seed, "sample")], [stream(seed, CHOICE)])
        return self._shaped(self.stack.as_levels(draws) if self.stack.image is not None else draws)


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
    from nfexp.flows.image.plan import image_of

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
    dim = math.prod(event_shape(spec.data))
    stack, members = members_from_state(spec.flow, dim, state, image_of(spec.data))
    return TrainedFlow(spec, stack, folder=folder, metrics=record["metrics"], members=members)
