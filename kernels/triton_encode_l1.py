"""Samples and targets in bytes for Σ_d |x_d − y_d|, with what a lower bound has to take off.

With the grid of `byte_grid`, c = x set within [lo, hi] and a bar for a number set within the grid's range,

    Σ_d |x_d − y_d|  ≥  Σ |x − c|  −  Σ |c − c̄|  −  Σ |c̄ − o − u q|  +  u Σ |q − r|  +  Σ |y − ȳ|  −  Σ |ȳ − o − u r|

for whatever codes q of x and r of y. Four codes make a word of 32 bits. docs/certificate-gpu.md derives the constants.
"""

import triton
import triton.language as tl

from . import byte_grid
from .triton_encode import HUGE, UPWARD, cautious

LARGEST = tl.constexpr(byte_grid.LARGEST)
SUMMED = tl.constexpr(byte_grid.SUMMED)
CONVERTED = tl.constexpr(byte_grid.CONVERTED)


@triton.jit(do_not_specialize=["N"])
def encode_bytes(
    vector_ptr, grid_ptr, unit_ptr, N, D, code_ptr, words, sum_ptr, count,
    VECTORS: tl.constexpr, BK: tl.constexpr, PANEL: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """Words of VECTORS vectors, zeros past D, and float64 sums (Σ|v − c|, Σ|c − c̄|, Σ|c̄ − o − u q|), [3, count].

    PANEL vectors make a panel of [words / SIDE, PANEL, SIDE].
    """
    vector = tl.program_id(0) * VECTORS + tl.arange(0, VECTORS).to(tl.int64)
    unit = tl.load(unit_ptr).to(tl.float64)
    top = unit * LARGEST
    inverse = 1 / unit
    beyond = tl.zeros((VECTORS,), tl.float64)
    excess = tl.zeros((VECTORS,), tl.float64)
    rest = tl.zeros((VECTORS,), tl.float64)
    panel = vector // PANEL * PANEL * words + vector % PANEL * SIDE
    for first in range(0, words, BK):
        k = first * 4 + tl.arange(0, 4 * BK)
        value = tl.load(
            vector_ptr + vector[:, None] * D + k[None, :], mask=(vector < N)[:, None] & (k < D)[None, :], other=0.0
        ).to(tl.float64)
        low = tl.load(grid_ptr + k, mask=k < D, other=0.0)[None, :]
        high = tl.load(grid_ptr + D + k, mask=k < D, other=0.0)[None, :]
        origin = tl.load(grid_ptr + 2 * D + k, mask=k < D, other=0.0)[None, :]
        inside = tl.minimum(tl.maximum(value, low), high)
        place = inside - origin
        near = tl.minimum(tl.maximum(place, 0.0), top)
        code = tl.minimum(tl.floor(near * inverse + 0.5), LARGEST)
        beyond += tl.sum(tl.abs(value - inside), 1)
        excess += tl.sum(tl.abs(place - near), 1)
        rest += tl.sum(tl.abs(near - unit * code), 1)
        shifted = code.to(tl.int32) << (k % 4 * 8)[None, :]
        word = tl.sum(tl.reshape(shifted, (VECTORS, BK, 4)), 2)
        at = first + tl.arange(0, BK)
        to = panel[:, None] + (at // SIDE * (SIDE * PANEL) + at % SIDE)[None, :]
        tl.store(code_ptr + to, word, mask=(at < words)[None, :])
    tl.store(sum_ptr + vector, beyond)
    tl.store(sum_ptr + count + vector, excess)
    tl.store(sum_ptr + 2 * count + vector, rest)


@triton.jit(do_not_specialize=["B"])
def row_offsets(sum_ptr, unit_ptr, B, D, count, row_ptr, BM: tl.constexpr):
    """What a bound adds for its row, and 0, or inf where the row has no bounds: [2, B]."""
    offs_m = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = offs_m < B
    beyond = tl.load(sum_ptr + offs_m, mask=inside)
    excess = tl.load(sum_ptr + count + offs_m, mask=inside)
    rest = tl.load(sum_ptr + 2 * count + offs_m, mask=inside)
    most = tl.load(unit_ptr).to(tl.float64) * LARGEST * D
    offset = beyond * (1 - SUMMED) - (excess + rest) * UPWARD - most * CONVERTED
    bounded = tl.abs(offset) + most < HUGE
    tl.store(row_ptr + offs_m, tl.where(bounded, cautious(offset), 0.0), mask=inside)
    tl.store(row_ptr + B + offs_m, tl.where(bounded, 0.0, float("inf")), mask=inside)


@triton.jit(do_not_specialize=["N"])
def lower_bias_l1(bias_ptr, sum_ptr, N, count, lowered_ptr, MARGIN: tl.constexpr, BN: tl.constexpr):
    """bias + Σ|y − ȳ| − Σ|ȳ − o − u r|, rounded down, +inf past N; without MARGIN codes are taken for exact."""
    offs_n = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = offs_n < N
    start = tl.load(bias_ptr + offs_n, mask=inside, other=float("inf")).to(tl.float64)
    start += tl.load(sum_ptr + count + offs_n, mask=inside, other=0.0) * (1 - SUMMED)
    if MARGIN:
        start -= tl.load(sum_ptr + 2 * count + offs_n, mask=inside, other=0.0) * UPWARD
    tl.store(lowered_ptr + offs_n, cautious(start))
