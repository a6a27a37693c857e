"""softmin and soft_marginal: an online log-sum-exp per row, then a pass with the rows' values known.

With m the smallest score so far and c = log2(e) / ε, a row carries (m, Σ_j 2^(c (m − s_ij))): the difference is taken
in units of cost, where it is exact near the minimum. Groups of tiles are merged in float64,

    v_i = m_i − ε log Σ_j exp((m_i − s_ij) / ε),        mass_j = Σ_i r_i 2^(c (v_i − s_ij)).

The second pass owns a tile of targets and walks over the rows: no two programs add to the same number. It reads the
scores that the first has kept, a slice of the rows at a time, where that costs less than to compute them again.
"""

import math
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from .form import Form
from .triton_launch import COLUMN_LAUNCHES, Launch, Tiling, choose, in_slices, on_device, splits, tiling
from .triton_tiles import score_tile

HUGE = tl.constexpr(3.0e38)  # in place of inf where inf − inf would follow
# Coordinates from which to write and read 8 bytes of a score at 3.35e12 bytes/s costs less than to sum again three
# products of each at 990e12 / 2 a second, or 2.4 instructions at 33.5e12 (an H100's peaks).
AGAIN = {"inner": 400, "power": 34}
KEPT, FEWEST = 2**28, 256  # scores kept at once, and rows that are worth a slice, which reads all targets
READING = Launch(32, 128, 1, 4, 1)


