"""The argmin on the CPU by a certified screen in bytes, then the exact scores of the few targets that it leaves.

Every score has a lower bound, S_ij ≥ L_ij + offset_i, at the speed of whole numbers of 8 bits (`screen_inner` for inner
products, `screen_l1` for sums of absolute differences). The first pass keeps the smallest L of each row and panel of
targets. The exact score of one promising target of a row then rules out every panel, and in the rest every target,
whose bound lies above it. What remains is scored in float64 in one fixed order, so the result does not depend on the
panels, on the rows beside it or on the threads. docs/certificate.md has the proof.
"""

import functools
from types import ModuleType

import numpy as np
import torch
from numba import njit
from torch import Tensor

from . import gemm, screen_inner, screen_l1, streaming
from .form import Form
from .numba_bytes import store_lowest
from .numba_tile import store
from .screen_bounds import FLOATS, cut, each, padded
from .threads import share

PARTS = {"inner": screen_inner, "power": screen_l1}  # by the form's kind

TASK_WORDS = 2**22  # worth a task: pairs of a sample's and a target's
BLOCK_BYTES = 2**19  # of samples that one task holds in L2 beside a panel
JUDGED, UNSUITED = 256, 0.5  # targets, and the part of them that bounds may leave before floats are faster
PAIRS = 2**28  # of samples and targets, bounds of whose panels are kept at once


def refusal(form: Form, reduction: str, device: torch.device, n: int, d: int) -> str | None:
    if form.kind not in PARTS:
        return f"it bounds inner products and l1, and the form is {form.kind}"
    if device.type != "cpu":
        return f"it runs on the CPU, and the targets are on {device.type}"
    if reduction != "argmin":
        return f"it finds the smallest score alone, and {reduction} needs others too"
    return PARTS[form.kind].refusal(form, d)


@functools.cache
def compile_kernels(part: ModuleType, rows: int):
    """The kernels of a part for samples in groups of `rows`."""
    bounds, exact, lanes = part.compile_bounds(rows), part.exact, part.LANES

    @njit(nogil=True)
    def screen(samples, targets, begins, ends, first, last, lowest, stride):
        for panel in range(first, last):
            for i in range(begins, ends, rows):
                store_lowest(bounds(rows, samples, i, targets, panel), lowest, panel * stride + i)

    @njit(nogil=True)
    def promise(samples, targets, begins, ends, lowest, x, y, bias, scale, limit, index):
        """Where limit[i] is 0, make it the exact score of a target whose bound is the smallest of sample i."""
        where = np.zeros(ends - begins, np.int64)
        low, tile = np.full(ends - begins, np.inf, np.float32), np.empty(lanes, np.float32)
        for panel in range(lowest.shape[0]):
            for i in range(begins, ends):
                if lowest[panel, i] < low[i - begins]:
                    low[i - begins] = lowest[panel, i]
                    where[i - begins] = panel
        for i in range(begins, ends):
            if limit[i] == 0:
                panel = where[i - begins]
                store(bounds(1, samples, i, targets, panel), tile, 0, lanes)
                index[i] = panel * lanes + tile.argmin()
                limit[i] = exact(x, i, y, index[i], scale, bias[index[i]])

    @njit(nogil=True)
    def rescore(samples, targets, first, last, lowest, x, y, bias, scale, offset, limit, best, index, count):
        """The best exact score among the targets of a span of panels that no bound puts above limit[i]."""
        tile = np.empty(lanes, np.float32)
        for panel in range(first, last):
            start, stop = panel * lanes, min(panel * lanes + lanes, y.shape[0])
            for i in range(x.shape[0]):
                if lowest[panel, i] > limit[i] - offset[i] or lowest[panel, i] == np.inf:
                    continue
                store(bounds(1, samples, i, targets, panel), tile, 0, lanes)
                for j in range(start, stop):
                    if tile[j - start] > limit[i] - offset[i] or bias[j] == np.inf:
                        continue
                    count[i] += 1
                    score = exact(x, i, y, j, scale, bias[j])
                    if score < best[i]:
                        best[i], index[i] = score, j
                        if limit[i] < np.inf:  # at infinity bounds mean nothing
                            limit[i] = min(score, limit[i])

    return screen, promise, rescore


def prepare(y: Tensor, form: Form) -> list[Tensor]:
    return PARTS[form.kind].prepare(y, form) if y.dtype in FLOATS else [y]


def suits(y: Tensor, form: Form) -> bool:
    """Whether bounds tell targets apart, judged by some of them as samples of others, with levelled scores."""
    if y.dtype not in FLOATS or y.shape[0] < 2 * JUDGED:
        return True
    order = torch.randperm(y.shape[0], generator=torch.Generator().manual_seed(0))[: 2 * JUDGED]
    x, some = (y.detach()[part].contiguous() for part in (order[1::2], order[::2]))
    count = certify(x, prepare(some, form), -form.pairwise(x, some).mean(0), form)[2]
    return count.double().mean().item() <= UNSUITED * JUDGED


