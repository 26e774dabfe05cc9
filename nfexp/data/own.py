"""A density of the user's own.

An object with `sample` and `log_prob`, checked before anything is trained on it.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from nfexp.data.densities import TARGET_NAMES
from nfexp.spec import Data, SpecError, Words, near
from nfexp.streams import stream
from nfexp.targets import KEY, TargetSource, find_source

BLOCK = 2**14  # points that are evaluated in one go
CHECKED = 2000  # points that the checks draw
CERTAIN = 6.0  # standard errors that a check needs before it says that something is wrong
SEEN = 0.02  # nats, or standard deviations: what a check lets pass however certain it is


@dataclass(frozen=True, eq=False)
class OwnTarget:
    """A user's density with the face of the built-in ones; every answer of it is checked.

    `density` has ``sample(n, generator)``, n independent points (n, D) from the generator alone,
    and ``log_prob(x)``, (n, D) to (n,), nats. If it has ``draw(n, generator)``, that is its law
    without the noise.
    """

    name: str
    dim: int
    density: Any

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n points, (n, D) float64."""
        return self._points("sample", n, generator)

    @property
    def draw(self) -> Callable[[int, torch.Generator], Tensor] | None:
        """n points without the noise, (n, D) float64; None if the density has no such method."""
        if not callable(getattr(self.density, "draw", None)):
            return None
        return lambda n, generator: self._points("draw", n, generator)

    def _points(self, method: str, n: int, generator: torch.Generator) -> Tensor:
        drawn = _called(f"{method}({n}, generator)", getattr(self.density, method), n, generator)
        points = _tensor(f"{method}({n}, generator)", drawn, (n, self.dim))
        if not bool(points.isfinite().all()):
            _refuse(f"finite points from {method}", "some that are not")
        return points

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats: (n, D) to (n,) float64; −inf where the density is 0."""
        parts = []
        with torch.no_grad():
            for part in x.to("cpu", torch.float64).split(BLOCK):
                what = f"log_prob(x) with x of shape {tuple(part.shape)}"
                log_p = _called(what, self.density.log_prob, part)
                parts.append(_tensor(what, log_p, (len(part),)))
        values = torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)
        if bool(values.isnan().any()) or bool((values == math.inf).any()):
            _refuse("log_prob to be finite, or -inf where the density is 0", "nan or inf")
        return values

    @cached_property
    def window(self) -> tuple[float, float, float, float]:
        """A square with at least 99.8% of 10,000 draws and a margin: xmin, xmax, ymin, ymax."""
        x = self.sample(10_000, stream(0, "window"))
        low = x.quantile(0.0005, dim=0)
        high = x.quantile(0.9995, dim=0)
        middle = (low + high) / 2
        half = 0.55 * float((high - low).max())
        left, bottom = (middle - half).tolist()
        right, top = (middle + half).tolist()
        return left, right, bottom, top

    def extent(self) -> tuple[float, float, float, float]:
        return self.window


def _refuse(expected: str, got: str) -> NoReturn:
    raise SpecError(KEY, expected, Words(got))


def _said(error: BaseException, source: str = "") -> str:
    """An error of the user's code in a line, with the line of the source that raised it."""
    words = f"{type(error).__name__}: {' '.join(str(error).split())}"
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == source:
            words += f" (line {line})"
            break
    return words