@triton.jit(do_not_specialize=["B", "N", "group_size", "c"])
def row_sums(
    x_ptr, y_ptr, bias_ptr, x_unit_ptr, y_unit_ptr, B, N, D, ldx, ldy, low_ptr, total_ptr, group_size, c,
    INNER: tl.constexpr, SCALE: tl.constexpr, WHOLE: tl.constexpr, FRACTION: tl.constexpr, ROOT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, listed_ptr=None, kept_ptr=None, width=0,
):  # fmt: skip
    """Per group of tiles and row: m = min_j s_ij, at most HUGE, and Σ_j 2^(c (m − s_ij)); a list says how many rows.

    The scores of whole tiles are written to `kept`, [B', width], where there is one.
    """
    stride = B
    if listed_ptr is not None:
        B = tl.load(listed_ptr)
        if tl.program_id(0) // tl.maximum(tl.cdiv(B, BM), 1) * group_size >= tl.cdiv(N, BN) * tl.minimum(B, 1):
            return
    row_tiles = tl.cdiv(B, BM)
    group = tl.program_id(0) // row_tiles
    row = (tl.program_id(0) % row_tiles) * BM
    first = group * group_size
    low = tl.full((BM,), HUGE, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    offs_m = row + tl.arange(0, BM)
    for tile in range(first, tl.minimum(first + group_size, tl.cdiv(N, BN))):
        score = score_tile(
            x_ptr, y_ptr, bias_ptr, x_unit_ptr, y_unit_ptr, row, tile * BN, B, N, D, ldx, ldy,
            INNER, SCALE, WHOLE, FRACTION, ROOT, BM, BN, BK,
        )  # fmt: skip
        if kept_ptr is not None:
            at = offs_m.to(tl.int64)[:, None] * width + (tile * BN + tl.arange(0, BN))[None, :]
            tl.store(kept_ptr + at, score)
        lower = tl.minimum(low, tl.min(score, 1))
        total = total * tl.exp2((lower - low) * c) + tl.sum(tl.exp2((lower[:, None] - score) * c), 1)
        low = lower
    out = group.to(tl.int64) * stride + offs_m
    tl.store(low_ptr + out, low, mask=offs_m < B)
    tl.store(total_ptr + out, total, mask=offs_m < B)


@triton.jit(do_not_specialize=["B", "N", "group_size", "groups", "c"])
def column_sums(
    x_ptr, y_ptr, bias_ptr, x_unit_ptr, y_unit_ptr, B, N, D, ldx, ldy, value_ptr, weight_ptr, mass_ptr, group_size,
    groups, c,
    INNER: tl.constexpr, SCALE: tl.constexpr, WHOLE: tl.constexpr, FRACTION: tl.constexpr, ROOT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, listed_ptr=None, kept_ptr=None, width=0,
):  # fmt: skip
    """Per group of row tiles and target: Σ_i r_i 2^(c (v_i − s_ij)); a list says how many rows, `kept` holds s."""
    if listed_ptr is not None:
        B = tl.load(listed_ptr)
    group = tl.program_id(0) % groups
    column = (tl.program_id(0) // groups) * BN
    first = group * group_size
    mass = tl.zeros((BN,), tl.float32)
    offs_n = column + tl.arange(0, BN)
    for tile in range(first, tl.minimum(first + group_size, tl.cdiv(B, BM))):
        offs_m = tile * BM + tl.arange(0, BM)
        if kept_ptr is None:
            score = score_tile(
                x_ptr, y_ptr, bias_ptr, x_unit_ptr, y_unit_ptr, tile * BM, column, B, N, D, ldx, ldy,
                INNER, SCALE, WHOLE, FRACTION, ROOT, BM, BN, BK,
            )  # fmt: skip
        else:
            at = offs_m.to(tl.int64)[:, None] * width + offs_n[None, :]
            score = tl.load(kept_ptr + at, mask=(offs_m < B)[:, None] & (offs_n < N)[None, :], other=HUGE)
        value = tl.minimum(tl.load(value_ptr + offs_m, mask=offs_m < B, other=-HUGE), HUGE)
        weight = tl.load(weight_ptr + offs_m, mask=offs_m < B, other=0.0)
        mass += tl.sum(weight[:, None] * tl.exp2(tl.minimum((value[:, None] - score) * c, 0.0)), 0)
    tl.store(mass_ptr + group.to(tl.int64) * N + offs_n, mass, mask=offs_n < N)


def keeps(form: Form, b: int, n: int, d: int) -> bool:
    """Whether the scores of b rows, or of slices of them, are kept between the passes."""
    return d >= AGAIN[form.kind] and min(b, FEWEST) * n <= KEPT


def row_values(
    tiles: Tiling, epsilon: float, listed: Tensor | None = None, scores: Tensor | None = None, width: int = 0
) -> Tensor:
    b = tiles.x.shape[0]
    groups, size = splits(tiles.target_tiles, tiles.row_tiles, tiles.x.device)
    low, total = tiles.x.new_empty(groups, b), tiles.x.new_empty(groups, b)
    grid = (tiles.row_tiles * groups,)
    c = math.log2(math.e) / epsilon
    row_sums[grid](
        *tiles.operands, low, total, size, c, **tiles.constants, listed_ptr=listed, kept_ptr=scores, width=width
    )
    lowest = low.amin(0).double()
    total = (total * torch.exp((lowest - low) / epsilon)).sum(0)
    return (lowest - epsilon * total.log()).float()


def marginal(
    tiles: Tiling, row_weight: Tensor, epsilon: float, launch: Launch, listed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Both passes; the second by `launch`, or from the scores that the first has kept."""
    scores, width = None, tiles.target_tiles * tiles.launch.columns
    if keeps(tiles.form, *tiles.sizes, tiles.x.shape[1]):
        scores, launch = tiles.x.new_empty(tiles.row_tiles * tiles.launch.rows, width), READING
    value = row_values(tiles, epsilon, listed, scores, width)
    tiles = replace(tiles, launch=launch)
    groups, size = splits(tiles.row_tiles, tiles.target_tiles, value.device)
    mass = value.new_empty(groups, tiles.sizes[1])
    grid = (tiles.target_tiles * groups,)
    column_sums[grid](
        *tiles.operands, value, row_weight, mass, size, groups, math.log2(math.e) / epsilon,
        **tiles.constants, listed_ptr=listed, kept_ptr=scores, width=width,
    )  # fmt: skip
    return value, mass.sum(0)


@on_device
def softmin(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float, launch: Launch | None = None
) -> Tensor:
    return row_values(tiling(x, layout, bias, form, launch), epsilon) if x.shape[0] else x.new_empty(0)


@on_device
def soft_marginal(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float, row_weight: Tensor,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    (b, d), n = x.shape, len(layout[0])
    values, mass = [x.new_empty(0)], torch.zeros_like(bias)
    each = n if keeps(form, b, n, d) else 0
    for part, weight in zip(in_slices(x, each, KEPT), in_slices(row_weight, each, KEPT), strict=True):
        if len(part):
            second = launch or choose(COLUMN_LAUNCHES, form, x.device, *part.shape)
            value, own = marginal(tiling(part, layout, bias, form, launch), weight, epsilon, second)
            values.append(value)
            mass += own
    return torch.cat(values), mass
