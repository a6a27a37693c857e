"""The reductions as torch operators: one implementation each, fake kernels for tracing, gradients of the values.

The gradient of a value with respect to a score is the softmax over targets (its limit, the indicator of the chosen
target, for argmin and topk): ∂v_i/∂bias_j = p_ij and ∂v_i/∂x_i = Σ_j p_ij ∂form(x_i, y_j)/∂x_i.

All are computed in the dtype of x, under autocast too.
"""

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ParamSpec, TypeVar, Union

import torch
from torch import Tensor

from . import gemm, merge, smallest, streaming
from .blocks import Blocks, Chosen, Soft, centred_moments
from .form import find
from .prepared import Prepared, prepare
from .select import BACKENDS, scorer

if TYPE_CHECKING:
    from .shards import Shards

Targets = Union[Prepared, Blocks, "Shards"]
P, R = ParamSpec("P"), TypeVar("R")


def uncast(function: Callable[P, R]) -> Callable[P, R]:
    """The same function of x and more, whose matrix products no autocast lowers."""

    @functools.wraps(function)
    def run(x: Tensor, *rest: P.args, **options: P.kwargs) -> R:
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *rest, **options)

    return run


_LIBRARY = torch.library.Library("fastsdot", "FRAGMENT")


def operator(function: Callable) -> Callable:
    """The function as torch's operator of its name.

    `torch.library.custom_op` would import torch's compiler at the first call, which takes seconds, and switch autograd
    off inside, of which the gradient of a callable is made.
    """
    name = function.__name__.removeprefix("_")
    _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    return getattr(torch.ops.fastsdot, name).default


@operator
def _argmin(x: Tensor, layout: list[Tensor], bias: Tensor, backend: str, form: str) -> tuple[Tensor, Tensor]:
    return BACKENDS[backend].load().argmin(x, layout, bias, find(form))


@operator
def _softmin(x: Tensor, layout: list[Tensor], bias: Tensor, backend: str, form: str, epsilon: float) -> Tensor:
    return BACKENDS[backend].load().softmin(x, layout, bias, find(form), epsilon)


@operator
def _soft_marginal(
    x: Tensor, layout: list[Tensor], bias: Tensor, row_weight: Tensor, backend: str, form: str, epsilon: float
) -> tuple[Tensor, Tensor]:
    return BACKENDS[backend].load().soft_marginal(x, layout, bias, find(form), epsilon, row_weight)


@operator
def _topk(x: Tensor, layout: list[Tensor], bias: Tensor, backend: str, form: str, k: int) -> tuple[Tensor, Tensor]:
    return BACKENDS[backend].load().topk(x, layout, bias, find(form), k)


@operator
def _sample(
    x: Tensor, layout: list[Tensor], bias: Tensor, seed: Tensor, backend: str, form: str, epsilon: float
) -> Tensor:
    return BACKENDS[backend].load().sample(x, layout, bias, find(form), epsilon, seed)


