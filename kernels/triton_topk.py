"""topk: minima of a few targets that lie side by side, then exact scores where one of the k smallest may be.

Memory is B × N / FINE, a slice of the rows at a time. Lists too long for registers come from blocks of scores instead.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import smallest
from .form import Form
from .triton_keep import MOST, Kept, keep_smallest, room
from .triton_launch import Launch, Tiling, in_slices, on_device, splits, tiling, tiling_of_listed
from .triton_scores import block_score
from .triton_tiles import score_tile

FINE = 8  # targets of a part: each that is opened holds one of the k smallest, and reads FINE · D coordinates
MINIMA = 2**27  # kept at once; more rows are taken in slices
WORTH = 4  # parts for each score that is kept; with fewer, most would be opened


@triton.jit(do_not_specialize=["B", "N", "group_size"])
def part_minima(
    x_ptr, y_ptr, bias_ptr, x_unit_ptr, y_unit_ptr, B, N, D, ldx, ldy, lower_ptr, stride, group_size,
    INNER: tl.constexpr, SCALE: tl.constexpr, WHOLE: tl.constexpr, FRACTION: tl.constexpr, ROOT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FINE: tl.constexpr, listed_ptr=None,
):  # fmt: skip
    """The smallest score of FINE targets at a time, lower [B, stride]; with a list, x holds its rows."""
    if listed_ptr is not None:
        B = tl.load(listed_ptr)
        if tl.program_id(0) // tl.maximum(tl.cdiv(B, BM), 1) * group_size >= tl.cdiv(N, BN) * tl.minimum(B, 1):
            return
    row_tiles = tl.cdiv(B, BM)
    first = tl.program_id(0) // row_tiles * group_size
    row = (tl.program_id(0) % row_tiles) * BM
    offs_m = (row + tl.arange(0, BM))[:, None]
    lower_ptr += offs_m.to(tl.int64) * stride + tl.arange(0, BN // FINE)[None, :]
    for tile in range(first, tl.minimum(first + group_size, tl.cdiv(N, BN))):
        score = score_tile(
            x_ptr, y_ptr, bias_ptr, x_unit_ptr, y_unit_ptr, row, tile * BN, B, N, D, ldx, ldy,
            INNER, SCALE, WHOLE, FRACTION, ROOT, BM, BN, BK, listed_ptr is not None,
        )  # fmt: skip
        low = tl.min(tl.reshape(score, (BM, BN // FINE, FINE)), 2)
        tl.store(lower_ptr + tile * (BN // FINE), low, mask=offs_m < B)


def minima_into(lower: Tensor, tiles: Tiling, listed: Tensor | None = None) -> None:
    """`part_minima` of all tiles, lower [B, at least N / FINE, up to a whole tile]."""
    groups, size = splits(tiles.target_tiles, tiles.row_tiles if listed is None else 1, lower.device)
    grid = (tiles.row_tiles * groups,)
    part_minima[grid](*tiles.operands, lower, lower.shape[1], size, **tiles.constants, FINE=FINE, listed_ptr=listed)


def highest(x: Tensor, limit: Tensor | None) -> Tensor:
    """The limit of each row, [B], infinite where there is none."""
    return x.new_full((x.shape[0],), torch.inf) if limit is None else limit


def keeps(n: int, k: int) -> bool:
    """Whether k of n targets are few enough to be kept in registers, and parts enough to leave most closed."""
    return 0 < k <= MOST and WORTH * k * FINE <= n


@on_device
def topk(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, k: int, launch: Launch | None = None,
    limit: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The k smallest, of which those above limit [B] may be left out: (inf, any target) stands for them."""
    y, parts = layout[0], []
    if not keeps(len(y), k):
        return longest(x, layout, bias, form, k)
    each = triton.cdiv(len(y), FINE)
    for part, most in zip(in_slices(x, each, MINIMA), in_slices(highest(x, limit), each, MINIMA), strict=True):
        found, tiles = room(part, k), tiling(part, layout, bias, form, launch)
        if len(part):
            lower = part.new_empty(len(part), tiles.target_tiles * tiles.launch.columns // FINE)
            minima_into(lower, tiles)
            keep_smallest(part, y, tiles.bias, form, lower, FINE, found, most)
        parts.append(found)
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def longest(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, k: int) -> tuple[Tensor, Tensor]:
    """The same from blocks of scores: most of them are among the k smallest, or k is more than registers hold."""
    score, width = block_score(x, layout, bias, form)
    return smallest.topk(score, layout[0].shape[0], width, k)


def keep_of_listed(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, listed: Tensor, lower: Tensor, found: Kept, limit: Tensor
) -> None:
    """Write what is kept of the rows of x that `listed` names after their number, [1 + B] int32; uses up `lower`."""
    minima_into(lower, tiling_of_listed(x, layout, bias, form, listed), listed)
    keep_smallest(x, layout[0], bias, form, lower, FINE, found, limit, listed=listed)
