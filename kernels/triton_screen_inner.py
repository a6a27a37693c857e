"""Lower bounds of scores of the inner form: one product a coordinate of float16 codes, on tensor cores.

`tile_bounds` computes s⁻_ij ≤ s_ij (`triton_encode`) and keeps the smallest of `fine` targets at a time and of each
group of tiles. docs/certificate-gpu.md has the proof.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .form import Form
from .triton_encode import WIDEST, WIDTH, encode_samples, encode_targets, lower_bias
from .triton_halves import ALIGNMENT, units
from .triton_launch import SCREEN_LAUNCHES, Launch, choose, splits
from .triton_rescore import Bounds, Lowered

PADDED = 512  # codes end on a multiple of the widest tile, so that no load needs a mask
CENTRED = 128  # rows from which a mean is taken off: below, a pass over all targets costs less than their float64 read


@triton.jit(do_not_specialize=["B", "tiles", "groups", "group_size"])
def tile_bounds(
    x_ptr, y_ptr, row_ptr, bound_ptr, bias_ptr, B, ld, lower_ptr, stride, group_ptr, tiles, groups, group_size,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDTH: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    """Per row: the smallest bound of FINE targets, lower [B, stride], and of `group_size` tiles, [B, groups]."""
    row_tiles = tl.cdiv(B, BM)
    group = tl.program_id(0) // row_tiles
    row = (tl.program_id(0) % row_tiles) * BM
    first = group * group_size
    parts: tl.constexpr = BN // FINE
    shared: tl.constexpr = WIDTH // FINE  # parts whose targets have one bound on what codes lose
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
        low = tl.min(tl.reshape(score, (BM, parts, FINE)), 2)
        part = tile * parts + tl.arange(0, parts)
        rest = tl.load(bound_ptr + part // shared)
        image = tl.load(bound_ptr + stride // shared + part // shared)
        low -= on_rest[:, None] * rest[None, :] + on_image[:, None] * image[None, :]
        tl.store(lower_ptr + tile * parts, low, mask=inside[:, None])
        best = tl.minimum(best, tl.min(low, 1))
    tl.store(group_ptr + offs_m.to(tl.int64) * groups + group, best, mask=inside)


def refusal(form: Form, d: int) -> str | None:
    if d > WIDEST:
        return f"its bounds hold up to {WIDEST} coordinates, and the targets have {d}"
    return None


def prepare(y: Tensor, form: Form) -> list[Tensor]:
    """y [N, D], units [N] for the plain kernels, codes [N', D'] float16; then bounds.

    Those are [2, N' / WIDTH], on max‖δy‖ and max‖ŷ‖, then their maxima and max|y|.
    """
    n, d = y.shape
    codes = torch.empty(-(-n // PADDED) * PADDED, -(-d // ALIGNMENT) * ALIGNMENT, dtype=torch.float16, device=y.device)
    rows, ld = codes.shape
    bounds = y.new_empty(2, rows // WIDTH.value)
    top = torch.linalg.vector_norm(y.flatten(), ord=float("inf"))
    encode_targets[(bounds.shape[1],)](y, top, n, d, codes, ld, bounds, bounds.shape[1], BK=32, num_warps=4)
    return [y, units(y), codes, bounds, bounds.amax(1), top]


def centre_of(x: Tensor) -> Tensor:
    """The samples' mean where it holds more than half of their mean square, else zeros: [D]."""
    centre = x.mean(0)
    return torch.where((2 * x.shape[0]) ** 0.5 * centre.norm() > x.norm(), centre, 0.0)


def lower(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, margin: bool = True) -> Lowered:
    """What all rows of a call share."""
    y, _, codes, *_ = layout
    centre, lowered = centre_of(x) if len(x) >= CENTRED else None, y.new_empty(len(codes))
    lower_bias[(len(codes) // 64,)](
        centre, y, bias, *y.shape, lowered,
        SCALE=float(form.scale), CENTRED=centre is not None, BN=64, BK=32, num_warps=4,
    )  # fmt: skip
    return Lowered(centre, lowered)


def encode(x: Tensor, layout: list[Tensor], centre: Tensor | None, form: Form, launch: Launch) -> tuple[Tensor, Tensor]:
    """Codes [B', D'] of the samples, and their (factor, A, C) [3, B]."""
    (_, _, codes, _, largest, top), (b, d) = layout, x.shape
    ld = codes.shape[1]
    samples, row = codes.new_empty(-(-b // launch.rows) * launch.rows, ld), x.new_empty(3, b)
    encode_samples[(len(samples),)](
        x, centre, top, largest, b, d, samples, ld, row,
        SCALE=float(form.scale), CENTRED=centre is not None, BK=256, num_warps=4,
    )  # fmt: skip
    return samples, row


def bounds_of(
    x: Tensor, layout: list[Tensor], lowered: Lowered, form: Form, launch: Launch | None, margin: bool, fine: int
) -> Bounds:
    """The bounds of rows of x; without the margin, the smallest scores in float16 in their place."""
    (y, _, codes, bounds, *_), (b, d) = layout, x.shape
    launch = launch or choose(SCREEN_LAUNCHES, form, x.device, b, d)
    samples, row = encode(x, layout, lowered.centre, form, launch)
    if not margin:
        row[1:] = 0
    row_tiles, tiles = samples.shape[0] // launch.rows, -(-y.shape[0] // launch.columns)
    groups, size = splits(tiles, row_tiles, x.device)
    lower, group = x.new_empty(b, codes.shape[0] // fine), x.new_empty(b, groups)
    tile_bounds[(row_tiles * groups,)](
        samples, codes, row, bounds, lowered.bias, b, codes.shape[1], lower, lower.shape[1], group, tiles, groups, size,
        WIDTH=WIDTH.value, FINE=fine, BM=launch.rows, BN=launch.columns, BK=launch.depth,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return Bounds(row, lower, group, size * launch.columns // fine)
