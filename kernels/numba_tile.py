"""A tile of scores held in vector registers, as a value that numba code can pass around.

A tile is rows × vectors registers of `SHAPE.width` float32 lanes: one row per sample, one lane per target. numba has
no vector type, and a loop over arrays reaches such code only when LLVM happens to guess it, so each operation here
writes its LLVM instructions itself. No fast-math flag is used anywhere: an infinite bias is an ordinary value, and
every sum has one fixed order.

For p = 1 differences are taken as fma(x, one, −y) with `one` read from memory, which rounds exactly as x − y does: the
multiplier pipes then share the work of the adder pipes, the scarce ones in a sum of absolute differences.
"""

import functools
import platform
from typing import NamedTuple

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from . import numba_power


class Shape(NamedTuple):
    """Lanes of a register, and the registers of a full tile."""

    width: int
    rows: int
    vectors: int

    @property
    def lanes(self) -> int:
        return self.width * self.vectors


# By the widest vector unit; docs/performance.md has the measurements for AVX-512. A tile leaves room in the register
# file (32, 16 and 32 registers) for its row of targets, one sample, the constants and a temporary.
SHAPES = {"avx512f": Shape(16, 8, 3), "avx2": Shape(8, 4, 2), "other": Shape(4, 6, 4)}
FEATURES = binding.get_host_cpu_features()
SHAPE = SHAPES[next((name for name in SHAPES if FEATURES.get(name)), "other")]
FUSED = platform.machine().lower() not in ("x86_64", "amd64") or bool(FEATURES.get("fma"))

FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, SHAPE.width)


class Tile(types.Type):
    """numba's type of a tile of `rows` × `vectors` registers."""

    def __init__(self, rows: int, vectors: int):
        self.rows, self.vectors = rows, vectors
        super().__init__(name=f"Tile({rows}, {vectors})")

    def places(self):
        """(number, row, vector) of each register."""
        return ((r * self.vectors + v, r, v) for r in range(self.rows) for v in range(self.vectors))


@register_model(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager, tile):
        super().__init__(manager, tile, ir.ArrayType(VECTOR, tile.rows * tile.vectors))


def _data(context, builder, array_type, array):
    return context.make_array(array_type)(context, builder, array).data


def _at(builder, pointer, start, step):
    return builder.gep(pointer, [builder.add(start, start.type(step))])


def _load(builder, pointer, start, step):
    value = builder.load(builder.bitcast(_at(builder, pointer, start, step), VECTOR.as_pointer()))
    value.align = 4
    return value


def _spread(builder, pointer, start, step):
    """One float32 in every lane."""
    undefined, number = ir.Constant(VECTOR, ir.Undefined), ir.IntType(32)
    first = builder.insert_element(undefined, builder.load(_at(builder, pointer, start, step)), number(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(number, SHAPE.width), [0] * SHAPE.width))


@intrinsic(prefer_literal=True)
def zeros(typing, rows, vectors):
    """A tile of zeros; both sizes are compile-time constants."""
    tile = Tile(rows.literal_value, vectors.literal_value)

    def generate(context, builder, signature, arguments):
        return cgutils.get_null_value(context.get_value_type(tile))

    return tile(rows, vectors), generate


@intrinsic(prefer_literal=True)
def accumulate(typing, tile, x, i, y, j, constants, halves):
    """tile[r, l] + |x[i + r] − y[j + l]|^p; `halves` is 2p at compile time, or 0 for the p in `constants`."""

    def generate(context, builder, signature, arguments):
        value, x_array, i, y_array, j, constant_array, _ = arguments
        x_data, y_data = _data(context, builder, x, x_array), _data(context, builder, y, y_array)
        pointer = _data(context, builder, constants, constant_array)
        one, high, low = (_spread(builder, pointer, i.type(0), step) for step in range(3))
        targets = [_load(builder, y_data, j, v * SHAPE.width) for v in range(tile.vectors)]
        for r in range(tile.rows):
            sample = _spread(builder, x_data, i, r)
            for v in range(tile.vectors):
                place = r * tile.vectors + v
                if halves.literal_value == 2:
                    difference = numba_power.fma(builder, sample, one, builder.fneg(targets[v]))
                else:
                    difference = builder.fsub(sample, targets[v])
                total = builder.extract_value(value, place)
                total = numba_power.add_power(builder, total, difference, halves.literal_value, high, low)
                value = builder.insert_value(value, total, place)
        return value

    return tile(tile, x, i, y, j, constants, halves), generate


