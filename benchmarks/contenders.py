"""The libraries, each trained as its own documentation trains; every builder returns one `train(steps) -> loss`.

`train` goes on from where it stopped. The loss is that of fixed points, in nats of standardised data for peers and of
data units for nfexp. Batches of the peers are slices of a shuffled tensor:
cheaper than the data loaders of their examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases import Case, stack_of

Train = Callable[[int], float]
LR = 1e-3


def points(seed: int, n: int = 2048) -> Tensor:
    """Training draws of nfexp's moons, standardised; (n, 2)."""
    from nfexp.data import make_target
    from nfexp.streams import stream

    x = make_target("moons", noise=0.05, text=None).sample(n, stream(seed, "train"))
    return ((x - x.mean(0)) / x.std(0)).float()


def nfexp(case: Case) -> Train:
    from nfexp.run import prepare_runs
    from nfexp.train import advance, begin, mean_nll

    training = prepare_runs(stack_of(case, train__steps=10**8))
    state = begin(training)
    seen = training.train[:, : case.batch]

    def train(steps: int) -> float:
        advance(training, state, until=state.step + steps)
        return float(mean_nll(training.fresh.with_rows(state.theta, state.fixed), seen).max())

    return train


class Model(NamedTuple):
    """A peer's flow in 2-D and its own mean NLL of points (N, 2), in nats."""

    module: torch.nn.Module
    mean_nll: Callable[[Tensor], Tensor]


def torch_peer(case: Case) -> Train:
    x, (module, loss_of) = points(0), MODELS[case.library](case)
    optimizer = torch.optim.Adam(module.parameters(), lr=LR)

    def batches() -> Iterator[Tensor]:
        while True:
            yield from x[torch.randperm(len(x))].split(case.batch)

    stream = batches()

    def train(steps: int) -> float:
        for _ in range(steps):
            loss = loss_of(next(stream))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            return loss_of(x[:256]).item()

    return train


def normflows_model(case: Case) -> Model:
    import normflows as nf

    b = torch.tensor([1.0, 0.0])
    widths = [2, *[case.width] * case.depth, 2]
    flows = []
    for i in range(case.n_flows):
        t, s = nf.nets.MLP(widths, init_zeros=True), nf.nets.MLP(widths, init_zeros=True)
        flows.append(nf.flows.MaskedAffineFlow(b if i % 2 else 1 - b, t, s))
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(2, trainable=False), flows)
    return Model(model, model.forward_kld)


def zuko_model(case: Case) -> Model:
    import zuko

    flow = zuko.flows.RealNVP(2, transforms=case.n_flows, hidden_features=[case.width] * case.depth)
    return Model(flow, lambda x: -flow().log_prob(x).mean())


def zuko_nsf_model(case: Case) -> Model:
    """Neural spline flow, autoregressive: not a RealNVP, and shown as what splines reach."""
    import zuko

    flow = zuko.flows.NSF(2, transforms=case.n_flows, hidden_features=[case.width] * case.depth)
    return Model(flow, lambda x: -flow().log_prob(x).mean())


def nflows_model(case: Case) -> Model:
    from nflows import distributions, flows, transforms
    from nflows.nn import nets

    class Net(nets.MLP):
        def forward(
            self, inputs: Tensor, context: None = None
        ) -> Tensor:  # couplings pass a context
            return super().forward(inputs)

    def net(n_in: int, n_out: int) -> Net:
        return Net([n_in], [n_out], [case.width] * case.depth)

    masks = [torch.tensor([1.0, -1.0]) * (-1) ** i for i in range(case.n_flows)]
    couplings = transforms.CompositeTransform(
        [transforms.AffineCouplingTransform(m, net) for m in masks]
    )
    flow = flows.Flow(couplings, distributions.StandardNormal([2]))
    return Model(flow, lambda x: -flow.log_prob(inputs=x).mean())


