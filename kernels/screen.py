"""The k smallest scores on the CPU by a certified screen in bytes, then the exact scores of the few targets it leaves.

Every score has a lower bound, S_ij ≥ L_ij + offset_i, at the speed of whole numbers of 8 bits (`screen_inner` for inner
products, `screen_l1` for sums of absolute differences). The first pass keeps the smallest L of each row and panel of
targets. The largest of the exact scores of k promising targets of a row then rules out every panel, and in the rest
every target, whose bound lies above it. What remains is scored in float64 in one fixed order, so the result does not
depend on the panels, on the rows beside it or on the threads. The argmin is k = 1. docs/certificate.md has the proof.
"""

import functools
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from . import gemm, numba_lp, screen_inner, screen_l1, streaming
from .cached import compiled
from .form import Form
from .numba_bytes import store_lowest
from .numba_smallest import fill, keep
from .numba_tile import store
from .screen_bounds import FLOATS, cut, each, padded
from .threads import share

PARTS = {"inner": screen_inner, "power": screen_l1}  # by the form's kind

TASK_WORDS = 2**22  # worth a task: pairs of a sample's and a target's
BLOCK_BYTES = 2**19  # of samples that one task holds in L2 beside a panel
JUDGED, UNSUITED = 256, 0.5  # targets, and the part of them that bounds may leave before floats are faster
MOST = 96  # targets for each of the k smallest scores, below which floats are faster (docs/certificate.md)
WORTH = 2**14  # bounds of panels worth a task that opens those few that may hold a result
TRIED = 64  # samples that tell whether the targets are worth other codes
OPENED, RECODED = 16, 256  # samples whose first pass takes as long as opening all panels for one, as coding all targets
PAIRS = 2**28  # of samples and targets, bounds of whose panels are kept at once


def refusal(form: Form, reduction: str, device: torch.device, n: int, d: int) -> str | None:
    if form.kind not in PARTS:
        return f"it bounds inner products and l1, and the form is {form.kind}"
    if device.type != "cpu":
        return f"it runs on the CPU, and the targets are on {device.type}"
    if reduction not in ("argmin", "topk"):
        return f"it finds the smallest scores alone, and {reduction} needs the others too"
    return PARTS[form.kind].refusal(form, d)


@compiled()
def join(begins, ends, best, index):
    """The smallest scores of all spans, [spans, B, k], in the place of the first; ties stay with the earlier span."""
    for span in range(1, best.shape[0]):
        for i in range(begins, ends):
            for c in range(best.shape[2]):
                if not best[span, i, c] < best[0, i, -1]:
                    break
                keep(best[span, i, c], index[span, i, c], best[0, i], index[0, i])


@functools.cache
def compile_kernels(part: ModuleType, rows: int):
    """The kernels of a part for samples in groups of `rows`."""
    kernel = compiled(part.__name__, rows)
    bounds, exact, lanes = part.compile_bounds(rows), part.exact, part.LANES

    @kernel
    def screen(samples, targets, begins, ends, first, last, lowest, stride):
        for panel in range(first, last):
            for i in range(begins, ends, rows):
                store_lowest(bounds(rows, samples, i, targets, panel), lowest, panel * stride + i)

    @kernel
    def promise(samples, targets, begins, ends, lowest, x, y, bias, scale, score, index):
        """The exact score of the target with the smallest bound in each of the score.shape[1] most promising panels."""
        k = score.shape[1]
        where = np.zeros((ends - begins, k), np.int64)
        low, tile = np.full((ends - begins, k), np.inf, np.float32), np.empty(lanes, np.float32)
        for panel in range(lowest.shape[0]):
            for i in range(begins, ends):
                if lowest[panel, i] < low[i - begins, k - 1]:
                    keep(lowest[panel, i], panel, low[i - begins], where[i - begins])
        for i in range(begins, ends):
            for c in range(k):
                if -np.inf < low[i - begins, c] < np.inf:
                    panel = where[i - begins, c]
                    store(bounds(1, samples, i, targets, panel), tile, 0, lanes)
                    index[i, c] = panel * lanes + tile.argmin()
                    score[i, c] = exact(x, i, y, index[i, c], scale, bias[index[i, c]])

    @kernel
    def rescore(
        samples, targets, first, last, begins, ends, lowest, x, y, bias, scale, offset, limit, best, index, count
    ):  # fmt: skip
        """The best exact scores among the targets of a span of panels that no bound puts above limit[i]."""
        tile, k = np.empty(lanes, np.float32), best.shape[1]
        for panel in range(first, last):
            start, stop = panel * lanes, min(panel * lanes + lanes, y.shape[0])
            for i in range(begins, ends):
                if lowest[panel, i] > limit[i] - offset[i] or lowest[panel, i] == np.inf:
                    continue
                store(bounds(1, samples, i, targets, panel), tile, 0, lanes)
                for j in range(start, stop):
                    if tile[j - start] > limit[i] - offset[i] or bias[j] == np.inf:
                        continue
                    count[i] += 1
                    score = exact(x, i, y, j, scale, bias[j])
                    if score <= limit[i] and score < best[i, k - 1]:
                        keep(score, j, best[i], index[i])
                        limit[i] = min(limit[i], best[i, k - 1])

    return screen, promise, rescore


