"""Draws from the softmax as a race: an argmin of scores less Gumbel noise, which needs no normaliser and one pass.

With U_ij uniform on (0, 1) and G_ij = −log(−log(1 − U_ij)) a standard Gumbel number,

    argmin_j s_ij − ε G_ij  is j with probability  exp((v_i − s_ij) / ε)      (Maddison et al., NeurIPS 2014).

U_ij is a function of (seed, row, target) alone: Philox 4x32-10 (Salmon et al., SC 2011) of the key `seed` and the
counter (target, row // 2), two of whose four words belong to each of two rows. So blocks, tiles, threads and backends
do not change a draw, except where the rounding of s_ij decides. This module is the definition, in torch's int64.

U is (n + ½) / 2⁶⁴ for an n of 64 bits. The winner of N equal scores has U near 1/N: with 24 bits, G would end at 16.6,
below the typical maximum of 2·10⁷ numbers, and with 32 the two best of 10⁶ would tie in one draw of 4 000.
"""

from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from .streaming import Race

ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85  # what each round adds to the key
MASK = 2**32 - 1
LARGEST = 45.1  # G at U = 2⁻⁶⁵


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four words of 32 bits from a counter of four and a key of two; int64 tensors that broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p, q = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2  # they wrap, and `& MASK` takes the bits of both halves
        c0, c1, c2, c3 = (q >> 32 & MASK) ^ c1 ^ k0, q & MASK, (p >> 32 & MASK) ^ c3 ^ k1, p & MASK
        k0, k1 = k0 + WEYL[0] & MASK, k1 + WEYL[1] & MASK
    return c0, c1, c2, c3


def gumbel(seed: Tensor, rows: int, first: int, last: int) -> Tensor:
    """G_ij of rows 0 ≤ i < rows and targets first ≤ j < last, [rows, last − first] float64; seed is an int64 scalar."""
    pair = torch.arange(-(-rows // 2), device=seed.device)[:, None]
    target = torch.arange(first, last, device=seed.device)
    counter = target & MASK, target >> 32, pair, torch.zeros_like(pair)
    words = philox(counter, (seed & MASK, seed >> 32 & MASK))
    return to_gumbel(*(torch.stack(two, 1).flatten(0, 1)[:rows] for two in (words[::2], words[1::2])))


def to_gumbel(high: Tensor, low: Tensor) -> Tensor:
    """−log(−log(1 − U)) for U of the two words, float64; 1 − U is made of their complements, which loses nothing."""
    u, rest = unit(high, low), unit(MASK - high, MASK - low)
    return -torch.log(-torch.where(u < 0.5, torch.log1p(-u), torch.log(rest)))


def unit(high: Tensor, low: Tensor) -> Tensor:
    """(n + ½) / 2⁶⁴ for the two halves of n."""
    return (high.double() * 2.0**32 + low.double() + 0.5) * 2.0**-64


def race(score: Tensor, first: int, epsilon: float, seed: Tensor, value: Tensor, index: Tensor) -> None:
    """Let the targets from `first` on in, with scores [B, block]: update the winners' noisy scores and their indices.

    Both are [B], float64 and int64; an infinite score never wins.
    """
    rows, width = score.shape
    noisy = score.double() - epsilon * gumbel(seed, rows, first, first + width)
    low = noisy.amin(1)
    column = (noisy == low[:, None]).to(torch.uint8).argmax(1)
    index.copy_(torch.where(low < value, column + first, index))
    value.copy_(torch.minimum(low, value))


def compiled_race(device: torch.device) -> Race:
    """The race compiled for that device where there is one, of the same draws; `race` otherwise."""
    if device.type == "cpu" and find_spec("numba") is not None:
        return import_module("fastsdot.kernels.numba_race").race
    return race
