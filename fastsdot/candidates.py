"""Samples as the lists of the targets that they may choose, and the semi-dual over them.

A sample whose k smallest c − ψ are known chooses among them whatever ψ does within the reach of its list. So M samples
are M × k costs, on which the smoothed semi-dual

    D_M(ψ) = (1/M) Σ_i −τ log Σ_{j ∈ L_i} b_j exp((ψ_j − c_ij) / τ) + Σ_j b_j ψ_j

and its gradient take no pass over the targets.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastsdot import kernels

SHOWN = 4096  # samples behind a perplexity
BISECTIONS, COLDEST = 30, 1e-9  # of a temperature, and the lowest as a part of the highest
NARROW = 0.1  # the quantile of the widths of lists that a target in none of them goes by


@dataclass(frozen=True)
class Listed:
    """Lists made at one potential: c_ij − ψ_j less its smallest, ascending, [M, k] float32, and the targets, int32.

    Where the lists hold all targets, in order, the index is one row of them, expanded.
    """

    score: Tensor
    index: Tensor
    potential: Tensor  # [N] float64

    @property
    def samples(self) -> int:
        return self.score.shape[0]


def listed(x: Tensor, targets: kernels.Targets, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest s_ij and their targets; where k is N all of them, and out of order where that is faster."""
    if k < bias.numel() or isinstance(targets, kernels.Shards):
        value, index = kernels.topk(x, targets, bias, k)
        return value, index.int()
    score = torch.cat([s.clone() for _, _, s in kernels.scores(x, targets, bias)], 1)
    return score, torch.arange(k, device=x.device, dtype=torch.int32).expand_as(score)


def stacked(lists: list[Tensor]) -> Tensor:
    """The lists of all batches; one list of all targets, in order, stays one."""
    if all(index.stride(0) == 0 for index in lists):
        return lists[0][:1].expand(sum(map(len, lists)), -1)
    return torch.cat(lists)


class Candidates:
    """The lists of all samples that a fit takes into account."""

    def __init__(self, weights: Tensor, parts: Iterable[Listed] = ()):
        self.weights = weights.double()
        self.log_weights = weights.log()
        self.parts = list(parts)

    @property
    def samples(self) -> int:
        return sum(part.samples for part in self.parts)

    def add(self, batches: list[tuple[Tensor, Tensor]], potential: Tensor, most: int) -> None:
        """Batches of values and targets, at most `most` entries in all: the oldest make way.

        Shorter lists make way for those of all targets, which no box goes with.
        """
        value = torch.cat([value for value, _ in batches])
        low = value.amin(1, keepdim=True)
        self.parts.append(Listed(value - low, stacked([index for _, index in batches]), potential.double().clone()))
        if value.shape[1] == self.weights.numel():
            self.parts = [part for part in self.parts if part.score.shape[1] == value.shape[1]]
        while len(self.parts) > 1 and sum(part.score.numel() for part in self.parts) > most:
            self.parts.pop(0)

    def soft(self, part: Listed, potential: Tensor, temperature: float, rows: int | None = None) -> kernels.Sums:
        """Sums of the soft choices of a part, or of its first rows."""
        shift = potential - part.potential + temperature * self.log_weights
        return kernels.soft_lists(part.score[:rows], part.index[:rows], shift, temperature)

    def __call__(self, potential: Tensor, temperature: float) -> tuple[float, Tensor]:
        """D_M up to a constant, and its gradient b − m, [N] float64."""
        sums = [self.soft(part, potential, temperature) for part in self.parts]
        m, value = self.samples, sum(found.value for found in sums)
        mass = torch.stack([found.mass for found in sums]).sum(0)
        return float(self.weights @ potential) - value / m, self.weights - mass / m

    def misfit(self, mass: Tensor, over: Tensor) -> float:
        """Σ_j (b_j − m_j)² / b_j, over some of the targets."""
        return float(((self.weights - mass).square() / self.weights)[over & (self.weights > 0)].sum())

    def noise(self, potential: Tensor, temperature: float) -> float:
        """What the residual of a fit would be under other samples: N/P directions, each told with variance 1/M."""
        return self.weights.numel() / (self.perplexity(potential, temperature) * self.samples)

    def reach(self) -> Tensor:
        """How far each potential may move while most of the newest lists that it is in stay whole, [N] float64.

        Half the mean width of those lists; half a narrow list's where it is in none.
        """
        part = self.parts[-1]
        if part.score.shape[1] == self.weights.numel():
            return torch.full_like(self.weights, math.inf)
        width = part.score[:, -1].double()
        target = part.index.reshape(-1)
        lists = torch.bincount(target, minlength=self.weights.numel())
        # whole numbers add up to the same in any order; an infinite width counts as 512 times the largest
        unit = torch.where(width.isinf(), 0.0, width).amax().clamp(min=1e-300) * 2.0**-24
        units = (width / unit).clamp(max=2.0**33).round().long()[:, None].expand(part.index.shape)
        total = unit * torch.zeros_like(lists).index_add_(0, target, units.reshape(-1))
        narrow = float(width[:SHOWN].quantile(NARROW))
        return torch.where(lists > 0, total / lists.clamp(min=1), narrow) / 2

    def dual(self, potential: Tensor) -> Tensor:
        """The semi-dual without smoothing of each of the newest samples, up to a constant of each: [M] float64."""
        part = self.parts[-1]
        best, _ = kernels.best_of_lists(part.score, part.index, potential - part.potential)
        return float(self.weights @ potential) - best.double()

    def masses(self, potential: Tensor, temperature: float) -> Tensor:
        """m, [N] float64; without smoothing where the temperature is 0."""
        if temperature:
            return self.weights - self(potential, temperature)[1]
        mass = torch.zeros_like(self.weights)
        for part in self.parts:
            _, chosen = kernels.best_of_lists(part.score, part.index, potential - part.potential)
            mass += torch.bincount(chosen, minlength=mass.numel())
        return mass / self.samples

    def perplexity(self, potential: Tensor, temperature: float) -> float:
        """exp of the mean entropy of the newest samples' soft choices: how many targets share one."""
        part = self.parts[-1]
        return math.exp(self.soft(part, potential, temperature, SHOWN).entropy / min(SHOWN, part.samples))

    def temperature(self, potential: Tensor, perplexity: float, high: float) -> float:
        """The temperature, at most `high`, at which the newest samples have that perplexity."""
        low = high * COLDEST
        for _ in range(BISECTIONS):
            middle = math.sqrt(low * high)
            if self.perplexity(potential, middle) > perplexity:
                high = middle
            else:
                low = middle
        return high
