"""The power form on the CPU: tiles of scores in vector registers, Σ_d |x_d − y_d|^p and its root.

Targets are packed in panels [N / lanes, D, lanes] and samples in groups [B / rows, D, rows], so that one step of the
inner loop reads `lanes` targets and `rows` samples from consecutive memory and adds one coordinate to rows × lanes sums
that never leave the registers. A tile is compared with its rows' best scores so far; only when it holds a better one,
about log N times a row, is it written out and searched. Every sum runs over D in the same order whatever the batch,
the tile and the number of threads, so the results do not depend on them.
"""

import functools

import numpy as np
import torch
from numba import njit
from torch import Tensor

from fastsdot.errors import BackendUnavailable

from . import numba_power, numba_race, smallest, streaming
from .cached import compiled
from .form import Form
from .numba_tile import FUSED, SHAPE, Shape, accumulate, add_bias, any_below, plus, root, rows_below, store, zeros
from .threads import share

CHUNK = 256  # coordinates summed before they join the total: rounding grows with CHUNK + D / CHUNK, not with D
GENERAL_ROWS = 2  # in a tile for a general power: as fast as a full one, and compiled in half the time
BLOCK_COORDINATES = 2**17  # of samples that one task holds in L2 beside a panel
BLOCK_ROWS = 64  # fewer rows than this do not hide a read of the targets; rows are split before targets, which cost
TASKS = 8  # tasks a thread, so that one that is held up is relieved by the others
TASK_COORDINATES = 2**23  # pairs × coordinates worth a task, about 0.3 ms
SCORES = 2**21  # scores written at once for the soft and top-k reductions


def refusal(form: Form, reduction: str, device: torch.device, n: int, d: int) -> str | None:
    if form.kind != "power":
        return f"it sums powers of differences, and the form is {form.kind}"
    if device.type != "cpu":
        return f"it runs on the CPU, and the targets are on {device.type}"
    return None if FUSED else "this processor has no fused multiply-add"


