"""The sums of `lists` on a GPU: a program for a few rows, which reads their lists twice, the second time from cache.

The first pass carries a row's largest u and Σ e relative to it, the second adds its shares to the masses: by one atomic
addition an entry, or by one for a column of the tile where all rows have the same targets in order. Masses are added as
whole numbers, in units of 2⁻⁶¹ times a power of two above the number of rows: their sum does not depend on the order.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_launch import on_device

HUGE = tl.constexpr(3.0e38)  # in place of inf where inf − inf would follow
LEAST = tl.constexpr(-125.0)  # exponents of two below it count as none
ENTRIES, NARROWEST, WIDEST = 1024, 16, 128  # of a tile, and its columns
BITS = 61  # of a mass that all rows have together


@triton.jit
def tile(score_ptr, index_ptr, shift_ptr, row, start, M, K, LISTED: tl.constexpr, BN: tl.constexpr):
    """u_ij [BM, BN], −inf outside of the lists; targets, and what is inside."""
    column = start + tl.arange(0, BN)
    inside = (row < M)[:, None] & (column < K)[None, :]
    place = row.to(tl.int64)[:, None] * K + column[None, :]
    target = tl.load(index_ptr + place, mask=inside, other=0) if LISTED else column[None, :] + row[:, None] * 0
    shift = tl.load(shift_ptr + target, mask=inside, other=-float("inf"))
    return shift - tl.load(score_ptr + place, mask=inside, other=0.0), target, inside


@triton.jit
def powers(u, largest, c):
    """c (u − m), at least LEAST, and 2 to it, zero there."""
    t = tl.maximum((u - largest[:, None]) * c, LEAST)
    return t, tl.where(t > LEAST, tl.exp2(t), 0.0)


@triton.jit
def whole(p, unit):
    """A mass in units, which is exact but for what is below half of one."""
    return tl.floor(p * unit + 0.5).to(tl.int64)


@triton.jit(do_not_specialize=["M", "K", "c", "unit"])
def list_sums(
    score_ptr, index_ptr, shift_ptr, M, K, c, unit, sums_ptr, mass_ptr,
    LISTED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """sums [3, M]: m_i, log2 Σ_j e_ij and Σ_j p_ij log2 e_ij for e_ij = 2^(c (u_ij − m_i)); adds unit · p to mass."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    largest = tl.full((BM,), -float("inf"), tl.float32)
    finite = tl.full((BM,), -HUGE, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    for start in range(0, K, BN):
        u, _, _ = tile(score_ptr, index_ptr, shift_ptr, row, start, M, K, LISTED, BN)
        largest = tl.maximum(largest, tl.max(u, 1))
        larger = tl.maximum(largest, -HUGE)
        _, e = powers(u, larger, c)
        total = total * tl.exp2((finite - larger) * c) + tl.sum(e, 1)
        finite = larger
    total = tl.maximum(total, 1.0)  # less only where all weights of a row are zero
    moment = tl.zeros((BM,), tl.float32)
    for start in range(0, K, BN):
        u, target, inside = tile(score_ptr, index_ptr, shift_ptr, row, start, M, K, LISTED, BN)
        t, e = powers(u, finite, c)
        p = e / total[:, None]
        moment += tl.sum(p * t, 1)
        if LISTED:
            units = whole(p, unit)
            tl.atomic_add(mass_ptr + target, units, mask=inside & (units > 0), sem="relaxed")
        else:
            column = start + tl.arange(0, BN)
            tl.atomic_add(mass_ptr + column, whole(tl.sum(p, 0), unit), mask=column < K, sem="relaxed")
    tl.store(sums_ptr + row, largest, mask=row < M)
    tl.store(sums_ptr + M + row, tl.log2(total), mask=row < M)
    tl.store(sums_ptr + 2 * M + row, moment, mask=row < M)


def shape(k: int) -> tuple[int, int]:
    """Rows and columns of a tile for lists of k."""
    columns = min(WIDEST, max(NARROWEST, triton.next_power_of_2(k)))
    return ENTRIES // columns, columns


@on_device
def soft(score: Tensor, index: Tensor | None, shift: Tensor, temperature: float) -> tuple[float, float, Tensor]:
    (m, k), n = score.shape, shift.numel()
    mass, sums = score.new_zeros(n, dtype=torch.int64), score.new_empty(3, m)
    unit = 2.0 ** (BITS - m.bit_length())
    if m:
        rows, columns = shape(k)
        c = min(math.log2(math.e) / temperature, HUGE.value)
        listed = score if index is None else index.contiguous()
        operands = score.contiguous(), listed, shift.contiguous(), m, k, c, unit, sums, mass
        list_sums[(triton.cdiv(m, rows),)](*operands, LISTED=index is not None, BM=rows, BN=columns, num_warps=4)
    largest, logarithm, moment = sums.sum(1, dtype=torch.float64).tolist()
    ln2 = math.log(2)
    return largest + temperature * ln2 * logarithm, ln2 * (logarithm - moment), mass.double() / unit
