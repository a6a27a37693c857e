"""Inner products on the CPU: a certified screen in bytes, then the exact score of the few targets that it leaves.

With x = x̂ + δx and y = ŷ + δy, where x̂ = a q and ŷ = b r for whole numbers q, r from −127 to 127,

    |⟨x, y⟩ − a b ⟨q, r⟩| ≤ ‖x‖ ‖δy‖ + ‖δx‖ ‖ŷ‖,

and ⟨q, r⟩ is exact in 32 bits. So every score has a lower bound at the speed of byte products. The first pass keeps
the smallest bound of each row and panel of targets. The exact score of one promising target of a row then rules out
every panel, and in the rest every target, whose bound lies above it. What remains is scored in float64 in one fixed
order, so the result does not depend on the panels, on the rows beside it or on the threads.

Samples that share a large mean m are coded about it, and ⟨m, y⟩ joins the bias. docs/certificate.md has the proof.
"""

import functools

import numpy as np
import torch
from numba import njit
from torch import Tensor

from . import gemm, streaming
from .form import Form
from .numba_bytes import AVAILABLE, begin, bound, dot, multiply, store_lowest
from .numba_tile import SHAPE, store
from .threads import share

LANES, ROWS, VECTORS = SHAPE.lanes, SHAPE.rows, SHAPE.vectors
FLOATS = (torch.float32, torch.float64)

LARGEST = 127  # of a coordinate's code
OFFSET = 128  # added to the codes of samples, which the instruction takes without a sign
WIDEST = (2**31 - 1) // LARGEST**2  # coordinates whose products fit 32 bits

# What rounding can take from a bound; docs/certificate.md counts it.
ROUNDING = 2.0**-21  # of the bias and of ‖x̂‖ ‖ŷ‖, in float32
CANCELLED = 2.0**-34  # of (‖x − m‖ + 2 ‖m‖) ‖y‖, in float64 over at most `WIDEST` coordinates
UPWARD = 1 + 2.0**-20  # of a norm, which makes it an upper bound
TINY = 2.0**-100  # the smallest unit or norm, so that products of two are normal numbers
UNDERFLOW = 2.0**-120  # more than is lost below the normal numbers
HUGE = 1e37  # a row whose terms could come to more has no bounds, and all its scores are exact ones

CENTRED = (
    8  # rows from which a mean is taken off: it costs a read of the targets, about as much as 8 rows scored exactly
)
TASKS = 8  # a thread
TASK_PRODUCTS = 2**24  # worth a task, and
ENCODED = 2**20  # coordinates
BLOCK_BYTES = 2**19  # of samples that one task holds in L2 beside a panel
BOUNDS = 2**23  # of panels that are kept at once


def refusal(form: Form, reduction: str, device: torch.device, n: int, d: int) -> str | None:
    if form.kind != "inner":
        return f"it bounds inner products, and the form is {form.kind}"
    if device.type != "cpu":
        return f"it runs on the CPU, and the targets are on {device.type}"
    if reduction != "argmin":
        return f"it finds the smallest score alone, and {reduction} needs others too"
    if not AVAILABLE:
        return "this processor has no AVX-512 products of bytes (VNNI)"
    if d > WIDEST:
        return f"sums of {d} products of bytes do not fit 32 bits"
    return None