MODELS = {
    "normflows": normflows_model,
    "zuko": zuko_model,
    "zuko_nsf": zuko_nsf_model,
    "nflows": nflows_model,
}


def flowjax(case: Case) -> Train:
    """One member: `flowjax.train`'s jitted step. More: the same step under `jax.vmap`, compiled as one."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import jax.random as jr
    import optax
    import paramax
    from flowjax.distributions import Normal
    from flowjax.flows import coupling_flow
    from flowjax.train.losses import MaximumLikelihoodLoss
    from flowjax.train.train_utils import step as flowjax_step

    optimizer, loss_fn = optax.adam(LR), MaximumLikelihoodLoss()
    x = jnp.stack([points(seed).numpy() for seed in range(case.members)])  # (E, N, 2)

    def make(key: jax.Array) -> eqx.Module:
        base = Normal(jnp.zeros(2))
        return coupling_flow(
            key, base_dist=base, flow_layers=case.n_flows, nn_width=case.width, nn_depth=case.depth
        )

    keys = jr.split(jr.key(0), case.members)
    dist = eqx.filter_vmap(make)(keys) if case.members > 1 else make(keys[0])
    is_leaf = lambda leaf: isinstance(leaf, paramax.NonTrainable)  # noqa: E731
    params, static = eqx.partition(dist, eqx.is_inexact_array, is_leaf=is_leaf)

    def step(params, state, x):
        return flowjax_step(
            params, static, x, optimizer=optimizer, opt_state=state, loss_fn=loss_fn
        )

    def probe(params, x):
        return loss_fn(params, static, x)

    def shuffled(key: jax.Array) -> jax.Array:
        """(batches, E, batch, 2)"""
        n = x.shape[1] // case.batch * case.batch
        own = jax.vmap(jr.permutation)(jr.split(key, case.members), x)[:, :n]
        return own.reshape(case.members, -1, case.batch, 2).swapaxes(0, 1)

    init, shuffled = optimizer.init, jax.jit(shuffled)
    if case.members > 1:
        init, step, probe = jax.vmap(init), jax.jit(jax.vmap(step)), jax.jit(jax.vmap(probe))
    state = jax.jit(init)(params)

    def batches() -> Iterator[jax.Array]:
        key = jr.key(1)
        while True:
            key, own = jr.split(key)
            yield from shuffled(own) if case.members > 1 else shuffled(own)[:, 0]

    stream = batches()

    def train(steps: int) -> float:
        nonlocal params, state
        for _ in range(steps):
            params, state, _ = step(params, state, next(stream))
        return float(jnp.max(probe(params, x[:, :256] if case.members > 1 else x[0, :256])))

    return train


def sgemm(case: Case) -> Train:
    """A step is one product of two 1024 x 1024 matrices in float32: the machine's own rate."""
    a, b = torch.randn(2, 1024, 1024)
    out = torch.empty_like(a)

    def train(steps: int) -> float:
        for _ in range(steps):
            torch.mm(a, b, out=out)
        return 0.0

    return train


def openblas(case: Case) -> Train:
    """The same product by the library behind NumPy."""
    a, b = np.random.default_rng(0).standard_normal((2, 1024, 1024), dtype=np.float32)
    out = np.empty_like(a)

    def train(steps: int) -> float:
        for _ in range(steps):
            np.matmul(a, b, out=out)
        return 0.0

    return train


def copy(case: Case) -> Train:
    """A step copies `batch` kB of float32 from one array to another: reads and writes 1,000 `batch` bytes each."""
    a = torch.randn(case.batch * 250)
    b = torch.empty_like(a)

    def train(steps: int) -> float:
        for _ in range(steps):
            b.copy_(a)
        return 0.0

    return train


BUILDERS: dict[str, Callable[[Case], Train]] = {
    **dict.fromkeys(("normflows", "zuko", "nflows"), torch_peer),
    **{f.__name__: f for f in (nfexp, flowjax, sgemm, openblas, copy)},
}
