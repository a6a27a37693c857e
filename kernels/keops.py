"""KeOps: the score as a symbolic formula, compiled once and reduced without a B×N matrix.

A LazyTensor stands for s_ij = form(x_i, y_j) + bias_j; KeOps writes a C++ or CUDA loop for each pair of formula and
reduction (several seconds, kept on disk by KeOps) and runs it on x, y and bias. Real numbers such as p, ε and scale
are parameters of the loop and not part of its text; the dimension D is part of it.

A callable runs here when it can be called with LazyTensors in the place of x and y: arithmetic, `**`, `.abs()`,
`.sqrt()`, `.exp()`, `.sum(-1)` and so on, but none of the functions in `torch`.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import torch
from torch import Tensor

from fastsdot.errors import BackendUnavailable

from .form import Form

with redirect_stdout(io.StringIO()):  # it reports a missing CUDA on import, before `set_verbose` can be reached
    import pykeops
    from pykeops.config import pykeops_base, pykeops_cuda
    from pykeops.torch import LazyTensor

INDEX_LIMIT = 16_000_000  # KeOps keeps indices in float32 and stops here, short of 2²⁴
PROBE = 64  # targets at which a callable's formula is compared with the callable itself


def refusal(form: Form, reduction: str, device: torch.device, n: int, d: int) -> str | None:
    if device.type not in ("cpu", "cuda"):
        return f"KeOps runs on the CPU and on CUDA, not on {device.type}"
    if device.type == "cpu" and pykeops_base.get_cxx_compiler() is None:
        return "KeOps found no C++ compiler; install g++ or clang++"
    if device.type == "cuda" and not pykeops_cuda.get_use_cuda():
        return "KeOps found no CUDA libraries to compile with"
    if reduction == "sample":
        return "KeOps' formulas have no integers to draw random numbers with"
    if reduction in ("argmin", "topk") and n > INDEX_LIMIT:
        return f"KeOps keeps indices in float32 and cannot count {n} targets; it stops at {INDEX_LIMIT}"
    if form.kind != "callable":
        return None
    try:
        pair = formula(form, d)
    except (TypeError, ValueError, AttributeError, NotImplementedError, IndexError, RuntimeError) as error:
        return f"the cost cannot be called with LazyTensors: {error}"
    if not isinstance(pair, LazyTensor) or pair.is_complex:
        return f"the cost returned {type(pair).__name__} when called with LazyTensors; it must return a LazyTensor"
    if hasattr(pair, "reduction_op"):
        return "the cost sums over targets when called with LazyTensors; reduce the last axis with .sum(-1)"
    if pair.ndim != 1:
        return f"the cost returned {pair.ndim} numbers for each pair of LazyTensors; reduce the last axis with .sum(-1)"
    if {symbol[0] for symbol in pair.symbolic_variables} != {0, 1}:
        return "KeOps cannot reduce a cost that depends on x alone or on y alone"
    return None


def prepare(y: Tensor, form: Form) -> list[Tensor]:
    """Targets alone; a callable's formula is checked once, since an operator can mean another thing on LazyTensors."""
    if form.kind == "callable":
        check(y[:PROBE], form)
    return [y]


@torch.no_grad()
def check(y: Tensor, form: Form) -> None:
    """Raise unless the callable gives the same numbers on LazyTensors as on tensors near the targets y."""
    x = 0.75 * y.flip(1)
    value, _ = argmin(x, [y], y.new_zeros(y.shape[0]), form)
    expected = form.pairwise(x, y).amin(1)
    error = (value - expected).abs()
    if (error > 1e-3 * expected.abs().max()).any():
        raise BackendUnavailable(
            "backend",
            "a cost that gives the same numbers on LazyTensors as on tensors",
            f"'keops' with smallest costs that differ by up to {float(error.max()):.3g}",
            "write the cost with operators along the last axis only, or choose backend='gemm'",
        )


@contextmanager
def quiet() -> Iterator[None]:
    """No progress messages while KeOps compiles; gradients are the operators' own."""
    verbose = pykeops.verbose
    pykeops.set_verbose(False)
    try:
        with torch.no_grad():
            yield
    finally:
        pykeops.set_verbose(verbose)


def formula(form: Form, d: int) -> LazyTensor:
    """form(x_i, y_j) in the symbols x_i = Var(0) and y_j = Var(1) of dimension d."""
    x, y = LazyTensor((0, d, 0)), LazyTensor((1, d, 1))
    if form.kind != "power":
        return form(x, y)
    distance = (x - y).square() if form.p == 2 else (x - y).abs()
    total = (distance if form.p in (1, 2) else distance ** float(form.p)).sum(-1)
    if not form.root or form.p == 1:
        return total
    return total.sqrt() if form.p == 2 else total ** (1 / form.p)


def per_target(index: int) -> LazyTensor:
    return LazyTensor((index, 1, 1))


def per_row(index: int) -> LazyTensor:
    return LazyTensor((index, 1, 0))


def argmin(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """KeOps visits targets in order and replaces on strictly smaller, so ties keep the smallest index."""
    if x.shape[0] == 0:
        return x.new_empty(0), x.new_empty(0, dtype=torch.int64)
    with quiet():
        score = formula(form, x.shape[1]) + per_target(2)
        value, index = score.min_argmin(dim=1)(x, layout[0], bias[:, None])
    return value[:, 0].contiguous(), index[:, 0].contiguous()


def exponent(form: Form, d: int, bias: Tensor, epsilon: float) -> tuple[LazyTensor, Tensor]:
    """−s_ij / ε, and its column −bias / ε; +inf becomes a finite bias, as −inf − (−inf) in KeOps' loop is NaN."""
    column = (bias / -epsilon).clamp(min=torch.finfo(bias.dtype).min / 4)
    return formula(form, d) * (-1 / epsilon) + per_target(2), column[:, None]


def softmin(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float) -> Tensor:
    if x.shape[0] == 0:
        return x.new_empty(0)
    with quiet():
        power, column = exponent(form, x.shape[1], bias, epsilon)
        return -epsilon * power.logsumexp(dim=1)(x, layout[0], column)[:, 0]


def soft_marginal(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float, row_weight: Tensor
) -> tuple[Tensor, Tensor]:
    value = softmin(x, layout, bias, form, epsilon)
    if x.shape[0] == 0:
        return value, torch.zeros_like(bias)
    with quiet():
        power, column = exponent(form, x.shape[1], bias, epsilon)
        share = (-(-power - per_row(3)).relu()).exp() * per_row(4)
        rows = (value / epsilon)[:, None], row_weight[:, None].contiguous()
        return value, share.sum(dim=0)(x, layout[0], column, *rows)[:, 0]


def topk(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, k: int) -> tuple[Tensor, Tensor]:
    """k is part of the formula's text: it is rounded up to a power of two, so that few are compiled."""
    if x.shape[0] == 0:
        return x.new_empty(0, k), x.new_empty(0, k, dtype=torch.int64)
    never = torch.finfo(bias.dtype).max / 2  # KeOps has no index for +inf; any score rounds to this when it is added
    with quiet():
        score = formula(form, x.shape[1]) + per_target(2)
        width = 1 << (k - 1).bit_length()
        value, index = score.Kmin_argKmin(width, dim=1)(x, layout[0], bias.clamp(max=never)[:, None])
    value, index = value[:, :k], index[:, :k]
    return value.masked_fill(value >= never, torch.inf), index.contiguous()
