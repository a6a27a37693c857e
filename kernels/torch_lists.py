"""The sums of `lists` by torch's operators, for any device and precision."""

import torch
from torch import Tensor

HUGE = 1e30  # in place of inf where inf − inf or 0 · inf would follow


def taken(values: Tensor, index: Tensor | None) -> Tensor:
    """values_j of the targets of each row."""
    return values if index is None else values.index_select(0, index.reshape(-1)).view(index.shape)


def given(parts: Tensor, index: Tensor | None, n: int) -> Tensor:
    """Σ_i parts_ij by target, [N] float64."""
    if index is None:
        return parts.sum(0, dtype=torch.float64)
    return torch.bincount(index.reshape(-1), parts.double().reshape(-1), minlength=n)


def soft(
    score: Tensor, index: Tensor | None, shift: Tensor, temperature: float, shares: Tensor | None
) -> tuple[float, float, Tensor]:
    u = taken(shift, index) - score
    largest = u.amax(1, keepdim=True)
    exponent = (u - largest.clamp(min=-HUGE)) / temperature
    e = exponent.exp()
    total = e.sum(1, keepdim=True).clamp(min=1)  # less only where all weights of a row are zero
    p = torch.div(e, total, out=shares)
    logarithm = float(total.log().sum(dtype=torch.float64))
    moment = float((p * exponent.clamp(min=-HUGE)).sum(dtype=torch.float64))
    value = float(largest.sum(dtype=torch.float64)) + temperature * logarithm
    return value, logarithm - moment, given(p, index, shift.numel())


def product(shares: Tensor, index: Tensor | None, vector: Tensor) -> Tensor:
    v = taken(vector, index)
    return given(shares * (v - (shares * v).sum(1, keepdim=True)), index, vector.numel())