def _called(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        file = getattr(getattr(function, "__code__", None), "co_filename", "")
        raise SpecError(KEY, f"{what} to give an answer", Words(_said(error, file))) from error


def _tensor(what: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpecError(KEY, f"a tensor or an array from {what}", Words(_said(error))) from None
    if tuple(tensor.shape) != shape or not tensor.is_floating_point():
        got = Words(f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}")
        hint = " (data.dim says how many columns)" if len(shape) == 2 else ""
        raise SpecError(KEY, f"floating-point numbers of shape {shape} from {what}{hint}", got)
    return tensor.detach().to("cpu", torch.float64)


# --- From the source to the object -----------------------------------------------------


@lru_cache(maxsize=64)
def own_target(law: Data) -> OwnTarget:
    """The density that `data.target` names, made with its parameters. This executes its source.

    Raises
    ------
    SpecError
        If the source changed since the run was planned, raises, or has no such density; one
        message.
    """
    if law.name in TARGET_NAMES:
        raise SpecError("data.name", "a name that no built-in target has", law.name)
    source = find_source(str(law.target))
    if law.digest is not None and source.digest != law.digest:
        raise SpecError(
            KEY, f"{source.place} as it was when the run was planned", Words("another content")
        )
    member = _member(_module(source), source)
    given = dict(law.parameters)
    if law.noise is not None:
        given["noise"] = law.noise
    density = _made(member, source, given)
    for method in ("sample", "log_prob"):
        if not callable(getattr(density, method, None)):
            _refuse(f"{source.name} with the methods sample and log_prob", f"one without {method}")
    return OwnTarget(law.name, law.dim, density)


def _module(source: TargetSource) -> ModuleType:
    """The module of a source, executed."""
    if not source.is_file:
        try:
            return importlib.import_module(source.place)
        except (Exception, SystemExit) as error:
            _refuse(f"the module {source.place} to be importable", _said(error))
    name = f"nfexp_target_{source.digest}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = source.place
    sys.modules[name] = module  # where dataclasses and pickle look a class up
    try:
        # the very bytes that the digest is of
        exec(compile(source.code, source.place, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        line = getattr(error, "lineno", None)
        said = f"{_said(error)} (line {line})" if line else _said(error, source.place)
        _refuse(f"{source.place} to be a Python file that runs", said)
    return module


def _member(module: ModuleType, source: TargetSource) -> Any:
    if hasattr(module, source.name):
        return getattr(module, source.name)
    names = [name for name in vars(module) if not name.startswith("_")]
    _refuse(f"a name that {source.place} has", f"{source.name!r}{near(source.name, names)}")


def _made(member: Any, source: TargetSource, given: Mapping[str, Any]) -> Any:
    """A class or function called with the parameters; any other object is the density itself."""
    if not callable(member):
        for name in given:
            raise SpecError(
                f"data.{name}",
                f"no parameters, for {source.name} is an object and no class",
                given[name],
            )
        return member
    try:
        signature = inspect.signature(member)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        _check_signature(signature, source.name, given)
    try:
        return member(**given)
    except (Exception, SystemExit) as error:
        called = ", ".join(f"{name}={value!r}" for name, value in given.items())
        _refuse(f"{source.name}({called}) to be made", _said(error, source.place))


def _check_signature(signature: inspect.Signature, name: str, given: Mapping[str, Any]) -> None:
    known = signature.parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for key, value in given.items():
        if key not in known and not takes_any:
            listed = ", ".join(known) or "it has none"
            raise SpecError(f"data.{key}", f"one of the parameters of {name}: {listed}", value)
    for key, parameter in known.items():
        is_needed = (
            parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        )
        if is_needed and parameter.kind is not parameter.VAR_POSITIONAL and key not in given:
            raise SpecError(f"data.{key}", f"a value, which {name} needs", Words("nothing"))


# --- Is it what it says? ---------------------------------------------------------------


def check_target(target: OwnTarget) -> None:
    """Raise unless draws and density go together, as far as 2,000 points tell.

    Draws must come from the generator alone, and log_prob must look at each point by itself. Then
    two tests with a fixed seed:

    - If x ~ p and x′ is a proposal that is symmetric in the two, detailed balance (Metropolis et
      al. 1953) says E[min(1, p(x′)/p(x)) (f(x′) − f(x))] = 0 for every f; here for the coordinates,
      their squares and log p. It holds for draws of p alone, and in any dimension.
    - Bennett's acceptance ratio (1976) between p and a density that is known compares their
      integrals: that of p must be 1. Where the two hardly overlap its error is large, and it says
      nothing.

    Raises
    ------
    SpecError
        For the first thing that is wrong, with the estimate and its standard error.
    """
    x = target.sample(CHECKED, stream(0, "check"))
    again = target.sample(CHECKED, stream(0, "check"))
    other = target.sample(CHECKED, stream(1, "check"))
    if not torch.equal(x, again):
        _refuse("sample to draw from its generator alone", "other points from the same generator")
    if torch.equal(x, other):
        _refuse("sample to draw from its generator", "the same points from another generator")
    log_p = target.log_prob(x)
    if bool(log_p.isinf().any()):
        share = float(log_p.isinf().double().mean())
        _refuse("a density above 0 at its own draws", f"log_prob = -inf at {share:.1%} of them")
    alone = target.log_prob(x[:7])
    if not torch.allclose(alone, log_p[:7], rtol=1e-6, atol=1e-6):
        _refuse("log_prob of a point to be its own", "another one beside other points")
    _check_balance(target, x, log_p)
    _check_integral(target, x, log_p)


def _check_balance(target: OwnTarget, x: Tensor, log_p: Tensor) -> None:
    scale = x.std(0)
    n, dim = x.shape
    generator = stream(0, "check/moves")
    for share in (1.0, 0.1):  # far moves between parts, and near ones within them
        step = share * scale / math.sqrt(dim)
        moved = x + step * torch.randn(n, dim, generator=generator, dtype=torch.float64)
        log_moved = target.log_prob(moved)
        accepted = (log_moved - log_p).clamp(max=0).exp()  # (n,)
        lowest = float(log_p.min()) - 50
        functions = {
            "log_prob": (log_moved.clamp(min=lowest) - log_p) / log_p.std().clamp(min=1e-3),
        }
        for d in range(min(dim, 20)):
            before = (x[:, d] - x[:, d].mean()) / scale[d]
            after = (moved[:, d] - x[:, d].mean()) / scale[d]
            functions[f"column {d}"] = after - before
            functions[f"the square of column {d}"] = after.square() - before.square()
        for name, change in functions.items():
            drift = accepted * change
            mean = float(drift.mean())
            error = float(drift.std()) / math.sqrt(n)
            if abs(mean) > CERTAIN * error and abs(mean) > SEEN * share:
                what = (
                    f"moves that leave log_prob's law alone shift the mean of {name} of the draws"
                )
                _refuse(
                    "draws of sample that follow log_prob",
                    f"others: {what} by {mean:.2g} ± {error:.1g} standard deviations",
                )


def _check_integral(target: OwnTarget, x: Tensor, log_p: Tensor) -> None:
    known = _Known(x[::2])
    half = x[1::2]
    n = len(half)
    y = known.sample(n, stream(0, "check/known"))
    ratio_own = log_p[1::2] - known.log_prob(half)  # log p/q at draws of p
    ratio_known = target.log_prob(y) - known.log_prob(y)  # and at draws of q
    # log ∫ p is the c at which Σ_x σ(c − log p/q) over draws of p equals Σ_y σ(log p/q − c) over
    # those of q
    low = -1e3
    high = 1e3
    for _ in range(100):
        c = (low + high) / 2
        from_own = torch.sigmoid(c - ratio_own)
        from_known = torch.sigmoid(ratio_known - c)
        if float(from_own.sum()) > float(from_known.sum()):
            high = c
        else:
            low = c
    # The error of c is that of the difference of the two means by its slope in c
    slope = sum(float((part * (1 - part)).mean()) for part in (from_own, from_known))
    error = math.sqrt(float(from_own.var() + from_known.var()) / n) / max(slope, 1e-9)
    if abs(c) > CERTAIN * error and abs(c) > SEEN and error < 0.5:
        integral = math.exp(min(c, 700))
        off = f"one whose logarithm is off by {c:+.3f} ± {error:.3f} nats"
        _refuse("a density that integrates to 1", f"{off}: an integral of about {integral:.3g}")


class _Known:
    """Half a normal density, half a kernel density of some points.

    Normalised, and near their law.
    """

    def __init__(self, x: Tensor) -> None:
        n, dim = x.shape
        self.x = x
        self.mean = x.mean(0)
        self.factor = torch.linalg.cholesky(
            x.T.cov().reshape(dim, dim) * 1.2 + 1e-9 * torch.eye(dim, dtype=x.dtype)
        )
        self.width = 0.5 * x.std(0) * n ** (-1 / (dim + 4))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(n, len(self.mean), generator=generator, dtype=torch.float64)
        centres = torch.randint(len(self.x), (n,), generator=generator)
        is_kernel = torch.rand(n, 1, generator=generator) < 0.5
        return torch.where(
            is_kernel, self.x[centres] + self.width * noise, self.mean + noise @ self.factor.T
        )

    def log_prob(self, x: Tensor) -> Tensor:
        dim = len(self.mean)
        constant = dim / 2 * math.log(2 * math.pi)
        white = torch.linalg.solve_triangular(self.factor, (x - self.mean).T, upper=False)
        normal = -white.square().sum(0) / 2 - self.factor.diagonal().log().sum() - constant
        apart = torch.cdist(x / self.width, self.x / self.width).square()
        kernel = (
            torch.logsumexp(-apart / 2, 1)
            - math.log(len(self.x))
            - self.width.log().sum()
            - constant
        )
        return torch.logaddexp(normal, kernel) - math.log(2)
