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


@triton.jit(do_not_specialize=["n"])
def split_rows(v_ptr, n, D, unit_ptr, half_ptr, ld, ROWS: tl.constexpr, BK: tl.constexpr):
    """ROWS rows: their units and, with `half` [n, 2, ld], both halves of each coordinate, zeros past D."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    v_ptrs = v_ptr + row.to(tl.int64)[:, None] * D
    top = tl.full((ROWS,), LEAST, tl.float32)
    for k in range(0, D, BK):
        offs_k = (k + tl.arange(0, BK))[None, :]
        v = tl.load(v_ptrs + offs_k, mask=inside[:, None] & (offs_k < D), other=0.0)
        top = tl.maximum(top, tl.max(tl.abs(v), 1))
    unit = unit_of(tl.minimum(top, MOST)).to(tl.float32)
    tl.store(unit_ptr + row, unit, mask=inside)
    if half_ptr is not None:
        half_ptrs = half_ptr + row.to(tl.int64)[:, None] * 2 * ld
        for k in range(0, ld, BK):
            offs_k = (k + tl.arange(0, BK))[None, :]
            v = tl.load(v_ptrs + offs_k, mask=inside[:, None] & (offs_k < D), other=0.0)
            high, low = halves_of(v * unit[:, None])
            tl.store(half_ptrs + offs_k, high, mask=inside[:, None] & (offs_k < ld))
            tl.store(half_ptrs + ld + offs_k, low, mask=inside[:, None] & (offs_k < ld))


def units(v: Tensor) -> Tensor:
    """The unit of each row of v [n, D], [n], of which there are many."""
    (n, d), unit = v.shape, v.new_empty(len(v))
    split_rows[(triton.cdiv(n, 32),)](v, n, d, unit, None, 0, ROWS=32, BK=64, num_warps=4)
    return unit


def halves(v: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and both halves of each row, [n, 2 D'] float16."""
    (n, d), unit, ld = v.shape, v.new_empty(len(v)), -(-v.shape[1] // ALIGNMENT) * ALIGNMENT
    half = v.new_empty(n, 2 * ld, dtype=torch.float16)
    split_rows[(triton.cdiv(n, 2),)](v, n, d, unit, half, ld, ROWS=2, BK=256, num_warps=4)
    return unit, half
