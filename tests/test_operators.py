"""Forms and operators: one definition in all its uses, gradients, the rules of torch.library, torch.compile."""

import pytest
import torch
from kernel_cases import FORMS, REDUCTIONS, D, cases, every_case, need, problem, reduce_all

from fastsdot.kernels import Form, argmin, prepare, softmin, topk
from fastsdot.kernels.form import find


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_form_is_one_definition_in_all_its_uses(form):
    x, y, _ = problem(4, 7)
    x, y = x.double().requires_grad_(), y.double()
    pairs = form(x[:, None], y[None])
    assert torch.allclose(form.pairwise(x, y), pairs, rtol=1e-12)
    assert torch.allclose(find(form.key)(x[:, None], y[None]), pairs, rtol=1e-12)
    weight = torch.rand(4, 7, dtype=torch.float64)
    (expected,) = torch.autograd.grad((weight * pairs).sum(), x, retain_graph=True)
    assert torch.allclose(form.gradient(x.detach(), y, weight), expected, rtol=1e-10)
    (expected,) = torch.autograd.grad((weight[:, :1] * pairs[:, 2:3]).sum(), x)
    chosen = y[2].expand(4, D)
    assert torch.allclose(form.gradient(x.detach(), chosen, weight[:, :1], paired=True), expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["l1", "l2", "lp1.5", "l2squared", "l3"])
def test_the_gradient_where_two_points_meet_is_finite(name):
    x = torch.zeros(2, D)
    assert torch.equal(FORMS[name].gradient(x, x, torch.ones(2, 2)), torch.zeros(2, D))


def gradients(value, x, bias):
    pull = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype).view_as(value)
    return torch.autograd.grad(value, (x, bias), pull)


VALUES = {
    "argmin": (lambda x, targets, bias: argmin(x, targets, bias)[0], lambda s: s.amin(1)),
    "softmin": (lambda x, targets, bias: softmin(x, targets, bias, 0.3), lambda s: -0.3 * (-s / 0.3).logsumexp(1)),
    "topk": (
        lambda x, targets, bias: topk(x, targets, bias, 7)[0],
        lambda s: s.topk(7, dim=1, largest=False).values,
    ),
}


@every_case
@pytest.mark.parametrize("reduction", VALUES)
def test_values_have_the_gradients_of_the_definition(backend, form, reduction):
    need(backend, form, "argmin", reduction)
    value, definition = VALUES[reduction]
    x, y, bias = problem(n=2500)
    bias[3] = torch.inf
    x64, bias64 = x.double().requires_grad_(), bias.double().requires_grad_()
    x32, bias32 = x.requires_grad_(), bias.requires_grad_()
    score = form(x64[:, None], y.double()[None]) + bias64
    expected = gradients(definition(score), x64, bias64)
    got = gradients(value(x32, prepare(y, form, backend), bias32), x32, bias32)
    for g, e in zip(got, expected, strict=True):
        assert torch.allclose(g.double(), e, rtol=1e-4, atol=1e-5 * float(e.abs().max()))


def test_a_cost_lives_as_long_as_the_values_it_gave():
    x, y, bias = problem()
    x.requires_grad_()
    weight = torch.rand(D)
    targets = prepare(y, Form("callable", function=lambda x, y: (weight * (x - y).abs()).sum(-1)), "gemm")
    value = argmin(x, targets, bias)[0].sum() + softmin(x, targets, bias, 0.5).sum()
    del targets
    (gradient,) = torch.autograd.grad(value, x)
    assert (gradient != 0).any()


TRACED = [c for c in cases("inner", "l1", "callable") if c.id != "naive-l1"]


@pytest.mark.parametrize(("backend", "form"), TRACED)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_operators_obey_the_rules_of_torch_library(backend, form, reduction):
    need(backend, form, "argmin", reduction)
    x, y, bias = problem(4, 60)
    rest = {"argmin": (), "softmin": (0.5,), "soft_marginal": (0.5,), "topk": (7,)}[reduction]
    row_weight = (torch.rand(4),) if reduction == "soft_marginal" else ()
    differentiable = reduction != "soft_marginal"
    layout = prepare(y, form, backend).layouts[backend]
    x, bias = x.requires_grad_(differentiable), bias.requires_grad_(differentiable)
    operator = getattr(torch.ops.fastsdot, reduction).default
    torch.library.opcheck(operator, (x, layout, bias, *row_weight, backend, form.key, *rest))


@pytest.mark.parametrize("form", [FORMS["inner"], FORMS["l1"]], ids=["inner", "l1"])
def test_gradient_operators_obey_the_rules_of_torch_library(form):
    x, y, bias = problem(4, 60)
    targets = prepare(y, form, "gemm")
    value, index = topk(x, targets, bias, 3)
    torch.library.opcheck(torch.ops.fastsdot.chosen_gradient.default, (x, y, index, value, form.key))
    soft = softmin(x, targets, bias, 0.5)
    torch.library.opcheck(torch.ops.fastsdot.soft_gradient.default, (x, y, bias, soft, torch.ones(4), form.key, 0.5))


@pytest.mark.parametrize(("backend", "form"), TRACED)
def test_reductions_compile_in_one_graph(backend, form):
    need(backend, form, *REDUCTIONS)
    torch._dynamo.reset()
    x, y, bias = problem(6, 80)
    targets, row_weight = prepare(y, form, backend), torch.rand(6)

    def everything(x, bias):
        return reduce_all(x + 0, targets, bias, row_weight)

    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    results = []
    for function in (everything, compiled):
        leaf, potential = x.clone().requires_grad_(), bias.clone().requires_grad_()
        out = function(leaf, potential)
        loss = out[0].sum() + out[2].sum() + out[5].sum()
        results.append((*out, *torch.autograd.grad(loss, (leaf, potential))))
    for eager, traced in zip(*results, strict=True):
        assert torch.allclose(eager, traced, rtol=1e-5, atol=1e-6)
