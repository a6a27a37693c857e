"""Every backend against the definition in float64, and the laws that the four reductions obey."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from compare import Truth, assert_argmin, reference, tolerance
from kernel_cases import (
    FORMS,
    REDUCTIONS,
    D,
    assert_close,
    cases,
    double,
    every_case,
    lattice,
    need,
    problem,
    reduce_all,
)

from fastsdot.kernels import argmin, gemm, naive, prepare, soft_marginal, softmin, topk


@every_case
@pytest.mark.parametrize("shape", [(13, 500), (1, 1), (1, 7001), (70, 2049), (8, 49)])
def test_argmin_is_the_best_up_to_rounding(backend, form, shape):
    need(backend, form, "argmin")
    x, y, bias = problem(*shape)
    assert_argmin(x, y, bias, form, *argmin(x, prepare(y, form, backend), bias))


@pytest.mark.parametrize(("backend", "form"), cases("inner", "l1", "l2", "lp1.5", without="keops"))
@pytest.mark.parametrize("d", [1, 2, 3, 16, 33, 200])
def test_argmin_in_other_dimensions(backend, form, d):
    need(backend, form, "argmin", d=d)
    x, y, bias = problem(19, 777, d)
    assert_argmin(x, y, bias, form, *argmin(x, prepare(y, form, backend), bias))


@every_case
@pytest.mark.parametrize("epsilon", [0.05, 1.0, 100.0])
def test_softmin_and_marginal_are_the_definition(backend, form, epsilon):
    need(backend, form, "argmin", "softmin", "soft_marginal")
    x, y, bias = problem(n=2500)
    row_weight = torch.linspace(-1, 2, x.shape[0])
    targets, truth = prepare(y, form, backend), Truth(x, y, bias, form)
    value, mass = soft_marginal(x, targets, bias, epsilon, row_weight)
    for low in (value, softmin(x, targets, bias, epsilon)):
        assert (truth.softmin(low, epsilon) <= 1).all()
    assert (truth.mass(mass, epsilon, row_weight) <= 1).all()


@every_case
def test_no_target_gets_more_than_all_mass_where_scores_are_far_above_the_temperature(backend, form):
    need(backend, form, "argmin", "soft_marginal")
    x, y, bias = problem(b=64, n=300, scale=1e5)
    mass = soft_marginal(x, prepare(y, form, backend), bias, 1e-3)[1]
    assert ((mass >= 0) & (mass <= 1 + 1e-5)).all()
    x.requires_grad_()
    softmin(x, prepare(y, form, backend), bias.requires_grad_(), 1e-3).mean().backward()
    assert ((bias.grad >= 0) & (bias.grad <= 1 + 1e-5)).all()
    assert x.grad.isfinite().all()


@every_case
def test_the_marginal_averages_over_the_batch_unless_told(backend, form):
    need(backend, form, "argmin", "soft_marginal")
    x, y, bias = problem()
    mass = soft_marginal(x, prepare(y, form, backend), bias, 0.5)[1]
    assert mass.sum().item() == pytest.approx(1, abs=1e-4)
    assert_close(mass, naive.soft_marginal(*double(x, y, bias), form, 0.5, x.new_full((13,), 1 / 13).double())[1], 1e-5)


@every_case
@pytest.mark.parametrize(("n", "k"), [(2500, 7), (8, 8)])
def test_topk_is_the_definition(backend, form, n, k):
    need(backend, form, "argmin", "topk")
    x, y, bias = problem(n=n)
    value, index = topk(x, prepare(y, form, backend), bias, k)
    assert value.shape == index.shape == (13, k)
    assert index.dtype == torch.int64
    assert (Truth(x, y, bias, form).topk(value, index) <= 1).all()


@every_case
@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e4, 1e12])
def test_argmin_at_any_scale(backend, form, scale):
    need(backend, form, "argmin")
    x, y, bias = problem(scale=scale)
    bias = bias * naive.scores(x, y, bias * 0, form).abs().mean()
    assert_argmin(x, y, bias, form, *argmin(x, prepare(y, form, backend), bias))


@every_case
def test_a_constant_in_the_bias_moves_values_alone(backend, form):
    need(backend, form, "argmin", "softmin", "soft_marginal")
    x, y, bias = lattice()
    targets = prepare(y, form, backend)
    (low, index), (lifted, same) = argmin(x, targets, bias), argmin(x, targets, bias + 8)
    assert torch.equal(index, same)
    assert torch.allclose(low + 8, lifted, rtol=1e-6)
    (value, mass), (raised, unmoved) = soft_marginal(x, targets, bias, 0.5), soft_marginal(x, targets, bias + 8, 0.5)
    assert torch.allclose(value + 8, raised, rtol=1e-5, atol=1e-5)
    assert torch.allclose(mass, unmoved, rtol=1e-4)
    assert torch.allclose(softmin(x, targets, bias, 0.5), value, rtol=1e-6, atol=1e-6)


@every_case
def test_the_order_of_targets_does_not_matter(backend, form):
    need(backend, form, "argmin", "soft_marginal")
    x, y, bias = problem(n=3000)
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(1))
    shuffled = prepare(y[order], form, backend)
    value, index = argmin(x, shuffled, bias[order])
    assert_argmin(x, y, bias, form, value, order[index])
    mass = soft_marginal(x, prepare(y, form, backend), bias, 0.5)[1]
    assert torch.allclose(soft_marginal(x, shuffled, bias[order], 0.5)[1], mass[order], rtol=1e-3, atol=1e-8)


@every_case
def test_ties_go_to_the_smallest_index(backend, form):
    need(backend, form, "argmin")
    x, y, bias = lattice(n=5000)
    expected = reference(x, y, bias, form)
    first = (expected == expected.amin(1, keepdim=True)).int().argmax(1)
    assert torch.equal(argmin(x, prepare(y, form, backend), bias)[1], first)


@every_case
def test_ties_among_the_k_best_are_in_order_of_index(backend, form):
    need(backend, form, "argmin", "topk")
    x, y, bias = lattice(n=5000)
    _, index = naive.topk(*double(x, y, bias), form, 7)
    assert torch.equal(topk(x, prepare(y, form, backend), bias, 7)[1], index)


@every_case
@pytest.mark.parametrize("dead", [slice(0, 1), slice(0, 4500), slice(100, 4999), slice(4000, 5000)])
def test_an_infinite_bias_is_never_chosen_and_has_no_mass(backend, form, dead):
    need(backend, form, "argmin", "softmin", "soft_marginal")
    x, y, bias = problem(n=5000)
    bias[dead] = torch.inf
    targets = prepare(y, form, backend)
    assert_argmin(x, y, bias, form, *argmin(x, targets, bias))
    value, mass = soft_marginal(x, targets, bias, 0.5)
    assert (mass[dead] == 0).all()
    assert mass.sum().item() == pytest.approx(1, abs=1e-4)
    assert_close(value, naive.softmin(*double(x, y, bias), form, 0.5), tolerance(x, y, bias, form) + 1e-6)
    assert torch.equal(softmin(x, targets, bias, 0.5), value)


@every_case
def test_infinite_scores_come_last_among_the_k_best(backend, form):
    need(backend, form, "argmin", "topk")
    x, y, bias = problem(n=8)
    bias[[0, 3, 5]] = torch.inf
    value, index = topk(x, prepare(y, form, backend), bias, 8)
    assert torch.equal(value.isinf(), torch.tensor([False] * 5 + [True] * 3).expand(13, 8))
    assert torch.equal(index[:, 5:], torch.tensor([0, 3, 5]).expand(13, 3))


@every_case
def test_strides_do_not_matter(backend, form):
    need(backend, form, *REDUCTIONS)
    x, y, bias = problem()
    row_weight = torch.rand(13)
    apart = [torch.stack([t, t + 1], -1)[..., 0] for t in (x, y, bias, row_weight)]
    assert not any(t.is_contiguous() for t in apart)
    together = reduce_all(x, prepare(y, form, backend), bias, row_weight)
    x, y, bias, row_weight = apart
    assert all(map(torch.equal, together, reduce_all(x, prepare(y, form, backend), bias, row_weight)))


@every_case
def test_an_empty_batch_gives_empty_results(backend, form):
    need(backend, form, *REDUCTIONS)
    _, y, bias = problem()
    results = reduce_all(torch.empty(0, D), prepare(y, form, backend), bias, torch.empty(0))
    assert [tuple(t.shape) for t in results] == [(0,), (0,), (0,), (0,), (500,), (0, 7), (0, 7)]
    assert [t.dtype == torch.int64 for t in results] == [False, True, False, False, False, False, True]
    assert (results[4] == 0).all()


@pytest.mark.parametrize(("backend", "form"), cases("inner", "l1", "callable", without="naive"))
def test_scores_are_never_all_in_memory(backend, form):
    need(backend, form, "argmin", "softmin", n=100_000)
    x, y, bias = problem(64, 100_000)
    targets = prepare(y, form, backend)
    with torch.profiler.profile(profile_memory=True) as profile:
        argmin(x, targets, bias)
        softmin(x, targets, bias, 0.5)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < x.shape[0] * y.shape[0] * 4 / 2


@pytest.fixture
def in_parts(monkeypatch):
    """Targets of the inner form are shared out whatever their number."""
    monkeypatch.setattr(gemm, "PART_PRODUCTS", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert len(gemm.parts(torch.empty(20, D), torch.empty(5000, D), FORMS["inner"])) == 8
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("in_parts")
def test_parts_of_the_targets_are_put_together_in_order():
    x, y, bias = lattice(n=5000)
    bias[:1300] = torch.inf
    targets, row_weight = prepare(y, FORMS["inner"], "gemm"), torch.rand(20)
    exact = double(x, y, bias), FORMS["inner"]
    with torch.inference_mode():
        got = reduce_all(x, targets, bias, row_weight)
    assert torch.equal(got[1], naive.argmin(*exact[0], exact[1])[1])
    assert torch.equal(got[6], naive.topk(*exact[0], exact[1], 7)[1])
    value, mass = naive.soft_marginal(*exact[0], exact[1], 0.5, row_weight.double())
    assert_close(got[2], value, 1e-5)
    assert_close(got[4], mass, 1e-6)


@pytest.mark.usefixtures("in_parts")
def test_several_threads_may_call_at_once_and_torch_keeps_its_own():
    x, y, bias = problem(n=5000)
    targets = prepare(y, FORMS["inner"], "gemm")
    expected = argmin(x, targets, bias)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: argmin(x, targets, bias), range(20)))
        threads = pool.submit(torch.get_num_threads).result()
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, expected, strict=True))
    assert threads == torch.get_num_threads()
