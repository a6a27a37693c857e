"""Lower bounds of scores of l1: sums of absolute differences of bytes, four coordinates an instruction.

`byte_bounds` computes s⁻_ij ≤ s_ij (`triton_encode_l1`) and keeps the smallest of `fine` targets at a time and of each
group of tiles. A thread sums 16 rows × 4 targets: it loads four words of a row, and a word of four targets, at once,
from panels in which they lie side by side at fixed distances. docs/certificate-gpu.md has the proof.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .byte_grid import WIDEST, choose_grid
from .form import Form
from .triton_encode_l1 import encode_bytes, lower_bias_l1, row_offsets
from .triton_launch import SCREEN_LAUNCHES, Launch, choose, splits
from .triton_rescore import Bounds, Lowered
from .triton_tiles import INTERPRETED, words_at

PANEL = 128  # targets of a panel of codes
PADDED = 512  # targets that the widest tile reads at once, so that no load needs a mask
WORDS = 4  # of a vector, loaded at once


@triton.jit
def add_differences(x, y, total):
    """total + Σ |q − r| over the four bytes of two words."""
    if INTERPRETED:
        for shift in tl.static_range(0, 32, 8):
            total += tl.abs(((x >> shift) & 0xFF) - ((y >> shift) & 0xFF))
        return total
    else:
        return tl.inline_asm_elementwise(
            "vabsdiff4.u32.u32.u32.add $0, $1, $2, $3;", "=r,r,r,r", [x, y, total],
            dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip


@triton.jit
def add_word(x, y_ptr, a, b, c, d):
    """A word of the rows against one of each of four neighbouring targets."""
    y_a, y_b, y_c, y_d = words_at(y_ptr)
    a = add_differences(x, y_a, a)
    b = add_differences(x, y_b, b)
    c = add_differences(x, y_c, c)
    d = add_differences(x, y_d, d)
    return a, b, c, d


@triton.jit
def least(bias_ptr, unit, a, b, c, d):
    """The smallest of four neighbouring targets' bounds."""
    low = tl.minimum(tl.load(bias_ptr) + unit * a.to(tl.float32), tl.load(bias_ptr + 1) + unit * b.to(tl.float32))
    high = tl.minimum(tl.load(bias_ptr + 2) + unit * c.to(tl.float32), tl.load(bias_ptr + 3) + unit * d.to(tl.float32))
    return tl.minimum(low, high)


