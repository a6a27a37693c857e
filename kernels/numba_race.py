"""The race of `philox` compiled for the CPU: the same draws, with noise only where it can matter.

The first 32 bits h of a number bound its noise, since U ≥ h / 2³² and −log(1 − U) ≥ U:

    G ≤ −log(h / 2³²) ≤ log 2 · (32 − e − f),    h = 2^e (1 + f),

and e + f is what the bits of float32(h) say when they are read as an integer. A target whose score less ε times that
bound stays above the best so far cannot win; of N targets a few times log N are left, which get their other 32 bits and
two logarithms in float64. A block in which no score is within ε · `LARGEST` of the best gets no noise at all.
"""

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from .cached import compiled
from .philox import LARGEST, MASK, MULTIPLIERS, ROUNDS, WEYL
from .threads import share

GROUP = 64  # targets that are looked at together
TASK_SCORES = 2**16  # worth a task

WORD = np.uint64
LOW, HALF, ZERO, ONE = WORD(MASK), WORD(32), WORD(0), WORD(1)
MULTIPLIER_0, MULTIPLIER_1, WEYL_0, WEYL_1 = map(WORD, (*MULTIPLIERS, *WEYL))

# log 2 · (32 − e − f) from the bits b of float32(h): e + f = b / 2²³ − 127. What is added covers h's rounding.
SLOPE = math.log(2) * 2.0**-23
START = math.log(2) * (32 + 127) + 1e-4


@njit(inline="always")
def philox(target, pair, key):
    """Four words of 32 bits, in 64-bit numbers, which LLVM multiplies in vectors."""
    c0, c1, c2, c3 = target & LOW, target >> HALF, pair, ZERO
    key_0, key_1 = key
    for _ in range(ROUNDS):
        p, q = MULTIPLIER_0 * c0, MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (q >> HALF) ^ c1 ^ key_0, q & LOW, (p >> HALF) ^ c3 ^ key_1, p & LOW
        key_0, key_1 = (key_0 + WEYL_0) & LOW, (key_1 + WEYL_1) & LOW
    return c0, c1, c2, c3


@njit(inline="always")
def unit(high, low):
    return (np.float64(high) * 2.0**32 + np.float64(low) + 0.5) * 2.0**-64


@njit
def gumbel(row, target, key):
    """G of `philox.gumbel`, to the bit but for the logarithms' own last one."""
    c0, c1, c2, c3 = philox(WORD(target), WORD(row) >> ONE, key)
    high, low = (c2, c3) if row & 1 else (c0, c1)
    u = unit(high, low)
    return -math.log(-(math.log1p(-u) if u < 0.5 else math.log(unit(LOW - high, LOW - low))))


@njit(nogil=True)
def leading_words(first, count, pair, key, even, odd):
    """h of `count` targets for the two rows of a pair, as float32."""
    for j in range(count):
        c0, _, c2, _ = philox(WORD(first + j), pair, key)
        even[j], odd[j] = np.float32(c0), np.float32(c2)


@njit(nogil=True)
def within(score, limit):
    """Whether a score lies at or below the limit; a NaN, from infinite scores and limits, does not."""
    count = 0
    for j in range(score.size):
        count += score[j] <= limit
    return count > 0


@njit(nogil=True)
def possible(score, bits, epsilon, best):
    """Whether a score less its bound of the noise lies at or below the best."""
    count = 0
    for j in range(score.size):
        count += score[j] - epsilon * (START - SLOPE * bits[j]) <= best
    return count > 0


@compiled()
def race_rows(score, stride, width, begin, end, first, epsilon, key, value, index):
    """Rows begin ≤ i < end, begin even, of scores with `stride` between rows."""
    words = np.empty((2, GROUP), np.float32)
    bits = words.view(np.int32)
    for pair in range(begin // 2, (end + 1) // 2):
        for start in range(0, width, GROUP):
            count, ready = min(GROUP, width - start), False
            for i in range(2 * pair, min(2 * pair + 2, end)):
                group = score[i * stride + start : i * stride + start + count]
                if not within(group, value[i] + epsilon * LARGEST):
                    continue
                if not ready:
                    leading_words(first + start, count, WORD(pair), key, words[0], words[1])
                    ready = True
                if possible(group, bits[i & 1], epsilon, value[i]):
                    compete(group, bits[i & 1], i, first + start, epsilon, key, value, index)


@njit(nogil=True)
def compete(score, bits, i, first, epsilon, key, value, index):
    """Let the targets of a group in, with all bits of their noise."""
    for j in range(score.size):
        if score[j] - epsilon * (START - SLOPE * bits[j]) <= value[i] and score[j] < np.inf:
            noisy = score[j] - epsilon * gumbel(i, first + j, key)
            if noisy < value[i]:
                value[i], index[i] = noisy, first + j


def race(score: Tensor, first: int, epsilon: float, seed: Tensor, value: Tensor, index: Tensor) -> None:
    """`philox.race`, its rows shared out over torch's threads."""
    rows, width = score.shape
    if rows == 0:
        return
    if score.dtype not in (torch.float32, torch.float64):  # numpy has no bfloat16
        score = score.float()
    if score.stride(1) != 1:
        score = score.contiguous()
    stride = score.stride(0)
    flat = score.as_strided(((rows - 1) * stride + width,), (1,)).numpy()
    key = WORD(int(seed) & MASK), WORD(int(seed) >> 32 & MASK)
    rest = float(epsilon), key, value.numpy(), index.numpy()
    tasks = max(1, min(-(-rows // 2), rows * width // TASK_SCORES, 4 * torch.get_num_threads()))
    step = -(-rows // (2 * tasks)) * 2

    def run(task: int) -> None:
        race_rows(flat, stride, width, task * step, min(rows, (task + 1) * step), first, *rest)

    share(run, -(-rows // step))
