"""Ensembles: a density that is the mean, perhaps weighted, of the densities of several flows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nfexp.flows.image.plan import Image
from nfexp.flows.stack import FlowStack, from_state
from nfexp.spec import Flow

CHOICE = "members"  # the purpose of the stream that says which member a draw comes from
WEIGHTS = "members.weights"  # the name that weights are stored under
MOST_ROUNDS = 10_000  # of EM
WITHIN = 1e-4  # nats of the most likely weights


def fitted_weights(log_q: Tensor) -> Tensor:
    """The weights w that make N points most likely, of members with log q_k(x_n), nats.

    (K, N) to (K,) in float64.

    L(w) = (1/N) Σ_n log Σ_k w_k q_k(x_n) is concave. With g_k = ∂L/∂w_k = (1/N) Σ_n q_k(x_n) /
    q(x_n) a step of EM is w_k ← w_k g_k, and the largest L is at most max_k g_k − 1 above L(w): EM
    from equal weights, until that is below `WITHIN`.

    >>> fitted_weights(torch.tensor([[0.0, 0.0], [-9.0, -9.0]])).round(decimals=3)
    tensor([1., 0.], dtype=torch.float64)

    Source: Redner and Walker, "Mixture densities, maximum likelihood and the EM algorithm", 1984.
    """
    log_q = log_q.double()
    w = torch.full_like(log_q[:, 0], 1 / len(log_q))
    for _ in range(MOST_ROUNDS):
        log_mean = torch.logsumexp(log_q + w.log().unsqueeze(1), 0)
        g = (log_q - log_mean).exp().mean(1)
        if g.max() <= 1 + WITHIN:
            break
        w = w * g
    return w


class Ensembles:
    """The ensembles of a stack, K members each: q(x) = (1/K) Σ_k q_k(x), in logarithms.

    Rows r K … r K + K − 1 of the stack are the members of ensemble r. With K = 1 an ensemble is its
    one flow, to the last bit.

    Parameters
    ----------
    stack
        R · K flows.
    n_members
        K.
    counted
        Which rows count, (R · K) truth values: the mean is over those. Of an ensemble where none
        does, all count. All rows if not given.
    weights
        (R, K), with 0 for rows that do not count: then q(x) = Σ_k w_k q_k(x). Equal ones if not
        given.

    Source: Lakshminarayanan, Pritzel, Blundell, "Simple and scalable predictive uncertainty
    estimation using deep ensembles", 2017: members differ in where they start and in the order of
    their batches.
    """

    def __init__(
        self,
        stack: FlowStack,
        n_members: int,
        counted: Sequence[bool] | None = None,
        weights: Tensor | None = None,
    ) -> None:
        self.stack = stack
        self.n_members = n_members
        wanted = (
            torch.ones(stack.n_members, dtype=torch.bool)
            if counted is None
            else torch.tensor(counted)
        )
        wanted = wanted.view(-1, n_members)
        self.is_lost = ~wanted.any(1)  # (R,)
        self.counted = wanted | self.is_lost.unsqueeze(1)  # (R, K)
        self.weights = weights

    def weighted(self, of_members: Sequence[Tensor]) -> Ensembles:
        """The same members with the weights of :meth:`fitted`."""
        weights = self.fitted(of_members)
        return Ensembles(self.stack, self.n_members, self._wanted().flatten().tolist(), weights)

    def fitted(self, of_members: Sequence[Tensor]) -> Tensor:
        """The weights (R, K) that make some points most likely, 0 for rows that do not count.

        Those points are given for each ensemble by the log-densities of its members there, (K, N).
        Where no member counts, or a density is not finite, weights are equal.
        """
        weights = torch.zeros(self.counted.shape, dtype=torch.float64)
        for r, log_q in enumerate(of_members):
            own = self.counted[r]
            of_counted = log_q.cpu()[own]
            can_fit = bool(torch.isfinite(of_counted).all() and not self.is_lost[r])
            weights[r, own] = fitted_weights(of_counted) if can_fit else 1 / len(of_counted)
        return weights

    def of_members(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-density of each member, nats: (R, N, D) to (R, K, N).

        With a context (R, N, C), given that.
        """
        if self.n_members == 1:
            return self.stack.log_prob(x, context).unsqueeze(1)
        # One member may have no density at all where another has some: −∞, not NaN
        given = None if context is None else context.repeat_interleave(self.n_members, 0)
        of_rows = self.stack.log_density(x.repeat_interleave(self.n_members, 0), given)
        return of_rows.unflatten(0, (-1, self.n_members))

    def mean(self, of_members: Tensor) -> Tensor:
        """The logarithm of the mean density, nats: (R, K, N) to (R, N)."""
        if self.n_members == 1:
            return of_members[:, 0]
        counted = self.counted.to(of_members.device)
        only = torch.where(counted.unsqueeze(2), of_members, -math.inf)
        if self.weights is not None:
            log_weights = self.weights.log().to(of_members)
            return torch.logsumexp(only + log_weights.unsqueeze(2), 1)
        log_counts = counted.sum(1, keepdim=True).to(of_members).log()
        return torch.logsumexp(only, 1) - log_counts

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """log q(x) in nats: (R, N, D) to (R, N); with a context (R, N, C), log q(x | c)."""
        return self.mean(self.of_members(x, context))

    def log_density(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """:meth:`log_prob`, never NaN where `x` is a number: see :meth:`FlowStack.log_density`."""
        return (
            self.stack.log_density(x, context) if self.n_members == 1 else self.log_prob(x, context)
        )

    def choose(self, n: int, generators: Sequence[torch.Generator]) -> Tensor:
        """The member that each of `n` draws comes from, (R, n).

        Counted ones, as likely as their weights say.
        """
        chosen = []
        if self.weights is not None:
            for weights, generator in zip(self.weights, generators, strict=True):
                chosen.append(torch.multinomial(weights, n, replacement=True, generator=generator))
            return torch.stack(chosen)
        for counted, generator in zip(self.counted, generators, strict=True):
            members = counted.nonzero()[:, 0]
            chosen.append(members[torch.randint(len(members), (n,), generator=generator)])
        return torch.stack(chosen)

    def forward(self, z: Tensor, chosen: Tensor, context: Tensor | None = None) -> Tensor:
        """Base to data, each point by the member that is chosen for it.

        (R, N, D) and (R, N) to (R, N, D).
        """
        if self.n_members == 1:
            return self.stack.forward(z, context)[0]
        x = torch.empty_like(z)
        for r in range(len(z)):
            for k in range(self.n_members):
                own = (chosen[r] == k).to(z.device)
                member = self.stack.member(r * self.n_members + k)
                given = None if context is None else context[r, own].unsqueeze(0)
                x[r, own] = member.forward(z[r, own].unsqueeze(0), given)[0][0]
        return x

    def sample(
        self,
        n: int,
        base: Sequence[torch.Generator],
        members: Sequence[torch.Generator],
        context: Tensor | None = None,
    ) -> Tensor:
        """Draw `n` points per ensemble, (R, n, D), by its own CPU generators of base points and of members.

        With a context, (R, n, C), each draw is one given its own row.
        """
        return self.forward(self.stack.base_draws(n, base), self.choose(n, members), context)

    def rows(self, r: int) -> range:
        """Where the members of ensemble `r` stand in the stack."""
        return range(r * self.n_members, (r + 1) * self.n_members)

    def one(self, r: int) -> Ensembles:
        """Ensemble `r` by itself."""
        weights = None if self.weights is None else self.weights[r : r + 1]
        wanted = self._wanted()[r].tolist()
        return Ensembles(self.stack.pick(self.rows(r)), self.n_members, wanted, weights)

    def _wanted(self) -> Tensor:
        """Which rows (R, K) were to count: none of an ensemble whose members are all lost."""
        return self.counted & ~self.is_lost.unsqueeze(1)

    def state(self, r: int) -> dict[str, Tensor]:
        """The named tensors of ensemble `r`, ready to be stored.

        Of members that count, as "members.3.coupling.0…".
        """
        if self.n_members == 1:
            return self.stack.state(r)
        named = {}
        for k in self.counted[r].nonzero()[:, 0].tolist():
            for name, value in self.stack.state(r * self.n_members + k).items():
                named[f"members.{k}.{name}"] = value
        if self.weights is not None:
            named[WEIGHTS] = self.weights[r, self.counted[r]]
        return named

    def first(self) -> FlowStack:
        """The first member that counts of each ensemble, as a stack of R flows."""
        if self.n_members == 1:
            return self.stack
        rows = []
        for r, counted in enumerate(self.counted):
            rows.append(r * self.n_members + int(counted.nonzero()[0]))
        return self.stack.pick(rows)


@dataclass(frozen=True)
class Members:
    """The members of one ensemble that count, where in it they stand, and their weights, if these are not equal."""

    stack: FlowStack
    positions: list[int]
    weights: Tensor | None = None  # (K,)


def members_from_state(
    flow: Flow,
    dim: int,
    state: Mapping[str, Tensor],
    image: Image | None = None,
    n_context: int = 0,
) -> Members:
    """The members of one ensemble from the tensors of :meth:`Ensembles.state`.

    Raises
    ------
    ValueError
        If a tensor is missing, unknown or of another shape, or weights do not sum to 1.
    """
    if flow.members == 1:
        return Members(from_state(flow, dim, state, image, n_context), [0])
    parts: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name == WEIGHTS and flow.weights == "val":
            continue
        match = re.fullmatch(r"members\.(0|[1-9][0-9]{0,3})\.(.+)", name)
        if match is None or int(match[1]) >= flow.members:
            raise ValueError(
                f"weights: expected those of {flow.members} members; got an unknown one, {name}"
            )
        parts.setdefault(int(match[1]), {})[match[2]] = value
    if not parts:
        raise ValueError(f"weights: expected those of {flow.members} members; got nothing")
    positions = sorted(parts)
    flows = [from_state(flow, dim, parts[k], image, n_context) for k in positions]
    theta = torch.cat([own.theta for own in flows])
    fixed = torch.cat([own.fixed for own in flows])
    return Members(
        flows[0].with_rows(theta, fixed), positions, _weights_of(flow, state, len(positions))
    )


def _weights_of(flow: Flow, state: Mapping[str, Tensor], n: int) -> Tensor | None:
    """The stored weights of `n` members; None where they are equal."""
    if flow.weights == "equal":
        return None
    weights = state.get(WEIGHTS)
    if weights is not None:
        weights = weights.double()  # a small type cannot be compared
    if (
        weights is None
        or weights.shape != (n,)
        or not bool((weights >= 0).all())
        or abs(weights.sum() - 1) > 1e-3
    ):
        got = "none" if weights is None else f"{weights.tolist()!s:.60}"
        raise ValueError(f"weights: expected {WEIGHTS}, {n} shares that sum to 1; got {got}")
    return weights
