"""The sums of `lists` compiled for the CPU: one pass over memory, with a block of rows in the cache.

The differences u of a block of lists are put side by side, a row a lane, so that the largest m, the sum of

    exp((u − m) / τ) = 2^(c (u − m)),    c = log2(e) / τ in two numbers, so that the exponent is as exact as u − m,

and the division by it take no step across lanes. Rows that share their targets have a lane for a target instead. Rows
go in chunks, whose number depends on the sizes alone, each with masses of its own that are added in order: the results
have the same bits whatever the number of threads.
"""

import math

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from . import numba_power
from .cached import compiled
from .numba_tile import SHAPE, VECTOR, _data, _load
from .threads import share

LANES = SHAPE.width
ROWS = 2 * LANES  # of a block
CHUNK, CHUNKS = 2**16, 32  # entries worth a chunk, and the most of them
PER_MASS = 4  # entries of a chunk for each of its masses, so that adding them up costs little
HUGE = 3e38  # in place of inf where inf − inf or 0 · inf would follow


def _spread(builder, number):
    """One float32 in every lane."""
    kind = ir.VectorType(ir.IntType(32), LANES)
    first = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), number, kind.element(0))
    return builder.shuffle_vector(first, first, ir.Constant(kind, None))


def _fold(builder, combine, lanes):
    """All lanes combined in pairs, in every lane."""
    step = LANES
    while step > 1:
        step //= 2
        order = [(lane + step) % LANES for lane in range(LANES)]
        order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), order)
        lanes = combine(lanes, builder.shuffle_vector(lanes, lanes, order))
    return lanes


def _softmax(across: bool):
    """An intrinsic for the softmax of registers, lane by lane or across the lanes."""

    @intrinsic
    def softmax(typing, block, start, stop, step, high, low, sums):
        """The registers at start, start + step … < stop to their softmax with c = high + low.

        Rows of `sums` become m, Σ e and (Σ e log2 e) / Σ e for e = 2^(c (u − m)).
        """

        def generate(context, builder, signature, arguments):
            block_array, start, stop, step, high, low, sums_array = arguments
            data, out = _data(context, builder, block, block_array), _data(context, builder, sums, sums_array)
            high, low = _spread(builder, high), _spread(builder, low)

            def registers():
                return cgutils.for_range_slice(builder, start, stop, step)

            def keep(value, pointer, place):
                builder.store(value, builder.bitcast(builder.gep(pointer, [place]), VECTOR.as_pointer())).align = 4

            def larger(a, b):
                return numba_power.larger(builder, a, b)

            def fold(combine, lanes):
                return _fold(builder, combine, builder.load(lanes)) if across else builder.load(lanes)

            least, lowest, zero, one = (ir.Constant(VECTOR, [v] * LANES) for v in (-math.inf, -HUGE, 0.0, 1.0))
            top, total, moment = (cgutils.alloca_once_value(builder, v) for v in (least, zero, zero))
            with registers() as (at, _):
                builder.store(larger(builder.load(top), _load(builder, data, at, 0)), top)
            largest = fold(larger, top)
            finite = larger(largest, lowest)
            with registers() as (at, _):
                u = builder.fsub(_load(builder, data, at, 0), finite)
                power, exponent = numba_power.exp2(builder, u, high, low)
                keep(power, data, at)
                builder.store(builder.fadd(builder.load(total), power), total)
                builder.store(numba_power.fma(builder, power, exponent, builder.load(moment)), moment)
            parts = [fold(builder.fadd, lanes) for lanes in (total, moment)]
            part = builder.fdiv(one, larger(parts[0], one))  # less only where all weights of a row are zero
            with registers() as (at, _):
                keep(builder.fmul(_load(builder, data, at, 0), part), data, at)
            for number, result in enumerate((largest, parts[0], builder.fmul(parts[1], part))):
                keep(result, out, start.type(number * LANES))
            return context.get_dummy_value()

        return types.void(block, start, stop, step, high, low, sums), generate

    return softmax


softmax_of_lanes, softmax_across_lanes = _softmax(False), _softmax(True)


@njit(inline="always")
def add_sums(sums, count, found):
    """Adds the sums of so many rows to `found`; of Σ e the logarithm."""
    largest, product, moment = 0.0, 1.0, 0.0
    for lane in range(count):
        largest += sums[0, lane]
        product *= max(np.float64(sums[1, lane]), 1.0)
        moment += sums[2, lane]
    found[0] += largest
    found[1] += math.log(product)
    found[2] += moment


@compiled()
def listed_rows(score, index, shift, high, low, begin, end, found, mass):
    """Adds what rows begin ≤ i < end with a list each have to `found`, see `add_sums`, and to the masses."""
    k = score.shape[1]
    block, sums = np.zeros(k * ROWS, np.float32), np.empty((3, LANES), np.float32)
    for first in range(begin, end, ROWS):
        rows = min(ROWS, end - first)
        for r in range(rows):
            scores, targets = score[first + r], index[first + r]
            for j in range(k):
                block[j * ROWS + r] = shift[targets[j]] - scores[j]
        for lane in range(0, rows, LANES):
            softmax_of_lanes(block, lane, k * ROWS, ROWS, high, low, sums)
            add_sums(sums, min(LANES, rows - lane), found)
        for r in range(rows):
            targets = index[first + r]
            for j in range(k):
                mass[targets[j]] += block[j * ROWS + r]


@compiled()
def whole_rows(score, index, shift, high, low, begin, end, found, mass):
    """`listed_rows` where every row has all of the targets, in order; index is not read."""
    k = score.shape[1]
    width = -(-k // LANES) * LANES
    block, sums = np.empty(width, np.float32), np.empty((3, LANES), np.float32)
    for i in range(begin, end):
        scores = score[i]
        for j in range(k):
            block[j] = shift[j] - scores[j]
        for j in range(k, width):
            block[j] = -np.inf
        softmax_across_lanes(block, 0, width, LANES, high, low, sums)
        add_sums(sums, 1, found)
        for j in range(k):
            mass[j] += block[j]


def chunks(rows: int, k: int, n: int) -> tuple[int, int]:
    """How many chunks of how many rows, whatever the number of threads."""
    count = max(1, min(CHUNKS, rows * k // max(CHUNK, PER_MASS * n)))
    size = max(1, -(-rows // count))
    return -(-rows // size), size


def soft(score: Tensor, index: Tensor | None, shift: Tensor, temperature: float) -> tuple[float, float, Tensor]:
    (rows, k), n = score.shape, shift.numel()
    count, size = chunks(rows, k, n)
    c = min(math.log2(math.e) / temperature, HUGE)
    high = np.float32(c)
    low = np.float32(c - float(high))
    # Unsigned, for which no check is compiled; without rows where all targets are listed in order.
    targets = np.empty((0, k), np.uint32) if index is None else index.contiguous().numpy().view(np.uint32)
    operands = score.contiguous().numpy(), targets, shift.contiguous().numpy(), high, low
    mass, found = np.zeros((count, n)), np.zeros((count, 3))
    kernel = whole_rows if index is None else listed_rows

    def run(task: int) -> None:
        kernel(*operands, task * size, min(rows, (task + 1) * size), found[task], mass[task])

    share(run, count)
    largest, logarithm, moment = found.sum(0).tolist()
    value, entropy = largest + temperature * logarithm, logarithm - math.log(2) * moment
    return value, entropy, torch.from_numpy(mass.sum(0))