class Problem:
    """A batch in codes with bounds (estimates where `safety` is 0, see the parts), and the kernels."""

    def __init__(self, x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, safety: float = 1.0):
        part = PARTS[form.kind]
        x, bias, *layout = (np.ascontiguousarray(t.detach().numpy()) for t in (x, bias, *layout))
        self.batch, self.panels = x.shape[0], padded(layout[0].shape[0], part.LANES) // part.LANES
        self.lanes = part.LANES
        self.rows = min(part.ROWS, 1 << (self.batch - 1).bit_length())  # few sizes to compile
        self.screen, self.promise, self.rescore = compile_kernels(part, self.rows)
        self.bounds = part.code(x, layout, bias, form, self.rows, safety)
        self.codes = self.bounds.samples, self.bounds.targets
        self.exactly = x, layout[0], bias, form.scale

    def lowest(self) -> np.ndarray:
        """The smallest bound of every panel and sample, [panels, samples]."""
        lowest = np.empty((self.panels, padded(self.batch, self.rows)), np.float32)
        words = self.bounds.words
        block = max(1, BLOCK_BYTES // (self.bounds.samples[0].itemsize * words * self.rows)) * self.rows
        blocks = list(streaming.blocks(lowest.shape[1], block))
        spans = cut(self.panels, lowest.size * self.lanes * words // TASK_WORDS, len(blocks))

        def run(task: int) -> None:
            span, rows = spans[task // len(blocks)], blocks[task % len(blocks)]
            self.screen(*self.codes, *rows, *span, lowest.reshape(-1), lowest.shape[1])

        share(run, len(blocks) * len(spans))
        lowest[:, : self.batch][:, ~self.bounds.certain] = -np.inf
        return lowest

    def promised(self, lowest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The exact score of a target whose bound is the smallest, and the target; inf for rows without bounds."""
        limit, index = np.where(self.bounds.certain, 0, np.inf), np.zeros(self.batch, np.int64)
        data = lowest, *self.exactly, limit, index
        each(cut(self.batch, lowest.size // 2**16), lambda *span: self.promise(*self.codes, *span, *data))
        return limit, index

    def remaining(self, lowest: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The smallest exact score that no bound puts above `limit`, its target, and how many scores that took."""
        spans = cut(self.panels, lowest.size // 2**14)
        best = np.full((len(spans), self.batch), np.inf)
        index, count = np.zeros((2, len(spans), self.batch), np.int64)

        def run(task: int) -> None:
            found = limit.copy(), best[task], index[task], count[task]
            self.rescore(*self.codes, *spans[task], lowest, *self.exactly, self.bounds.offset, *found)

        share(run, len(spans))
        winner = best.argmin(0)[None]  # the first of equal ones
        return *(np.take_along_axis(a, winner, 0)[0] for a in (best, index)), count.sum(0)

    def solve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The smallest exact score of each sample, its target, and how many exact scores that took."""
        lowest = self.lowest()
        return self.remaining(lowest, self.promised(lowest)[0])

    def guess(self) -> tuple[np.ndarray, np.ndarray]:
        """The exact score of the target with the smallest estimate, and the target; the best of rows without one."""
        lowest = self.lowest()
        value, index = self.promised(lowest)
        certain = self.bounds.certain
        if certain.all():
            return value, index
        lowest[:, : self.batch][:, certain] = np.inf
        best, rest, _ = self.remaining(lowest, value)
        return np.where(certain, value, best), np.where(certain, index, rest)


def in_parts(x: Tensor, layout: list[Tensor], solve) -> list[Tensor]:
    """solve(part of x), whose first array is a value, for parts that keep few bounds."""
    step = max(1, PAIRS // layout[0].shape[0] // 8) * 8  # whole groups
    parts = zip(*(solve(part) for part in x.split(step)), strict=True)
    value, *rest = (torch.from_numpy(np.concatenate(part)) for part in parts)
    return [value.to(x.dtype), *rest]


def certify(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form) -> tuple[Tensor, Tensor, Tensor]:
    """The argmin, and for each row the number of targets that the bounds left to be scored exactly."""
    if x.shape[0] == 0:
        return x.new_empty(0), *torch.empty(2, 0, dtype=torch.int64)
    return tuple(in_parts(x, layout, lambda part: Problem(part, layout, bias, form).solve()))


def argmin(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    if x.dtype not in FLOATS:  # numpy has no bfloat16
        return gemm.argmin(x, layout, bias, form)
    return certify(x, layout, bias, form)[:2]
