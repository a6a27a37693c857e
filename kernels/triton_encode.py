"""Samples and targets in scaled float16, with what that takes from an inner product.

With powers of two a_i and c, û_i ≈ a_i (x_i − m) and v̂_j ≈ c y_j rounded to float16, and κ the form's scale,

    s_ij = (bias_j − κ ⟨m, y_j⟩) − κ ⟨x_i − m, y_j⟩  ≥  bias⁻_j − κ / (a_i c) ⟨û_i, v̂_j⟩ − (A_i max‖δy‖ + C_i max‖ŷ‖),

the maxima over WIDTH targets at a time. float16 and not bfloat16: equal speed, rounding 8 times finer, and the powers
of two put the largest coordinate just below 2¹⁵, so that nothing overflows and 2⁻²⁹ of it is still a normal number.
What lies below counts as zero, and its loss is in ‖δ‖ as all others are. docs/certificate-gpu.md derives the constants.
"""

import triton
import triton.language as tl

from . import rounding
from .triton_tiles import exact_scores

WIDTH = tl.constexpr(32)  # targets that share a bound: 1 / 32 of the scores is kept, 3.1 % of their memory

ACCUMULATED = tl.constexpr(2.0**-22)  # of ‖x̂‖ ‖ŷ‖ a coordinate: sums of a tensor core, which truncates
PADDING = tl.constexpr(64)  # coordinates, all zero, that a loop may add to those there are
ROUNDING = tl.constexpr(rounding.ROUNDING)  # of the bias and of ‖x̂‖ ‖ŷ‖, in float32
CANCELLED = tl.constexpr(2.0**-34)  # of (‖x − m‖ + 2 ‖m‖) ‖y‖, in float64
UPWARD = tl.constexpr(rounding.UPWARD)  # of a norm, which makes it an upper bound
TINY = tl.constexpr(rounding.TINY)  # the smallest norm, so that products of two are normal numbers
UNDERFLOW = tl.constexpr(rounding.UNDERFLOW)  # more than is lost below the normal numbers
HUGE = tl.constexpr(rounding.HUGE)  # a row whose terms could come to more has no bounds
HIGHEST = tl.constexpr(1e38)  # a finite bias that is larger counts as this, which is lower
NORMAL = tl.constexpr(2.0**-14)  # the smallest normal float16
WIDEST = 2**17  # coordinates for which the constants are right


