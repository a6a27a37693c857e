"""Rare targets: those that win too few samples for a fit to tell how many they should win.

A target of weight b_j, among M samples, is to win M b_j of them. Where that is less than a few, a fit puts its ψ_j
somewhere below the first sample that it would win, and what mass it has there depends on a tail that no sample shows.
So the tail is told from the samples that the target nearly wins: m_(1) ≤ … ≤ m_(k), the smallest of what ψ_j must rise
by for it to win each sample, were it the only rare one. The k-th is the quantile at k/M; below it they are taken to be
exponential,

    ψ_j += m_(k) − s (1 + 1/√k) log(k / (M b_j)),      s = Σ_{i<k} (m_(k) − m_(i)) / (k − 1),

with the relative error of s, 1/√k, on the side of too little mass: that costs at most b_j of χ², too much has no limit.
Source: quantiles beyond the sample from its k extremes are Weissman, JASA 1978.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastsdot import kernels

if TYPE_CHECKING:
    from fastsdot.semidiscrete import SemiDiscreteOT

FEW = 4.0  # samples that a target is to win, below which it is rare
SPARSE = 0.25  # but then its weight is below this part of the mean of all
EXTREMES = 16  # k


def rare(ot: "SemiDiscreteOT", samples: int) -> Tensor:
    """Which targets are rare among so many samples, [N]; none where every sample is shared out among all."""
    b = ot.atoms.double()
    few = (b > 0) & (b * samples < FEW) & (b * b.numel() < SPARSE)
    return few & (ot.epsilon == 0)


def hold(ot: "SemiDiscreteOT", x: Tensor, held: Tensor, narrowest: float) -> None:
    """Put these targets where, alone, each would win its weight, told by samples x as kernels see them.

    s is `narrowest` at least: copies of other targets nearly win thousands of samples by the same margin.
    """
    k, bias = min(len(x), EXTREMES), ot._bias(ot.potential)
    low = kernels.argmin(x, ot._kernel, bias.masked_fill(held, torch.inf))[0]
    last, mean = (found.double() for found in kernels.margins(x, ot._kernel, bias, low, k))
    scale = ((last - mean) * k / max(1, k - 1)).clamp(min=narrowest)
    beyond = (k / (len(x) * ot.atoms.double())).log().clamp(min=0)
    ot.potential.add_(torch.where(held, last - scale * (1 + k**-0.5) * beyond, 0.0))
