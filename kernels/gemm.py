"""Blocked torch: one matrix product per block of targets for the inner form, the form's own definition otherwise."""

import torch
from torch import Tensor

from . import streaming
from .form import Form

# Targets in a block. Measured on a 2-core AVX-512 CPU, N=60 000, D=784, float32 (docs/performance.md):
# B=16 best at 1 024, B=64 at 2 048, B=256 at 1 024; a block of scores should stay inside the L2 cache.
BLOCK = 2048
BLOCK_COORDINATES = 2**22  # of x − y formed at once when the form is not a product


def refusal(form: Form, reduction: str, device: torch.device, n: int, d: int) -> str | None:
    return None


def prepare(y: Tensor, form: Form) -> list[Tensor]:
    return [y]


def block_score(x: Tensor, y: Tensor, bias: Tensor, form: Form) -> tuple[streaming.Score, int]:
    """The scoring function for blocks of y, and the width of a block."""
    if form.kind == "inner":
        buffer = x.new_empty(x.shape[0] * min(BLOCK, y.shape[0]))

        def score(start: int, stop: int) -> Tensor:
            out = buffer[: x.shape[0] * (stop - start)].view(x.shape[0], stop - start)
            return torch.addmm(bias[start:stop], x, y[start:stop].T, alpha=-form.scale, out=out)

        return score, BLOCK
    width = max(1, min(BLOCK, BLOCK_COORDINATES // max(1, x.numel())))
    return (lambda start, stop: form.pairwise(x, y[start:stop]) + bias[start:stop]), width


def argmin(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    score, width = block_score(x, layout[0], bias, form)
    return streaming.argmin(score, layout[0].shape[0], width)


def softmin(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float) -> Tensor:
    score, width = block_score(x, layout[0], bias, form)
    return streaming.softmin(score, layout[0].shape[0], width, epsilon)


def soft_marginal(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float, row_weight: Tensor
) -> tuple[Tensor, Tensor]:
    score, width = block_score(x, layout[0], bias, form)
    return streaming.soft_marginal(score, layout[0].shape[0], width, epsilon, row_weight)


def topk(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, k: int) -> tuple[Tensor, Tensor]:
    score, width = block_score(x, layout[0], bias, form)
    return streaming.topk(score, layout[0].shape[0], width, k)