def prepare(y: Tensor, form: Form) -> list[Tensor]:
    if y.dtype != torch.float32:  # which is what its registers hold
        received = f"'numba' with {str(y.dtype).removeprefix('torch.')}"
        raise BackendUnavailable("backend", "float32 targets", received, "convert them, or choose backend='gemm'")
    n, d = y.shape
    count = -(-n // SHAPE.lanes)
    padded = torch.nn.functional.pad(y, (0, 0, 0, count * SHAPE.lanes - n))
    return [y, padded.view(count, SHAPE.lanes, d).transpose(1, 2).contiguous()]


@functools.cache
def compile_kernels(shape: Shape, halves: int, degree: int):
    """The kernels for tiles of one shape, one power (see `numba_tile.accumulate`) and one root."""
    rows, vectors, lanes = shape.rows, shape.vectors, shape.lanes
    kernel = compiled(*shape, halves, degree)

    @njit(inline="always")
    def score(x, panels, bias, constants, d, group, panel):
        # The first chunk has a loop of its own: there is no second tile to hold, which saves a quarter at D = 2.
        total = zeros(rows, vectors)
        for k in range(min(CHUNK, d)):
            total = accumulate(total, x, (group * d + k) * rows, panels, (panel * d + k) * lanes, constants, halves)
        for start in range(CHUNK, d, CHUNK):
            part = zeros(rows, vectors)
            for k in range(start, min(start + CHUNK, d)):
                part = accumulate(part, x, (group * d + k) * rows, panels, (panel * d + k) * lanes, constants, halves)
            total = plus(total, part)
        return add_bias(root(total, constants, degree), bias, panel * lanes)

    @kernel
    def argmin(x, panels, bias, constants, d, groups, first, last, best, index):
        tile = np.empty(rows * lanes, np.float32)
        for panel in range(first, last):
            for group in range(groups):
                s = score(x, panels, bias, constants, d, group, panel)
                if any_below(s, best, group * rows):
                    store(s, tile, 0, lanes)
                    better = rows_below(s, best, group * rows)
                    for row in range(rows):
                        if better >> row & 1:
                            for lane in range(lanes):
                                if tile[row * lanes + lane] < best[group * rows + row]:
                                    best[group * rows + row] = tile[row * lanes + lane]
                                    index[group * rows + row] = panel * lanes + lane

    @kernel
    def scores(x, panels, bias, constants, d, groups, first, last, out, stride):
        for panel in range(first, last):
            for group in range(groups):
                s = score(x, panels, bias, constants, d, group, panel)
                store(s, out, group * rows * stride + (panel - first) * lanes, stride)

    return argmin, scores


class Problem:
    """A batch packed in groups, the bias padded to whole panels, and the kernels for the form."""

    def __init__(self, x: Tensor, layout: list[Tensor], bias: Tensor, form: Form):
        self.batch, self.d = x.shape
        self.n, self.panels = layout[0].shape[0], layout[1].shape[0]
        halves = int(2 * form.p) if 2 * form.p in range(1, numba_power.HALVES + 1) else 0
        degree = 0 if not form.root or form.p == 1 else 2 if form.p == 2 else 1
        self.groups = max(1, -(-self.batch // (SHAPE.rows if halves else GENERAL_ROWS)))
        self.rows = max(1, -(-self.batch // self.groups))
        self.work = self.groups * self.rows * self.panels * SHAPE.lanes * (self.d + 4)
        samples = np.zeros((self.groups * self.rows, self.d), np.float32)
        samples[: self.batch] = x.detach().numpy()
        samples = samples.reshape(self.groups, self.rows, self.d).transpose(0, 2, 1)
        self.samples = np.ascontiguousarray(samples).reshape(-1)
        padded = np.full(self.panels * SHAPE.lanes, np.inf, np.float32)
        padded[: self.n] = bias.detach().numpy()
        constants = np.array([1.0, *numba_power.split(form.p), *numba_power.split(1 / form.p)], np.float32)
        self.targets = (layout[1].numpy().reshape(-1), padded, constants, self.d)
        self.argmin, self.scores = compile_kernels(SHAPE._replace(rows=self.rows), halves, degree)

    def block(self, first: int, last: int) -> np.ndarray:
        """The samples of groups first ≤ g < last."""
        return self.samples[first * self.rows * self.d : last * self.rows * self.d]


def argmin(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    if x.shape[0] == 0:
        return x.new_empty(0), x.new_empty(0, dtype=torch.int64)
    problem = Problem(x, layout, bias, form)
    rows, panels = problem.rows, problem.panels
    tasks = min(problem.work // TASK_COORDINATES + 1, TASKS * torch.get_num_threads())
    width = min(BLOCK_COORDINATES // (rows * problem.d), max(BLOCK_ROWS // rows, -(-problem.groups // tasks)))
    blocks = list(streaming.blocks(problem.groups, max(1, width)))
    splits = min(panels, -(-tasks // len(blocks)))
    best = np.full((splits, problem.groups * rows), np.inf, np.float32)
    index = np.zeros(best.shape, np.int64)

    def run(task: int) -> None:
        (first, last), split = blocks[task // splits], task % splits
        reach = slice(first * rows, last * rows)
        span = split * panels // splits, (split + 1) * panels // splits
        block = problem.block(first, last)
        problem.argmin(block, *problem.targets, last - first, *span, best[split, reach], index[split, reach])

    share(run, len(blocks) * splits)
    winner = best.argmin(0)[None]  # the first among equals, so the smallest index
    value, index = np.take_along_axis(best, winner, 0)[0], np.take_along_axis(index, winner, 0)[0]
    return torch.from_numpy(value[: problem.batch]), torch.from_numpy(index[: problem.batch])


def block_score(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form) -> tuple[streaming.Score, int]:
    """The scoring function for blocks of targets, and the width of a block."""
    problem = Problem(x, layout, bias, form)
    rows, lanes = problem.rows, SHAPE.lanes
    width = min(problem.panels, max(1, SCORES // (problem.groups * rows * lanes)))  # in panels
    out = np.empty((problem.groups * rows, width * lanes), np.float32)
    view = torch.from_numpy(out)[: problem.batch]

    def score(start: int, stop: int) -> Tensor:
        first, last = start // lanes, -(-stop // lanes)
        parts = min(last - first, 4 * torch.get_num_threads())

        def run(part: int) -> None:
            low, high = (first + (last - first) * p // parts for p in (part, part + 1))
            place = out.reshape(-1)[(low - first) * lanes :]
            problem.scores(problem.samples, *problem.targets, problem.groups, low, high, place, out.shape[1])

        share(run, parts)
        return view[:, : stop - start]

    return score, width * lanes


def softmin(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float) -> Tensor:
    if x.shape[0] == 0:
        return x.new_empty(0)
    score, width = block_score(x, layout, bias, form)
    return streaming.softmin(score, layout[0].shape[0], width, epsilon)


def soft_marginal(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float, row_weight: Tensor
) -> tuple[Tensor, Tensor]:
    if x.shape[0] == 0:
        return x.new_empty(0), torch.zeros_like(bias)
    score, width = block_score(x, layout, bias, form)
    return streaming.soft_marginal(score, layout[0].shape[0], width, epsilon, row_weight)


def topk(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, k: int) -> tuple[Tensor, Tensor]:
    if x.shape[0] == 0:
        return x.new_empty(0, k), x.new_empty(0, k, dtype=torch.int64)
    score, width = block_score(x, layout, bias, form)
    return smallest.topk(score, layout[0].shape[0], width, k)


def sample(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float, seed: Tensor) -> Tensor:
    score, width = block_score(x, layout, bias, form)
    scores = streaming.scored(score, layout[0].shape[0], width)
    return streaming.sample(scores, x.shape[0], epsilon, seed, numba_race.race)[1]
