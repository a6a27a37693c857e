"""Inner products on tensor cores in float16: a certified screen, then exact scores of the few targets that it leaves.

1. `tile_bounds` computes s⁻_ij ≤ s_ij (`triton_encode`) by one product a coordinate and keeps the smallest of WIDTH
   targets at a time, [B, N / WIDTH], and of each group of tiles.
2. `rescore` finds the float64 argmin among the targets that these bounds leave.
3. A row with more candidates than a pass over all targets is worth, or without bounds, goes on a list, which the plain
   kernels read: where it is empty, their programs return at once. The host waits for nothing.

docs/certificate-gpu.md has the proof.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import triton_backend
from .form import Form
from .triton_argmin import argmin_of_listed
from .triton_encode import WIDEST, WIDTH, encode_samples, encode_targets, lower_bias
from .triton_launch import ALIGNMENT, SCREEN_LAUNCHES, Launch, choose, on_device, splits
from .triton_rescore import rescore

PADDED = 512  # codes end on a multiple of the widest tile, so that no load needs a mask
BOUNDS = 2**27  # kept at once; more rows are taken in parts
CENTRED = 128  # rows from which a mean is taken off: below, a pass over all targets costs less than their float64 read
# A row's share of a plain pass takes 6·N·D / 495e12 s, exact scores of WIDTH targets 4·WIDTH·D / 3.35e12 s (an H100's
# peaks): as much as those of N / WIDTH / 100 tiles.
WORTH, FEWEST = 100, 16


@triton.jit(do_not_specialize=["B", "tiles", "groups", "group_size"])
def tile_bounds(
    x_ptr, y_ptr, row_ptr, bound_ptr, bias_ptr, B, ld, lower_ptr, stride, group_ptr, tiles, groups, group_size,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Per row: the smallest bound of WIDTH targets, lower [B, stride], and of `group_size` tiles, [B, groups]."""
    row_tiles = tl.cdiv(B, BM)
    group = tl.program_id(0) // row_tiles
    row = (tl.program_id(0) % row_tiles) * BM
    first = group * group_size
    parts: tl.constexpr = BN // WIDTH
    offs_k = tl.arange(0, BK)
    offs_m = row + tl.arange(0, BM)
    inside = offs_m < B
    factor = tl.load(row_ptr + offs_m, mask=inside, other=0.0)
    on_rest = tl.load(row_ptr + B + offs_m, mask=inside, other=0.0)
    on_image = tl.load(row_ptr + 2 * B + offs_m, mask=inside, other=0.0)
    best = tl.full((BM,), float("inf"), tl.float32)
    x_ptr += tl.cast(row, tl.int64) * ld + tl.arange(0, BM)[:, None] * ld + offs_k[None, :]
    y_ptr += tl.arange(0, BN)[:, None] * ld + offs_k[None, :]
    lower_ptr += offs_m.to(tl.int64)[:, None] * stride + tl.arange(0, parts)[None, :]
    for tile in range(first, tl.minimum(first + group_size, tiles)):
        y_ptrs = y_ptr + tl.cast(tile * BN, tl.int64) * ld
        total = tl.zeros((BM, BN), tl.float32)
        for k in range(0, ld, BK):
            mask_k = offs_k[None, :] < ld - k
            x = tl.load(x_ptr + k, mask=mask_k, other=0.0)
            y = tl.load(y_ptrs + k, mask=mask_k, other=0.0)
            total = tl.dot(x, y.T, total)
        score = tl.load(bias_ptr + tile * BN + tl.arange(0, BN))[None, :] - factor[:, None] * total
        low = tl.min(tl.reshape(score, (BM, parts, WIDTH)), 2)
        part = tile * parts + tl.arange(0, parts)
        rest = tl.load(bound_ptr + part)
        image = tl.load(bound_ptr + stride + part)
        low -= on_rest[:, None] * rest[None, :] + on_image[:, None] * image[None, :]
        tl.store(lower_ptr + tile * parts, low, mask=inside[:, None])
        best = tl.minimum(best, tl.min(low, 1))
    tl.store(group_ptr + offs_m.to(tl.int64) * groups + group, best, mask=inside)


def refusal(form: Form, reduction: str, device: torch.device, n: int, d: int) -> str | None:
    if form.kind != "inner":
        return f"it bounds inner products, and the form is {form.kind}"
    if reduction != "argmin":
        return f"it finds the smallest score alone, and {reduction} needs others too"
    if d > WIDEST:
        return f"its bounds hold up to {WIDEST} coordinates, and the targets have {d}"
    return triton_backend.refusal(form, reduction, device, n, d)


