"""The reductions over targets read in blocks, given a function that scores one block.

`score(start, stop)` returns s_ij for targets start ≤ j < stop as [B, stop − start]; it may reuse one buffer, so
each block is reduced before the next is asked for. Memory is B × block whatever N is; only where all scores of a call
are few are they kept for a second pass.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from . import merge

Score = Callable[[int, int], Tensor]
Scores = Iterable[tuple[int, int, Tensor]]  # (start, stop, s_ij [B, stop − start]); the next may overwrite it
Race = Callable[[Tensor, int, float, Tensor, Tensor, Tensor], None]  # see `philox.race`

KEEP = 2**24  # scores kept between the two passes of a soft marginal: 64 MiB


class Rows(Protocol):
    """Stored rows that are read in blocks: a tensor, or what is read from elsewhere."""

    def __getitem__(self, part: slice) -> Tensor: ...


def blocks(n: int, width: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + width, n)) for start in range(0, n, width))


def argmin(score: Score, n: int, width: int) -> tuple[Tensor, Tensor]:
    """Values first (`amin` is far cheaper than `min` with its index), then the column inside the winning block."""
    value = index = None
    for start, stop in blocks(n, width):
        s = score(start, stop)
        low = s.amin(1)
        if value is None:
            value = torch.full_like(low, torch.inf)
            index = torch.zeros_like(low, dtype=torch.int64)
        (row,) = torch.nonzero(low < value, as_tuple=True)
        if row.numel():
            column = (s[row] == low[row, None]).to(torch.uint8).argmax(1)
            value[row] = low[row]
            index[row] = column + start
    return value, index


def softmin(score: Score, n: int, width: int, epsilon: float) -> Tensor:
    total = None
    for start, stop in blocks(n, width):
        part = torch.logsumexp(score(start, stop) / -epsilon, dim=1)
        total = part if total is None else torch.logaddexp(total, part)
    return -epsilon * total


def kept(score: Score, n: int, width: int, rows: int) -> Score:
    """The same scores, computed once and kept for a second pass where they are at most `KEEP`."""
    if rows * n > KEEP:
        return score
    s = torch.empty(0)
    for start, stop in blocks(n, width):
        block = score(start, stop)
        if not start:
            s = block.new_empty(rows, n)
        s[:, start:stop] = block
    return lambda start, stop: s[:, start:stop]


def soft_marginal(score: Score, n: int, width: int, epsilon: float, row_weight: Tensor) -> tuple[Tensor, Tensor]:
    score = kept(score, n, width, row_weight.shape[0])
    value = softmin(score, n, width, epsilon)
    return value, marginal(score, n, width, epsilon, value, row_weight)


def marginal(score: Score, n: int, width: int, epsilon: float, value: Tensor, row_weight: Tensor) -> Tensor:
    """Σ_i r_i exp((v_i − s_ij) / ε), [N], for v known from all targets."""
    mass = torch.empty(n, dtype=value.dtype, device=value.device)
    for start, stop in blocks(n, width):
        mass[start:stop] = row_weight @ merge.shares(value[:, None] - score(start, stop), epsilon)
    return mass


def scored(score: Score, n: int, width: int, first: int = 0) -> Scores:
    """The scores of all blocks in order, the targets counted from `first`."""
    return ((first + start, first + stop, score(start, stop)) for start, stop in blocks(n, width))


def sample(scores: Scores, rows: int, epsilon: float, seed: Tensor, race: Race) -> tuple[Tensor, Tensor]:
    """The winners' noisy scores, float64, and their indices, of a race (see `philox`) between the targets: [B], [B]."""
    value = torch.full((rows,), torch.inf, dtype=torch.float64, device=seed.device)
    index = torch.zeros(rows, dtype=torch.int64, device=seed.device)
    for start, _, s in scores:
        race(s, start, epsilon, seed, value, index)
    return value, index


def average(scores: Scores, epsilon: float, points: Rows) -> Tensor:
    """Σ_j p_ij points_j, [B, D], with p_ij ∝ exp(−s_ij / ε); points[start:stop] is [stop − start, ...].

    One pass: sums are kept relative to the smallest score so far and scaled down when a smaller one comes.
    """
    low = total = mean = None
    for start, stop, s in scores:
        y = points[start:stop].flatten(1).to(s.dtype)
        if low is None:
            low, total = s.new_full((s.shape[0], 1), torch.finfo(s.dtype).max), s.new_zeros(s.shape[0], 1)
            mean = s.new_zeros(s.shape[0], y.shape[1])
        lower = torch.minimum(low, s.amin(1, keepdim=True))
        kept, p = torch.exp((lower - low) / epsilon), torch.exp((lower - s) / epsilon)
        low, total = lower, kept * total + p.sum(1, keepdim=True)
        mean = torch.addmm(kept * mean, p, y)
    return mean / total