@intrinsic
def plus(typing, tile, other):
    """tile + other."""

    def generate(context, builder, signature, arguments):
        value, addend = arguments
        for place, _, _ in tile.places():
            total = builder.fadd(builder.extract_value(value, place), builder.extract_value(addend, place))
            value = builder.insert_value(value, total, place)
        return value

    return tile(tile, other), generate


@intrinsic(prefer_literal=True)
def root(typing, tile, constants, degree):
    """tile^(1/p): unchanged for degree 0, the square root for 2, and by the 1/p in `constants` for 1."""

    def generate(context, builder, signature, arguments):
        value, constant_array, _ = arguments
        if degree.literal_value == 0:
            return value
        pointer, start = _data(context, builder, constants, constant_array), ir.IntType(64)(3)
        high, low = _spread(builder, pointer, start, 0), _spread(builder, pointer, start, 1)
        for place, _, _ in tile.places():
            total = builder.extract_value(value, place)
            if degree.literal_value == 2:
                total = numba_power.sqrt(builder, total)
            else:
                total = numba_power.power(builder, total, high, low)
            value = builder.insert_value(value, total, place)
        return value

    return tile(tile, constants, degree), generate


@intrinsic
def add_bias(typing, tile, bias, j):
    """tile[r, l] + bias[j + l]."""

    def generate(context, builder, signature, arguments):
        value, array, j = arguments
        pointer = _data(context, builder, bias, array)
        column = [_load(builder, pointer, j, v * SHAPE.width) for v in range(tile.vectors)]
        for place, _, v in tile.places():
            value = builder.insert_value(value, builder.fadd(builder.extract_value(value, place), column[v]), place)
        return value

    return tile(tile, bias, j), generate


def _rows_below(builder, tile, value, pointer, i):
    """For each row, the lanes whose lowest register is below best[i + r], as booleans."""
    for r in range(tile.rows):
        lowest = builder.extract_value(value, r * tile.vectors)
        for v in range(1, tile.vectors):
            lane = builder.extract_value(value, r * tile.vectors + v)
            lowest = builder.select(builder.fcmp_ordered("<", lane, lowest), lane, lowest)
        yield builder.fcmp_ordered("<", lowest, _spread(builder, pointer, i, r))


def _any(builder, lanes):
    bits = builder.bitcast(lanes, ir.IntType(SHAPE.width))
    return builder.icmp_unsigned("!=", bits, bits.type(0))


@intrinsic
def any_below(typing, tile, best, i):
    """Whether some tile[r, l] < best[i + r]."""

    def generate(context, builder, signature, arguments):
        value, array, i = arguments
        rows = _rows_below(builder, tile, value, _data(context, builder, best, array), i)
        return _any(builder, functools.reduce(builder.or_, rows))

    return types.boolean(tile, best, i), generate


@intrinsic
def rows_below(typing, tile, best, i):
    """An integer whose bit r says whether some tile[r, l] < best[i + r]."""

    def generate(context, builder, signature, arguments):
        value, array, i = arguments
        rows = _rows_below(builder, tile, value, _data(context, builder, best, array), i)
        bits = [builder.zext(_any(builder, row), ir.IntType(64)) for row in rows]
        return functools.reduce(builder.or_, [builder.shl(bit, bit.type(r)) for r, bit in enumerate(bits)])

    return types.int64(tile, best, i), generate


@intrinsic
def store(typing, tile, out, start, stride):
    """out[start + r · stride + l] = tile[r, l]."""

    def generate(context, builder, signature, arguments):
        value, array, start, stride = arguments
        pointer = _data(context, builder, out, array)
        for place, r, v in tile.places():
            row = builder.add(start, builder.mul(stride, stride.type(r)))
            address = builder.bitcast(_at(builder, pointer, row, v * SHAPE.width), VECTOR.as_pointer())
            builder.store(builder.extract_value(value, place), address).align = 4
        return context.get_dummy_value()

    return types.void(tile, out, start, stride), generate
