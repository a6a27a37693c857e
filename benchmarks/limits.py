"""What this machine can do at most, measured: bytes read, float32 products, additions, and products of bytes a second.

The argmin of N targets of D coordinates for B samples needs at the least one read of the targets as they are stored and
B·N·D products, for l1 2·B·N·D additions (the difference and the sum).
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from numba import njit

from fastsdot.kernels import Form, numba_bytes, numba_tile, refusal
from fastsdot.kernels.threads import share

READ = 2**27  # float32 values in the read: 512 MiB, more than any cache
SIDE = 3072  # of the square product of matrices
STEPS = 2**21  # of the loops over registers
TRIES = 5
ROWS, VECTORS, LANES = numba_tile.SHAPE.rows, numba_tile.SHAPE.vectors, numba_tile.SHAPE.lanes
CHAINS = max(1, ROWS // 2)  # rows of a tile that is added to, so that it and its term fit the registers


def best(run: Callable[[], object]) -> float:
    """The shortest of a few calls after the first, in seconds."""
    run()
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def bandwidth() -> float:
    values = torch.ones(READ)
    return 4 * READ / best(values.sum)


def float32_products() -> float:
    a, b = torch.randn(2, SIDE, SIDE)
    out = torch.empty(SIDE, SIDE)
    return SIDE**3 / best(lambda: torch.mm(a, b, out=out))


@njit(nogil=True)
def _add(values, steps, out):
    total = numba_tile.zeros(CHAINS, VECTORS)
    term = numba_tile.accumulate(total, values, 0, values, 0, values, 2)
    for _ in range(steps):
        total = numba_tile.plus(total, term)
    numba_tile.store(total, out, 0, LANES)


@njit(nogil=True)
def _multiply(codes, starts, steps, out):
    total = numba_bytes.begin(ROWS, VECTORS, starts, 0)
    for _ in range(steps):
        total = numba_bytes.multiply(total, codes, 0, codes, 0)
    numba_tile.store(total, out, 0, LANES)


def per_second(loop: Callable[[np.ndarray], None], count: int) -> float:
    """`count` a step, over all threads."""
    threads = torch.get_num_threads()
    outs = np.empty((threads, ROWS * LANES), np.float32)
    return threads * count * STEPS / best(lambda: share(lambda task: loop(outs[task]), threads))


def additions() -> float:
    values = np.ones(4 * LANES, np.float32)
    return per_second(lambda out: _add(values, STEPS, out), CHAINS * LANES)


def byte_products() -> float | None:
    if refusal("screen", Form("inner"), "argmin", torch.device("cpu"), 2000, 64) is not None:
        return None
    codes, starts = np.zeros(4 * LANES, np.int32), np.zeros(LANES, np.int32)
    return per_second(lambda out: _multiply(codes, starts, STEPS, out), 4 * ROWS * LANES)


def measure() -> dict[str, float | None]:
    return {
        "bytes_read": bandwidth(),
        "float32_products": float32_products(),
        "additions": additions(),
        "byte_products": byte_products(),
    }
