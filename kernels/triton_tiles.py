"""The tile of scores that every Triton kernel is built on: s_ij for BM rows of x and BN targets, [BM, BN] float32.

The inner form runs on tensor cores: three products of float16 halves a coordinate (`triton_halves`). Those of BK
coordinates are summed by the tensor core, which truncates, and the chunks in float32, which rounds.
The power form adds one coordinate after another from K-major copies of x and y, so that a thread keeps a row of
targets in registers, reads contiguous memory and exchanges nothing.

Rows and targets past the end repeat the last one or are zero; such targets get the bias +inf.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))  # which has no inline assembly


@triton.jit
def halves_of(value):
    """float32 of at most 2¹⁵ as the nearest float16 and what that leaves."""
    high = value.to(tl.float16)
    return high, (value - high.to(tl.float32)).to(tl.float16)


@triton.jit
def reciprocal(unit):
    """1 / u of powers of two, by one instruction."""
    return (0x7F000000 - unit.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def inner_tile(
    x_ptr, y_ptr, x_unit_ptr, y_unit_ptr, row, column, B, N, D, ldx, ldy,
    SCALE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """SCALE · ⟨x_i, y_j⟩ for halves of x, the second ldx / 2 elements after the first, and row-major y."""
    offs_k = tl.arange(0, BK)
    offs_m = tl.minimum(tl.arange(0, BM), B - 1 - row)
    offs_n = tl.minimum(tl.arange(0, BN), N - 1 - column)
    x_ptrs = x_ptr + tl.cast(row, tl.int64) * ldx + offs_m[:, None] * ldx + offs_k[None, :]  # [BM, BK]
    y_ptrs = y_ptr + tl.cast(column, tl.int64) * ldy + offs_n[:, None] * ldy + offs_k[None, :]  # [BN, BK]
    y_unit = tl.load(y_unit_ptr + column + offs_n)
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(0, D, BK):
        mask_k = offs_k[None, :] < D - k
        x_high = tl.load(x_ptrs, mask=mask_k, other=0.0)
        x_low = tl.load(x_ptrs + ldx // 2, mask=mask_k, other=0.0)
        y_high, y_low = halves_of(tl.load(y_ptrs, mask=mask_k, other=0.0) * y_unit[:, None])
        part = tl.dot(x_high, y_low.T)
        part = tl.dot(x_low, y_high.T, part)
        total += tl.dot(x_high, y_high.T, part)
        x_ptrs += BK
        y_ptrs += BK
    # read here, and not before the loop, so that it has their registers
    x_unit = tl.load(x_unit_ptr + row + tl.arange(0, BM), mask=tl.arange(0, BM) < B - row, other=1.0)
    y_unit = tl.load(y_unit_ptr + column + tl.arange(0, BN), mask=tl.arange(0, BN) < N - column, other=1.0)
    return total * ((SCALE * reciprocal(x_unit))[:, None] * reciprocal(y_unit)[None, :])


@triton.jit
def power(distance, WHOLE: tl.constexpr, FRACTION: tl.constexpr):
    """distance^(WHOLE + FRACTION); the logarithm is taken of the fraction's part alone, where it loses least."""
    result = distance
    for _ in tl.static_range(WHOLE - 1):
        result *= distance
    if FRACTION == 0.5:
        root = tl.sqrt(distance)
        result = root if WHOLE == 0 else result * root
    elif FRACTION != 0:
        root = tl.exp2(FRACTION * tl.log2(distance))
        result = root if WHOLE == 0 else result * root
    return result


