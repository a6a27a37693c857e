"""The k smallest values of `smallest` on the CPU: a list of each row or column, which few values enter.

A value is compared with the largest that a list has to hold, many at a time, and after the first few blocks hardly one
is below it.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from . import streaming
from .cached import compiled
from .threads import share

CHUNK = 32  # values compared before one of them is looked at
TASK = 2**18  # values worth a task
NONE = np.int64(0x7F800000 << 32)  # the key of an infinite score


@njit(inline="always")
def keep(score, j, best, index):
    """Insert a score below the last of `best`, which ascends, behind those that equal it."""
    place = best.size - 1
    while place > 0 and best[place - 1] > score:
        best[place], index[place] = best[place - 1], index[place - 1]
        place -= 1
    best[place], index[place] = score, j


@njit(inline="always")
def select(keys, count, k):
    """Put the k smallest of the first `count` keys in front, the largest of them last. No two are equal."""
    low, high, last = 0, count - 1, k - 1
    while low < high:
        middle = (low + high) // 2
        a, b, c = keys[low], keys[middle], keys[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while keys[i] < pivot:
                i += 1
            while keys[j] > pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                i += 1
                j -= 1
        if last <= j:
            high = j
        elif last >= i:
            low = i
        else:
            break


@compiled()
def fold_rows(score, bits, stride, n, first, begin, end, k, keys, counts, lasts):
    """Append to the keys of rows begin ≤ i < end what lies below the k-th smallest, as it was when they last filled up.

    score [B, n] are the targets from `first` on, and bits the same numbers. A key is a score's bits in the order of
    whole numbers, and its target, 32 bits each.
    """
    for i in range(begin, end):
        mine, row, count, last = keys[i], i * stride, counts[i], lasts[i]
        for start in range(0, n, CHUNK):
            part, below = score[row + start : row + min(start + CHUNK, n)], np.int32(0)
            for c in range(part.size):
                below += np.int32(part[c] < last)
            if below:
                for c in range(part.size):  # without a branch, since which of them are below cannot be foretold
                    order = np.int64(bits[row + start + c]) if part[c] != 0 else np.int64(0)  # one zero of two
                    mine[count] = (order ^ 0x7FFFFFFF if order < 0 else order) << 32 | (first + start + c)
                    count += part[c] < last
                if count >= keys.shape[1] - CHUNK:
                    select(mine, count, k)
                    count, order = k, np.int32(mine[k - 1] >> 32)
                    last = np.int32(order ^ 0x7FFFFFFF if order < 0 else order).view(np.float32)
        counts[i], lasts[i] = count, last


@compiled()
def first_keys(keys, counts, k, begin, end, out):
    """The k smallest keys of each row, in any order; where there are fewer the rest is left as it is."""
    for i in range(begin, end):
        if counts[i] > k:
            select(keys[i], counts[i], k)
        for c in range(min(counts[i], k)):
            out[i, c] = keys[i, c]


@compiled()
def fold_columns(score, stride, rows, value, first, begin, end, least):
    """score_ij − value_i of columns begin ≤ j < end, the targets from `first` on, into their lists, least [k, N]."""
    most = least.shape[0] - 1
    for i in range(rows):
        v = value[i]
        for start in range(begin, end, CHUNK):
            stop = min(start + CHUNK, end)
            part, largest = score[i * stride + start : i * stride + stop], least[most, first + start : first + stop]
            below = np.int32(0)
            for c in range(part.size):
                below += np.int32(part[c] - v < largest[c])
            if below:
                for c in range(part.size):
                    if part[c] - v < largest[c]:
                        place, j = most, first + start + c
                        while place > 0 and least[place - 1, j] > part[c] - v:
                            least[place, j] = least[place - 1, j]
                            place -= 1
                        least[place, j] = part[c] - v


def fill(index: np.ndarray) -> None:
    """Where a list [B, k] has fewer entries than places (−1, at its end), the smallest other indices, in order."""
    for i in np.flatnonzero(index[:, -1] < 0):
        found = index[i][index[i] >= 0]
        index[i, found.size :] = np.setdiff1d(np.arange(index.shape[1]), found)[: index.shape[1] - found.size]


def flat(score: Tensor) -> tuple[np.ndarray, int]:
    """The values of a matrix in one row, and how many lie between the rows of the matrix."""
    score = score if score.stride(1) == 1 else score.contiguous()
    length = (score.shape[0] - 1) * score.stride(0) + score.shape[1] if score.numel() else 0
    return score.as_strided((length,), (1,)).numpy(), score.stride(0)


def tasks(count: int, width: int) -> list[tuple[int, int]]:
    """Spans of so many rows or columns of `width` values each."""
    return list(streaming.blocks(count, max(CHUNK, TASK // max(1, width))))


def rows(scores: streaming.Scores, k: int) -> tuple[Tensor, Tensor]:
    """As in `smallest`, for float32."""
    keys = None
    for first, last, score in scores:
        batch = score.shape[0]
        if keys is None:
            keys = np.empty((batch, 2 * k + 2 * CHUNK + 1), np.int64)
            counts, lasts = np.zeros(batch, np.int64), np.full(batch, np.inf, np.float32)
        numbers, stride = flat(score)
        data = numbers, numbers.view(np.int32), stride, last - first, first
        spans = tasks(batch, last - first)
        share(lambda task: fold_rows(*data, *spans[task], k, keys, counts, lasts), len(spans))  # noqa: B023
    found, spans = np.full((batch, k), NONE), tasks(batch, 8 * k)

    def finish(task: int) -> None:
        first_keys(keys, counts, k, *spans[task], found)
        found[slice(*spans[task])].sort(axis=1)  # numba's own sort takes seconds to compile

    share(finish, len(spans))
    order = (found >> 32).astype(np.int32)
    value = np.where(order < 0, order ^ 0x7FFFFFFF, order).view(np.float32)
    index = np.where(found == NONE, -1, found & 0xFFFFFFFF)
    fill(index)
    return torch.from_numpy(value), torch.from_numpy(index)


def columns(least: Tensor, first: int, score: Tensor, value: Tensor) -> None:
    batch, n = score.shape
    spans, data, lists = tasks(n, batch), (*flat(score), batch, value.contiguous().numpy(), first), least.numpy()
    share(lambda task: fold_columns(*data, *spans[task], lists), len(spans))
