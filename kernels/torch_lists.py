"""The sums of `lists` by torch's operators, for any device and precision."""

import torch
from torch import Tensor

HUGE = 1e30  # in place of inf where inf − inf or 0 · inf would follow


def taken(values: Tensor, index: Tensor | None) -> Tensor:
    """values_j of the targets of each row."""
    return values if index is None else values.index_select(0, index.reshape(-1)).view(index.shape)


def soft(score: Tensor, index: Tensor | None, shift: Tensor, temperature: float) -> tuple[float, float, Tensor]:
    u = taken(shift, index) - score
    largest = u.amax(1, keepdim=True)
    exponent = (u - largest.clamp(min=-HUGE)) / temperature
    e = exponent.exp()
    total = e.sum(1, keepdim=True).clamp(min=1)  # less only where all weights of a row are zero
    p = e / total
    logarithm = float(total.log().sum(dtype=torch.float64))
    moment = float((p * exponent.clamp(min=-HUGE)).sum(dtype=torch.float64))
    value = float(largest.sum(dtype=torch.float64)) + temperature * logarithm
    if index is None:
        mass = p.sum(0, dtype=torch.float64)
    else:
        mass = torch.bincount(index.reshape(-1), p.double().reshape(-1), minlength=shift.numel())
    return value, logarithm - moment, mass
