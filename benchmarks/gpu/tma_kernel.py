"""The float16 screen's first pass with its operands read by tensor descriptors, the loop over tiles specialised or not.

Equal to `tile_bounds` of `kernels/triton_screen_inner.py` but for how tiles come to shared memory: the device's copy
engine fills a block from a descriptor, with zeros past the last coordinate, so that no address is computed and none is
masked. With SPECIALISED some warps do nothing but copy, ahead of those that multiply. The smallest of FINE columns is
taken through a mask, which costs the compiled code nothing: Triton 3.6 cannot give the halves of a reshaped tile to two
groups of warps.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["B", "tiles", "groups", "group_size"])
def tile_bounds(
    x_ptr, y_ptr, row_ptr, bound_ptr, bias_ptr, B, ld, lower_ptr, stride, group_ptr, tiles, groups, group_size,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDTH: tl.constexpr, FINE: tl.constexpr,
    SPECIALISED: tl.constexpr,
):  # fmt: skip
    """Per row: the smallest bound of FINE targets, lower [B, stride], and of `group_size` tiles, [B, groups]."""
    row_tiles = tl.cdiv(B, BM)
    group = tl.program_id(0) // row_tiles
    row = (tl.program_id(0) % row_tiles) * BM
    first = group * group_size
    parts: tl.constexpr = BN // FINE
    shared: tl.constexpr = WIDTH // FINE
    x_tiles = tl.make_tensor_descriptor(x_ptr, [row_tiles * BM, ld], [ld, 1], [BM, BK])
    y_tiles = tl.make_tensor_descriptor(y_ptr, [tiles * BN, ld], [ld, 1], [BN, BK])
    offs_m = row + tl.arange(0, BM)
    inside = offs_m < B
    factor = tl.load(row_ptr + offs_m, mask=inside, other=0.0)
    on_rest = tl.load(row_ptr + B + offs_m, mask=inside, other=0.0)
    on_image = tl.load(row_ptr + 2 * B + offs_m, mask=inside, other=0.0)
    offs_n = tl.arange(0, BN)
    offs_p = tl.arange(0, parts)
    best = tl.full((BM,), float("inf"), tl.float32)
    lower_ptr += offs_m.to(tl.int64)[:, None] * stride + tl.arange(0, parts)[None, :]
    for tile in tl.range(first, tl.minimum(first + group_size, tiles), warp_specialize=SPECIALISED):
        total = tl.zeros((BM, BN), tl.float32)
        for k in range(0, ld, BK):
            total = tl.dot(x_tiles.load([row, k]), y_tiles.load([tile * BN, k]).T, total)
        score = tl.load(bias_ptr + tile * BN + tl.arange(0, BN))[None, :] - factor[:, None] * total
        low = tl.full((BM, parts), float("inf"), tl.float32)
        for at in tl.static_range(parts):
            least = tl.min(tl.where((offs_n // FINE == at)[None, :], score, float("inf")), 1)
            low = tl.where((offs_p == at)[None, :], least[:, None], low)
        part = tile * parts + tl.arange(0, parts)
        rest = tl.load(bound_ptr + part // shared)
        image = tl.load(bound_ptr + stride // shared + part // shared)
        low -= on_rest[:, None] * rest[None, :] + on_image[:, None] * image[None, :]
        tl.store(lower_ptr + tile * parts, low, mask=inside[:, None])
        best = tl.minimum(best, tl.min(low, 1))
    tl.store(group_ptr + offs_m.to(tl.int64) * groups + group, best, mask=inside)
