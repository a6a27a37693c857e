"""The reductions of disjoint sets of targets, joined: what blocks in one process and ranks of several share.

`a` holds the smaller indices, so that among equal scores its targets come first.

    argmin    the smaller value with its index
    softmin   −ε log Σ_a exp(−v_a / ε)
    topk      the k smallest of both, ascending

A soft marginal needs v from all targets first. A set that knows only its own v' has the masses of all from weights
of the rows that carry the difference:

    r_i exp((v_i − s_ij) / ε) = r_i exp((v_i − v'_i) / ε) · exp((v'_i − s_ij) / ε)
"""

import torch
from torch import Tensor


def argmin(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.minimum(a[0], b[0]), torch.where(b[0] < a[0], b[1], a[1])


def softmin(values: Tensor, epsilon: float) -> Tensor:
    """Of any number of sets at once: [sets, B] to [B]."""
    return -epsilon * torch.logsumexp(values / -epsilon, dim=0)


def topk(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    value, order = torch.sort(torch.cat([a[0], b[0]], 1), dim=1, stable=True)
    index = torch.cat([a[1], b[1]], 1).gather(1, order[:, :k])
    return value[:, :k].contiguous(), index


def shares(difference: Tensor, epsilon: float) -> Tensor:
    """exp(d / ε) for differences d that are at most 0 but for rounding, which in units of ε has no bound."""
    return (difference / epsilon).clamp_(max=0).exp_()


def row_weight(weight: Tensor, value: Tensor, own: Tensor, epsilon: float) -> Tensor:
    """r_i exp((v_i − v'_i) / ε), and 0 for a set without a target that can be chosen."""
    return torch.where(torch.isinf(own), 0.0, weight * shares(value - own, epsilon))
