"""A trained flow as users get it: densities and samples in data units, from whatever numbers they give."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfexp.flows.cost import DRAWS
from nfexp.record.numbers import integer, numbers
from nfexp.spec import counted, names_of

if TYPE_CHECKING:  # torch is loaded only where a flow is
    from torch import Tensor

    from nfexp.flows.distribution import FlowDistribution
    from nfexp.flows.ensemble import Ensembles
    from nfexp.flows.stack import FlowStack
    from nfexp.spec import Spec

MOST_POINTS = 2**16  # that are evaluated in one go
MOST_PIXELS = 2**16  # of images


class TrainedFlow:
    """A trained flow and the spec of its run, read from a run directory by `load_flow`.

    `metrics` are those of its record, and `folder` is where it was read. Of an ensemble
    (``flow.members``) the density is the mean of its members', and a draw comes from one of them;
    `members` are the positions of those that did not diverge, `weights` their shares, which are
    equal unless ``flow.weights`` is ``val``. The way from base to data is each
    member's own: :meth:`member`.

    A flow with a context (``data.context``) is of p(x | c). Everything that takes points takes
    their context beside them, (N, C) in data units with the columns in the order of `context`, the
    names that ``data.context`` lists; a single row (1, C) serves all points.
    """

    def __init__(
        self,
        spec: Spec,
        stack: FlowStack,
        *,
        folder: Path | None = None,
        metrics: Mapping[str, Any] | None = None,
        members: Sequence[int] = (0,),
        weights: Tensor | None = None,
    ) -> None:
        self.spec = spec
        self.stack = stack
        self.members = list(members)
        self._weights = weights
        self.weights: list[float] = [1 / len(self.members)] * len(self.members)
        if weights is not None:
            self.weights = weights.tolist()
        self.dim = stack.dim
        self.event_shape = (stack.dim,) if stack.image is None else stack.image.shape
        self.context = [] if spec.data.context is None else names_of(spec.data.context)
        self.folder = folder
        self.metrics = dict(metrics or {})

    def __repr__(self) -> str:
        flow = self.spec.flow
        n_couplings = sum(layer.name.startswith("coupling") for layer in self.stack.layers)
        dims = f"D = {self.dim}" + (f", C = {self.stack.n_context}" if self.stack.n_context else "")
        what = f"{self.spec.data.name}, {dims}, {n_couplings} {flow.coupling} couplings"
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
        k = integer(k, "k")
        if k not in self.members:
            raise ValueError(
                f"k: expected one of the members {', '.join(map(str, self.members))}; got {k}"
            )
        stack = self.stack.member(self.members.index(k))
        return TrainedFlow(self.spec, stack, folder=self.folder, members=[k])

    def _single(self, what: str) -> FlowStack:
        """The stack, if it is of one flow; each of several has a way of its own."""
        if len(self.members) > 1:
            hint = f"flow.member({self.members[0]}).{what}"
            raise ValueError(
                f"{what}: expected one flow; got an ensemble of {len(self.members)}: take {hint}"
            )
        return self.stack

    def distribution(self, context: object = None) -> FlowDistribution:
        """The flow as a distribution of PyTorch, with weights of its own.

        Of an ensemble a member's.

        With a context it is p(x | c) at the one row c, (1, C): gradients reach a tensor c. Of
        images it is the law of points in the cells of their levels, as rows of D numbers: ``(images
        + u).flatten(1)`` with u in [0, 1).
        """
        from nfexp.flows.distribution import FlowDistribution

        self._single("distribution")
        given = self._given(context, 1)
        theta = self.stack.theta.clone()
        fixed = self.stack.fixed.clone()
        return FlowDistribution(
            self.stack.with_rows(theta, fixed), None if given is None else given[0]
        )

    def export(self, to: str = "torch") -> Any:
        """The flow in the modules of another library, with weights of its own.

        Log-densities agree to rounding.

        ``"torch"`` gives an ``nn.Module`` of ``nn.Linear`` layers with `log_prob`, `sample`,
        `forward` and `inverse` (:class:`nfexp.flows.export.PlainFlow`), ``"zuko"`` a
        ``zuko.lazy.Flow``, where zuko is installed and has the parts. Both take a context, in data
        units. Flows of images stay here.
        """
        from nfexp.flows.export import EXPORTS

        if to not in EXPORTS:
            raise ValueError(f"to: expected one of {', '.join(EXPORTS)}; got {to!r}")
        if self.stack.image is not None:
            raise ValueError("export: expected a flow of vectors; got one of images")
        return EXPORTS[to](self._single("export"))

    def _points(self, x: object, name: str) -> Tensor:
        import torch

        if isinstance(x, torch.Tensor):
            points = x
        else:
            points = torch.from_numpy(numbers(x, name))
        points = points.to(self.stack.theta)  # its precision and device
        shape = (self.dim,) if name == "z" else self.event_shape
        if points.ndim != len(shape) + 1 or tuple(points.shape[1:]) != shape:
            expected = ", ".join(str(length) for length in shape)
            raise ValueError(f"{name}: expected shape (N, {expected}); got {tuple(points.shape)}")
        return points.flatten(1)[None]  # (1, N, D): a stack of one

    def _given(self, context: object, n: int) -> Tensor | None:
        """The context of `n` points, (1, n, C); None where the flow has none."""
        import torch

        width = self.stack.n_context
        if width == 0:
            if context is None:
                return None
            raise ValueError("context: expected none, for this flow has no data.context; got one")
        names = ", ".join(self.context)
        # of pandas; names that are all others may have been changed since
        columns = list(getattr(context, "columns", ()))
        if columns != self.context and set(columns) == set(self.context):
            got = ", ".join(columns)
            raise ValueError(f"context: expected the columns in the order {names}; got {got}")
        if context is None:
            expected = f"rows of {counted(width, 'number')} ({names})"
            raise ValueError(f"context: expected {expected}; got none")
        rows = (
            context
            if isinstance(context, torch.Tensor)
            else torch.from_numpy(numbers(context, "context"))
        )
        if rows.ndim != 2 or rows.shape[1] != width or len(rows) not in (1, n):
            raise ValueError(
                f"context: expected shape ({n}, {width}), or (1, {width}) for all points ({names}); "
                f"got {tuple(rows.shape)}"
            )
        return rows.to(self.stack.theta).expand(n, -1)[None]

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
        parts = []
        for k in range(draws):
            generator = stream(seed, f"dequantise/log_prob/{k}")
            within = within_cells(tuple(levels.shape), self.stack.image.levels, generator)
            parts.append(levels + within.to(levels))
        return parts

    def log_prob(
        self,
        x: object,
        context: object = None,
        *,
        warn_beyond: float | None = None,
        draws: int = DRAWS,
        seed: int = 0,
    ) -> Tensor:
        """log q(x) in nats, data units: array or tensor (N, D) to tensor (N,).

        With a context log q(x | c).

        Of images, whole levels (N, C, H, W), it is an estimate of log P(x) from below: log (1/K)
        Σ_k q(x + u_k) with K = `draws` places u_k in the cells of the levels (Burda et al. 2016).
        One draw is the single-sample bound, and `seed` says which they are.

        Many points are evaluated a part at a time. It is −inf where the density is too small for
        the precision of the weights, also where a scale overflows on the way (``flow.scale=exp``).
        It is NaN only where `x` or the context is NaN.

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
            given = self._given(context, points.shape[1])
            if warn_beyond is not None:
                self._warn_of_far(points[0], given, warn_beyond)
            return self._log_density(points, given)
        self._given(context, 0)
        draws = integer(draws, "draws")
        if draws < 1:
            raise ValueError(f"draws: expected an integer >= 1; got {draws}")
        draws_of_points = self._in_cells(self._levels(x), draws=draws, seed=integer(seed, "seed"))
        log_q = torch.stack([self._log_density(points) for points in draws_of_points])
        return log_q.logsumexp(0) - math.log(draws)

    def _log_density(self, points: Tensor, given: Tensor | None = None) -> Tensor:
        """Of points (1, N, D) with their context (1, N, C), a part at a time."""
        import torch

        if given is None:
            given = points[..., :0]
        most = MOST_POINTS if self.stack.image is None else max(MOST_PIXELS // self.dim, 1)
        parts = zip(points.split(most, dim=1), given.split(most, dim=1), strict=True)
        return torch.cat([self._ensemble().log_density(*part)[0] for part in parts])

    def _ensemble(self) -> Ensembles:
        from nfexp.flows.ensemble import Ensembles

        weights = None if self._weights is None else self._weights.unsqueeze(0)
        return Ensembles(self.stack, len(self.members), weights=weights)

    def _warn_of_far(self, x: Tensor, given: Tensor | None, beyond: float) -> None:
        """Warn of points (N, D) further than `beyond` standard deviations from the training points' mean.

        The same holds for their context, (1, N, C).
        """
        import torch

        if self.spec.flow.standardise != "moments":
            raise ValueError(
                "warn_beyond: expected a flow with flow.standardise=moments; got one without moments"
            )
        of_flow = self.stack.tensors()
        with torch.no_grad():
            distance = (
                (x - of_flow["standardise.mean"][0]) / of_flow["standardise.var"][0].sqrt()
            ).abs()
            if given is not None:
                of_given = (given[0] - of_flow["context.mean"][0]) / of_flow["context.var"][
                    0
                ].sqrt()
                distance = torch.cat([distance, of_given.abs()], 1)
        is_far = (distance > beyond).any(1)
        if bool(is_far.any()):
            row, column = divmod(int(distance.nan_to_num(nan=-1.0).argmax()), distance.shape[1])
            name = (
                str(column)
                if column < self.dim
                else f"{self.context[column - self.dim]} of the context"
            )
            warnings.warn(
                f"{int(is_far.sum())} of {len(x)} points lie more than {beyond:g} standard deviations of the training "
                f"points from their mean, row {row} by {float(distance[row, column]):.3g} in column {name}: log_prob "
                "extrapolates there",
                stacklevel=3,
            )

    def bits_per_dim(self, x: object, *, draws: int = DRAWS, seed: int = 0) -> Tensor:
        """−log₂ P(x) / D of images (N, C, H, W) of whole levels, (N,), from :meth:`log_prob`."""
        if self.stack.image is None:
            raise ValueError("bits_per_dim: expected a flow of images; got one of vectors")
        return -self.log_prob(x, draws=draws, seed=seed) / (self.dim * math.log(2))

    def forward(self, z: object, context: object = None) -> Tensor:
        """Base to data, (N, D) to (N, *event_shape).

        Of images, to points in the cells of their levels.

        `stack.as_levels` makes levels of them. Of an ensemble it is a member's.
        """
        points = self._points(z, "z")
        given = self._given(context, points.shape[1])
        return self._shaped(self._single("forward").forward(points, given)[0])

    def inverse(self, x: object, context: object = None) -> Tensor:
        """Data to base, (N, *event_shape) to (N, D).

        Of images, points in cells: level + ½ is the middle of one.

        Of an ensemble it is a member's.

        Raises
        ------
        ValueError
            For points of images so far outside all cells that nothing is mapped there.
        """
        points = self._points(x, "x")
        z: Tensor = self._single("inverse").inverse(points, self._given(context, points.shape[1]))[
            0
        ][0]
        image = self.stack.image
        if image is not None:
            outside = (points < 0) | (points >= image.levels)
            if bool(outside.any()) and not bool(z.isfinite().all()):
                expected = f"points in the cells of the levels, from 0 to below {image.levels}"
                raise ValueError(f"x: expected {expected}; got {points[outside][0].item():g}")
        return z

    def _shaped(self, points: Tensor) -> Tensor:
        """(1, N, D) to (N, *event_shape)."""
        return points[0].unflatten(1, self.event_shape)

    def sample(self, n: int, context: object = None, *, seed: int = 0) -> Tensor:
        """`n` draws, (n, *event_shape), the same for the same seed; images are whole levels.

        Of an ensemble each is from a member drawn at random. With a context draw i is given row i
        of it, or each the only row: ``flow.sample(1000, [[0.5, 2.0]])`` draws from p(x | c = (0.5,
        2)).
        """
        from nfexp.flows.ensemble import CHOICE
        from nfexp.streams import stream

        n = integer(n, "n")
        seed = integer(seed, "seed")
        if n < 0:
            raise ValueError(f"n: expected an integer >= 0; got {n}")
        given = self._given(context, n)
        draws = self._ensemble().sample(n, [stream(seed, "sample")], [stream(seed, CHOICE)], given)
        return self._shaped(self.stack.as_levels(draws) if self.stack.image is not None else draws)