def prepare(y: Tensor, form: Form) -> list[Tensor]:
    return PARTS[form.kind].prepare(y, form) if y.dtype in FLOATS else [y]


def suits(y: Tensor, form: Form) -> bool:
    """Whether to screen: inner products always, since threads and batches change how those in float32 round."""
    return form.kind == "inner" or told_apart(y, form)


def told_apart(y: Tensor, form: Form) -> bool:
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

    def promised(self, lowest: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The exact scores of k targets with small bounds, and the targets, [B, k]; inf for rows without bounds."""
        score, index = np.full((self.batch, k), np.inf), np.zeros((self.batch, k), np.int64)
        data = lowest, *self.exactly, score, index
        each(cut(self.batch, lowest.size // 2**16), lambda *span: self.promise(*self.codes, *span, *data))
        return score, index

    def remaining(self, lowest: np.ndarray, limit: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The k smallest exact scores that no bound puts above `limit`, their targets, and how many scores that took.

        At least k scores must be at most `limit`; what is infinite comes last, by index.
        """
        worth = lowest.size // WORTH
        spans = cut(self.panels, min(worth, self.panels // k))  # so that the scores kept are few beside the bounds
        blocks = cut(self.batch, worth, len(spans))
        best = np.full((len(spans), self.batch, k), np.inf)
        index, count = np.full(best.shape, -1), np.zeros(best.shape[:2], np.int64)
        limits = np.repeat(limit[None], len(spans), axis=0)
        offset = np.where(self.bounds.certain, self.bounds.offset, -np.inf)  # where no bound may rule out anything
        data = lowest, *self.exactly, offset

        def run(task: int) -> None:
            span, rows = task // len(blocks), blocks[task % len(blocks)]
            found = limits[span], best[span], index[span], count[span]
            self.rescore(*self.codes, *spans[span], *rows, *data, *found)

        share(run, len(spans) * len(blocks))
        each(cut(self.batch, best.size // 2**14), lambda *rows: join(*rows, best, index))
        fill(index[0])
        return best[0], index[0], count.sum(0)

    def solve(self, k: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The k smallest exact scores of each sample, their targets, [B, k], and how many exact scores that took."""
        return self.remaining(*self.promising(k), k)

    def promising(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The smallest bound of every panel and sample, and what no result's score is above."""
        lowest, limit = self.lowest(), np.full(self.batch, np.inf)
        if k <= self.panels:
            limit = self.promised(lowest, k)[0].max(1)
        return lowest, limit

    def opened(self, k: int) -> float:
        """The part of all panels that a sample opens."""
        lowest, limit = self.promising(k)
        return np.mean(lowest[:, : self.batch] <= limit - self.bounds.offset)

    def guess(self) -> tuple[np.ndarray, np.ndarray]:
        """The exact score of the target with the smallest estimate, and the target; the best of rows without one."""
        lowest = self.lowest()
        value, index = self.promised(lowest, 1)
        certain = self.bounds.certain[:, None]
        if not certain.all():
            lowest[:, : self.batch][:, certain[:, 0]] = np.inf
            best, rest, _ = self.remaining(lowest, value[:, 0], 1)
            value, index = np.where(certain, value, best), np.where(certain, index, rest)
        return value, index


def in_parts(x: Tensor, layout: list[Tensor], solve) -> list[Tensor]:
    """solve(part of x), whose first array is a value, for parts that keep few bounds."""
    step = max(1, PAIRS // layout[0].shape[0] // 8) * 8  # whole groups
    parts = zip(*(solve(part) for part in x.split(step)), strict=True)
    value, *rest = (torch.from_numpy(np.concatenate(part)) for part in parts)
    return [value.to(x.dtype), *rest]


def fitted(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, k: int) -> list[Tensor]:
    """The layout, or one made for these samples where the first of them open too many panels by its bounds."""
    few, finer = x[:TRIED], PARTS[form.kind].finer
    worth = (x.shape[0] + RECODED) / (OPENED * x.shape[0])
    if worth > 1 or finer(few, layout) is None or Problem(few, layout, bias, form).opened(k) <= worth:
        return layout
    make = finer(x, layout)
    return make() if make else layout


def certify(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, k: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """The topk, and for each row the number of targets that the bounds left to be scored exactly."""
    if x.shape[0] == 0:
        return x.new_empty(0, k), torch.empty(0, k, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    layout = fitted(x, layout, bias, form, k)
    return tuple(in_parts(x, layout, lambda part: Problem(part, layout, bias, form).solve(k)))


def argmin(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    if x.dtype not in FLOATS:  # numpy has no bfloat16
        return gemm.argmin(x, layout, bias, form)
    value, index, _ = certify(x, layout, bias, form)
    return value.squeeze(1), index.squeeze(1)


def topk(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, k: int) -> tuple[Tensor, Tensor]:
    y = layout[0]
    if x.dtype in FLOATS and 0 < k * MOST <= y.shape[0]:
        return certify(x, layout, bias, form, k)[:2]
    floats = numba_lp if form.kind == "power" and y.dtype == torch.float32 else gemm
    return floats.topk(x, floats.prepare(y, form), bias, form, k)
