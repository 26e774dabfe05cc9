"""Which architectures the fused kernel knows. Needs neither torch nor numba: what a run costs depends on it."""

from __future__ import annotations

from dataclasses import fields

from nfexp.spec import ADDED, Flow, Spec

# The values of each key that the kernel knows. A key that is not here must have the value of `ADDED`,
# at which it changes nothing.
ANY = None  # any value
KNOWN: dict[str, tuple[str, ...] | None] = {
    "kind": ("vector",),
    "n_flows": ANY,
    "hidden_depth": ANY,
    "hidden_width": ANY,
    "activation": ("relu", "leaky_relu", "tanh", "silu", "elu"),
    "mask": ANY,
    "coupling": ("affine", "additive"),
    "conditioner": ("separate", "shared"),
    "scale": ("learned", "tanh", "soft", "exp"),
    "init": ANY,
    "standardise": ANY,
    "norm": ("none", "batchnorm", "actnorm"),
    "norm_every": ANY,
    "base": ("normal", "logistic", "laplace", "student_t", "mixture", "contaminated"),
    "conditioner_input": ANY,
    "tail_bound": ANY,
    "tail": ANY,
    "members": ANY,  # rows of the stack as any others
    "weights": ANY,
}


def unknown_key(flow: Flow) -> str | None:
    """The first key of an architecture whose value the fused kernel does not know; None if it knows all."""
    for f in fields(flow):
        value = getattr(flow, f.name)
        options = KNOWN.get(f.name, (ADDED.get(f"flow.{f.name}"),))
        if options is not ANY and value not in options:
            return f.name
    return None


def is_fused(spec: Spec) -> bool:
    """Whether a run goes through the fused kernel on a CPU, as far as its spec tells."""
    is_known = unknown_key(spec.flow) is None
    return spec.train.kernel != "torch" and spec.device != "cuda" and is_known