@on_device
def prepare(y: Tensor, form: Form) -> list[Tensor]:
    """y [N, D]; codes [N', D'], float16; bounds [2, N' / WIDTH] on max‖δy‖ and max‖ŷ‖, and their maxima; max|y|."""
    n, d = y.shape
    codes = torch.empty(-(-n // PADDED) * PADDED, -(-d // ALIGNMENT) * ALIGNMENT, dtype=torch.float16, device=y.device)
    rows, ld = codes.shape
    bounds = y.new_empty(2, rows // WIDTH.value)
    top = torch.linalg.vector_norm(y.flatten(), ord=float("inf"))
    encode_targets[(bounds.shape[1],)](y, top, n, d, codes, ld, bounds, bounds.shape[1], BK=32, num_warps=4)
    return [y, codes, bounds, bounds.amax(1), top]


def centre_of(x: Tensor) -> Tensor:
    """The samples' mean where it holds more than half of their mean square, else zeros: [D]."""
    centre = x.mean(0)
    return torch.where((2 * x.shape[0]) ** 0.5 * centre.norm() > x.norm(), centre, 0.0)


def encode(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, launch: Launch) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [B', D'] of the samples, their (factor, A, C) [3, B], and the lowered biases [N']."""
    (y, codes, _, largest, top), (b, d) = layout, x.shape
    rows, ld = codes.shape
    centred = b >= CENTRED
    centre = centre_of(x) if centred else None
    samples = codes.new_empty(-(-b // launch.rows) * launch.rows, ld)
    row, lowered = x.new_empty(3, b), x.new_empty(rows)
    scale = float(form.scale)
    encode_samples[(samples.shape[0],)](
        x, centre, top, largest, b, d, samples, ld, row, SCALE=scale, CENTRED=centred, BK=256, num_warps=4
    )
    lower_bias[(rows // 64,)](
        centre, y, bias, y.shape[0], d, lowered, SCALE=scale, CENTRED=centred, BN=64, BK=32, num_warps=4
    )
    return samples, row, lowered


def slices(x: Tensor, layout: list[Tensor]) -> tuple[Tensor, ...]:
    """The rows of x, at most so many at a time that `BOUNDS` suffice."""
    return x.contiguous().split(max(1, BOUNDS // layout[2].shape[1]))


class Bounds(NamedTuple):
    """Lower bounds of the scores of a batch."""

    row: Tensor  # [3, B]: κ / (a_i c), A_i, which is inf where there are no bounds, and C_i
    lower: Tensor  # [B, parts]: the smallest of WIDTH targets
    group: Tensor  # [B, groups]: the smallest of `size` of those
    size: int


def bounds_of(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, launch: Launch, margin: bool) -> Bounds:
    """The bounds of rows of x; without the margin, the smallest scores in float16 in their place."""
    (y, codes, bounds, *_), b = layout, x.shape[0]
    samples, row, lowered = encode(x, layout, bias, form, launch)
    if not margin:
        row[1:] = 0
    row_tiles, tiles, parts = samples.shape[0] // launch.rows, -(-y.shape[0] // launch.columns), bounds.shape[1]
    groups, size = splits(tiles, row_tiles, x.device)
    lower, group = x.new_empty(b, parts), x.new_empty(b, groups)
    tile_bounds[(row_tiles * groups,)](
        samples, codes, row, bounds, lowered, b, codes.shape[1], lower, parts, group, tiles, groups, size,
        WIDTH=WIDTH.value, BM=launch.rows, BN=launch.columns, BK=launch.depth,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return Bounds(row, lower, group, size * launch.columns // WIDTH.value)


class Candidates(NamedTuple):
    """What `rescore` finds."""

    value: Tensor  # [B]
    index: Tensor  # [B] int64
    tiles: Tensor  # [B] int32: how many of WIDTH targets were scored exactly, or one more than may be
    listed: Tensor  # [1 + B] int32: how many rows that is, and which, in any order


def most_tiles(n: int) -> int:
    """Tiles of a row that are scored exactly; with more, a plain pass over all targets costs less."""
    return max(FEWEST, n // WIDTH.value // WORTH)


def screen(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, launch: Launch | None, most: int | None
) -> Candidates:
    """Both passes, with at most so many tiles a row; when None, only the tile of the smallest score in float16."""
    y, (b, d), width = layout[0], x.shape, WIDTH.value
    index, tiles = (
        torch.empty(b, dtype=torch.int64, device=x.device),
        torch.zeros(1 + 2 * b, dtype=torch.int32, device=x.device),
    )
    found = Candidates(x.new_empty(b), index, tiles[1 + b :], tiles[: 1 + b])
    if b:
        launch = launch or choose(SCREEN_LAUNCHES, form, x.device, b, d)
        bounds = bounds_of(x, layout, bias, form, launch, most is not None)
        rescore[(b,)](
            x, y, bias, bounds.row, b, y.shape[0], d, bounds.lower, bounds.group, -(-y.shape[0] // width),
            bounds.group.shape[1], bounds.size, bounds.lower.shape[1], most or 0, *found,
            SCALE=float(form.scale), WIDTH=width, BK=32, LANES=128, CERTIFY=most is not None, num_warps=2,
        )  # fmt: skip
    return found


@on_device
def certify(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, launch: Launch | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The argmin, how many tiles of WIDTH targets a row's bounds left, [B] int32, and whether too many, [B] bool.

    The plain kernels decide those rows: their score is the best within float32 rounding, as without the screen.
    """
    bias, most = bias.contiguous(), most_tiles(layout[0].shape[0])
    parts = []
    for part in slices(x, layout):
        found = screen(part, layout, bias, form, launch, most)
        argmin_of_listed(part, layout[0], bias, form, found.listed, found.value, found.index)
        parts.append((found.value, found.index, found.tiles, found.tiles > most))
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def argmin(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, launch: Launch | None = None
) -> tuple[Tensor, Tensor]:
    return certify(x, layout, bias, form, launch)[:2]
