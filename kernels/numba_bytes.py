"""Products and distances of bytes on the CPU, in tiles of whole numbers that add up without rounding.

A tile (see `numba_tile`) holds the bits of integers while it accumulates, and scores after `bound` or `measure`.

Products (`vpdpbusd`, VNNI): four coordinates of a target make one lane of 32 bits, four of a sample one number spread
over the lanes; sums wrap modulo 2³², which does no harm as long as the final one fits.

Distances (`vpsadbw`, AVX-512BW): eight coordinates make one lane of 64 bits, so a tile has twice the registers until
`measure` puts pairs of them together: the lanes of an even one become the even lanes of 32 bits.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import numba_power
from .numba_tile import FEATURES, SHAPE, VECTOR, Tile, _at, _data, _load, _spread

MULTIPLIES = SHAPE.width == 16 and bool(FEATURES.get("avx512vnni"))
MEASURES = SHAPE.width == 16 and bool(FEATURES.get("avx512bw"))

NUMBER, WORD, BYTE = ir.IntType(32), ir.IntType(64), ir.IntType(8)
NUMBERS, WORDS, BYTES = (ir.VectorType(kind, 32 * SHAPE.width // kind.width) for kind in (NUMBER, WORD, BYTE))


def _spread_number(builder, pointer, start, step):
    """One whole number in every lane."""
    number = builder.load(_at(builder, pointer, start, step))
    lanes = 32 * SHAPE.width // number.type.width
    undefined = ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, number, NUMBER(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(NUMBER, lanes), [0] * lanes))


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
def differ(typing, tile, x, i, y, j):
    """tile[r, l] + Σ over eight bytes of |x[i + r] − y[j + l]|, all unsigned, in lanes of 64 bits."""

    def generate(context, builder, signature, arguments):
        value, x_array, i, y_array, j = arguments
        x_data, y_data = _data(context, builder, x, x_array), _data(context, builder, y, y_array)
        name = f"llvm.x86.avx512.psad.bw.{32 * SHAPE.width}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(WORDS, [BYTES] * 2), name)
        targets = [builder.bitcast(_load(builder, y_data, j, v * WORDS.count), BYTES) for v in range(tile.vectors)]
        for r in range(tile.rows):
            sample = builder.bitcast(_spread_number(builder, x_data, i, r), BYTES)
            for v in range(tile.vectors):
                place = r * tile.vectors + v
                total = builder.bitcast(builder.extract_value(value, place), WORDS)
                total = builder.add(total, builder.call(function, [sample, targets[v]]))
                value = builder.insert_value(value, builder.bitcast(total, VECTOR), place)
        return value

    return tile(tile, x, i, y, j), generate


@intrinsic
def measure(typing, tile, unit, bias, j):
    """bias[j + l] + unit[0] · tile[r, l], for a tile in lanes of 64 bits, where the result has lanes of 32."""
    result = Tile(tile.rows, tile.vectors // 2)

    def generate(context, builder, signature, arguments):
        value, unit_array, bias_array, j = arguments
        factor = _spread(builder, _data(context, builder, unit, unit_array), j.type(0), 0)
        bias_data = _data(context, builder, bias, bias_array)
        scores = cgutils.get_null_value(context.get_value_type(result))
        for place, r, v in result.places():
            even, odd = (
                builder.bitcast(builder.extract_value(value, r * tile.vectors + 2 * v + half), WORDS) for half in (0, 1)
            )
            both = builder.or_(even, builder.shl(odd, ir.Constant(WORDS, [32] * WORDS.count)))
            total = builder.sitofp(builder.bitcast(both, NUMBERS), VECTOR)
            score = numba_power.fma(builder, factor, total, _load(builder, bias_data, j, v * SHAPE.width))
            scores = builder.insert_value(scores, score, place)
        return scores

    return result(tile, unit, bias, j), generate


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
