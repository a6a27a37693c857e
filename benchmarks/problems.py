"""Seeded problems, the float64 answer that every contestant is held to, and interleaved timing."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

import torch
from torch import Tensor

from fastsdot.kernels import Form

CHECKED_ROWS = 16  # rows whose regret is computed in float64
CHECKED_COORDINATES = 2**28  # of the targets that are float64 at once
ROUNDING = 1e-6  # regret that float32 explains, as a share of the size of a cost


@dataclass(frozen=True)
class Problem:
    """min_j c(x_i, y_j) for B Gaussian samples and N Gaussian targets in D dimensions."""

    cost: str  # "sqeuclidean" or "l1"
    b: int
    n: int
    d: int
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.cost} argmin, N={self.n}, D={self.d}, B={self.b}"

    @property
    def x(self) -> Tensor:
        return _gaussian(self.b, self.d, self.device, 1)

    @property
    def y(self) -> Tensor:
        return _targets(self.n, self.d, self.device)

    def regret(self, index: Tensor) -> float:
        """How much worse than the best a chosen target is, at most, as a share of the size of a cost."""
        x, index = self.x[:CHECKED_ROWS].double(), index[:CHECKED_ROWS].long()
        best, chosen = x.new_full((2, len(x)), torch.inf)
        largest, start = x.new_zeros(()), 0
        for part in self.y.split(max(1, CHECKED_COORDINATES // self.d)):
            y = part.double()
            cost = torch.cdist(x, y, p=1) if self.cost == "l1" else torch.cdist(x, y).square()
            best, largest = torch.minimum(best, cost.amin(1)), torch.maximum(largest, y.square().sum(1).max())
            here = (index >= start) & (index < start + len(y))
            column = (index - start).clamp(0, len(y) - 1)[:, None]
            chosen = torch.where(here, cost.gather(1, column).squeeze(1), chosen)
            start += len(y)
        size = best if self.cost == "l1" else x.square().sum(1) + largest
        return float(((chosen - best) / size).max())

    def check(self, index: Tensor) -> None:
        """Raise unless every chosen target is within float32 rounding of the best."""
        regret = self.regret(index)
        if not regret <= ROUNDING:
            raise AssertionError(f"{self}: a chosen target is worse than the best by {regret:.3g} of its cost's size")


def _gaussian(n: int, d: int, device: str, seed: int) -> Tensor:
    return torch.randn(n, d, device=device, generator=torch.Generator(device).manual_seed(seed))


@lru_cache(maxsize=1)
def _targets(n: int, d: int, device: str) -> Tensor:
    return _gaussian(n, d, device, 0)


def levels(form: Form, x: Tensor, y: Tensor) -> Tensor:
    """The biases [N] that level the mean scores of targets y over samples x, as the start of a solve does."""
    return -torch.cat([form.pairwise(x, part).mean(0) for part in y.split(1000)])


LARGE = [Problem(cost, b, 60_000, 784) for cost in ("sqeuclidean", "l1") for b in (1, 16, 64, 256)]
LARGEST = [Problem(cost, 1024, 60_000, 784) for cost in ("sqeuclidean", "l1")]
LOW = [Problem(cost, 1024, 60_000, d) for cost in ("sqeuclidean", "l1") for d in (2, 3, 16)]


def wall(run: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def processor(run: Callable[[], object]) -> float:
    """Seconds of all threads in a call, which other work on a machine disturbs less."""
    start = time.process_time()
    run()
    return time.process_time() - start


def interleave(
    contestants: dict[str, Callable[[], object]], rounds: int, clock: Callable[[Callable], float] = wall
) -> dict[str, float]:
    """Median seconds of each, run in turn so that a disturbance of the machine falls on all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            seconds[name].append(clock(run))
    return {name: median(times) for name, times in seconds.items()}


def shortest(run: Callable[[], object], calls: int) -> float:
    """The shortest of a few calls after the first, in seconds."""
    run()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
