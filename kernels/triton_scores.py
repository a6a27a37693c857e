"""Blocks of scores, for what is none of the reductions: the tile of `triton_tiles`, written out."""

import triton
import triton.language as tl
from torch import Tensor

from . import streaming
from .form import Form
from .triton_launch import COLUMNS, on_device, tiling
from .triton_tiles import score_tile

SCORES = 2**25  # of a block


@triton.jit(do_not_specialize=["B", "N", "start", "stop"])
def tile_scores(
    x_ptr, y_ptr, bias_ptr, x_unit_ptr, y_unit_ptr, B, N, D, ldx, ldy, score_ptr, start, stop,
    INNER: tl.constexpr, SCALE: tl.constexpr, WHOLE: tl.constexpr, FRACTION: tl.constexpr, ROOT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """s_ij of the targets start ≤ j < stop, score [B, stop − start]; start is a multiple of every tile."""
    row_tiles = tl.cdiv(B, BM)
    row = (tl.program_id(0) % row_tiles) * BM
    column = tl.multiple_of(start, BN) + (tl.program_id(0) // row_tiles) * BN
    score = score_tile(
        x_ptr, y_ptr, bias_ptr, x_unit_ptr, y_unit_ptr, row, column, B, N, D, ldx, ldy,
        INNER, SCALE, WHOLE, FRACTION, ROOT, BM, BN, BK,
    )  # fmt: skip
    offs_m = (row + tl.arange(0, BM))[:, None]
    offs_n = (column + tl.arange(0, BN))[None, :]
    out = offs_m.to(tl.int64) * (stop - start) + (offs_n - start)
    tl.store(score_ptr + out, score, mask=(offs_m < B) & (offs_n < stop))


def block_score(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form) -> tuple[streaming.Score, int]:
    """The scoring function for blocks of targets, which begin at multiples of the width of a block, and that width."""
    b, n = x.shape[0], layout[0].shape[0]
    width = min(n, max(1, SCORES // max(1, b * COLUMNS)) * COLUMNS)
    buffer = x.new_empty(b * width)

    @on_device
    def run(x: Tensor, start: int, stop: int) -> Tensor:
        out = buffer[: b * (stop - start)].view(b, stop - start)
        if b:
            tiles = tiling(x, layout, bias, form)
            grid = (tiles.row_tiles * triton.cdiv(stop - start, tiles.launch.columns),)
            tile_scores[grid](*tiles.operands, out, start, stop, **tiles.constants)
        return out

    return (lambda start, stop: run(x, start, stop)), width
