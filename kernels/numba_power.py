"""|t|^p for vectors of float32, as LLVM instructions.

When 2p is a small integer: products of |t| and √|t|. Otherwise, with |t| = 2^e m and √½ ≤ m < √2,

    |t|^p = 2^n · 2^w,    n = round(p (e + log2 m)),    w = p (e + log2 m) − n.

p is split as high + low with high · e exact in float32, so that p e − n loses nothing and the error is that of the two
polynomials: a few units in the last place whatever the size of t. Differences below 2⁻¹²⁶ count as zero, and powers
outside 2^±125 or so stay at the bounds, so nothing here makes a NaN.
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils

TINY = 2.0**-126
LEAST = -125.0  # exponent of the smallest power
HALF_ROOT = 0x3F3504F3  # the bits of √½
HALVES = 16  # largest 2p that is a product


def _coefficients(function, low: float, high: float, degree: int) -> list[float]:
    """Polynomial through `function` at the Chebyshev points of [low, high], constant term first."""
    series = np.polynomial.Chebyshev.interpolate(function, degree, domain=[low, high])
    return series.convert(kind=np.polynomial.Polynomial).coef.tolist()


# Interpolation errors, far below float32's 6e-8: 1e-9 for the logarithm, 2e-9 for the exponential.
LOG2 = _coefficients(lambda f: np.log1p(f) / f / np.log(2), 0.5**0.5 - 1, 2**0.5 - 1, 11)
EXP2 = _coefficients(np.exp2, -0.5, 0.5, 6)


def split(p: float) -> tuple[float, float]:
    """p = high + low; high has 12 significant bits, so that its product with an exponent is exact in float32."""
    mantissa, exponent = np.frexp(p)
    high = float(np.ldexp(np.round(np.ldexp(mantissa, 12)), int(exponent) - 12))
    return high, p - high


def _constant(like, value) -> ir.Constant:
    return ir.Constant(like, [value] * like.count)


def _call(builder, name: str, *arguments):
    kind = arguments[0].type
    signature = ir.FunctionType(kind, [kind] * len(arguments))
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.v{kind.count}f32")
    return builder.call(function, arguments)


def fma(builder, a, b, c):
    return _call(builder, "fma", a, b, c)


def sqrt(builder, t):
    return _call(builder, "sqrt", t)


def larger(builder, a, b):
    """One instruction, which maxnum is not: b where either is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _clamp(builder, t, low: float, high: float):
    return _call(builder, "minnum", _call(builder, "maxnum", t, _constant(t.type, low)), _constant(t.type, high))


def _polynomial(builder, coefficients: list[float], t):
    total = _constant(t.type, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = fma(builder, total, t, _constant(t.type, coefficient))
    return total


def _scaled(builder, n, w):
    """2^n · 2^w for whole n and |w| ≤ ½."""
    integers = ir.VectorType(ir.IntType(32), n.type.count)
    scale = builder.shl(builder.fptosi(n, integers), _constant(integers, 23))
    mantissa = builder.bitcast(_polynomial(builder, EXP2, w), integers)
    return builder.bitcast(builder.add(mantissa, scale), n.type)


def exp2(builder, a, high, low):
    """2^(a (high + low)) for a ≤ 0, where low is what `high` lacks in float32, and a · high, no lower than `LEAST`.

    Powers of less count as zero, that of −inf among them.
    """
    t = builder.fmul(a, high)
    least = _constant(a.type, LEAST)
    zero = builder.fcmp_ordered("<", t, least)
    t = larger(builder, t, least)
    n = _call(builder, "rint", t)
    w = fma(builder, a, low, fma(builder, a, high, builder.fneg(n)))
    return builder.select(zero, _constant(a.type, 0.0), _scaled(builder, n, w)), t


def power(builder, a, high, low):
    """a^(high + low) for a ≥ 0."""
    floats, integers = a.type, ir.VectorType(ir.IntType(32), a.type.count)
    bits, shift = builder.bitcast(a, integers), _constant(integers, 23)
    exponent = builder.ashr(builder.sub(bits, _constant(integers, HALF_ROOT)), shift)
    mantissa = builder.bitcast(builder.sub(bits, builder.shl(exponent, shift)), floats)
    f = builder.fsub(mantissa, _constant(floats, 1.0))
    e = builder.sitofp(exponent, floats)
    log = builder.fmul(f, _polynomial(builder, LOG2, f))
    fraction = fma(builder, builder.fadd(high, low), log, builder.fmul(low, e))
    n = _clamp(builder, _call(builder, "rint", fma(builder, high, e, fraction)), LEAST, 127.0)
    w = _clamp(builder, builder.fadd(fma(builder, high, e, builder.fneg(n)), fraction), -0.5, 0.5)
    zero = builder.fcmp_ordered("<", a, _constant(floats, TINY))
    return builder.select(zero, _constant(floats, 0.0), _scaled(builder, n, w))


def add_power(builder, total, t, halves: int, high, low):
    """total + |t|^(halves / 2), or total + |t|^(high + low) when halves is 0."""
    a = _call(builder, "fabs", t)
    if halves == 0:
        return builder.fadd(total, power(builder, a, high, low))
    factors = [t] * 2 if halves == 4 else [sqrt(builder, a)] * (halves % 2) + [a] * (halves // 2)
    if len(factors) == 1:
        return builder.fadd(total, factors[0])
    product = factors[0]
    for factor in factors[1:-1]:
        product = builder.fmul(product, factor)
    return fma(builder, product, factors[-1], total)
