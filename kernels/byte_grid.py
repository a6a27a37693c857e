"""Bytes for Σ_d |x_d − y_d|: the grid that targets and samples share, and what a bound made of them has to allow for.

A code q = 0 … 255 of coordinate d stands for o_d + u q, with one unit u and an origin o_d for each coordinate. lo_d and
hi_d are the extremes of the targets. docs/certificate.md, section l1, has the proof.
"""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from .rounding import HUGE, TINY

LARGEST = 255  # of a coordinate's code
WIDEST = 2**20  # coordinates whose sum in float64 is within `SUMMED`
SUMMED = 2.0**-30  # of the distance to the targets' range, lost in float64
CONVERTED = 2.0**-21  # of the largest sum of codes, lost in float32

SAMPLE, FEWEST, VALUES = 256, 32, 2**16  # targets from which the grid's unit is chosen: so many coordinates are enough
MOST = 0.95  # the part of them that it has to suit
FINEST = 1e-4  # of the targets' range: values closer than this do not tell of a grid
FINER = 0.5  # of the targets' unit: a unit for samples alone that is worth other codes


def steps(values: np.ndarray, widest: float) -> Iterator[float]:
    """Units worth a trial: that of a grid on which the values lie, and ever smaller parts of the range."""
    gaps = np.diff(np.unique(values))
    gaps = gaps[gaps > FINEST * widest]
    if gaps.size and widest / gaps.min() < LARGEST + 0.5:
        whole = np.rint(widest / gaps.min())
        yield widest / whole / (LARGEST // whole)
    unit = widest / LARGEST
    while True:
        yield unit
        unit *= 0.5**0.5


def choose_grid(y: Tensor) -> tuple[np.ndarray, float]:
    """(lo, hi, o) of each coordinate, [3, D], and the unit with the smallest residuals in some of the targets [N, D].

    A unit is judged by the mean |y − o − u r| of a coordinate, in a target that is worse than most (a few may lie far
    from all others), and for samples, which lie anywhere between codes, by u / 4.
    """
    rows = min(SAMPLE, max(FEWEST, VALUES // max(1, y.shape[1])))
    sample = y[:: -(-y.shape[0] // rows)]
    low, high, some = (v.detach().cpu().numpy().astype(np.float64) for v in (y.amin(0), y.amax(0), sample))
    middle, widest = np.median(some, axis=0), (high - low).max(initial=0.0)

    def at(unit: float) -> np.ndarray:
        """Where the codes of each coordinate start: on the grid of its smallest value, about its median."""
        room = np.maximum((high - low) / unit - LARGEST, 0)
        return low + unit * np.rint(np.clip((middle - low) / unit - LARGEST / 2, 0, room))

    best, found = np.inf, max(TINY, min(widest / LARGEST, HUGE))
    for unit in steps(some - low, widest) if widest > TINY else ():
        unit = np.float64(np.float32(min(unit, HUGE)))
        shifted = some - at(unit)
        residual = np.abs(shifted - unit * np.clip(np.rint(shifted / unit), 0, LARGEST)).mean(1)
        lost = np.quantile(residual, MOST) + unit / 4
        if lost >= best:
            break
        best, found = lost, unit
    unit = np.float64(np.float32(max(found, TINY)))
    return np.stack([low, high, at(unit)]), unit


def finer_grid(x: Tensor, grid: np.ndarray, unit: float) -> tuple[np.ndarray, float] | None:
    """The grid and unit that cover samples x [B, D] alone, where they lie much closer together than the targets.

    What lies beyond them, set within the new grid's range, loses nothing: all samples are on one side of it.
    """
    low, high = (np.clip(end.detach().numpy(), *grid[:2]) for end in (x.amin(0), x.amax(0)))
    found = np.float64(np.float32(np.maximum(TINY, (high - low).max(initial=0.0) / LARGEST)))
    if not found <= FINER * unit:  # nor where a sample is no number
        return None
    return np.stack([*grid[:2], (low + high) / 2 - found * (LARGEST / 2)]), found
