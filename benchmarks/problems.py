"""Seeded problems, the float64 answer that every contestant is held to, and interleaved timing."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import median

import torch
from torch import Tensor

CHECKED_ROWS = 16  # rows whose regret is computed in float64


@dataclass(frozen=True)
class Problem:
    """min_j c(x_i, y_j) for B Gaussian samples and N Gaussian targets in D dimensions."""

    cost: str  # "sqeuclidean" or "l1"
    b: int
    n: int
    d: int

    def __str__(self) -> str:
        return f"{self.cost} argmin, N={self.n}, D={self.d}, B={self.b}"

    @property
    def x(self) -> Tensor:
        return torch.randn(self.b, self.d, generator=torch.Generator().manual_seed(1))

    @property
    def y(self) -> Tensor:
        return _targets(self.n, self.d)

    def check(self, index: Tensor) -> None:
        """Raise unless every chosen target is within float32 rounding of the best."""
        x, y = self.x[:CHECKED_ROWS].double(), self.y.double()
        cost = torch.cdist(x, y, p=1) if self.cost == "l1" else torch.cdist(x, y).square()
        regret = cost.gather(1, index[:CHECKED_ROWS, None].long()).squeeze(1) - cost.amin(1)
        size = cost.amin(1) if self.cost == "l1" else x.square().sum(1) + y.square().sum(1).max()
        if not (regret <= 1e-6 * size).all():
            raise AssertionError(f"{self}: a chosen target is worse than the best by {float(regret.max()):.3g}")


@cache
def _targets(n: int, d: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


LARGE = [Problem(cost, b, 60_000, 784) for cost in ("sqeuclidean", "l1") for b in (1, 16, 64, 256)]
LOW = [Problem(cost, 1024, 60_000, d) for cost in ("sqeuclidean", "l1") for d in (2, 3, 16)]


def interleave(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, run in turn so that a disturbance of the machine falls on all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in seconds.items()}