@triton.jit
def power_tile(
    x_ptr, y_ptr, row, column, D, ldx, ldy,
    WHOLE: tl.constexpr, FRACTION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Σ_d |x_id − y_jd|^p for K-major x and y, zero past their ends, and D a multiple of BK."""
    offs_m = tl.arange(0, BM)[:, None]
    offs_n = tl.arange(0, BN)[None, :]
    x_ptr += row  # scalar pointers move, so that the tiles' own offsets are constants of the load
    y_ptr += column
    total = tl.zeros((BM, BN), tl.float32)
    for _ in range(0, D, BK):
        for _ in tl.static_range(BK):
            total += power(tl.abs(tl.load(x_ptr + offs_m) - tl.load(y_ptr + offs_n)), WHOLE, FRACTION)
            x_ptr += ldx
            y_ptr += ldy
    return total


@triton.jit
def words_at(ptr):
    """Four words of 32 bits that lie side by side, by one load: Triton would not join those of a row."""
    if INTERPRETED:
        return tl.load(ptr), tl.load(ptr + 1), tl.load(ptr + 2), tl.load(ptr + 3)
    else:
        return tl.inline_asm_elementwise(
            "ld.global.nc.v4.b32 {$0, $1, $2, $3}, [$4];", "=r,=r,=r,=r,l", [ptr],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
        )  # fmt: skip


@triton.jit
def power_of_words(x, y, WHOLE: tl.constexpr, FRACTION: tl.constexpr):
    return power(tl.abs(x.to(tl.float32, bitcast=True) - y.to(tl.float32, bitcast=True)), WHOLE, FRACTION)


@triton.jit
def power_of_rows(
    x_ptr, y_ptr, row, column, B, N, D, ldx, ldy,
    WHOLE: tl.constexpr, FRACTION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The same for row-major x and y, scattered in memory: for few rows, which are worth no K-major copy.

    BK is 4 where all rows begin at multiples of 16 bytes, so that four coordinates take one load, and else 1.
    """
    offs_m = tl.minimum(row + tl.arange(0, BM), B - 1)[:, None]
    offs_n = tl.minimum(column + tl.arange(0, BN), N - 1)[None, :]
    x_ptrs = x_ptr + offs_m.to(tl.int64) * ldx
    y_ptrs = y_ptr + offs_n.to(tl.int64) * ldy
    total = tl.zeros((BM, BN), tl.float32)
    for _ in range(0, D, BK):
        if BK == 4:
            x_0, x_1, x_2, x_3 = words_at(x_ptrs)
            y_0, y_1, y_2, y_3 = words_at(y_ptrs)
            total += power_of_words(x_0, y_0, WHOLE, FRACTION)
            total += power_of_words(x_1, y_1, WHOLE, FRACTION)
            total += power_of_words(x_2, y_2, WHOLE, FRACTION)
            total += power_of_words(x_3, y_3, WHOLE, FRACTION)
        else:
            total += power(tl.abs(tl.load(x_ptrs) - tl.load(y_ptrs)), WHOLE, FRACTION)
        x_ptrs += BK
        y_ptrs += BK
    return total


@triton.jit
def root_of(total, WHOLE: tl.constexpr, FRACTION: tl.constexpr):
    """total^(1/p), p = WHOLE + FRACTION."""
    if WHOLE == 2 and FRACTION == 0:
        total = tl.sqrt(total)
    elif WHOLE != 1 or FRACTION != 0:
        total = tl.exp2(tl.log2(total) / (WHOLE + FRACTION))
    return total


@triton.jit
def score_tile(
    x_ptr, y_ptr, bias_ptr, x_unit_ptr, y_unit_ptr, row, column, B, N, D, ldx, ldy,
    INNER: tl.constexpr, SCALE: tl.constexpr, WHOLE: tl.constexpr, FRACTION: tl.constexpr, ROOT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr = False,
):  # fmt: skip
    """s_ij = form(x_i, y_j) + bias_j for rows from `row` and targets from `column`; ROWS when none is K-major."""
    if INNER:
        form = -inner_tile(x_ptr, y_ptr, x_unit_ptr, y_unit_ptr, row, column, B, N, D, ldx, ldy, SCALE, BM, BN, BK)
    else:
        if ROWS:
            form = power_of_rows(x_ptr, y_ptr, row, column, B, N, D, ldx, ldy, WHOLE, FRACTION, BM, BN, BK)
        else:
            form = power_tile(x_ptr, y_ptr, row, column, D, ldx, ldy, WHOLE, FRACTION, BM, BN, BK)
        if ROOT:
            form = root_of(form, WHOLE, FRACTION)
    offs_n = column + tl.arange(0, BN)
    bias = tl.load(bias_ptr + offs_n, mask=offs_n < N, other=float("inf"))
    return form + bias[None, :]


@triton.jit
def exact_scores(
    x_ptr, y_ptr, bias_ptr, row, column, N, D,
    INNER: tl.constexpr, SCALE: tl.constexpr, WHOLE: tl.constexpr, FRACTION: tl.constexpr, ROOT: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """s_ij of one row and BN targets from row-major x and y, [BN] float64, in the same order whatever the tile."""
    offs_n = column + tl.arange(0, BN)
    offs_k = tl.arange(0, BK)
    x_ptrs = x_ptr + tl.cast(row, tl.int64) * D + offs_k[None, :]
    y_ptrs = y_ptr + tl.minimum(offs_n, N - 1).to(tl.int64)[:, None] * D + offs_k[None, :]
    total = tl.zeros((BN, BK), tl.float64)
    for k in range(0, D, BK):
        mask_k = offs_k[None, :] < D - k
        x = tl.load(x_ptrs + k, mask=mask_k, other=0.0).to(tl.float64)
        y = tl.load(y_ptrs + k, mask=mask_k, other=0.0).to(tl.float64)
        if INNER:
            total -= SCALE * (x * y)
        else:
            total += power(tl.abs(x - y), WHOLE, FRACTION)
    form = tl.sum(total, 1)
    if ROOT:
        form = root_of(form, WHOLE, FRACTION)
    bias = tl.load(bias_ptr + offs_n, mask=offs_n < N, other=float("inf"))
    return form + bias
