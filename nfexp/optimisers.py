"""Optimisers of a stack: row e of the weights moves by row e of the gradient, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from nfexp.flows.kernel_protocol import Law
from nfexp.spec import Train

# Kingma and Ba 2015, and PyTorch's NAdam
BETA1 = 0.9
BETA2 = 0.999
EPSILON = 1e-8
MOMENTUM_DECAY = 0.004  # of NAdam, per step


class Optimiser:
    """What all have in common.

    Weights and both moments, (E, P), and the members that are still trained.

    Parameters
    ----------
    theta, first, second
        Weights and the running means of the gradient and of its square, changed in place.
    recipes
        Each member's own, for its learning rate and its (decoupled) weight decay.
    """

    def __init__(
        self, theta: Tensor, first: Tensor, second: Tensor, recipes: Sequence[Train]
    ) -> None:
        self.theta = theta
        self.first = first
        self.second = second
        self.recipes = recipes
        self.members: list[int] = []
        self.train(range(len(recipes)))

    def train(self, members: Sequence[int]) -> None:
        """Train these members from now on; the rows of all others stay as they are."""
        self.members = list(members)

    def law(self, step: int) -> Law:
        """What step number `step` (1, 2, …) does with gradient and first moment."""
        raise NotImplementedError

    def step(self, grad: Tensor, *, step: int, factor: float) -> None:
        """Make step number `step` (1, 2, …) along the gradient (E, P), at `factor` times each peak learning rate."""
        raise NotImplementedError


class Adam(Optimiser):
    """Adam with decoupled weight decay (Kingma and Ba 2015; Loshchilov and Hutter 2019), by PyTorch's fused kernel."""

    def train(self, members: Sequence[int]) -> None:
        super().train(members)
        self.weights = self.theta.unbind(0)
        self.firsts = self.first.unbind(0)
        self.seconds = self.second.unbind(0)
        # By learning rate and weight decay: one call of the kernel serves a group.
        self.groups: dict[tuple[float, float], list[int]] = {}
        for e in members:
            recipe = self.recipes[e]
            self.groups.setdefault((recipe.lr, recipe.weight_decay), []).append(e)

    def law(self, step: int) -> Law:
        return Law(
            of_grad=0.0, of_first=1 / (1 - BETA1**step), beta1=BETA1, beta2=BETA2, epsilon=EPSILON
        )

    def step(self, grad: Tensor, *, step: int, factor: float) -> None:
        taken = torch.tensor(float(step - 1), device=grad.device)
        gradients = grad.unbind(0)
        for (lr, decay), members in self.groups.items():
            adamw(
                [self.weights[e] for e in members],
                [gradients[e] for e in members],
                [self.firsts[e] for e in members],
                [self.seconds[e] for e in members],
                [],
                [taken.clone() for _ in members],
                fused=True,
                amsgrad=False,
                maximize=False,
                beta1=BETA1,
                beta2=BETA2,
                eps=EPSILON,
                lr=lr * factor,
                weight_decay=decay,
            )


class NAdam(Optimiser):
    """Adam with Nesterov's momentum (Dozat 2016), as in ``torch.optim.NAdam``.

    Weight decay decoupled.

    With μ_t = β₁ (1 − ½ 0.96^(t ψ)), m and v the running means and Πμ the product of μ_1 … μ_t:
    θ ← θ − lr [(1 − μ_t) g / (1 − Πμ) + μ_{t+1} m / (1 − μ_{t+1} Πμ)] / (√(v / (1 − β₂^t)) + ε).
    """

    def __init__(
        self, theta: Tensor, first: Tensor, second: Tensor, recipes: Sequence[Train]
    ) -> None:
        super().__init__(theta, first, second, recipes)
        self.product = 1.0  # Πμ of the first `taken` steps
        self.taken = 0

    def train(self, members: Sequence[int]) -> None:
        super().train(members)
        recipes = [self.recipes[e] for e in members]
        self.lr = self.theta.new_tensor([recipe.lr for recipe in recipes])[:, None]
        self.decay = self.theta.new_tensor([recipe.weight_decay for recipe in recipes])[:, None]
        self.decays = any(recipe.weight_decay > 0 for recipe in recipes)

    def law(self, step: int) -> Law:
        while self.taken < step:  # more than once where a training is carried on
            self.taken += 1
            self.product *= momentum(self.taken)
        next_momentum = momentum(step + 1)
        of_grad = (1 - momentum(step)) / (1 - self.product)
        of_first = next_momentum / (1 - next_momentum * self.product)
        return Law(of_grad=of_grad, of_first=of_first, beta1=BETA1, beta2=BETA2, epsilon=EPSILON)

    def step(self, grad: Tensor, *, step: int, factor: float) -> None:
        if len(self.members) == len(self.recipes):
            self._move(self.theta, self.first, self.second, grad, step=step, factor=factor)
            return
        rows = torch.tensor(self.members, dtype=torch.long, device=grad.device)
        theta = self.theta[rows]
        first = self.first[rows]
        second = self.second[rows]
        self._move(theta, first, second, grad[rows], step=step, factor=factor)
        self.theta[rows] = theta
        self.first[rows] = first
        self.second[rows] = second

    def _move(
        self,
        theta: Tensor,
        first: Tensor,
        second: Tensor,
        grad: Tensor,
        *,
        step: int,
        factor: float,
    ) -> None:
        law = self.law(step)
        lr = self.lr * factor
        if self.decays:
            theta.mul_(1 - lr * self.decay)
        first.lerp_(grad, 1 - BETA1)
        second.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
        scale = second.div(1 - BETA2**step).sqrt_().add_(EPSILON)
        move = grad.mul(law.of_grad).add_(first, alpha=law.of_first)
        theta.sub_(move.div_(scale).mul_(lr))


def momentum(step: int) -> float:
    """μ of NAdam at step 1, 2, …: it grows from half of β₁ to β₁.

    >>> round(momentum(1), 3), round(momentum(10**6), 3)
    (0.45, 0.9)
    """
    growing: float = 1 - 0.5 * 0.96 ** (step * MOMENTUM_DECAY)
    return BETA1 * growing


OPTIMISERS: dict[str, type[Optimiser]] = {"adam": Adam, "nadam": NAdam}
