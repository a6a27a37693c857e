"""Limited-memory BFGS for a smooth concave function in a box, in the metric of the targets' weights.

With pairs s = ψ' − ψ and q = ∇f(ψ) − ∇f(ψ'), the two-loop recursion applies the inverse Hessian that they imply to the
gradient, from γ diag(1/b) where there is none. Coordinates that leave the box are held at its side.
Source: Nocedal & Wright, Numerical Optimization, algorithms 7.4 and 16.5.
"""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], tuple[float, Tensor]]

PAIRS = 20
ITERATIONS = 200
WINDOW = 5  # iterations over which the value has to grow
SUFFICIENT, SHORTEST = 1e-4, 1e-3  # Armijo's condition, and the part of a step below which it is given up
FLAT = 1e-10  # cosine between s and q under which a pair says nothing


def direction(gradient: Tensor, pairs: deque[tuple[Tensor, Tensor]], diagonal: Tensor, first: float) -> Tensor:
    """The two-loop recursion: an approximation of −H⁻¹∇f."""
    r, taken = gradient.clone(), []
    for s, q in reversed(pairs):
        taken.append(float(s @ r) / float(s @ q))
        r -= taken[-1] * q
    if pairs:
        s, q = pairs[-1]
        first = float(s @ q) / float((q * q * diagonal).sum())
    r = r * diagonal * first
    for (s, q), a in zip(pairs, reversed(taken), strict=True):
        r += s * (a - float(q @ r) / float(s @ q))
    return r


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
    pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=PAIRS)
    values = [value]
    for _ in range(ITERATIONS):
        held = ((psi >= high) & (gradient > 0)) | ((psi <= low) & (gradient < 0))
        inside = gradient.masked_fill(held, 0.0)
        if float((inside * inside * diagonal).sum()) <= tolerance:
            break
        step = direction(inside, pairs, diagonal, first).masked_fill(held, 0.0)
        if float(step @ inside) <= 0:
            pairs.clear()
            step = inside * diagonal * first
        size = 1.0 if pairs else min(1.0, first / float(step.abs().max()))
        shortest = SHORTEST * size
        while True:
            there = torch.minimum(torch.maximum(psi + size * step, low), high)
            reached, slope = function(there)
            grown = reached >= value + SUFFICIENT * float(gradient @ (there - psi))
            if grown or size < shortest:
                break
            size /= 2
        if not grown and not pairs:
            break
        if not grown:
            pairs.clear()  # what they say of the curvature is wrong here
            continue
        s, q = there - psi, gradient - slope
        if float(s @ q) > FLAT * float(s.norm() * q.norm()):
            pairs.append((s, q))
        psi, value, gradient = there, reached, slope
        values.append(value)
        if len(values) > WINDOW and value - values[-1 - WINDOW] < gain:
            break
    return psi
