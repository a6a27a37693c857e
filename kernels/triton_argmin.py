"""argmin over targets in two launches: the smallest score per row and group of tiles, then the smallest of those.

The first pass carries (smallest score, where) for each row; `where` is the target, or only its tile when looking for
the target afterwards reads less than looking in every tile. Strict < keeps the first tile. The second pass takes the
lexicographic minimum of (score, where) over the groups and evaluates the candidate targets in float64, so that the
value is the rounded exact score whatever the tiles and groups were.

Both take a list of rows, too, whose length only the device knows: programs past it return at once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .form import Form
from .triton_launch import (
    REREAD,
    Launch,
    Tiling,
    form_constants,
    on_device,
    splits,
    tiling,
    tiling_of_listed,
)
from .triton_tiles import exact_scores, score_tile


@triton.jit(do_not_specialize=["B", "N", "group_size"])
def tile_minima(
    x_ptr, y_ptr, bias_ptr, x_unit_ptr, y_unit_ptr, B, N, D, ldx, ldy, value_ptr, where_ptr, group_size,
    INNER: tl.constexpr, SCALE: tl.constexpr, WHOLE: tl.constexpr, FRACTION: tl.constexpr, ROOT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDTH: tl.constexpr, listed_ptr=None,
):  # fmt: skip
    """Per group of `group_size` tiles and row: the smallest score, and the tile (WIDTH = BN) or target (WIDTH = 1).

    With a list, x holds its rows, as many as its first entry says.
    """
    if listed_ptr is not None:
        B = tl.load(listed_ptr)
        if tl.program_id(0) // tl.maximum(tl.cdiv(B, BM), 1) * group_size >= tl.cdiv(N, BN) * tl.minimum(B, 1):
            return
    row_tiles = tl.cdiv(B, BM)
    group = tl.program_id(0) // row_tiles
    row = (tl.program_id(0) % row_tiles) * BM
    first = group * group_size
    best = tl.full((BM,), float("inf"), tl.float32)
    where = tl.full((BM,), 0, tl.int32) + first * (BN // WIDTH)
    offs_n = tl.arange(0, BN)
    for tile in range(first, tl.minimum(first + group_size, tl.cdiv(N, BN))):
        score = score_tile(
            x_ptr, y_ptr, bias_ptr, x_unit_ptr, y_unit_ptr, row, tile * BN, B, N, D, ldx, ldy,
            INNER, SCALE, WHOLE, FRACTION, ROOT, BM, BN, BK, listed_ptr is not None,
        )  # fmt: skip
        low = tl.min(score, 1)
        better = low < best
        if WIDTH == 1:
            column = tl.min(tl.where(score == low[:, None], offs_n[None, :], BN), 1)
            where = tl.where(better, tile * BN + column, where)
        else:
            where = tl.where(better, tile, where)
        best = tl.where(better, low, best)
    offs_m = row + tl.arange(0, BM)
    out = group.to(tl.int64) * B + offs_m
    tl.store(value_ptr + out, best, mask=offs_m < B)
    tl.store(where_ptr + out, where, mask=offs_m < B)


@triton.jit(do_not_specialize=["B", "N", "groups"])
def nearest(
    x_ptr, y_ptr, bias_ptr, B, N, D, group_value_ptr, group_where_ptr, groups, value_ptr, index_ptr,
    INNER: tl.constexpr, SCALE: tl.constexpr, WHOLE: tl.constexpr, FRACTION: tl.constexpr, ROOT: tl.constexpr,
    WIDTH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUPS: tl.constexpr, listed_ptr=None,
):  # fmt: skip
    """One row: the best of its groups, then the smallest exact score among that one's WIDTH targets, BN at a time."""
    place = tl.program_id(0)
    row = place
    if listed_ptr is not None:
        B = tl.load(listed_ptr)
        if place >= B:
            return
        row = tl.load(listed_ptr + 1 + place)
    offs_g = tl.arange(0, GROUPS)
    best = tl.full((GROUPS,), float("inf"), tl.float32)
    where = tl.full((GROUPS,), 2**31 - 1, tl.int32)
    for start in range(0, groups, GROUPS):
        group = start + offs_g
        at = group.to(tl.int64) * B + place
        score = tl.load(group_value_ptr + at, mask=group < groups, other=float("inf"))
        target = tl.load(group_where_ptr + at, mask=group < groups, other=2**31 - 1)
        better = (score < best) | ((score == best) & (target < where))
        best = tl.where(better, score, best)
        where = tl.where(better, target, where)
    first = tl.min(tl.where(best == tl.min(best, 0), where, 2**31 - 1), 0) * WIDTH

    value = tl.full((), float("inf"), tl.float64)
    index = first
    offs_n = tl.arange(0, BN)
    for start in tl.static_range(0, WIDTH, BN):
        score = exact_scores(
            x_ptr, y_ptr, bias_ptr, row, first + start, N, D, INNER, SCALE, WHOLE, FRACTION, ROOT, BN, BK
        )
        low = tl.min(score, 0)
        column = tl.min(tl.where(score == low, offs_n, BN), 0)
        index = tl.where(low < value, first + start + column, index)
        value = tl.where(low < value, low, value)
    tl.store(value_ptr + row, value.to(tl.float32))
    tl.store(index_ptr + row, index.to(tl.int64))


def minima(tiles: Tiling, width: int, group_size: int, listed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`tile_minima` over groups of that many tiles: [groups, B] scores and places."""
    groups = -(-tiles.target_tiles // group_size)
    value = tiles.x.new_empty(groups, tiles.x.shape[0])
    where = torch.empty_like(value, dtype=torch.int32)
    grid = (tiles.row_tiles * groups,)
    tile_minima[grid](*tiles.operands, value, where, group_size, **tiles.constants, WIDTH=width, listed_ptr=listed)
    return value, where


def reduce(
    tiles: Tiling, groups: int, size: int, value: Tensor, index: Tensor, x: Tensor, listed: Tensor | None
) -> None:
    """Both passes over groups of `size` tiles, into value and index; x are the rows that the list names."""
    (b, n), d, columns = tiles.sizes, x.shape[1], tiles.launch.columns
    width = columns if n > REREAD * columns * d else 1
    group_value, group_where = minima(tiles, width, size, listed)
    nearest[(b,)](
        x, tiles.y, tiles.bias, b, n, d, group_value, group_where, groups, value, index,
        **form_constants(tiles.form), WIDTH=width, BN=min(width, 64), BK=32, GROUPS=128, listed_ptr=listed, num_warps=4,
    )  # fmt: skip


@on_device
def argmin(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, launch: Launch | None = None
) -> tuple[Tensor, Tensor]:
    tiles = tiling(x, layout, bias, form, launch)
    value, index = x.new_empty(len(x)), torch.empty(len(x), dtype=torch.int64, device=x.device)
    if len(x):
        reduce(tiles, *splits(tiles.target_tiles, tiles.row_tiles, x.device), value, index, tiles.x, None)
    return value, index


def argmin_of_listed(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, listed: Tensor, value: Tensor, index: Tensor
) -> None:
    """Write value and index of the rows of x that `listed` names after their number, [1 + B] int32."""
    if len(x):
        tiles = tiling_of_listed(x, layout, bias, form, listed)
        reduce(tiles, *splits(tiles.target_tiles, 1, x.device), value, index, x, listed)
