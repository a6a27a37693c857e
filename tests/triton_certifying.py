"""Laws of both certified screens, of inner products and of l1; test_triton_interpreted.py runs this file."""

import pytest
import torch
from compare import assert_argmin, reference, regret
from kernel_cases import lattice, problem
from triton_screens import INNER, L1, assert_certified, certify

from fastsdot.kernels import triton_screen as screen

both = pytest.mark.parametrize("form", [INNER, L1], ids=["inner", "l1"])


@both
def test_ties_go_to_the_smallest_index(form):
    x, y, bias = lattice(5, 90)
    _, index, _, _, expected = certify(x, y, bias, form)
    assert torch.equal(index, expected)


@both
@pytest.mark.parametrize("dead", [slice(0, 64), slice(40, 130), slice(0, 129)])
def test_an_infinite_bias_is_never_chosen(form, dead):
    x, y, bias = problem(4, 130)
    bias[dead] = torch.inf
    assert_certified(x, y, bias, form)


@both
def test_nothing_to_choose_from_is_infinite_and_never_nan(form):
    x, y, bias = problem(4, 40)
    value, index, *_ = certify(x, y, torch.full_like(bias, torch.inf), form)
    assert (value == torch.inf).all()
    assert (index == 0).all()


@both
@pytest.mark.parametrize("bias_scale", [1e-38, 1e30, 3e38])
def test_any_bias(form, bias_scale):
    x, y, bias = problem(6, 100, 7)
    bias = bias_scale * (bias / bias.abs().max())
    _, index, _, _, expected = certify(x, y, bias, form)
    assert (regret(reference(x, y, bias, form), index) == 0).all()
    assert torch.equal(index, expected)


@both
@pytest.mark.parametrize(("b", "n", "d"), [(1, 1, 1), (5, 90, 16), (20, 40, 3)])
def test_all_rows_undecided(form, b, n, d, monkeypatch):
    monkeypatch.setattr(screen, "FEWEST", 0)
    x, y, bias = problem(b, n, d)
    value, index, _, undecided, _ = certify(x, y, bias, form)
    assert undecided.all()
    assert_argmin(x, y, bias, form, value, index)


@both
def test_equal_targets_are_undecided_and_the_first_of_them_wins(form):
    x, y, bias = problem(3, 700, 9)
    _, index, _, undecided, _ = certify(x, y[:1].repeat(700, 1), torch.zeros_like(bias), form)
    assert undecided.all()
    assert (index == 0).all()


@both
def test_operands_need_not_be_contiguous(form):
    x, y, bias = problem(6, 70, 5)
    wide = torch.empty(70, 3)
    wide[:, 1] = bias
    spread = torch.empty(5, 12).T[::2]
    spread.copy_(x)
    assert torch.equal(certify(spread, y, wide[:, 1], form)[1], certify(x, y, bias, form)[1])


@both
def test_an_empty_batch_gives_empty_results(form):
    assert [result.shape for result in certify(*problem(0, 20), form)[:4]] == [(0,)] * 4