@triton.jit
def unit_of(top):
    """The power of two, float64, that takes numbers up to `top` below 2¹⁵ and at least half of it above 2¹³."""
    exponent = ((top.to(tl.float64).to(tl.int64, bitcast=True) >> 52) & 0x7FF) - 1023
    return ((14 - tl.maximum(exponent, -200) + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def encode(value):
    """float64 of at most 2¹⁵ to float16, zero in place of subnormal numbers."""
    code = value.to(tl.float32).to(tl.float16)
    return tl.where(tl.abs(code.to(tl.float32)) < NORMAL, 0.0, code).to(tl.float16)


@triton.jit
def upper(norm):
    """An upper bound of a norm, float32."""
    return tl.maximum(norm * UPWARD, TINY).to(tl.float32)


@triton.jit
def cautious(start):
    """float64 to float32, less what rounding may add later; only what is infinite stays so."""
    lowered = tl.minimum(start - ROUNDING * tl.abs(start) - UNDERFLOW, HIGHEST)
    return tl.where(start < float("inf"), lowered, float("inf")).to(tl.float32)


@triton.jit(do_not_specialize=["N"])
def encode_targets(y_ptr, top_ptr, N, D, code_ptr, ld, bound_ptr, groups, BK: tl.constexpr):
    """WIDTH targets: their codes, zeros past N and D, and upper bounds of max‖δy‖ and max‖ŷ‖, [2, groups]."""
    group = tl.program_id(0)
    unit = unit_of(tl.load(top_ptr))
    offs_n = group * WIDTH + tl.arange(0, WIDTH)
    rest = tl.zeros((WIDTH,), tl.float64)
    coded = tl.zeros((WIDTH,), tl.float64)
    for k in range(0, ld, BK):
        offs_k = k + tl.arange(0, BK)
        at = offs_n.to(tl.int64)[:, None]
        y = tl.load(y_ptr + at * D + offs_k[None, :], mask=(at < N) & (offs_k < D)[None, :], other=0.0)
        value = y.to(tl.float64) * unit
        code = encode(value)
        tl.store(code_ptr + at * ld + offs_k[None, :], code, mask=(offs_k < ld)[None, :])
        image = code.to(tl.float64)
        coded += tl.sum(image * image, 1)
        rest += tl.sum((value - image) * (value - image), 1)
    tl.store(bound_ptr + group, upper(tl.sqrt(tl.max(rest, 0)) / unit))
    tl.store(bound_ptr + groups + group, upper(tl.sqrt(tl.max(coded, 0)) / unit))


@triton.jit(do_not_specialize=["B"])
def encode_samples(
    x_ptr, centre_ptr, top_ptr, largest_ptr, B, D, code_ptr, ld, row_ptr,
    SCALE: tl.constexpr, BK: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """One row: its codes, zeros past B and D, and (κ / (a_i c), A_i, C_i); A_i is inf where there is no bound."""
    row = tl.program_id(0)
    x_ptr += tl.minimum(row, B - 1).to(tl.int64) * D
    top = tl.full((), 0.0, tl.float64)
    for k in range(0, D, BK):
        offs_k = k + tl.arange(0, BK)
        x = tl.load(x_ptr + offs_k, mask=offs_k < D, other=0.0).to(tl.float64)
        if CENTRED:
            x -= tl.load(centre_ptr + offs_k, mask=offs_k < D, other=0.0).to(tl.float64)
        top = tl.maximum(top, tl.max(tl.abs(x), 0))
    unit = unit_of(top)
    whole = tl.zeros((BK,), tl.float64)
    coded = tl.zeros((BK,), tl.float64)
    rest = tl.zeros((BK,), tl.float64)
    taken = tl.zeros((BK,), tl.float64)
    for k in range(0, ld, BK):
        offs_k = k + tl.arange(0, BK)
        x = tl.load(x_ptr + offs_k, mask=offs_k < D, other=0.0).to(tl.float64)
        if CENTRED:
            centre = tl.load(centre_ptr + offs_k, mask=offs_k < D, other=0.0).to(tl.float64)
            x -= centre
            taken += centre * centre
        value = x * unit
        code = encode(value)
        tl.store(code_ptr + row.to(tl.int64) * ld + offs_k, tl.where(row < B, code, 0.0), mask=offs_k < ld)
        image = code.to(tl.float64)
        whole += value * value
        coded += image * image
        rest += (value - image) * (value - image)
    size = tl.sqrt(tl.sum(whole, 0)) / unit
    image = tl.sqrt(tl.sum(coded, 0)) / unit
    lost = CANCELLED * (size + 2 * tl.sqrt(tl.sum(taken, 0)))
    scale = tl.abs(tl.full((), SCALE, tl.float64))
    on_rest = upper(scale * (size + lost))
    on_image = upper(
        scale * (tl.sqrt(tl.sum(rest, 0)) / unit + (ROUNDING + ACCUMULATED * (D + PADDING)) * image + lost)
    )
    factor = SCALE / (unit * unit_of(tl.load(top_ptr)))
    most_rest = tl.load(largest_ptr).to(tl.float64)
    most_image = tl.load(largest_ptr + 1).to(tl.float64)
    reach = on_rest * most_rest + (on_image + scale * image) * most_image
    bounded = (reach < HUGE) & (tl.abs(factor) > UNDERFLOW) & (tl.abs(factor) < 1 / UNDERFLOW)
    if row < B:
        tl.store(row_ptr + row, factor.to(tl.float32))
        tl.store(row_ptr + B + row, tl.where(bounded, on_rest, float("inf")))
        tl.store(row_ptr + 2 * B + row, on_image)


@triton.jit(do_not_specialize=["N"])
def lower_bias(
    centre_ptr, y_ptr, bias_ptr, N, D, lowered_ptr,
    SCALE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """bias⁻: the biases about the centre, less what rounding may add later; +inf past N."""
    column = tl.program_id(0) * BN
    offs_n = column + tl.arange(0, BN)
    start = tl.load(bias_ptr + offs_n, mask=offs_n < N, other=float("inf")).to(tl.float64)
    if CENTRED:
        start = about(centre_ptr, y_ptr, bias_ptr, start, column, N, D, SCALE, BN, BK)
    tl.store(lowered_ptr + offs_n, cautious(start))


@triton.jit
def about(centre_ptr, y_ptr, bias_ptr, start, column, N, D, SCALE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """bias − κ ⟨m, y⟩; a centre of zeros costs no read of the targets."""
    top = tl.full((), 0.0, tl.float32)
    for k in range(0, D, 128):
        offs_k = k + tl.arange(0, 128)
        top = tl.maximum(top, tl.max(tl.abs(tl.load(centre_ptr + offs_k, mask=offs_k < D, other=0.0)), 0))
    if top > 0:
        start = exact_scores(centre_ptr, y_ptr, bias_ptr, 0, column, N, D, True, SCALE, 1, 0.0, False, BN, BK)
    return start