@njit(nogil=True)
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
    count = -(-n // width) * width
    codes = np.zeros(count * (-(-d // 4)) * 4, np.uint8)
    norms, totals = np.zeros((4, count)), np.zeros(count, np.int32)
    spans = list(streaming.blocks(n, max(1, ENCODED // max(1, d))))
    share(lambda task: encode(vectors, centre, *spans[task], width, offset, codes, norms, totals), len(spans))
    return codes.view(np.int32), norms, totals


def upper(norms: np.ndarray) -> np.ndarray:
    """Upper bounds of the norms in float32."""
    with np.errstate(over="ignore"):
        return np.maximum(norms * UPWARD, TINY).astype(np.float32)


@njit(inline="always")
def exact(x, i, y, j, scale, bias):
    """bias − scale ⟨x_i, y_j⟩ in float64, where products of float32 are exact; the same bits wherever it is called."""
    return bias - scale * dot(x, i, y, j)


@njit(nogil=True)
def lower(bias, centred, centre, y, scale, first, last, lowered):
    """The biases that bounds start from: with the score of the centre, and less what rounding may add later."""
    for j in range(first, last):
        start = exact(centre, 0, y, j, scale, bias[j]) if centred else np.float64(bias[j])
        if start < np.inf:
            lowered[j] = start - ROUNDING * abs(start) - UNDERFLOW


@functools.cache
def compile_kernels(rows: int):
    """The kernels for samples in groups of `rows`."""

    @njit(inline="always")
    def bounds(height, samples, i, targets, panel):
        """Lower bounds of the scores of samples i … i + height − 1, of one group, with a panel of targets: a tile."""
        codes, sizes = samples
        panels, starts, columns, bias = targets
        quads = panels.size // starts.size
        sample = i // rows * quads * rows + i % rows
        total = begin(height, VECTORS, starts, panel * LANES)
        for k in range(quads):
            total = multiply(total, codes, sample + k * rows, panels, (panel * quads + k) * LANES)
        return bound(total, sizes, i, columns, panel * LANES, bias)

    @njit(nogil=True)
    def screen(samples, targets, begins, ends, first, last, lowest, stride):
        for panel in range(first, last):
            for i in range(begins, ends, rows):
                store_lowest(bounds(rows, samples, i, targets, panel), lowest, panel * stride + i)

    @njit(nogil=True)
    def promise(samples, targets, begins, ends, lowest, x, y, bias, scale, limit):
        """Where limit[i] is 0, make it the exact score of a target whose bound is the smallest of sample i."""
        where = np.zeros(ends - begins, np.int64)
        low, tile = np.full(ends - begins, np.inf, np.float32), np.empty(LANES, np.float32)
        for panel in range(lowest.shape[0]):
            for i in range(begins, ends):
                if lowest[panel, i] < low[i - begins]:
                    low[i - begins] = lowest[panel, i]
                    where[i - begins] = panel
        for i in range(begins, ends):
            if limit[i] == 0:
                panel = where[i - begins]
                store(bounds(1, samples, i, targets, panel), tile, 0, LANES)
                j = panel * LANES + tile.argmin()
                limit[i] = exact(x, i, y, j, scale, bias[j])

    @njit(nogil=True)
    def rescore(samples, targets, first, last, lowest, x, y, bias, scale, limit, best, index, count):
        """The best exact score among the targets of a span of panels that no bound puts above limit[i]."""
        tile = np.empty(LANES, np.float32)
        for panel in range(first, last):
            start, stop = panel * LANES, min(panel * LANES + LANES, y.shape[0])
            for i in range(x.shape[0]):
                if lowest[panel, i] > limit[i] or lowest[panel, i] == np.inf:
                    continue
                store(bounds(1, samples, i, targets, panel), tile, 0, LANES)
                for j in range(start, stop):
                    if tile[j - start] > limit[i] or bias[j] == np.inf:
                        continue
                    count[i] += 1
                    score = exact(x, i, y, j, scale, bias[j])
                    if score < best[i]:
                        best[i], index[i] = score, j
                        if limit[i] < np.inf:  # at infinity bounds mean nothing
                            limit[i] = min(score, limit[i])

    return screen, promise, rescore


def prepare(y: Tensor, form: Form) -> list[Tensor]:
    if y.dtype not in FLOATS:
        return [y]
    codes, (unit, rest, coded, _), totals = encode_all(y.detach().numpy(), np.zeros(y.shape[1]), LANES, 0)
    columns = np.stack([unit.astype(np.float32), upper(rest), upper(coded)])
    return [y, *map(torch.from_numpy, (codes, -OFFSET * totals, columns, columns.max(1).astype(np.float64)))]


def cut(count: int, tasks: int, times: int = 1) -> list[tuple[int, int]]:
    """Spans of 0 … count − 1: as many as tasks are worth, and at most `TASKS` a thread when each is used `times`."""
    most = -(-min(TASKS * torch.get_num_threads(), tasks) // times)
    return list(streaming.blocks(count, -(-count // max(1, most))))


class Problem:
    """A batch in codes, lowered biases, and the kernels."""

    def __init__(self, x: Tensor, layout: list[Tensor], bias: Tensor, form: Form):
        y, codes, starts, columns, largest = (t.detach().numpy() for t in layout)
        self.x, self.bias = (np.ascontiguousarray(t.detach().numpy()) for t in (x, bias))
        self.y, self.scale = y, form.scale
        self.batch, self.n = self.x.shape[0], y.shape[0]
        rows = min(ROWS, 1 << (self.batch - 1).bit_length())  # four sizes to compile at most
        self.rows, self.panels = rows, starts.size // LANES
        self.screen, self.promise, self.rescore = compile_kernels(rows)
        centre = self.centre()
        coded, (unit, rest, image, whole), _ = encode_all(self.x, centre, rows, OFFSET)
        lost = CANCELLED * (whole + 2 * np.linalg.norm(centre))
        scale = abs(form.scale)
        reach = scale * (unit + whole + rest + image + lost) * (1 + largest.sum())
        self.certain = reach * LARGEST**2 * (1 + self.x.shape[1]) < HUGE
        bounding = upper(scale * (whole + lost)), upper(scale * (rest + ROUNDING * image + lost))
        self.samples = coded, np.stack([(form.scale * unit).astype(np.float32), *bounding])
        lowered = np.full(starts.size, np.inf, np.float32)
        data = self.bias, centre.any(), centre[None], y, form.scale
        spans = cut(self.n, self.n // 2**14)
        share(lambda task: lower(*data, *spans[task], lowered), len(spans))
        self.targets = codes, starts, columns, lowered

    def centre(self) -> np.ndarray:
        """What is taken off the samples: their mean where it is most of them and a read of the targets is worth it."""
        if self.batch < CENTRED:
            return np.zeros(self.x.shape[1])
        centre = self.x.mean(0, dtype=np.float64)
        square = centre @ centre
        return centre if 2 * square > np.vdot(self.x, self.x) / self.batch else np.zeros_like(centre)

    def lowest(self) -> np.ndarray:
        """The smallest bound of every panel and sample, [panels, samples]."""
        quads = self.targets[0].size // self.targets[1].size
        lowest = np.empty((self.panels, self.samples[1].shape[1]), np.float32)
        block = max(1, BLOCK_BYTES // (4 * quads * self.rows)) * self.rows
        blocks = list(streaming.blocks(lowest.shape[1], block))
        spans = cut(self.panels, lowest.size * LANES * quads * 4 // TASK_PRODUCTS, len(blocks))

        def run(task: int) -> None:
            span, rows = spans[task // len(blocks)], blocks[task % len(blocks)]
            self.screen(self.samples, self.targets, *rows, *span, lowest.reshape(-1), lowest.shape[1])

        share(run, len(blocks) * len(spans))
        lowest[:, ~self.certain] = -np.inf
        return lowest

    def solve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The smallest exact score of each sample, its target, and how many exact scores that took."""
        lowest = self.lowest()
        limit = np.where(self.certain[: self.batch], 0, np.inf)
        rows = cut(self.batch, lowest.size // 2**16)
        data = self.x, self.y, self.bias, self.scale
        share(lambda task: self.promise(self.samples, self.targets, *rows[task], lowest, *data, limit), len(rows))
        spans = cut(self.panels, lowest.size // 2**14)
        best = np.full((len(spans), self.batch), np.inf)
        index, count = np.zeros((2, len(spans), self.batch), np.int64)

        def rest(task: int) -> None:
            found = best[task], index[task], count[task]
            self.rescore(self.samples, self.targets, *spans[task], lowest, *data, limit.copy(), *found)

        share(rest, len(spans))
        winner = best.argmin(0)[None]  # the first of equal ones
        return *(np.take_along_axis(a, winner, 0)[0] for a in (best, index)), count.sum(0)


def certify(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form) -> tuple[Tensor, Tensor, Tensor]:
    """The argmin, and for each row the number of targets that the bounds left to be scored exactly."""
    if x.shape[0] == 0:
        return x.new_empty(0), *torch.empty(2, 0, dtype=torch.int64)
    step = max(ROWS, BOUNDS * LANES // layout[0].shape[0] // ROWS * ROWS)
    parts = zip(*(Problem(part, layout, bias, form).solve() for part in x.split(step)), strict=True)
    value, index, count = (torch.from_numpy(np.concatenate(part)) for part in parts)
    return value.to(x.dtype), index, count


def argmin(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    if x.dtype not in FLOATS:  # numpy has no bfloat16
        return gemm.argmin(x, layout, bias, form)
    return certify(x, layout, bias, form)[:2]