@operator
@uncast
def _soft_gradient(
    x: Tensor, y: Tensor, bias: Tensor, value: Tensor, row_weight: Tensor, form: str, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Σ_i r_i v_i differentiated with respect to x and bias, over blocks of targets on any device."""
    pair = find(form)
    score, width = gemm.block_score(x, [y], bias, pair)
    gradient, mass = torch.zeros_like(x), torch.empty_like(bias)
    for start, stop in streaming.blocks(y.shape[0], width):
        p = row_weight[:, None] * merge.shares(value[:, None] - score(start, stop), epsilon)
        mass[start:stop] = p.sum(0)
        gradient += pair.gradient(x, y[start:stop], p)
    return gradient, mass


@operator
@uncast
def _chosen_gradient(x: Tensor, y: Tensor, index: Tensor, weight: Tensor, form: str) -> Tensor:
    """Σ_k w_ik ∂form(x_i, y_{index_ik})/∂x_i, for index and weight [B, k]."""
    pair = find(form)
    rows = [pair.gradient(x, y[column], w[:, None], paired=True) for column, w in zip(index.T, weight.T, strict=True)]
    return torch.stack(rows).sum(0)


@operator
def _average(
    x: Tensor, layout: list[Tensor], bias: Tensor, points: Tensor, backend: str, form: str, epsilon: float
) -> Tensor:
    score, width = BACKENDS[backend].load().block_score(x, layout, bias, find(form))
    return streaming.average(streaming.scored(score, points.shape[0], width), epsilon, points)


@torch.library.register_fake(_argmin)
def _(x, layout, bias, backend, form):
    return x.new_empty(x.shape[0]), x.new_empty(x.shape[0], dtype=torch.int64)


@torch.library.register_fake(_softmin)
def _(x, layout, bias, backend, form, epsilon):
    return x.new_empty(x.shape[0])


@torch.library.register_fake(_soft_marginal)
def _(x, layout, bias, row_weight, backend, form, epsilon):
    return x.new_empty(x.shape[0]), torch.empty_like(bias)


@torch.library.register_fake(_topk)
def _(x, layout, bias, backend, form, k):
    return x.new_empty(x.shape[0], k), x.new_empty(x.shape[0], k, dtype=torch.int64)


@torch.library.register_fake(_sample)
def _(x, layout, bias, seed, backend, form, epsilon):
    return x.new_empty(x.shape[0], dtype=torch.int64)


@torch.library.register_fake(_average)
def _(x, layout, bias, points, backend, form, epsilon):
    return x.new_empty(x.shape[0], points.shape[1])


@torch.library.register_fake(_soft_gradient)
def _(x, y, bias, value, row_weight, form, epsilon):
    return torch.empty_like(x), torch.empty_like(bias)


@torch.library.register_fake(_chosen_gradient)
def _(x, y, index, weight, form):
    return torch.empty_like(x)


def _save_chosen(ctx, inputs, output):
    x, layout, bias = inputs[:3]
    ctx.save_for_backward(x, layout[0], bias, output[1])
    ctx.form, ctx.layout = inputs[4], [None] * len(layout)
    ctx.held = find(ctx.form)  # a callable must outlive the targets it came with


def _chosen_backward(ctx, grad_value, grad_index):
    x, y, bias, index = ctx.saved_tensors
    index, weight = index.reshape(x.shape[0], -1), grad_value.reshape(x.shape[0], -1)
    grad_x = _chosen_gradient(x, y, index, weight, ctx.form)
    grad_bias = torch.zeros_like(bias).index_add(0, index.reshape(-1), weight.reshape(-1))
    return grad_x, ctx.layout, grad_bias, None, None


def _topk_backward(ctx, grad_value, grad_index):
    return *_chosen_backward(ctx, grad_value, grad_index), None


def _save_soft(ctx, inputs, output):
    x, layout, bias, _, ctx.form, ctx.epsilon = inputs
    ctx.save_for_backward(x, layout[0], bias, output)
    ctx.layout, ctx.held = [None] * len(layout), find(ctx.form)


def _soft_backward(ctx, grad):
    x, y, bias, value = ctx.saved_tensors
    grad_x, grad_bias = _soft_gradient(x, y, bias, value, grad.contiguous(), ctx.form, ctx.epsilon)
    return grad_x, ctx.layout, grad_bias, None, None, None


torch.library.register_autograd(_argmin, _chosen_backward, setup_context=_save_chosen)
torch.library.register_autograd(_topk, _topk_backward, setup_context=_save_chosen)
torch.library.register_autograd(_softmin, _soft_backward, setup_context=_save_soft)


@uncast
def argmin(x: Tensor, targets: Targets, bias: Tensor) -> tuple[Tensor, Tensor]:
    """min_j s_ij and the smallest j that reaches it: [B], [B] int64."""
    if not isinstance(targets, Prepared):
        return Chosen.apply(x.contiguous(), bias, targets, None)
    backend = targets.backend("argmin")
    return _argmin(x.contiguous(), targets.layouts[backend], bias, backend, targets.form.key)


@uncast
def softmin(x: Tensor, targets: Targets, bias: Tensor, epsilon: float) -> Tensor:
    """v_i = −ε log Σ_j exp(−s_ij / ε), [B]."""
    if not isinstance(targets, Prepared):
        return Soft.apply(x.contiguous(), bias, targets, epsilon)
    backend = targets.backend("softmin")
    return _softmin(x.contiguous(), targets.layouts[backend], bias, backend, targets.form.key, epsilon)


@uncast
def soft_marginal(
    x: Tensor, targets: Targets, bias: Tensor, epsilon: float, row_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """v_i, [B], and Σ_i r_i exp((v_i − s_ij) / ε), [N]; r defaults to 1/B. Neither is differentiable."""
    if row_weight is None:
        row_weight = x.new_full((x.shape[0],), 1 / max(1, x.shape[0]))
    x, bias, row_weight = x.detach().contiguous(), bias.detach(), row_weight.detach()
    if isinstance(targets, Prepared):
        backend = targets.backend("soft_marginal")
        value, mass = _soft_marginal(x, targets.layouts[backend], bias, row_weight, backend, targets.form.key, epsilon)
    else:
        value, mass = targets.soft_marginal(x, bias, epsilon, row_weight)
    return value, mass.masked_fill(torch.isinf(bias), 0.0)  # NaN where a block has no target that can be chosen


@uncast
def topk(x: Tensor, targets: Targets, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest s_ij of each row in ascending order, ties by index, and their indices: [B, k], [B, k] int64."""
    if not isinstance(targets, Prepared):
        return Chosen.apply(x.contiguous(), bias, targets, k)
    backend = targets.backend("topk")
    return _topk(x.contiguous(), targets.layouts[backend], bias, backend, targets.form.key, k)


@uncast
def sample(x: Tensor, targets: Targets, bias: Tensor, epsilon: float, seed: int | Tensor) -> Tensor:
    """An index drawn with probability exp((v_i − s_ij) / ε) for each row, [B] int64.

    The draw is a function of `seed`, 64 bits in an int or an int64 tensor without dimensions, of the row's place in the
    batch and of the scores: rows are independent of each other, and calls are where their seeds differ.
    """
    x, bias, seed = x.detach().contiguous(), bias.detach(), torch.as_tensor(seed, dtype=torch.int64, device=x.device)
    if not isinstance(targets, Prepared):
        return targets.sample(x, bias, epsilon, seed)
    backend = targets.backend("sample")
    return _sample(x, targets.layouts[backend], bias, seed, backend, targets.form.key, epsilon)


@uncast
def average(x: Tensor, targets: Targets, bias: Tensor, epsilon: float, points: streaming.Rows) -> Tensor:
    """Σ_j exp((v_i − s_ij) / ε) points_j, [B, D']; not differentiable.

    points is read by slices points[start:stop], [stop − start, ...] of any dtype, and is a tensor for `Prepared`.
    """
    x, bias = x.detach().contiguous(), bias.detach()
    if isinstance(targets, Prepared):
        backend = scorer(targets.layouts)
        layout = targets.layouts.get(backend, [targets.y])
        return _average(x, layout, bias, points.flatten(1), backend, targets.form.key, epsilon)
    if isinstance(targets, Blocks):
        return streaming.average(scores(x, targets, bias), epsilon, points)
    return targets.average(x, bias, epsilon, points)


def scores(x: Tensor, targets: Targets, bias: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """(start, stop, s_ij as [B, stop − start]) over all targets, for sums that are none of the reductions.

    Each may be overwritten by the next.
    """
    blocks = _scores(x, targets, bias) if isinstance(targets, Prepared) else targets.scores(x, bias)
    while True:
        with torch.autocast(x.device.type, enabled=False):  # left before the block is handed over
            block = next(blocks, None)
        if block is None:
            return
        yield block


def _scores(x: Tensor, targets: Prepared, bias: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    name = scorer(targets.layouts)
    layout = targets.layouts.get(name, [targets.y])
    score, width = BACKENDS[name].load().block_score(x, layout, bias, targets.form)
    yield from streaming.scored(score, targets.y.shape[0], width)


@uncast
def moments(x: Tensor, targets: Targets, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """m_j = mean_i s_ij [N], Σ_j (s_ij − m_j) [B] and Σ_ij (s_ij − m_j)², in float64."""
    if not isinstance(targets, Prepared | Blocks):
        return targets.moments(x, bias)
    return centred_moments(scores(x, targets, bias), x, bias)


@uncast
def margins(x: Tensor, targets: Targets, bias: Tensor, value: Tensor, wins: int) -> tuple[Tensor, Tensor]:
    """The fall of bias_j at which target j would win so many of the rows, given v_i = min_j s_ij, and the mean of the
    falls at which it would win 1, 2 and so on up to that: [N] each.

    The `wins`-th smallest of s_ij − v_i over i, and the mean of the smallest ones up to it.
    """
    if not isinstance(targets, Prepared | Blocks):
        return targets.margins(x, bias, value, wins)
    if BACKENDS[targets.plan.get("topk", "naive")].requires == "triton":
        return swapped_margins(x, targets, bias, value, wins)
    least = bias.new_full((wins, bias.numel()), torch.inf)
    for start, _, score in scores(x, targets, bias):
        smallest.fold_columns(least, start, score, value)
    return least[-1], least.mean(0)


def swapped_margins(
    x: Tensor, targets: Prepared | Blocks, bias: Tensor, value: Tensor, wins: int
) -> tuple[Tensor, Tensor]:
    """`margins` by the kernels of top-k: the form of a pair is symmetric, so samples are the targets of each target."""
    samples = prepare(x, targets.form, targets.plan["topk"])
    parts = [(0, bias.numel(), targets.y)] if isinstance(targets, Prepared) else targets.source.stream()
    least = bias.new_full((bias.numel(), wins), torch.inf)
    for start, stop, y in parts:
        found, _ = topk(y, samples, -value, min(wins, len(x)))
        least[start:stop, : found.shape[1]] = found + bias[start:stop, None]
    return least[:, -1], least.mean(1)


def chosen(targets: Targets, index: Tensor) -> Tensor:
    """Rows of y, [K, D]."""
    return targets.y[index] if isinstance(targets, Prepared) else targets.chosen(index)


@uncast
def gradient(
    x: Tensor, targets: Targets, bias: Tensor, value: Tensor, grad: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """`_soft_gradient` for targets of any kind."""
    if isinstance(targets, Prepared):
        return _soft_gradient(x, targets.y, bias, value, grad, targets.form.key, epsilon)
    return targets.soft_gradient(x, bias, value, grad, epsilon)
