"""What a good user of torch would write: products in blocks of the best width, and the same compiled by inductor.

Both carry each row's smallest score from block to block, so that the B×N matrix is not kept; the width of a block is
the fastest of a few, measured when the problem is prepared.
"""

import warnings
from collections.abc import Callable, Iterable

import torch
from problems import Problem, shortest
from torch import Tensor

from fastsdot.kernels import streaming

WIDTHS = (512, 2048, 8192, 2**15)  # targets in a block, beside all of them at once
COMPILED_WIDTHS = (6000,)  # divides 60 000, so that one width is compiled
TRIES = 3
Run = Callable[[], Tensor]


def fastest(runs: Iterable[Run]) -> Run:
    """The one whose best of a few calls after the first is the shortest."""

    first, *rest = runs
    return min([first, *rest], key=lambda run: shortest(run, TRIES)) if rest else first


def widths(n: int, some: Iterable[int]) -> list[int]:
    return [n, *(width for width in some if width < n)]


def blocked(problem: Problem) -> Run:
    """‖y‖² − 2⟨x, y⟩ block by block into one buffer, `amin` of each, and the column only in rows that improved."""
    x, y, n = problem.x, problem.y, problem.n
    square = y.square().sum(1)

    def at(width: int) -> Run:
        buffer = x.new_empty(problem.b * width)

        def score(start: int, stop: int) -> Tensor:
            out = buffer[: problem.b * (stop - start)].view(problem.b, stop - start)
            return torch.addmm(square[start:stop], x, y[start:stop].T, alpha=-2, out=out)

        return lambda: streaming.argmin(score, n, width)[1]

    return fastest(at(width) for width in widths(n, WIDTHS))


def squares(x: Tensor, y: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    return torch.addmm(square, x, y.T, alpha=-2).min(1)


def absolute(x: Tensor, y: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    return (x[:, None] - y).abs().sum(-1).min(1)


def compiled(problem: Problem) -> Run:
    """torch.compile of the scores of a block and their smallest; inductor fuses the sums of l1 into one loop."""
    x, y, n = problem.x, problem.y, problem.n
    square = y.square().sum(1)

    def at(width: int) -> Run:
        def call() -> Tensor:
            value, index = step(x, y[:width], square[:width])
            for start in range(width, n, width):
                low, column = step(x, y[start : start + width], square[start : start + width])
                better = low < value
                value, index = torch.where(better, low, value), torch.where(better, column + start, index)
            return index

        return call

    torch.compiler.reset()  # what was compiled for other problems counts, and after eight sizes nothing is compiled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, while inductor is imported
        step = torch.compile(absolute if problem.cost == "l1" else squares, dynamic=False)
        return fastest(at(width) for width in widths(n, () if problem.cost == "l1" else COMPILED_WIDTHS))
