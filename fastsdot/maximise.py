"""Limited-memory BFGS for a smooth concave function in a box, in the metric of the targets' weights.

With pairs s = ψ' − ψ and q = ∇f(ψ) − ∇f(ψ') as the rows of S and Q, oldest first, R the upper triangle of S Qᵀ and
W = γ diag(1/b), the inverse Hessian that they imply takes a gradient g to

    W (g − Qᵀ a) + Sᵀ R⁻ᵀ (diag(R) a − Q W (g − Qᵀ a)),      a = R⁻¹ S g.

Coordinates that leave the box are held at its side.
Source: Byrd, Nocedal & Schnabel, Math. Programming 63, 1994, theorem 2.2; Nocedal & Wright, Numerical Optimization,
algorithm 16.5.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], tuple[float, Tensor]]

PAIRS = 20
ITERATIONS = 200
WINDOW = 5  # iterations over which the value has to grow
SUFFICIENT, SHORTEST = 1e-4, 1e-3  # Armijo's condition, and the part of a step below which it is given up
FLAT = 1e-10  # cosine between s and q under which a pair says nothing


class Pairs:
    """The last `PAIRS` pairs s and q, [N] each, and the products of any two."""

    def __init__(self, like: Tensor):
        self.s, self.q = like.new_zeros(PAIRS, len(like)), like.new_zeros(PAIRS, len(like))
        self.products = like.new_zeros(PAIRS, PAIRS)
        self.clear()

    def clear(self) -> None:
        self.order: list[int] = []  # the rows of pairs, oldest first

    def add(self, s: Tensor, q: Tensor) -> None:
        row = len(self.order) if len(self.order) < PAIRS else self.order.pop(0)
        self.order.append(row)
        self.s[row], self.q[row] = s, q
        self.products[row], self.products[:, row] = self.q @ s, self.s @ q

    def direction(self, gradient: Tensor, diagonal: Tensor) -> Tensor:
        """An approximation of −H⁻¹ times the gradient, for `diagonal` [N] that is 1/b."""
        order = torch.tensor(self.order, device=gradient.device)
        r = self.products[order[:, None], order].triu()

        def solve(r: Tensor, right: Tensor, upper: bool) -> Tensor:
            found = torch.linalg.solve_triangular(r, right[:, None], upper=upper)[:, 0]
            return right.new_zeros(PAIRS).index_copy(0, order, found)

        last = self.q[self.order[-1]]
        scale = r[-1, -1] / (last * last * diagonal).sum()
        a = solve(r, (self.s @ gradient)[order], True)
        first = scale * diagonal * (gradient - a @ self.q)
        return first + solve(r.T, (self.products.diagonal() * a - self.q @ first)[order], False) @ self.s


def maximise(
    function: Function,
    start: Tensor,
    box: tuple[Tensor, Tensor],
    diagonal: Tensor,
    first: float,
    tolerance: float,
    gain: float,
) -> Tensor:
    """ψ with low_j ≤ ψ_j ≤ high_j, the box, near the maximum of `function`, which returns a value and its gradient.

    diagonal [N] is 1/b, and first the size of the first step where the gradient is b. It ends when Σ g_j²/b_j is at
    most `tolerance` over the coordinates inside the box, or the value grows by less than `gain` in `WINDOW` iterations,
    or no step along the gradient makes it grow.
    """
    low, high = box
    psi = torch.minimum(torch.maximum(start, low), high)
    value, gradient = function(psi)
    pairs = Pairs(psi)
    values = [value]
    for _ in range(ITERATIONS):
        held = ((psi >= high) & (gradient > 0)) | ((psi <= low) & (gradient < 0))
        inside = gradient.masked_fill(held, 0.0)
        steepest = inside * diagonal * first
        if float((inside * inside * diagonal).sum()) <= tolerance:
            break
        step = pairs.direction(inside, diagonal).masked_fill(held, 0.0) if pairs.order else steepest
        if float(step @ inside) <= 0:
            pairs.clear()
            step = steepest
        size = 1.0 if pairs.order else min(1.0, first / float(step.abs().max()))
        shortest = SHORTEST * size
        while True:
            there = torch.minimum(torch.maximum(psi + size * step, low), high)
            reached, slope = function(there)
            grown = reached >= value + SUFFICIENT * float(gradient @ (there - psi))
            if grown or size < shortest:
                break
            size /= 2
        if not grown and not pairs.order:
            break
        if not grown:
            pairs.clear()  # what they say of the curvature is wrong here
            continue
        s, q = there - psi, gradient - slope
        if float(s @ q) > FLAT * float(s.norm() * q.norm()):
            pairs.add(s, q)
        psi, value, gradient = there, reached, slope
        values.append(value)
        if len(values) > WINDOW and value - values[-1 - WINDOW] < gain:
            break
    return psi
