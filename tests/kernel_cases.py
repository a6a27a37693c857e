"""What the kernel tests share: backends, forms, problems."""

import pytest
import torch

from fastsdot.kernels import BACKENDS, Form, argmin, refusal, soft_marginal, softmin, topk

CPU = torch.device("cpu")
D = 5  # the dimension at which KeOps, which compiles each anew, is tried
WEIGHT = torch.tensor([1.0, 2.0, 1.0, 4.0, 1.0])


def weighted(x, y):
    return (WEIGHT[: x.shape[-1]] * (x - y).abs()).sum(-1)


FORMS = {
    "inner": Form("inner", scale=2.0),
    "l1": Form("power"),
    "l2": Form("power", p=2.0, root=True),
    "lp1.5": Form("power", p=1.5),
    "l2squared": Form("power", p=2.0),
    "l3": Form("power", p=3.0, root=True),
    "callable": Form("callable", function=weighted),
}


def cases(*names, without=None):
    """(backend, form) for every exact backend; KeOps compiles for seconds: of its, fast tests try the callable."""
    exact = [name for name, backend in BACKENDS.items() if backend.precision != "low" and name != without]
    pairs = [(backend, name) for backend in exact for name in names or FORMS]
    slow = {pair for pair in pairs if pair[0] == "keops" and pair[1] != "callable"}
    return [
        pytest.param(b, FORMS[f], id=f"{b}-{f}", marks=[pytest.mark.slow] if (b, f) in slow else []) for b, f in pairs
    ]


every_case = pytest.mark.parametrize(("backend", "form"), cases())
REDUCTIONS = ("argmin", "softmin", "soft_marginal", "topk")


def need(backend, form, *reductions, n=100, d=D):
    for reduction in reductions:
        reason = refusal(backend, form, reduction, CPU, n, d)
        if reason is not None:
            pytest.skip(f"{backend}, {form.kind}, {reduction}: {reason}")


def problem(b=13, n=500, d=D, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    x, y, bias = (torch.randn(shape, generator=g) for shape in ((b, d), (n, d), (n,)))
    return scale * x, scale * y, bias


def lattice(b=20, n=200):
    """Coordinates 0 and 1 and whole biases: every score is exact in float32, and most targets have duplicates."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randint(0, 2, (rows, D), generator=g).float() for rows in (b, n))
    return x, y, torch.randint(0, 2, (n,), generator=g).float()


def double(x, y, bias):
    return x.double(), [y.double()], bias.double()


def assert_close(value, expected, allowed):
    error = (value.double() - expected).abs()
    assert (error <= allowed).all(), f"off by {float((error - allowed).max()):.3e} above rounding"


def reduce_all(x, targets, bias, row_weight, k=7):
    return (
        *argmin(x, targets, bias),
        softmin(x, targets, bias, 0.5),
        *soft_marginal(x, targets, bias, 0.5, row_weight),
        *topk(x, targets, bias, k),
    )
