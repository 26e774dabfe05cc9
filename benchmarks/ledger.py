"""Where a step's time goes: every torch operation counted by kind, with its arithmetic, its traffic and its time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}
THIN = 8  # a product with a side no longer than this is bound by memory, not by arithmetic
ADAM = 12  # operations per learned number
LEARNED = 1000  # numbers per member: a matrix or a row with more holds weights; points have coordinates besides


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)


def n_bytes(tensor: Tensor) -> int:
    """What an operation has to touch of a tensor: an expanded one is no larger than its storage."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class Ledger(TorchDispatchMode):
    """Sums of (calls, seconds, FLOP, bytes) per kind of operation; views move nothing and are left out.

    FLOP are two per multiply-add of a product and one per element written elsewhere; bytes are what is read and what
    is written. Work on the weights of a stack of `members` is told apart where the members share storage.
    """

    def __init__(self, members: int | None = None) -> None:
        super().__init__()
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
        self.members = members

    def holds_weights(self, tensor: Tensor) -> bool:
        if self.members is None or tensor.dim() > 2:
            return False
        return tensor.untyped_storage().nbytes() > LEARNED * self.members * tensor.element_size()

    def kind_of(self, name: str, read: list[Tensor], written: list[Tensor]) -> tuple[str, float]:
        if name in PRODUCTS:
            a, b = read[-2:]
            thin = min(*a.shape[-2:], b.shape[-1]) <= THIN
            return "thin products" if thin else "products", 2.0 * a.numel() * b.shape[-1]
        if name.startswith("_fused_adam"):
            return "optimiser", float(ADAM * sum(t.numel() for t in written) / 3)
        weights = any(map(self.holds_weights, [*read, *written]))
        return "optimiser" if weights else "pointwise", float(sum(t.numel() for t in written))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        begun = time.process_time()
        out = func(*args, **kwargs)
        spent = time.process_time() - begun
        arguments = {a.name: a for a in func._schema.arguments}
        named = dict(zip(arguments, args, strict=False)) | kwargs
        changed = [
            k for k, a in arguments.items() if a.alias_info is not None and a.alias_info.is_write
        ]
        read = list(tensors([v for k, v in named.items() if not arguments[k].is_out]))
        written = list(tensors([named.get(k) for k in changed] if changed else out))
        storages = {t.untyped_storage()._cdata for t in read}
        if not changed and all(t.untyped_storage()._cdata in storages for t in written):
            return out  # a view
        kind, flop = self.kind_of(func.overloadpacket.__name__, read, written)
        touched = sum(map(n_bytes, read)) + sum(map(n_bytes, written))
        for i, value in enumerate((1.0, spent, flop, float(touched))):
            self.sums[kind][i] += value
        return out


def count(
    train: Callable[[int], float], steps: int, members: int | None = None
) -> dict[str, list[float]]:
    """Per step and kind: calls, CPU seconds, FLOP, bytes. Two trainings; what they share cancels."""

    def sums(n: int) -> dict[str, list[float]]:
        with Ledger(members) as ledger:
            train(n)
        return ledger.sums

    short, long = sums(1), sums(1 + steps)
    kinds = {
        k: [(b - a) / steps for a, b in zip(short.get(k, [0.0] * 4), v, strict=True)]
        for k, v in long.items()
    }
    return {kind: values for kind, values in kinds.items() if values[0] > 0}
