"""What this machine can do at most, measured: bytes read, products and additions of float32 and of bytes, a second.

The argmin of N targets of D coordinates for B samples needs at the least one read of the targets as they are stored and
B·N·D products, for l1 2·B·N·D additions (the difference and the sum) or B·N·D distances of bytes (summed at once).
"""

from collections.abc import Callable

import numpy as np
import torch
from numba import njit
from problems import shortest

from fastsdot.kernels import Form, numba_bytes, numba_tile, refusal, screen_l1
from fastsdot.kernels.threads import share

READ = 2**27  # float32 values in the read: 512 MiB, more than any cache
SIDE = 3072  # of the square product of matrices
STEPS = 2**21  # of the loops over registers
TRIES = 5
ROWS, VECTORS, LANES = numba_tile.SHAPE.rows, numba_tile.SHAPE.vectors, numba_tile.SHAPE.lanes
FEW, WIDE, SIDE_BY_SIDE = screen_l1.ROWS, screen_l1.VECTORS, screen_l1.LANES
PLACES = 16  # from which codes are read in turn, so that no compiler takes their distance once and for all
CHAINS = max(1, ROWS // 2)  # rows of a tile that is added to, so that it and its term fit the registers


def bandwidth() -> float:
    values = torch.ones(READ)
    return 4 * READ / shortest(values.sum, TRIES)


def float32_products() -> float:
    a, b = torch.randn(2, SIDE, SIDE)
    out = torch.empty(SIDE, SIDE)
    return SIDE**3 / shortest(lambda: torch.mm(a, b, out=out), TRIES)


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


@njit(nogil=True)
def _differ(codes, steps, out):
    total = numba_tile.zeros(FEW, WIDE)
    for step in range(steps):
        place = step % PLACES * SIDE_BY_SIDE
        total = numba_bytes.differ(total, codes, place, codes, place)
    numba_tile.store(total, out, 0, SIDE_BY_SIDE)


def per_second(loop: Callable[[np.ndarray], None], count: int) -> float:
    """`count` a step, over all threads."""
    threads = torch.get_num_threads()
    outs = np.empty((threads, 2 * ROWS * LANES), np.float32)
    return threads * count * STEPS / shortest(lambda: share(lambda task: loop(outs[task]), threads), TRIES)


def additions() -> float:
    values = np.ones(4 * LANES, np.float32)
    return per_second(lambda out: _add(values, STEPS, out), CHAINS * LANES)


def screens(form: Form) -> bool:
    return refusal("screen", form, "argmin", torch.device("cpu"), 2000, 64) is None


def byte_products() -> float | None:
    if not screens(Form("inner")):
        return None
    codes, starts = np.zeros(4 * LANES, np.int32), np.zeros(LANES, np.int32)
    return per_second(lambda out: _multiply(codes, starts, STEPS, out), 4 * ROWS * LANES)


def byte_distances() -> float | None:
    if not screens(Form("power")):
        return None
    codes = np.zeros((PLACES + 1) * SIDE_BY_SIDE, np.int64)
    return per_second(lambda out: _differ(codes, STEPS, out), 8 * FEW * SIDE_BY_SIDE)


def measure() -> dict[str, float | None]:
    return {
        "bytes_read": bandwidth(),
        "float32_products": float32_products(),
        "additions": additions(),
        "byte_products": byte_products(),
        "byte_distances": byte_distances(),
    }
