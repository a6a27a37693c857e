"""Transport problems whose answers are known."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import integrate, stats
from torch import Tensor


@dataclass(frozen=True)
class Uniform:
    """The uniform distribution on [low, low + 1]^d."""

    d: int
    low: float = 0.0

    def __call__(self, n: int) -> Tensor:
        return self.low + torch.rand(n, self.d)


def grid(k: int) -> Tensor:
    """The centres of a k × k grid on the unit square: with equal weights ψ is constant, by symmetry of the cells."""
    axis = (torch.arange(k) + 0.5) / k
    return torch.cartesian_prod(axis, axis)


def shifted_line(m: int, delta: float) -> tuple[Tensor, Tensor]:
    """Targets k/m for a source U[δ, 1 + δ] and the cost (x − y)²: ψ_k = k (1/m² − 2δ/m) up to a constant."""
    k = torch.arange(1, m + 1)
    return k[:, None] / m, k * (1 / m**2 - 2 * delta / m)


def normal_to_points(y: np.ndarray, weights: np.ndarray, power: float) -> float:
    """E |z − T(z)|^power for z ~ N(0, 1) onto weighted points, whose cells are quantile intervals in their order."""
    order = np.argsort(y)
    edges = stats.norm.ppf(np.clip(np.concatenate([[0], np.cumsum(weights[order])]), 0, 1))
    return sum(
        integrate.quad(lambda z, c=centre: abs(z - c) ** power * stats.norm.pdf(z), low, high)[0]
        for centre, low, high in zip(y[order], edges[:-1], edges[1:], strict=True)
    )


def relative(potential: Tensor) -> Tensor:
    """The potential less its mean, since a constant is free."""
    return potential - potential.mean()
