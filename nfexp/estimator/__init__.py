"""RealNVP by scikit-learn's conventions, trained by the same core as every run."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from sklearn.base import BaseEstimator, DensityMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from nfexp.configuration import conf_dir
from nfexp.estimator.inputs import (
    check_learnable,
    context_names,
    context_rows,
    dataset_of,
    digest_of,
    matching_context,
    plain,
    seed_of,
)
from nfexp.estimator.stacks import Member, Task, shares_of, train_together
from nfexp.flows.ensemble import CHOICE, Ensembles
from nfexp.flows.stack import FlowStack
from nfexp.spec import Spec, SpecError, unflatten
from nfexp.streams import stream
from nfexp.tables import split_rows

FEWEST_ROWS = 4
# How scikit-learn's searches and cross-validation hand on a context: by themselves they give it to
# fit alone
ROUTE = (
    "a search passes it on with sklearn.set_config(enable_metadata_routing=True) and "
    "model.set_fit_request(context=True).set_score_request(context=True)"
)
CHUNK = 4096  # points at a time: what bounds the memory of score_samples


@cache
def _values(group: str, option: str) -> dict[str, Any]:
    """The values of an option of the configuration, with those of the options that it rests on."""
    text = (Path(conf_dir()) / group / f"{option}.yaml").read_text(encoding="utf-8")
    in_file = dict(yaml.safe_load(text))
    values: dict[str, Any] = {}
    for other in in_file.pop("defaults", ["_self_"]):
        if other == "_self_":
            values |= in_file
        elif isinstance(other, str):  # not a choice for another group, {"override …": …}
            values |= _values(group, other)
    return values


_FLOW = _values("flow", "classic")
_TRAIN = _values("train", "classic")
_TABLE = _values("data", "table")


class RealNVP(DensityMixin, BaseEstimator):  # type: ignore[misc]
    """A density over R^D, learned by maximum likelihood: x = f(z), f a chain of couplings.

    Source: Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017.

    The parameters are the keys ``flow.*`` and ``train.*`` of the command line by their last names,
    with the defaults of ``flow=classic train=classic``; those below are the estimator's own.

    Parameters
    ----------
    validation_fraction
        The share of the rows that choose the kept weights and are not trained on, see `select`.
    n_members
        Flows in an ensemble, ``flow.members`` of the command line: they share the rows and differ
        in initialisation and batches, and train as one stack. The density is the mean of theirs; a
        member that diverges is left out.
    weights
        Of the members in that mean: "equal", or "val", which make the validation rows most likely.
    random_state
        A number is the seed of the run: with the same keys, rows and seed the command line trains
        the same weights.
    device
        "auto" (CUDA where it is there), "cpu" or "cuda".
    verbose
        1: print each evaluation.

    Attributes
    ----------
    weights_, fixed_ : arrays (E, ·)
        The learned and the fixed numbers of each member.
    member_weights_ : array (E,)
        The share of each member in the density, see `weights`.
    history_ : dict
        "step", "train_nll" and "val_nll" at each evaluation, nats per point, of the first member.
    best_step_ : list
        The step whose weights are kept, by member.
    context_names_in_ : tuple or None
        The names of the columns of the context, where that was a table of pandas; others are
        refused later.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> model = RealNVP(n_flows=2, steps=20, random_state=0).fit(x)
    >>> model.score_samples(x[:5]).shape, model.sample(4, random_state=1).shape
    ((5,), (4, 3))

    The density of two columns given the third, and a draw at each of two values of it:

    >>> model.fit(x[:, :2], context=x[:, 2:]).sample(context=[[-1.0], [1.0]], random_state=0).shape
    (2, 2)
    """

    def __init__(
        self,
        *,
        n_flows: int = _FLOW["n_flows"],
        hidden_depth: int = _FLOW["hidden_depth"],
        hidden_width: int = _FLOW["hidden_width"],
        activation: str = _FLOW["activation"],
        mask: str = _FLOW["mask"],
        coupling: str = _FLOW["coupling"],
        conditioner: str = _FLOW["conditioner"],
        conditioner_input: str = _FLOW["conditioner_input"],
        scale: str = _FLOW["scale"],
        init: str = _FLOW["init"],
        standardise: str = _FLOW["standardise"],
        norm: str = _FLOW["norm"],
        norm_every: int = _FLOW["norm_every"],
        base: str = _FLOW["base"],
        tail_bound: float | None = _FLOW["tail_bound"],
        tail: str = _FLOW["tail"],
        steps: int = _TRAIN["steps"],
        batch_size: int | str = _TRAIN["batch_size"],
        optimizer: str = _TRAIN["optimizer"],
        lr: float = _TRAIN["lr"],
        schedule: str = _TRAIN["schedule"],
        warmup: int | str = _TRAIN["warmup"],
        grad_clip: float | None = _TRAIN["grad_clip"],
        weight_decay: float = _TRAIN["weight_decay"],
        noise: float = _TRAIN["noise"],
        noise_end: float = _TRAIN["noise_end"],
        select: str = _TRAIN["select"],
        n_evals: int = _TRAIN["n_evals"],
        matmul_precision: str = _TRAIN["matmul_precision"],
        kernel: str = _TRAIN["kernel"],
        validation_fraction: float = _TABLE["val_share"],
        n_members: int = 1,
        weights: str = _FLOW["weights"],
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_flows = n_flows
        self.hidden_depth = hidden_depth
        self.hidden_width = hidden_width
        self.activation = activation
        self.mask = mask
        self.coupling = coupling
        self.conditioner = conditioner
        self.conditioner_input = conditioner_input
        self.scale = scale
        self.init = init
        self.standardise = standardise
        self.norm = norm
        self.norm_every = norm_every
        self.base = base
        self.tail_bound = tail_bound
        self.tail = tail
        self.steps = steps
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.schedule = schedule
        self.warmup = warmup
        self.grad_clip = grad_clip
        self.weight_decay = weight_decay
        self.noise = noise
        self.noise_end = noise_end
        self.select = select
        self.n_evals = n_evals
        self.matmul_precision = matmul_precision
        self.kernel = kernel
        self.validation_fraction = validation_fraction
        self.n_members = n_members
        self.weights = weights
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, *, context: Any = None, **unsupported: Any) -> RealNVP:
        """Learn the density of the rows of X (N, D), or with a `context` (N, C) that of x given c.

        `y` is ignored.

        Raises
        ------
        ValueError
            For a parameter out of range, rows that are not finite numbers, too few of them, or a
            column that does not vary where it is trained on.
        TypeError
            For sample weights, which the loss does not take: resample rows by their weights
            instead.
        """
        task = self._task(X, context, unsupported)
        (members,) = train_together([task], verbose=bool(self.verbose))
        return self._keep(task, members)

    def score_samples(self, X: Any, *, context: Any = None) -> np.ndarray:
        """The log-density of each row of X (N, D), given its row of the context (N, C) if the flow has one.

        Shape (N,), in nats and in the units of X.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        given = self._context(context, len(X))
        flows = self._flows()
        log_q = np.empty(len(X))
        for begin in range(0, len(X), CHUNK):
            # a copy: pandas gives rows not to be written
            points = torch.tensor(X[begin : begin + CHUNK]).unsqueeze(0)
            of_points = torch.from_numpy(given[begin : begin + CHUNK]).unsqueeze(0)
            with torch.no_grad():
                log_q[begin : begin + CHUNK] = flows.log_density(points, of_points)[0].numpy()
        return log_q

    def score(
        self, X: Any, y: Any = None, *, context: Any = None, sample_weight: Any = None
    ) -> float:
        """The mean log-density of the rows of X, nats per point: the higher the better.

        The mean can be weighted. A pipeline's `score` hands on weights, if only None, once metadata
        is routed.
        """
        check_is_fitted(self)
        if context is None and self.spec_.data.context_dim > 0:
            raise ValueError(f"context: expected one, as in fit(X, context=…); got none: {ROUTE}")
        log_q = self.score_samples(X, context=context)
        if sample_weight is None:
            return float(log_q.mean())
        return float(np.average(log_q, weights=_check_sample_weight(sample_weight, log_q)))

    def sample(
        self, n_samples: int | None = None, random_state: Any = None, *, context: Any = None
    ) -> np.ndarray:
        """Draw rows, (n_samples, D); of an ensemble each from a member drawn at random.

        With a context draw i is given row i of it, or each the only row. Without a number of
        samples there are as many as the context has rows, or one.
        """
        check_is_fitted(self)
        if n_samples is None:
            n_samples = 1 if context is None else len(context_rows(context))
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"n_samples: expected an integer >= 1; got {n_samples!r}")
        given = self._context(context, n_samples, one_for_all=True)
        seed = seed_of(self.random_state if random_state is None else random_state)
        of_draws = torch.from_numpy(given).unsqueeze(0)
        with torch.no_grad():
            draws = self._flows().sample(
                n_samples, [stream(seed, "sample")], [stream(seed, CHOICE)], of_draws
            )
        return draws[0].numpy()

    def _context(self, context: Any, n: int, *, one_for_all: bool = False) -> np.ndarray:
        """The context of `n` rows, (n, C); C = 0 where the flow was fitted without one."""
        return matching_context(
            context,
            n,
            width=self.spec_.data.context_dim,
            fitted_names=self.context_names_in_,
            one_for_all=one_for_all,
        )

    def _stack(self) -> FlowStack:
        """The fitted flows; in float64 a row's density does not depend on its neighbours."""
        flow = self.spec_.flow
        theta = torch.from_numpy(self.weights_).double()
        fixed = torch.from_numpy(self.fixed_).double()
        return FlowStack(
            flow, self.n_features_in_, theta, fixed, n_context=self.spec_.data.context_dim
        )

    def _flows(self) -> Ensembles:
        """The one density of the fitted flows."""
        shares = None
        if self.spec_.flow.weights == "val":
            shares = torch.from_numpy(self.member_weights_).unsqueeze(0)
        return Ensembles(self._stack(), len(self.weights_), weights=shares)

    def _task(self, X: Any, context: Any, unsupported: Mapping[str, Any]) -> Task:
        """What there is to train, once it is checked."""
        if unsupported:
            name = next(iter(unsupported))
            hint = "; resample rows by their weights" if name == "sample_weight" else ""
            raise TypeError(
                f"fit: expected X and maybe a context, for the loss takes no {name}{hint}"
            )
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=FEWEST_ROWS)
        given = np.empty((len(X), 0)) if context is None else context_rows(context)
        if len(given) != len(X):
            raise ValueError(
                f"context: expected {len(X)} rows, one for each of X; got {len(given)}"
            )
        seed = seed_of(self.random_state)
        members = self.n_members
        if not isinstance(members, int | np.integer) or members < 1:
            raise ValueError(f"n_members: expected an integer >= 1; got {members!r}")
        spec = self._spec(X, seed, given)
        rows = split_rows(spec.data, seed, len(X), val_has_file=False, test_has_file=True)
        standardised = self.standardise == "moments"
        check_learnable(X[rows.train], given[rows.train], standardised=standardised)
        dataset = dataset_of(X, given, rows)
        return Task(spec=spec, dataset=dataset, context_names=context_names(context))

    def _spec(self, X: np.ndarray, seed: int, given: np.ndarray | None = None) -> Spec:
        """The run that the parameters ask for, with these rows and their context."""
        given = X[:, :0] if given is None else given
        fraction = self.validation_fraction
        if not isinstance(fraction, int | float) or not 0 < fraction < 1:
            expected = "a number between 0 and 1"
            raise ValueError(f"validation_fraction: expected {expected}; got {fraction!r}")
        n_val = min(max(2, round(fraction * len(X))), len(X) - 2)
        flat: dict[str, Any] = {
            "name": "estimator",
            "seed": seed,
            "device": self.device,
            "data.name": "array",
            "data.kind": "array",
            "data.noise": None,
            "data.text": None,
            "data.dim": X.shape[1],
            "data.n_samples": len(X) - n_val,
            "data.n_val": n_val,
            "data.n_test": None,
            "data.context_dim": given.shape[1],
            "data.digest": digest_of(np.concatenate([X, given], axis=1)),
            "record.samples": 0,
            "record.snapshots": 1,
            "record.grid": 0,
            "record.walk": 0,
        }
        parameters = self.get_params(deep=False)
        for key, default in _FLOW.items():
            flat[f"flow.{key}"] = plain(parameters.get(key, default))
        for key, default in _TRAIN.items():
            flat[f"train.{key}"] = plain(parameters.get(key, default))
        flat["flow.members"] = plain(self.n_members)
        try:
            return unflatten(flat)
        except SpecError as error:
            said = str(error)
            if "." in error.key:  # without the group, as the parameter is named
                said = said.partition(".")[2]
            raise ValueError(said) from None

    def _keep(self, task: Task, members: Sequence[Member]) -> RealNVP:
        """Note what was learned; a member that diverged only where none is left."""
        whole = [member for member in members if member.diverged_at is None]
        for e, member in enumerate(members):
            if member.diverged_at is not None:
                left = "it is left out" if whole else "its best weights before are kept"
                what = f"member {e} diverged at step {member.diverged_at}; {left}"
                hint = "a smaller lr or scale='soft' may hold it together"
                warnings.warn(f"{what}: {hint}", ConvergenceWarning, stacklevel=3)
        members = whole or members
        self.spec_ = task.spec
        self.context_names_in_ = task.context_names
        self.weights_ = np.stack([member.theta for member in members])
        self.fixed_ = np.stack([member.fixed for member in members])
        self.member_weights_ = shares_of(task, self._stack(), can_fit=bool(whole))
        self.best_step_ = [member.best_step for member in members]
        self.history_ = members[0].history
        return self


def fit_many(
    estimators: Iterable[RealNVP | Mapping[str, Any]], X: Any, *, context: Any = None
) -> list[RealNVP]:
    """Fit many estimators to the rows of X (N, D), those of one architecture as one stack.

    Each is a :class:`RealNVP`, which is left alone, or the parameters of one; the fitted ones come
    in their order, and each is the same as fitted alone. A `context` is given to all of them.

    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> models = fit_many([{"steps": 10, "lr": lr, "random_state": 0} for lr in (0.001, 0.01)], x)
    >>> [model.lr for model in models]
    [0.001, 0.01]
    """
    fitted = [RealNVP(**one) if isinstance(one, Mapping) else clone(one) for one in estimators]
    tasks = [model._task(X, context, {}) for model in fitted]
    for model, task, members in zip(fitted, tasks, train_together(tasks), strict=True):
        model._keep(task, members)
    return fitted
