"""Identical targets are one atom of the target measure Σ_j b_j δ(y_j), and a map that sends x to one sends it to all.

So at ε = 0 the first of them has the weights of all, and the others, of weight 0, are never chosen: told apart, they
would each have to win a share that only chance gives them, and χ² could not fall below Σ (Σ b)² / max b − 1, summed
over the atoms. At ε > 0 each wins its own share of every sample.

Rows are compared by hashes Σ_d a_d mix(y_d) of their bits, a_d random and odd: first of some coordinates, and only
rows that agree on those by two of 64 bits of all.
"""

import torch
from torch import Tensor

from fastsdot.kernels import streaming
from fastsdot.ranks import Shared
from fastsdot.storage import Storage

FEW = 64  # coordinates that are compared first
PART = 2**20  # coordinates at a time
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # by the bytes of a number
MULTIPLIER = 0x2545F4914F6CDD1D


def first_equals(targets: Tensor | Storage | Shared) -> Tensor | None:
    """The smallest index of a target identical to each, [N] int64; None where no two are."""
    n, d = targets.shape[0], targets.shape[1:].numel()
    random = torch.Generator().manual_seed(0)
    factors = 2 * torch.randint(-(2**62), 2**62, (d, 2), generator=random) + 1
    some = torch.randperm(d, generator=random)[:FEW].sort().values
    here = (targets.first, targets.last) if isinstance(targets, Shared) else (0, n)
    own = torch.empty(here[1] - here[0], dtype=torch.int64, device=targets.device)
    for start, stop in streaming.blocks(len(own), max(1, PART // d)):
        own[start:stop] = hashes(targets[here[0] + start : here[0] + stop], factors[:, :1], some)[:, 0]
    whole = targets.spread(own) if isinstance(targets, Shared) else own
    value, order = whole.sort()
    same = value[1:] == value[:-1]
    if not bool(same.any()):
        return None
    repeated = torch.zeros(n, dtype=torch.bool, device=same.device)
    repeated[order[1:][same]] = repeated[order[:-1][same]] = True
    index = repeated.nonzero().squeeze(1)
    codes = own.new_empty(len(index), 2)
    for start, stop in streaming.blocks(len(index), max(1, PART // d)):
        codes[start:stop] = hashes(targets[index[start:stop]], factors)
    _, group = torch.unique(codes, dim=0, return_inverse=True)
    least = index.new_full((len(index),), n).scatter_reduce(0, group, index, "amin")
    first = torch.arange(n, device=index.device)
    first[index] = least[group]
    return first if bool((least[group] < index).any()) else None


def hashes(rows: Tensor, factors: Tensor, coordinates: Tensor | None = None) -> Tensor:
    """Those of rows [K, *shape] by factors [D, H]: [K, H] int64."""
    rows = rows.flatten(1)
    if coordinates is not None:
        rows, factors = rows[:, coordinates.to(rows.device)], factors[coordinates]
    if rows.is_floating_point():
        rows = rows + 0.0  # one zero of two
    mixed = rows.contiguous().view(BITS[rows.element_size()]).long() * MULTIPLIER
    mixed ^= mixed >> 32
    return torch.stack([(mixed * factor).sum(1) for factor in factors.T.to(rows.device)], 1)


def merged(weights: Tensor, first: Tensor | None) -> Tensor:
    """Weights [N] with those of identical targets on the first."""
    return weights if first is None else torch.zeros_like(weights).index_add(0, first, weights)
