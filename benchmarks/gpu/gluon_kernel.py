"""The l1 loop in Gluon, where the layout of a tile is chosen by hand: the smallest score of a row and group of tiles.

A thread owns `own` = rows × targets of a tile, loads that many samples' and targets' coordinates itself, and takes two
additions a coordinate.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

DEPTH = 4  # coordinates between two tests of the loop


@dataclass(frozen=True)
class Layout:
    """Of a tile: what a thread owns, threads of a warp, and warps, rows × targets each."""

    own: tuple[int, int]
    threads: tuple[int, int]
    warps: tuple[int, int]

    @property
    def tile(self) -> tuple[int, int]:
        rows, columns = (a * b * c for a, b, c in zip(self.own, self.threads, self.warps, strict=True))
        return rows, columns

    @property
    def name(self) -> str:
        return "{}x{}x{}, {}x{} a thread".format(*self.tile, DEPTH, *self.own)

    @property
    def constants(self) -> dict[str, object]:
        layout = gl.BlockedLayout(list(self.own), list(self.threads), list(self.warps), [1, 0])
        return {"BM": self.tile[0], "BN": self.tile[1], "BK": DEPTH, "LAYOUT": layout}

    @property
    def num_warps(self) -> int:
        return self.warps[0] * self.warps[1]


LAYOUTS = (
    Layout((8, 8), (4, 8), (2, 2)),
    Layout((16, 4), (1, 32), (1, 4)),
    Layout((8, 16), (4, 8), (1, 4)),
    Layout((16, 8), (2, 16), (1, 4)),
)


@gluon.jit(do_not_specialize=["row_tiles", "tiles", "group_size"])
def tile_minima(
    x_ptr, y_ptr, bias_ptr, out_ptr, D, ldx, ldy, row_tiles, tiles, group_size,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """min_j Σ_d |x_id − y_jd| + bias_j over `group_size` tiles of K-major operands, out [groups, ldx]."""
    group = gl.program_id(0) // row_tiles
    first = group * group_size
    row = gl.program_id(0) % row_tiles * BM
    offs_m = gl.arange(0, BM, layout=gl.SliceLayout(1, LAYOUT))
    offs_n = gl.arange(0, BN, layout=gl.SliceLayout(0, LAYOUT))
    best = gl.full([BM], float("inf"), gl.float32, layout=gl.SliceLayout(1, LAYOUT))
    for tile in range(first, gl.minimum(first + group_size, tiles)):
        x, y = x_ptr + row, y_ptr + tile * BN  # scalar pointers move, so that the tiles' own offsets are constants
        total = gl.full([BM, BN], 0.0, gl.float32, layout=LAYOUT)
        for _ in range(0, D, BK):
            for _ in gl.static_range(BK):
                total += gl.abs(gl.expand_dims(gl.load(x + offs_m), 1) - gl.expand_dims(gl.load(y + offs_n), 0))
                x += ldx
                y += ldy
        score = total + gl.expand_dims(gl.load(bias_ptr + tile * BN + offs_n), 0)
        best = gl.minimum(best, gl.min(score, 1))
    gl.store(out_ptr + group * ldx + row + offs_m, best)


def launch(x: Tensor, y: Tensor, bias: Tensor, layout: Layout, groups: int, size: int) -> tuple[Tensor, object]:
    """x [D, B'], y [D, N'] and bias [N'], multiples of the tile: the groups' minima [groups, B'], and the kernel."""
    (rows, columns), (d, b) = layout.tile, x.shape
    out = torch.empty(groups, b, device=x.device)
    compiled = tile_minima[(b // rows * groups,)](
        x, y, bias, out, d, b, y.shape[1], b // rows, y.shape[1] // columns, size,
        **layout.constants, num_warps=layout.num_warps,
    )  # fmt: skip
    return out, compiled
