"""sample: the race of `philox` in one launch, then the lexicographic minimum over groups of tiles.

The noise is computed beside every score, in float32. With U = (n + ½) / 2⁶⁴ and its complement V = (2⁶⁴ − n − ½) / 2⁶⁴
both rounded from integers, neither tail loses digits:

    −log(1 − U) = Σ_k U^k / k  for U < ¼,   −log V  otherwise.

G is off by at most 10⁻⁵, as a rounding of the score by 10⁻⁵ ε would be.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .form import Form
from .triton_launch import Launch, Table, choose, on_device, splits, tiling
from .triton_tiles import score_tile

# A score's noise needs registers beside the tile's: the largest tiles that do not spill.
LAUNCHES: Table = {
    "inner": {
        100: (Launch(16, 128, 32, 4, 3), Launch(64, 64, 32, 8, 3)),
        90: (Launch(16, 128, 32, 4, 3), Launch(64, 64, 32, 4, 3), Launch(128, 64, 32, 8, 3)),
        80: (Launch(16, 128, 32, 4, 3), Launch(64, 64, 32, 4, 3)),
    },
    "power": {80: (Launch(16, 256, 4, 4, 2),)},
    "fractional power": {80: (Launch(16, 128, 4, 4, 2),)},
}


@triton.jit
def unit(high, low):
    """(n + ½) / 2⁶⁴ for the two halves of n, as float32."""
    return high.to(tl.float32) * 2.0**-32 + (low.to(tl.float32) + 0.5) * 2.0**-64


@triton.jit
def to_gumbel(high, low):
    """−log(−log(1 − U)) for U of the two words, float32."""
    u = unit(high, low)
    series = tl.full(u.shape, 1.0 / 12, tl.float32)
    for k in tl.static_range(11, 0, -1):
        series = series * u + 1.0 / k
    return -tl.log(tl.where(u < 0.25, series * u, -tl.log(unit(high ^ 0xFFFFFFFF, low ^ 0xFFFFFFFF))))


@triton.jit
def gumbel(seed, row, target):
    """G_ij of `philox` for rows [BM] and targets [BN], [BM, BN] float32."""
    zero = row[:, None] * 0 + target[None, :] * 0
    first, second, third, fourth = tl.philox(seed, zero + target[None, :], zero, zero + row[:, None] // 2, zero)
    odd = (row % 2 == 1)[:, None]
    return to_gumbel(tl.where(odd, third, first), tl.where(odd, fourth, second))


@triton.jit(do_not_specialize=["B", "N", "group_size", "epsilon"])
def tile_races(
    x_ptr, y_ptr, bias_ptr, x_unit_ptr, y_unit_ptr, B, N, D, ldx, ldy, seed_ptr, value_ptr, where_ptr, group_size,
    epsilon,
    INNER: tl.constexpr, SCALE: tl.constexpr, WHOLE: tl.constexpr, FRACTION: tl.constexpr, ROOT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Per group of `group_size` tiles and row: the smallest s_ij − ε G_ij and its target."""
    row_tiles = tl.cdiv(B, BM)
    group = tl.program_id(0) // row_tiles
    row = (tl.program_id(0) % row_tiles) * BM
    first = group * group_size
    seed = tl.load(seed_ptr)
    best = tl.full((BM,), float("inf"), tl.float32)
    index = tl.full((BM,), 0, tl.int32)
    offs_m, offs_n = row + tl.arange(0, BM), tl.arange(0, BN)
    for tile in range(first, tl.minimum(first + group_size, tl.cdiv(N, BN))):
        score = score_tile(
            x_ptr, y_ptr, bias_ptr, x_unit_ptr, y_unit_ptr, row, tile * BN, B, N, D, ldx, ldy,
            INNER, SCALE, WHOLE, FRACTION, ROOT, BM, BN, BK,
        )  # fmt: skip
        score -= epsilon * gumbel(seed, offs_m, tile * BN + offs_n)
        low = tl.min(score, 1)
        column = tl.min(tl.where(score == low[:, None], offs_n[None, :], BN), 1)
        index = tl.where(low < best, tile * BN + column, index)
        best = tl.minimum(low, best)
    out = group.to(tl.int64) * B + offs_m
    tl.store(value_ptr + out, best, mask=offs_m < B)
    tl.store(where_ptr + out, index, mask=offs_m < B)


@on_device
def sample(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float, seed: Tensor,
    launch: Launch | None = None,
) -> Tensor:  # fmt: skip
    if x.shape[0] == 0:
        return torch.empty(0, dtype=torch.int64, device=x.device)
    tiles = tiling(x, layout, bias, form, launch or choose(LAUNCHES, form, x.device, *x.shape))
    groups, size = splits(tiles.target_tiles, tiles.row_tiles, x.device)
    value = x.new_empty(groups, x.shape[0])
    index = torch.empty_like(value, dtype=torch.int32)
    grid = (tiles.row_tiles * groups,)
    tile_races[grid](*tiles.operands, seed, value, index, size, epsilon, **tiles.constants)
    winner = (value == value.amin(0)).to(torch.uint8).argmax(0, keepdim=True)  # the first group among equals
    return index.gather(0, winner)[0].long()
