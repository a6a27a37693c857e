"""Sums over the coordinates of one pair in float64, in one order: the same bits wherever they are called."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

DOUBLE, STEP = ir.DoubleType(), 16


def _doubles(builder, pointer, position, kind):
    """Float32 or float64 numbers from `position` on, as `kind`: a double or a vector of them."""
    number = pointer.type.pointee
    source = number if kind == DOUBLE else ir.VectorType(number, kind.count)
    value = builder.load(builder.bitcast(builder.gep(pointer, [position]), source.as_pointer()))
    value.align = 8 if number == DOUBLE else 4
    return value if source == kind else builder.fpext(value, kind)


def _sum(term):
    """Σ_k term(x[i, k], y[j, k]) in float64: sixteen sums, added in pairs, and then the last D mod 16 terms."""

    @intrinsic
    def total(typing, x, i, y, j):
        def generate(context, builder, signature, arguments):
            rows = []
            for kind, array, index in zip((x, y), arguments[::2], arguments[1::2], strict=True):
                matrix = context.make_array(kind)(context, builder, array)
                length = cgutils.unpack_tuple(builder, matrix.shape)[1]
                rows.append(builder.gep(matrix.data, [builder.mul(index, length)]))
            vector, lane = ir.VectorType(DOUBLE, STEP), ir.IntType(32)

            def fold(kind, first, begin, end, step):
                sums = cgutils.alloca_once_value(builder, first)
                with cgutils.for_range_slice(builder, begin, end, step) as (k, _):
                    added = term(builder, *(_doubles(builder, row, k, kind) for row in rows))
                    builder.store(builder.fadd(builder.load(sums), added), sums)
                return builder.load(sums)

            whole = builder.and_(length, length.type(-STEP))
            lanes = fold(vector, cgutils.get_null_value(vector), length.type(0), whole, length.type(STEP))
            half = STEP // 2
            while half:
                order = ir.Constant(ir.VectorType(lane, STEP), [(place + half) % STEP for place in range(STEP)])
                lanes = builder.fadd(lanes, builder.shuffle_vector(lanes, lanes, order))
                half //= 2
            return fold(DOUBLE, builder.extract_element(lanes, lane(0)), whole, length, length.type(1))

        return types.float64(x, i, y, j), generate

    return total


def _absolute(builder, x, y):
    difference = builder.fsub(x, y)
    kind = difference.type
    name = "llvm.fabs.f64" if kind == DOUBLE else f"llvm.fabs.v{kind.count}f64"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), name)
    return builder.call(function, [difference])


dot = _sum(lambda builder, x, y: builder.fmul(x, y))
distance = _sum(_absolute)
