"""Products of bytes on the CPU: tiles of whole numbers that the VNNI instruction `vpdpbusd` adds up without rounding.

A tile (see `numba_tile`) holds the bits of 32-bit integers while it accumulates, and scores after `bound`. Four
coordinates of a target make one lane, four of a sample one number spread over the lanes; sums wrap modulo 2³², which
does no harm as long as the final one fits.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import numba_power
from .numba_tile import FEATURES, SHAPE, VECTOR, Tile, _at, _data, _load, _spread

AVAILABLE = SHAPE.width == 16 and bool(FEATURES.get("avx512vnni"))

NUMBER = ir.IntType(32)
NUMBERS = ir.VectorType(NUMBER, SHAPE.width)


def _spread_number(builder, pointer, start, step):
    undefined = ir.Constant(NUMBERS, ir.Undefined)
    first = builder.insert_element(undefined, builder.load(_at(builder, pointer, start, step)), NUMBER(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(NUMBERS, [0] * SHAPE.width))


@intrinsic(prefer_literal=True)
def begin(typing, rows, vectors, start, j):
    """A tile with start[j + l] in every row."""
    tile = Tile(rows.literal_value, vectors.literal_value)

    def generate(context, builder, signature, arguments):
        _, _, array, j = arguments
        pointer = _data(context, builder, start, array)
        lanes = [_load(builder, pointer, j, v * SHAPE.width) for v in range(tile.vectors)]
        value = cgutils.get_null_value(context.get_value_type(tile))
        for place, _, v in tile.places():
            value = builder.insert_value(value, lanes[v], place)
        return value

    return tile(rows, vectors, start, j), generate


@intrinsic
def multiply(typing, tile, x, i, y, j):
    """tile[r, l] + Σ over four bytes of x[i + r], unsigned, times those of y[j + l], signed."""

    def generate(context, builder, signature, arguments):
        value, x_array, i, y_array, j = arguments
        x_data, y_data = _data(context, builder, x, x_array), _data(context, builder, y, y_array)
        # These types are those of every LLVM up to 20; later ones translate the call.
        kind = ir.FunctionType(NUMBERS, [NUMBERS] * 3)
        name = f"llvm.x86.avx512.vpdpbusd.{32 * SHAPE.width}"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        targets = [builder.bitcast(_load(builder, y_data, j, v * SHAPE.width), NUMBERS) for v in range(tile.vectors)]
        for r in range(tile.rows):
            sample = _spread_number(builder, x_data, i, r)
            for v in range(tile.vectors):
                place = r * tile.vectors + v
                total = builder.bitcast(builder.extract_value(value, place), NUMBERS)
                total = builder.bitcast(builder.call(function, [total, sample, targets[v]]), VECTOR)
                value = builder.insert_value(value, total, place)
        return value

    return tile(tile, x, i, y, j), generate


@intrinsic
def bound(typing, tile, rows, i, columns, j, bias):
    """bias[j + l] − rows[0, i + r] · columns[0, j + l] · tile[r, l] − Σ_{k=1,2} rows[k, i + r] · columns[k, j + l]."""

    def generate(context, builder, signature, arguments):
        value, row_array, i, column_array, j, bias_array = arguments
        row_struct = context.make_array(rows)(context, builder, row_array)
        column_struct = context.make_array(columns)(context, builder, column_array)
        row_length, column_length = (cgutils.unpack_tuple(builder, s.shape)[1] for s in (row_struct, column_struct))
        bias_data = _data(context, builder, bias, bias_array)

        def row(k, r):
            start = builder.add(i, builder.mul(row_length, i.type(k)))
            return builder.fneg(_spread(builder, row_struct.data, start, r))

        def column(k, v):
            start = builder.add(j, builder.mul(column_length, j.type(k)))
            return _load(builder, column_struct.data, start, v * SHAPE.width)

        for place, r, v in tile.places():
            total = builder.sitofp(builder.bitcast(builder.extract_value(value, place), NUMBERS), VECTOR)
            score = _load(builder, bias_data, j, v * SHAPE.width)
            score = numba_power.fma(builder, row(0, r), builder.fmul(total, column(0, v)), score)
            for k in (1, 2):
                score = numba_power.fma(builder, row(k, r), column(k, v), score)
            value = builder.insert_value(value, score, place)
        return value

    return tile(tile, rows, i, columns, j, bias), generate


@intrinsic
def store_lowest(typing, tile, out, start):
    """out[start + r] = min_l tile[r, l]."""

    def generate(context, builder, signature, arguments):
        value, array, start = arguments
        pointer = _data(context, builder, out, array)

        def smaller(a, b):
            return builder.select(builder.fcmp_ordered("<", a, b), a, b)

        for r in range(tile.rows):
            low = builder.extract_value(value, r * tile.vectors)
            for v in range(1, tile.vectors):
                low = smaller(low, builder.extract_value(value, r * tile.vectors + v))
            step = SHAPE.width
            while step > 1:
                step //= 2
                order = [(lane + step) % SHAPE.width for lane in range(SHAPE.width)]
                low = smaller(low, builder.shuffle_vector(low, low, ir.Constant(NUMBERS, order)))
            builder.store(builder.extract_element(low, NUMBER(0)), _at(builder, pointer, start, r))
        return context.get_dummy_value()

    return types.void(tile, out, start), generate


DOUBLE, STEP = ir.DoubleType(), 16


def _doubles(builder, pointer, position, kind):
    """Float32 or float64 numbers from `position` on, as `kind`: a double or a vector of them."""
    number = pointer.type.pointee
    source = number if kind == DOUBLE else ir.VectorType(number, kind.count)
    value = builder.load(builder.bitcast(builder.gep(pointer, [position]), source.as_pointer()))
    value.align = 8 if number == DOUBLE else 4
    return value if source == kind else builder.fpext(value, kind)


@intrinsic
def dot(typing, x, i, y, j):
    """Σ_k x[i, k] y[j, k] in float64: sixteen sums, added in pairs, and then the last D mod 16 products."""

    def generate(context, builder, signature, arguments):
        rows = []
        for kind, array, index in zip((x, y), arguments[::2], arguments[1::2], strict=True):
            matrix = context.make_array(kind)(context, builder, array)
            length = cgutils.unpack_tuple(builder, matrix.shape)[1]
            rows.append(builder.gep(matrix.data, [builder.mul(index, length)]))
        vector = ir.VectorType(DOUBLE, STEP)

        def fold(kind, total, begin, end, step):
            sums = cgutils.alloca_once_value(builder, total)
            with cgutils.for_range_slice(builder, begin, end, step) as (k, _):
                product = builder.fmul(*(_doubles(builder, row, k, kind) for row in rows))
                builder.store(builder.fadd(builder.load(sums), product), sums)
            return builder.load(sums)

        whole = builder.and_(length, length.type(-STEP))
        lanes = fold(vector, cgutils.get_null_value(vector), length.type(0), whole, length.type(STEP))
        half = STEP // 2
        while half:
            order = ir.Constant(ir.VectorType(NUMBER, STEP), [(lane + half) % STEP for lane in range(STEP)])
            lanes = builder.fadd(lanes, builder.shuffle_vector(lanes, lanes, order))
            half //= 2
        return fold(DOUBLE, builder.extract_element(lanes, NUMBER(0)), whole, length, length.type(1))

    return types.float64(x, i, y, j), generate
