"""Targets that are laid out one block at a time: every reduction is one pass over the blocks, a soft marginal two.

A block is laid out, reduced by the backend that would reduce all targets, joined to the result so far and dropped.
Memory is that of two blocks, whatever N is; the time to read and lay out a block is shared by the rows of the batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastsdot.errors import BackendUnavailable

from . import merge, philox, streaming
from .form import Form
from .prepared import prepare
from .select import BACKENDS, scorer

PROBE = 1024  # targets on which the backends are chosen

# Rows from which a layout that serves a single batch is worth its cost, and the backend for fewer. A block of
# 5 461 × 3 072: 0.06 s of CPU time to lay out for the screen, then 0.03, 0.12 and 0.51 s for B = 256, 1 024 and 4 096,
# beside 0.11, 0.41 and 1.86 s for gemm (docs/scale.md).
WORTH = {"screen": (256, "gemm"), "screen_low": (256, "gemm")}


class Source(Protocol):
    """N targets as a form is given them; `block` is the number of them in every block but the last."""

    n: int
    block: int

    def stream(self) -> Iterator[tuple[int, int, Tensor]]:
        """(start, stop, y [stop − start, D]) in order; y may be overwritten once the next is asked for."""

    def rows(self, index: Tensor) -> Tensor:
        """y of some targets, [K, D]."""


def in_blocks(source: Source, form: Form, backend: str | None = None, precision: str | None = None) -> "Blocks":
    """Targets in blocks, for `backend` or for the fastest of that `precision`; raises what `prepare` does."""
    probe = prepare(source.rows(torch.arange(min(source.block, source.n, PROBE))), form, backend, precision)
    return Blocks(form, source, probe.plan, probe.refusals, backend is not None)


@dataclass(frozen=True)
class Blocks:
    """Targets of a source; plan and refusals are those of `Prepared`, and named says whether the user chose it."""

    form: Form
    source: Source
    plan: dict[str, str]
    refusals: dict[str, BackendUnavailable]
    named: bool

    def backend(self, reduction: str, batch: int | None = None) -> str:
        """The backend for so many rows, by default for many."""
        if reduction in self.refusals:
            raise self.refusals[reduction]
        name = self.plan[reduction]
        least, other = WORTH.get(name, (0, name))
        return other if batch is not None and batch < least and not self.named else name

    def parts(self, reduction: str, batch: int) -> Iterator[tuple[int, Callable]]:
        """(first target, reduce) of each block; reduce(x, bias of all targets, …) is the block's result."""
        module = BACKENDS[self.backend(reduction, batch)].load()
        for start, stop, y in self.source.stream():
            layout, run = module.prepare(y, self.form), getattr(module, reduction)
            yield start, lambda x, bias, *rest: run(x, layout, bias[start:stop], self.form, *rest)  # noqa: B023

    def argmin(self, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        best = None
        for start, reduce in self.parts("argmin", x.shape[0]):
            value, index = reduce(x, bias)
            found = value, index + start
            best = found if best is None else merge.argmin(best, found)
        return best

    def topk(self, x: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
        best = None
        limited = BACKENDS[self.backend("topk", x.shape[0])].limited
        for start, reduce in self.parts("topk", x.shape[0]):
            least = limited and best is not None and best[0].shape[1] == k
            limit = (None, best[0][:, -1].contiguous()) if least else ()  # by no other launch, and for each row
            value, index = reduce(x, bias, min(k, self.source.block, self.source.n - start), *limit)
            found = value, index + start
            best = found if best is None else merge.topk(best, found, k)
        return best

    # What outlives a block is allocated before the first: small tensors left between large ones that come and go keep
    # the allocator from using their memory again.

    def softmins(self, x: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        """v of each block alone, [blocks, B]."""
        own = x.new_empty(-(-self.source.n // self.source.block), x.shape[0])
        for i, (_, reduce) in enumerate(self.parts("softmin", x.shape[0])):
            own[i] = reduce(x, bias, epsilon)
        return own

    def softmin(self, x: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        return merge.softmin(self.softmins(x, bias, epsilon), epsilon)

    def soft_marginal(self, x: Tensor, bias: Tensor, epsilon: float, row_weight: Tensor) -> tuple[Tensor, Tensor]:
        own, mass = self.softmins(x, bias, epsilon), torch.empty_like(bias)
        value = merge.softmin(own, epsilon)
        for (start, reduce), v in zip(self.parts("soft_marginal", x.shape[0]), own, strict=True):
            part = reduce(x, bias, epsilon, merge.row_weight(row_weight, value, v, epsilon))[1]
            mass[start : start + part.shape[0]] = part
        return value, mass

    def sample(self, x: Tensor, bias: Tensor, epsilon: float, seed: Tensor) -> Tensor:
        self.backend("sample")  # the race needs scores alone, but the one that the user named may have none
        return streaming.sample(self.scores(x, bias), x.shape[0], epsilon, seed, philox.compiled_race(x.device))[1]

    def scores(self, x: Tensor, bias: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """(start, stop, s_ij [B, stop − start]) over all targets; each may be overwritten by the next."""
        module = BACKENDS[scorer(self.plan.values())].load()
        for first, last, y in self.source.stream():
            score, width = module.block_score(x, module.prepare(y, self.form), bias[first:last], self.form)
            for start, stop in streaming.blocks(last - first, width):
                yield first + start, first + stop, score(start, stop)

    def chosen(self, index: Tensor) -> Tensor:
        return self.source.rows(index)

    def soft_gradient(
        self, x: Tensor, bias: Tensor, value: Tensor, grad: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        grad_x, mass = torch.zeros_like(x), torch.empty_like(bias)
        for start, stop, y in self.source.stream():
            part, mass[start:stop] = torch.ops.fastsdot.soft_gradient(
                x, y, bias[start:stop], value, grad, self.form.key, epsilon
            )
            grad_x += part
        return grad_x, mass


def centred_moments(
    scores: Iterator[tuple[int, int, Tensor]], x: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """m_j = mean_i s_ij [N], Σ_j (s_ij − m_j) [B] and Σ_ij (s_ij − m_j)², in float64."""
    mean = torch.empty_like(bias, dtype=torch.float64)
    row = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    square = row.new_zeros(())
    for start, stop, s in scores:
        s = s.double()
        mean[start:stop] = s.mean(0)
        s = s - mean[start:stop]
        row += s.sum(1)
        square += s.square().sum()
    return mean, row, square


class Chosen(torch.autograd.Function):
    """argmin (k = None) or topk with the gradient of the values."""

    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor, blocks: Blocks, k: int | None) -> tuple[Tensor, Tensor]:
        value, index = blocks.argmin(x, bias) if k is None else blocks.topk(x, bias, k)
        ctx.mark_non_differentiable(index)
        ctx.save_for_backward(x, bias, index)
        ctx.blocks = blocks
        return value, index

    @staticmethod
    def backward(ctx, grad: Tensor, _) -> tuple[Tensor, Tensor, None, None]:
        x, bias, index = ctx.saved_tensors
        index, weight = index.reshape(x.shape[0], -1), grad.reshape(x.shape[0], -1)
        chosen, place = torch.unique(index, return_inverse=True)
        grad_x = torch.ops.fastsdot.chosen_gradient(
            x, ctx.blocks.source.rows(chosen), place, weight, ctx.blocks.form.key
        )
        return grad_x, torch.zeros_like(bias).index_add(0, index.reshape(-1), weight.reshape(-1)), None, None


class Soft(torch.autograd.Function):
    """softmin with its gradient, which is another pass over the targets."""

    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor, blocks: Blocks, epsilon: float) -> Tensor:
        value = blocks.softmin(x, bias, epsilon)
        ctx.save_for_backward(x, bias, value)
        ctx.blocks, ctx.epsilon = blocks, epsilon
        return value

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, bias, value = ctx.saved_tensors
        return *ctx.blocks.soft_gradient(x, bias, value, grad.contiguous(), ctx.epsilon), None, None
