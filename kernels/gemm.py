"""Blocked torch: one matrix product per block of targets for the inner form, the form's own definition otherwise.

On the CPU the targets of the inner form are shared out in contiguous parts, one thread to a part and its blocks.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import TypeVar

import torch
from torch import Tensor

from . import merge, philox, smallest, streaming, threads
from .form import Form

Result = TypeVar("Result")

# Scores in a block of products: up to here torch reduces it on the calling thread, and it stays in the L2 cache.
# Measured with float32, N=60 000, D=784 (docs/performance.md): 2¹⁵ and 2¹⁶ are the fastest, more are slower.
BLOCK_SCORES = 2**15
NARROWEST = 256  # targets in a block of products
PART_PRODUCTS = 2**25  # multiplications worth a part; one row of 60 000 × 784 is read at the memory's speed regardless
ROWS = 64  # samples worth a part, where they are shared out
PARTS = 4  # for each thread, so that one that is disturbed leaves work to the others
BLOCK = 2048  # targets in a block when the form is not a product, and
BLOCK_COORDINATES = 2**22  # of x − y formed at once when the form is not a product


def refusal(form: Form, reduction: str, device: torch.device, n: int, d: int) -> str | None:
    return None


def prepare(y: Tensor, form: Form) -> list[Tensor]:
    return [y]


def block_score(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form) -> tuple[streaming.Score, int]:
    """The scoring function for blocks of y, and the width of a block."""
    y = layout[0]
    if form.kind == "inner":
        width = min(y.shape[0], max(NARROWEST, BLOCK_SCORES // max(1, x.shape[0])))
        buffer = x.new_empty(x.shape[0] * width)

        def score(start: int, stop: int) -> Tensor:
            out = buffer[: x.shape[0] * (stop - start)].view(x.shape[0], stop - start)
            return torch.addmm(bias[start:stop], x, y[start:stop].T, alpha=-form.scale, out=out)

        return score, width
    width = max(1, min(BLOCK, BLOCK_COORDINATES // max(1, x.numel())))
    return (lambda start, stop: form.pairwise(x, y[start:stop]) + bias[start:stop]), width


def parts(x: Tensor, y: Tensor, form: Form) -> list[tuple[int, int]]:
    """Contiguous ranges of targets to reduce apart from each other."""
    count = 1
    if x.device.type == "cpu" and form.kind == "inner":
        count = min(PARTS * torch.get_num_threads(), x.numel() * y.shape[0] // PART_PRODUCTS)
    return list(streaming.blocks(y.shape[0], -(-y.shape[0] // max(1, count))))


def reduce_parts(
    x: Tensor, y: Tensor, bias: Tensor, form: Form, part: Callable[[streaming.Score, int, int], Result]
) -> list[tuple[int, Result]]:
    """(first target, part(score, n, width)) of each part, in order."""
    x, y, bias = x.detach(), y.detach(), bias.detach()  # another thread does not know that this one records nothing
    ranges = parts(x, y, form)

    def run(task: int) -> tuple[int, Result]:
        start, stop = ranges[task]
        score, width = block_score(x, [y[start:stop]], bias[start:stop], form)
        return start, part(score, stop - start, width)

    return threads.gather(run, len(ranges))


def argmin(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    found = reduce_parts(x, layout[0], bias, form, streaming.argmin)
    return reduce(merge.argmin, [(value, index + start) for start, (value, index) in found])


def sample(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float, seed: Tensor) -> Tensor:
    x, y, bias = x.detach(), layout[0].detach(), bias.detach()
    ranges, race = parts(x, y, form), philox.compiled_race(x.device)

    def run(task: int) -> tuple[Tensor, Tensor]:
        start, stop = ranges[task]
        score, width = block_score(x, [y[start:stop]], bias[start:stop], form)
        scores = streaming.scored(score, stop - start, width, start)
        return streaming.sample(scores, x.shape[0], epsilon, seed, race)

    return reduce(merge.argmin, threads.gather(run, len(ranges)))[1]


def softmin(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float) -> Tensor:
    def part(score: streaming.Score, n: int, width: int) -> Tensor:
        return streaming.softmin(score, n, width, epsilon)

    return _join_soft([value for _, value in reduce_parts(x, layout[0], bias, form, part)], epsilon)


def soft_marginal(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float, row_weight: Tensor
) -> tuple[Tensor, Tensor]:
    row_weight = row_weight.detach()

    def first(score: streaming.Score, n: int, width: int) -> tuple[Tensor, tuple[streaming.Score, int, int]]:
        score = streaming.kept(score, n, width, x.shape[0])
        return streaming.softmin(score, n, width, epsilon), (score, n, width)

    found = [part for _, part in reduce_parts(x, layout[0], bias, form, first)]
    value = _join_soft([low for low, _ in found], epsilon)
    masses = threads.gather(
        lambda i: streaming.marginal(*found[i][1], epsilon=epsilon, value=value, row_weight=row_weight), len(found)
    )
    return value, torch.cat(masses)


def _join_soft(values: list[Tensor], epsilon: float) -> Tensor:
    return values[0] if len(values) == 1 else merge.softmin(torch.stack(values), epsilon)


def topk(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, k: int) -> tuple[Tensor, Tensor]:
    """Samples are shared out instead of targets where there are many, so that no lists have to be joined."""

    def part(score: streaming.Score, n: int, width: int) -> tuple[Tensor, Tensor]:
        return smallest.topk(score, n, width, k)

    y, count = layout[0].detach(), len(parts(x, layout[0], form))
    if x.shape[0] >= ROWS * count:
        rows = x.detach().tensor_split(count)
        score = partial(block_score, layout=[y], bias=bias.detach(), form=form)

        def run(task: int) -> tuple[Tensor, Tensor]:
            scores, width = score(rows[task])
            return part(scores, y.shape[0], width)

        return tuple(map(torch.cat, zip(*threads.gather(run, count), strict=True)))
    found = reduce_parts(x, y, bias, form, part)
    return reduce(partial(merge.topk, k=k), [(value, index + start) for start, (value, index) in found])
