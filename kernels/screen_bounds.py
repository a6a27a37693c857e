"""What the certified screens of every form share: sizes, caution against rounding, and threads.

A part of the screen is a module for one form. It offers

    ROWS, LANES                       samples and targets of a full tile
    refusal(form, d)                  why it cannot run, or None
    prepare(y, form)                  the layout of the targets: y first
    finer(x, layout)                  a function that makes one with closer bounds for these samples, or None
    exact(x, i, y, j, scale, bias)    the float64 score of one pair, compiled, the same bits wherever it is called
    compile_bounds(rows)              bounds(height, samples, i, targets, panel), compiled: a tile of float32 L_ij
    code(x, layout, bias, form, rows, safety)    `Bounds` of a batch, in groups of `rows` samples

such that exact_ij ≥ L_ij + offset_i for every row that is certain. docs/certificate.md has the proofs.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numba import njit

from . import streaming
from .rounding import ROUNDING, UNDERFLOW
from .threads import share

FLOATS = (torch.float32, torch.float64)

FINITE = 2.0**126  # no bound starts above it, so that none overflows; only an infinite bias does

TASKS = 8  # a thread
ENCODED = 2**20  # coordinates worth a task


class Bounds(NamedTuple):
    """A batch and the targets in codes, as a part's `bounds` takes them.

    samples, targets: tuples of arrays; offset [B] in float64; certain [B], where the bounds hold; words: of a vector.
    """

    samples: tuple[np.ndarray, ...]
    targets: tuple[np.ndarray, ...]
    offset: np.ndarray
    certain: np.ndarray
    words: int


def padded(count: int, width: int) -> int:
    return -(-count // width) * width


def cut(count: int, tasks: int, times: int = 1) -> list[tuple[int, int]]:
    """Spans of 0 … count − 1: as many as tasks are worth, and at most `TASKS` a thread when each is used `times`."""
    most = -(-min(TASKS * torch.get_num_threads(), tasks) // times)
    return list(streaming.blocks(count, -(-count // max(1, most))))


def each(spans: list[tuple[int, int]], run: Callable[[int, int], None]) -> None:
    """run(first, last) for every span, by all threads."""
    share(lambda task: run(*spans[task]), len(spans))


def spans_of(n: int, d: int) -> list[tuple[int, int]]:
    return list(streaming.blocks(n, max(1, ENCODED // max(1, d))))


@njit(inline="always")
def cautious(start):
    """A number that a bound in float32 may start from: less than `start` by all that rounding may add."""
    return np.float32(min(start - ROUNDING * abs(start) - UNDERFLOW, FINITE) if start < np.inf else np.inf)
