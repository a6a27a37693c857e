"""The second half of the screen: exact scores of the targets that a row's bounds leave.

The tile of WIDTH targets with the smallest bound gives a limit: the best of its float64 scores. No target with a bound
above it can win or tie. All others are scored in ascending order of index, and strict < keeps the first, so the result
is the float64 argmin, the same for every launch.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .triton_tiles import exact_scores


class Lowered(NamedTuple):
    """What all rows of a call share."""

    centre: Tensor | None  # [D], taken off the rows
    bias: Tensor  # [N'], about the centre, less what rounding may add later


class Bounds(NamedTuple):
    """Lower bounds of the scores of a batch."""

    row: Tensor  # [3, B]: what the form's module needs of a row; row[1] is infinite where there are no bounds
    lower: Tensor  # [B, parts]: the smallest of a few targets that lie side by side
    group: Tensor  # [B, groups]: the smallest of `size` of those
    size: int


@triton.jit
def first_where(condition, places, none):
    """The smallest of the places where the condition holds, or `none`."""
    return tl.min(tl.where(condition, places, none), 0)


@triton.jit
def next_open(low, limit, places, after, none):
    """The first place after `after` whose bound is at most the limit, and finite, or `none`."""
    return first_where((low.to(tl.float64) <= limit) & (low < float("inf")) & (places > after), places, none)


@triton.jit
def count_open(low_ptr, count, limit, LANES: tl.constexpr):
    """How many bounds are at most the limit."""
    lanes = tl.arange(0, LANES)
    found = tl.zeros((LANES,), tl.int32)
    for start in range(0, count, LANES):
        low = tl.load(low_ptr + start + lanes, mask=start + lanes < count, other=float("inf"))
        found += ((low.to(tl.float64) <= limit) & (low < float("inf"))).to(tl.int32)
    return tl.sum(found, 0)


@triton.jit
def lowest(value_ptr, begin, end, LANES: tl.constexpr):
    """The first place of the smallest value from begin to end − 1; begin where all are infinite."""
    lanes = tl.arange(0, LANES)
    low = tl.full((), float("inf"), tl.float32)
    at = begin
    for start in range(begin, end, LANES):
        value = tl.load(value_ptr + start + lanes, mask=start + lanes < end, other=float("inf"))
        least = tl.min(value, 0)
        at = tl.where(least < low, first_where(value == least, start + lanes, end), at)
        low = tl.minimum(low, least)
    return at


@triton.jit(do_not_specialize=["B", "N", "tiles", "groups", "group_size", "most"])
def rescore(
    x_ptr, y_ptr, bias_ptr, row_ptr, B, N, D, lower_ptr, group_ptr, tiles, groups, group_size, stride, most,
    value_ptr, index_ptr, count_ptr, fallback_ptr,
    INNER: tl.constexpr, SCALE: tl.constexpr, WHOLE: tl.constexpr, FRACTION: tl.constexpr, ROOT: tl.constexpr,
    WIDTH: tl.constexpr, BK: tl.constexpr, LANES: tl.constexpr, CERTIFY: tl.constexpr,
):  # fmt: skip
    """One row: the smallest exact score of all tiles of WIDTH targets whose bound does not exclude them.

    `count` is the number of those tiles, or most + 1, at once where far more are open; such rows join the list
    `fallback`, whose length precedes it.
    Without CERTIFY the most promising tile is the only one.
    """
    row = tl.program_id(0)
    lower_ptr += tl.cast(row, tl.int64) * stride
    group_ptr += tl.cast(row, tl.int64) * groups
    lanes = tl.arange(0, LANES)
    offs_n = tl.arange(0, WIDTH)
    first = lowest(group_ptr, 0, groups, LANES) * group_size
    tile = lowest(lower_ptr, first, tl.minimum(first + group_size, tiles), LANES)
    score = exact_scores(
        x_ptr, y_ptr, bias_ptr, row, tile * WIDTH, N, D, INNER, SCALE, WHOLE, FRACTION, ROOT, WIDTH, BK
    )
    limit = tl.min(score, 0)
    value = limit
    index = tile * WIDTH + first_where(score == limit, offs_n, WIDTH)
    if CERTIFY:
        bounded = tl.load(row_ptr + B + row) < float("inf")
        opened = count_open(lower_ptr, tiles, limit, LANES)
        count = tl.where(bounded & (opened <= 2 * most), 0, most + 1)
        value = tl.full((), float("inf"), tl.float64)
        index = tl.full((), 0, tl.int32)
        for start in range(0, groups, LANES):
            groups_at = start + lanes
            group_low = tl.load(group_ptr + groups_at, mask=groups_at < groups, other=float("inf"))
            group = next_open(group_low, limit, groups_at, -1, groups)
            while (group < groups) & (count <= most):
                end = tl.minimum((group + 1) * group_size, tiles)
                for begin in range(group * group_size, end, LANES):
                    tiles_at = begin + lanes
                    low = tl.load(lower_ptr + tiles_at, mask=tiles_at < end, other=float("inf"))
                    tile = next_open(low, limit, tiles_at, -1, tiles)
                    while (tile < tiles) & (count <= most):
                        score = exact_scores(
                            x_ptr, y_ptr, bias_ptr, row, tile * WIDTH, N, D,
                            INNER, SCALE, WHOLE, FRACTION, ROOT, WIDTH, BK,
                        )  # fmt: skip
                        best = tl.min(score, 0)
                        index = tl.where(best < value, tile * WIDTH + first_where(score == best, offs_n, WIDTH), index)
                        value = tl.minimum(value, best)
                        limit = tl.minimum(limit, best)
                        count += 1
                        tile = next_open(low, limit, tiles_at, tile, tiles)
                group = next_open(group_low, limit, groups_at, group, groups)
        tl.store(count_ptr + row, count)
        if count > most:
            tl.store(fallback_ptr + 1 + tl.atomic_add(fallback_ptr, 1), row)
    tl.store(value_ptr + row, value.to(tl.float32))
    index = tl.minimum(index, N - 1)  # past the end where no score is a number
    tl.store(index_ptr + row, index.to(tl.int64))
