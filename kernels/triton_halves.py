"""Samples as pairs of float16, so that tensor cores sum products of nearly float32 at the speed of float16.

With a power of two u for each sample and each target, u v = v̂ + δv, v̂ rounded to float16 and δv, the rest, again,

    ⟨x, y⟩ ≈ (⟨x̂, δy⟩ + ⟨δx, ŷ⟩ + ⟨x̂, ŷ⟩) / (u_x u_y),   error below 3 · 2⁻²² |x_d y_d| a coordinate,

and 2⁻³⁸ of the largest products where coordinates lie so far below their row's largest that δv is subnormal.
Samples are split before a pass, targets in its loop: no second copy of those is kept, only their units.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_encode import unit_of
from .triton_tiles import halves_of

ALIGNMENT = 16  # of rows: Triton vectorises loads, and compiles once, where it can prove that they begin at multiples
LEAST, MOST = tl.constexpr(2.0**-100), tl.constexpr(2.0**127)  # units and their reciprocals are normal float32 numbers


@triton.jit
def unit_of_row(v_ptr, D, BK: tl.constexpr):
    """The power of two, float32, that takes the largest coordinate of a row to between 2¹⁴ and 2¹⁵."""
    top = tl.full((), 0.0, tl.float32)
    for k in range(0, D, BK):
        offs_k = k + tl.arange(0, BK)
        top = tl.maximum(top, tl.max(tl.abs(tl.load(v_ptr + offs_k, mask=offs_k < D, other=0.0)), 0))
    return unit_of(tl.minimum(tl.maximum(top, LEAST), MOST)).to(tl.float32)


@triton.jit
def split_row(v_ptr, D, unit_ptr, half_ptr, ld, BK: tl.constexpr):
    """One row: its unit and, with `half` [n, 2, ld], both halves of each coordinate, zeros past D."""
    row = tl.program_id(0).to(tl.int64)
    v_ptr += row * D
    unit = unit_of_row(v_ptr, D, BK)
    tl.store(unit_ptr + row, unit)
    if half_ptr is not None:
        half_ptr += row * 2 * ld
        for k in range(0, ld, BK):
            offs_k = k + tl.arange(0, BK)
            high, low = halves_of(tl.load(v_ptr + offs_k, mask=offs_k < D, other=0.0) * unit)
            tl.store(half_ptr + offs_k, high, mask=offs_k < ld)
            tl.store(half_ptr + ld + offs_k, low, mask=offs_k < ld)


def units(v: Tensor) -> Tensor:
    """The unit of each row of v [n, D], [n]."""
    unit = v.new_empty(len(v))
    if len(v):
        split_row[(len(v),)](v, v.shape[1], unit, None, 0, BK=256, num_warps=4)
    return unit


def halves(v: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and both halves of each row, [n, 2 D'] float16."""
    ld = -(-v.shape[1] // ALIGNMENT) * ALIGNMENT
    unit, half = v.new_empty(len(v)), v.new_empty(len(v), 2 * ld, dtype=torch.float16)
    if len(v):
        split_row[(len(v),)](v, v.shape[1], unit, half, ld, BK=256, num_warps=4)
    return unit, half
