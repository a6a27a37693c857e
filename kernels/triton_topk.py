"""topk: the k tiles with the smallest minima hold the k smallest scores, so only those are evaluated again.

A tile left out has a minimum that k others do not exceed, hence k targets score no more than any of its own; with equal
minima the later tile is left out, so ties stay with the smaller index. Memory is B × (N / columns) + B × k × columns,
a slice of the rows at a time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .form import Form
from .smallest import smallest
from .triton_argmin import minima
from .triton_launch import Launch, Tiling, form_constants, on_device, tiling
from .triton_tiles import exact_scores

CANDIDATES = 2**26  # scores of candidates that exist at once


@triton.jit(do_not_specialize=["N", "tiles"])
def tile_scores(
    x_ptr, y_ptr, bias_ptr, N, D, tile_ptr, tiles, score_ptr,
    INNER: tl.constexpr, SCALE: tl.constexpr, WHOLE: tl.constexpr, FRACTION: tl.constexpr, ROOT: tl.constexpr,
    WIDTH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Exact scores of a row and one of its tiles, tile [B, tiles] to score [B, tiles, WIDTH]."""
    program = tl.program_id(0)
    tile = tl.load(tile_ptr + program)
    for start in tl.static_range(0, WIDTH, BN):
        score = exact_scores(
            x_ptr, y_ptr, bias_ptr, program // tiles, tile * WIDTH + start, N, D,
            INNER, SCALE, WHOLE, FRACTION, ROOT, BN, BK,
        )  # fmt: skip
        out = program.to(tl.int64) * WIDTH + start + tl.arange(0, BN)
        tl.store(score_ptr + out, score.to(tl.float32))


def slice_topk(tiles: Tiling, k: int) -> tuple[Tensor, Tensor]:
    (b, n), d, width = tiles.sizes, tiles.x.shape[1], tiles.launch.columns
    count = min(k, tiles.target_tiles)
    low, _ = minima(tiles, width, 1)
    tile = smallest(low.T.contiguous(), count).sort(1).values.int().contiguous()  # [B, count]
    score = tiles.x.new_empty(b, count * width)
    tile_scores[(b * count,)](
        tiles.x, tiles.y, tiles.bias, n, d, tile, count, score,
        **form_constants(tiles.form), WIDTH=width, BN=min(width, 64), BK=32, num_warps=4,
    )  # fmt: skip
    column = smallest(score, k)
    return score.gather(1, column), tile.gather(1, column // width).long() * width + column % width


@on_device
def topk(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, k: int, launch: Launch | None = None
) -> tuple[Tensor, Tensor]:
    if x.shape[0] == 0:
        return x.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device=x.device)
    columns = tiling(x[:1], layout, bias, form, launch).launch.columns
    rows = max(1, CANDIDATES // max(k * columns, layout[0].shape[0] // columns))
    parts = [slice_topk(tiling(part, layout, bias, form, launch), k) for part in x.split(rows)]
    return torch.cat([value for value, _ in parts]), torch.cat([index for _, index in parts])
