"""The masses b of the targets."""

import numpy as np
import torch
from torch import Tensor

from fastsdot.errors import InvalidArgument, require_finite


def as_weights(weights: Tensor | np.ndarray | None, n: int) -> Tensor:
    """[n] float32 of sum 1, from values ≥ 0 of any scale; 1/n for None.

    Raises `InvalidArgument` for another shape, values below 0 or not finite, and a sum of 0.
    """
    if weights is None:
        return torch.full((n,), 1 / n, dtype=torch.float32)
    weights = torch.as_tensor(weights).detach().double()
    if weights.shape != (n,):
        raise InvalidArgument("weights", f"shape [{n}], one per target", f"{list(weights.shape)}", "match the targets")
    require_finite("weights", weights)
    if bool((weights < 0).any()) or float(weights.sum()) <= 0:
        received = f"minimum {float(weights.min()):.3g}, sum {float(weights.sum()):.3g}"
        raise InvalidArgument("weights", "values ≥ 0 with a sum above 0", received, "clip them, or leave weights out")
    weights = weights / weights.max()
    return (weights / weights.sum()).float()
