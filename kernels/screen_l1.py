"""The screen's bounds of Σ_d |x_d − y_d|, from sums of absolute differences of bytes.

Targets and samples share a grid: codes q = 0 … 255 stand for o_d + u q, with one unit u and an origin o_d for each
coordinate. lo_d and hi_d are the extremes of the targets; c is x set within [lo, hi], and a bar sets a number within
the grid's range.

    |x − y| = |x − c| + |c − y|,        |c − y| ≥ |c̄ − ȳ| + |y − ȳ| − |c − c̄|,
    Σ_d |c̄ − ȳ| ≥ u Σ_d |q_d − r_d| − Σ_d |c̄_d − o_d − u q_d| − Σ_d |ȳ_d − o_d − u r_d|

for whatever codes q of c̄ and r of ȳ. The sum of codes is exact, the others belong to one sample or to one target.
8-bit images lie on the grid and in its range, and what of a sample lies outside of theirs costs nothing.
"""

from collections.abc import Callable

import numpy as np
import torch
from numba import njit
from torch import Tensor

from .byte_grid import CONVERTED, LARGEST, SUMMED, WIDEST, choose_grid, finer_grid
from .cached import compiled
from .form import Form
from .numba_bytes import MEASURES, differ, measure
from .numba_sums import distance
from .numba_tile import SHAPE, zeros
from .rounding import HUGE, UPWARD
from .screen_bounds import Bounds, cautious, cut, each, padded, spans_of

AVAILABLE = MEASURES
# Registers in lanes of 64 bits. G coordinates/s of a thread: 4 × 4 193, 6 × 4 199, 8 × 3 180, 4 × 6 169.
ROWS, VECTORS = 4, 4
LANES = VECTORS * SHAPE.width // 2

# The targets of a panel in the order of `measure`: of 16, the even ones and then the odd ones.
ORDER = np.array([lane // 16 * 16 + lane % 2 * 8 + lane % 16 // 2 for lane in range(LANES)])


def refusal(form: Form, d: int) -> str | None:
    if form.p != 1:
        return f"of the powers it bounds p = 1, and here p = {form.p:g}"
    if not AVAILABLE:
        return "this processor has no AVX-512 distances of bytes (AVX-512BW)"
    if d > WIDEST:
        return f"its bounds are proven for {WIDEST} coordinates, and there are {d}"
    return None


@compiled(fastmath={"reassoc"})  # sums may be added in any order (docs/certificate.md)
def encode(vectors, grid, unit, first, last, width, order, words, sums):
    """Codes of vectors[first:last], eight coordinates of `width` vectors side by side, and sums of each vector v.

    sums is (Σ |v − c|, Σ |c − c̄|, Σ |c̄ − o − u q|).
    """
    d = vectors.shape[1]
    octets = (d + 7) // 8
    inverse, top = 1 / unit, LARGEST * unit
    codes = np.zeros(octets * 8, np.uint8)
    packed = codes.view(np.int64)
    for i in range(first, last):
        outside, excess, rest = 0.0, 0.0, 0.0
        for k in range(d):
            value = np.float64(vectors[i, k])
            inside = min(max(value, grid[0, k]), grid[1, k])
            place = inside - grid[2, k]
            near = min(max(place, 0.0), top)
            code = min(np.rint(near * inverse), 1.0 * LARGEST)
            outside += abs(value - inside)
            excess += abs(place - near)
            rest += abs(near - unit * code)
            codes[k] = np.uint8(np.int32(code))
        base = i // width * octets * width + order[i % width]
        for k in range(octets):
            words[base + k * width] = packed[k]
        sums[0, i], sums[1, i], sums[2, i] = outside, excess, rest


def encode_all(vectors: np.ndarray, grid: np.ndarray, unit: float, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and sums (see `encode`) of all vectors, padded to whole groups of `order`."""
    n, d = vectors.shape
    count = padded(n, order.size)
    words, sums = np.zeros(count * (padded(d, 8) // 8), np.int64), np.zeros((3, count))
    each(spans_of(n, d), lambda *span: encode(vectors, grid, unit, *span, order.size, order, words, sums))
    return words, sums


def lay_out(y: Tensor, grid: np.ndarray, unit: float) -> list[Tensor]:
    words, sums = encode_all(y.detach().numpy(), grid, unit, ORDER)
    return [y, *map(torch.from_numpy, (words, sums[1:], grid, np.array([unit], np.float32)))]


def prepare(y: Tensor, form: Form) -> list[Tensor]:
    return lay_out(y, *choose_grid(y))


def finer(x: Tensor, layout: list[Tensor]) -> Callable[[], list[Tensor]] | None:
    """What lays the targets out on a grid for these samples alone, where that has closer bounds."""
    y, _, _, grid, unit = layout
    found = finer_grid(x, grid.numpy(), unit.item())
    return found and (lambda: lay_out(y, *found))


@njit(inline="always")
def exact(x, i, y, j, scale, bias):
    """bias + Σ |x_i − y_j| in float64, where differences of most float32 are exact."""
    return bias + distance(x, i, y, j)


@compiled()
def lower(bias, excess, rest, safety, first, last, lowered):
    """The biases that bounds start from; with `safety` 0 they do not pay for the rounding of the codes."""
    for j in range(first, last):
        lowered[j] = cautious(bias[j] + (1 - SUMMED) * excess[j] - safety * UPWARD * rest[j])


def compile_bounds(rows: int):
    @njit(inline="always")
    def bounds(height, samples, i, targets, panel):
        codes, unit = samples
        panels, bias = targets
        octets = panels.size // bias.size
        sample = i // rows * octets * rows + i % rows
        total = zeros(height, VECTORS)
        for k in range(octets):
            total = differ(total, codes, sample + k * rows, panels, (panel * octets + k) * LANES)
        return measure(total, unit, bias, panel * LANES)

    return bounds


def code(x: np.ndarray, layout: list[np.ndarray], bias: np.ndarray, form: Form, rows: int, safety: float) -> Bounds:
    """The batch in codes, with bounds where `safety` is 1 and estimates of the scores where it is 0."""
    y, codes, (far, lost), grid, (unit,) = layout
    unit = np.float64(unit)
    batch, most = x.shape[0], LARGEST * unit * x.shape[1]
    coded, (outside, excess, rest) = encode_all(x, grid, unit, np.arange(rows))
    offset = ((1 - SUMMED) * outside - UPWARD * (excess + rest) - CONVERTED * most)[:batch]
    lowered = np.full(lost.size, np.inf, np.float32)
    each(cut(y.shape[0], y.shape[0] // 2**14), lambda *span: lower(bias, far, lost, safety, *span, lowered))
    certain = np.isfinite(offset) & (most < HUGE)
    samples = coded, layout[4]
    return Bounds(samples, (codes, lowered), np.where(certain, offset, 0), certain, codes.size // lost.size)
