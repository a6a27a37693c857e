"""The screen's bounds of inner products, −κ ⟨x, y⟩.

With x = x̂ + δx and y = ŷ + δy, where x̂ = a q and ŷ = b r for whole numbers q, r from −127 to 127,

    |⟨x, y⟩ − a b ⟨q, r⟩| ≤ ‖x‖ ‖δy‖ + ‖δx‖ ‖ŷ‖,

and ⟨q, r⟩ is exact in 32 bits. Samples that share a large mean m are coded about it, and ⟨m, y⟩ joins the bias.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from .cached import compiled
from .form import Form
from .numba_bytes import MULTIPLIES, begin, bound, multiply
from .numba_sums import dot
from .numba_tile import SHAPE
from .rounding import HUGE, ROUNDING, TINY, UPWARD
from .screen_bounds import Bounds, cautious, cut, each, padded, spans_of

AVAILABLE = MULTIPLIES
ROWS, VECTORS, LANES = SHAPE.rows, SHAPE.vectors, SHAPE.lanes

LARGEST = 127  # of a coordinate's code
OFFSET = 128  # added to the codes of samples, which the instruction takes without a sign
WIDEST = (2**31 - 1) // LARGEST**2  # coordinates whose products fit 32 bits
CANCELLED = 2.0**-34  # of (‖x − m‖ + 2 ‖m‖) ‖y‖, lost in float64 over at most `WIDEST` coordinates
CENTRED = 8  # rows from which a mean is taken off: it costs a read of the targets, about as much as 8 exact rows


def refusal(form: Form, d: int) -> str | None:
    if not AVAILABLE:
        return "this processor has no AVX-512 products of bytes (VNNI)"
    if d > WIDEST:
        return f"sums of {d} products of bytes do not fit 32 bits"
    return None


@compiled()
def encode(vectors, centre, first, last, width, offset, codes, norms, totals):
    """Codes of vectors[first:last] − centre, four coordinates of `width` vectors side by side, and norms of each.

    norms is (unit, ‖δ‖, norm of the coded vector, norm), totals the sums of codes.
    """
    d = vectors.shape[1]
    quads = (d + 3) // 4
    for i in range(first, last):
        top = 0.0
        for k in range(d):
            top = max(top, abs(vectors[i, k] - centre[k]))
        unit = max(np.float64(np.float32(top / LARGEST)), TINY)
        total, whole, coded, rest = 0, 0.0, 0.0, 0.0
        base = (i // width * quads * width + i % width) * 4
        for k in range(d):
            value = vectors[i, k] - centre[k]
            code = np.int32(min(max(np.rint(value / unit), -LARGEST), LARGEST))
            image = unit * code
            whole += value * value
            coded += image * image
            rest += (value - image) * (value - image)
            total += code
            codes[base + k // 4 * width * 4 + k % 4] = np.uint8(code + offset)
        norms[0, i], norms[1, i], norms[2, i], norms[3, i] = unit, np.sqrt(rest), np.sqrt(coded), np.sqrt(whole)
        totals[i] = total


def encode_all(
    vectors: np.ndarray, centre: np.ndarray, width: int, offset: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, norms and totals (see `encode`) of all vectors, padded to whole groups of `width`."""
    n, d = vectors.shape
    count = padded(n, width)
    codes = np.zeros(count * padded(d, 4), np.uint8)
    norms, totals = np.zeros((4, count)), np.zeros(count, np.int32)
    each(spans_of(n, d), lambda *span: encode(vectors, centre, *span, width, offset, codes, norms, totals))
    return codes.view(np.int32), norms, totals


def upper(norms: np.ndarray) -> np.ndarray:
    """Upper bounds of the norms in float32."""
    with np.errstate(over="ignore"):
        return np.maximum(norms * UPWARD, TINY).astype(np.float32)


def prepare(y: Tensor, form: Form) -> list[Tensor]:
    codes, (unit, rest, coded, _), totals = encode_all(y.detach().numpy(), np.zeros(y.shape[1]), LANES, 0)
    columns = np.stack([unit.astype(np.float32), upper(rest), upper(coded)])
    return [y, *map(torch.from_numpy, (codes, -OFFSET * totals, columns, columns.max(1).astype(np.float64)))]


def finer(x: Tensor, layout: list[Tensor]) -> None:
    """None: samples are in codes about their mean, and those of the targets do for any."""


@njit(inline="always")
def exact(x, i, y, j, scale, bias):
    """bias − scale ⟨x_i, y_j⟩ in float64, where products of float32 are exact."""
    return bias - scale * dot(x, i, y, j)


@compiled()
def lower(bias, centred, centre, y, scale, first, last, lowered):
    """The biases that bounds start from: with the score of the centre, and less what rounding may add later."""
    for j in range(first, last):
        lowered[j] = cautious(exact(centre, 0, y, j, scale, bias[j]) if centred else np.float64(bias[j]))


def compile_bounds(rows: int):
    @njit(inline="always")
    def bounds(height, samples, i, targets, panel):
        codes, sizes = samples
        panels, starts, columns, bias = targets
        quads = panels.size // starts.size
        sample = i // rows * quads * rows + i % rows
        total = begin(height, VECTORS, starts, panel * LANES)
        for k in range(quads):
            total = multiply(total, codes, sample + k * rows, panels, (panel * quads + k) * LANES)
        return bound(total, sizes, i, columns, panel * LANES, bias)

    return bounds


def mean(x: np.ndarray) -> np.ndarray:
    """What is taken off the samples: their mean where it is most of them and a read of the targets is worth it."""
    if x.shape[0] < CENTRED:
        return np.zeros(x.shape[1])
    centre = x.mean(0, dtype=np.float64)
    return centre if 2 * (centre @ centre) > np.vdot(x, x) / x.shape[0] else np.zeros_like(centre)


def code(x: np.ndarray, layout: list[np.ndarray], bias: np.ndarray, form: Form, rows: int, safety: float) -> Bounds:
    """The batch in codes, with bounds where `safety` is 1 and estimates of the scores where it is 0."""
    y, codes, starts, columns, largest = layout
    centre = mean(x)
    coded, (unit, rest, image, whole), _ = encode_all(x, centre, rows, OFFSET)
    lost = CANCELLED * (whole + 2 * np.linalg.norm(centre))
    scale, batch = abs(form.scale), x.shape[0]
    reach = scale * (unit + whole + rest + image + lost) * (1 + largest.sum()) * LARGEST**2 * (1 + x.shape[1])
    bounding = upper(scale * (whole + lost)), upper(scale * (rest + ROUNDING * image + lost))
    sizes = np.stack([(form.scale * unit).astype(np.float32), *(np.float32(safety) * norms for norms in bounding)])
    lowered = np.full(starts.size, np.inf, np.float32)
    data = bias, centre.any(), centre[None], y, form.scale
    each(cut(y.shape[0], y.shape[0] // 2**14), lambda *span: lower(*data, *span, lowered))
    targets = codes, starts, columns, lowered
    return Bounds((coded, sizes), targets, np.zeros(batch), reach[:batch] < HUGE, codes.size // starts.size)