@triton.jit(do_not_specialize=["B", "words", "tiles", "groups", "group_size"])
def byte_bounds(
    x_ptr, y_ptr, row_ptr, unit_ptr, bias_ptr, B, words, lower_ptr, stride, group_ptr, tiles, groups, group_size,
    BM: tl.constexpr, BN: tl.constexpr, FINE: tl.constexpr, PANEL: tl.constexpr,
):  # fmt: skip
    """Per row: the smallest bound of FINE targets, lower [B, stride], and of `group_size` tiles, [B, groups].

    x are panels of BM rows, [words / 4, BM, 4], and y of PANEL targets, [words, PANEL]. The four sums of a thread's
    neighbouring targets are tensors of their own.
    """
    row_tiles = tl.cdiv(B, BM)
    group = tl.program_id(0) // row_tiles
    row = (tl.program_id(0) % row_tiles) * BM
    first = group * group_size
    parts: tl.constexpr = BN // FINE
    offs_m = row + tl.arange(0, BM)
    inside = offs_m < B
    unit = tl.load(unit_ptr)
    offset = tl.load(row_ptr + offs_m, mask=inside, other=0.0)
    best = tl.full((BM,), float("inf"), tl.float32)
    columns = 4 * tl.arange(0, BN // 4)[None, :]
    x_ptr += tl.cast(row, tl.int64) * words + 4 * tl.arange(0, BM)[:, None]
    y_ptr += columns // PANEL * PANEL * words + columns % PANEL
    lower_ptr += offs_m.to(tl.int64)[:, None] * stride + tl.arange(0, parts)[None, :]
    for tile in range(first, tl.minimum(first + group_size, tiles)):
        x = x_ptr
        y = y_ptr + tl.cast(tile * BN, tl.int64) * words
        a = tl.zeros((BM, BN // 4), tl.int32)
        b = tl.zeros((BM, BN // 4), tl.int32)
        c = tl.zeros((BM, BN // 4), tl.int32)
        d = tl.zeros((BM, BN // 4), tl.int32)
        for _ in range(0, words, 4):
            x_0, x_1, x_2, x_3 = words_at(x)
            a, b, c, d = add_word(x_0, y, a, b, c, d)
            a, b, c, d = add_word(x_1, y + PANEL, a, b, c, d)
            a, b, c, d = add_word(x_2, y + 2 * PANEL, a, b, c, d)
            a, b, c, d = add_word(x_3, y + 3 * PANEL, a, b, c, d)
            x += 4 * BM
            y += 4 * PANEL
        low = least(bias_ptr + tile * BN + columns, unit, a, b, c, d)
        low = tl.min(tl.reshape(low, (BM, parts, FINE // 4)), 2) + offset[:, None]
        tl.store(lower_ptr + tile * parts, low, mask=inside[:, None])
        best = tl.minimum(best, tl.min(low, 1))
    tl.store(group_ptr + offs_m.to(tl.int64) * groups + group, best, mask=inside)


def refusal(form: Form, d: int) -> str | None:
    if form.p != 1:
        return f"of the powers it bounds p = 1, and here p = {form.p:g}"
    if d > WIDEST:
        return f"its bounds hold up to {WIDEST} coordinates, and the targets have {d}"
    return None


def encode(v: Tensor, grid: Tensor, unit: Tensor, panel: int, count: int, side: int) -> tuple[Tensor, Tensor]:
    """Words [count, D'] of vectors v in panels of that many, and their sums [3, count]; see `encode_bytes`.

    What lies past the vectors is whatever was there: bytes all the same, of rows and targets that do not count.
    """
    n, d = v.shape
    words = WORDS * triton.cdiv(d, 4 * WORDS)
    codes = torch.empty(count, words, dtype=torch.int32, device=v.device)
    sums = grid.new_empty(3, count)
    few = 32 if side == 1 else 2  # targets, of which there are many, or samples
    encode_bytes[(triton.cdiv(n, few),)](
        v, grid, unit, n, d, codes, words, sums, count,
        VECTORS=few, BK=128 // few, PANEL=panel, SIDE=side, num_warps=4,
    )  # fmt: skip
    return codes, sums


def prepare(y: Tensor, form: Form) -> list[Tensor]:
    """y [N, D]; words [N', D'] in panels; their sums [3, N']; the grid [3, D] in float64; its unit [1]."""
    lines, unit = choose_grid(y)
    grid = torch.from_numpy(lines).to(y.device)
    step = torch.full((1,), float(unit), dtype=torch.float32, device=y.device)
    return [y, *encode(y, grid, step, PANEL, triton.cdiv(y.shape[0], PADDED) * PADDED, 1), grid, step]


def lower(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, margin: bool = True) -> Lowered:
    """What all rows of a call share."""
    y, codes, sums, *_ = layout
    count, lowered = len(codes), y.new_empty(len(codes))
    lower_bias_l1[(count // PADDED,)](bias, sums, len(y), count, lowered, MARGIN=margin, BN=PADDED, num_warps=4)
    return Lowered(None, lowered)


def bounds_of(
    x: Tensor, layout: list[Tensor], lowered: Lowered, form: Form, launch: Launch | None, margin: bool, fine: int
) -> Bounds:
    """The bounds of rows of x; without the margin, the smallest scores in bytes in their place, but for a row's own."""
    (y, codes, _, grid, unit), (b, d) = layout, x.shape
    count, words = codes.shape
    launch = launch or choose(SCREEN_LAUNCHES, form, x.device, b, words)
    row_tiles, tiles = triton.cdiv(b, launch.rows), triton.cdiv(y.shape[0], launch.columns)
    samples, row_sums = encode(x, grid, unit, launch.rows, row_tiles * launch.rows, WORDS)
    row = x.new_zeros(2, b)
    if margin:
        row_offsets[(triton.cdiv(b, 128),)](row_sums, unit, b, d, row_sums.shape[1], row, BM=128, num_warps=4)
    groups, size = splits(tiles, row_tiles, x.device)
    lower, group = x.new_empty(b, count // fine), x.new_empty(b, groups)
    byte_bounds[(row_tiles * groups,)](
        samples, codes, row, unit, lowered.bias, b, words, lower, lower.shape[1], group, tiles, groups, size,
        FINE=fine, PANEL=PANEL, BM=launch.rows, BN=launch.columns, num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return Bounds(row, lower, group, size * launch.columns // fine)
