"""The screen's soft reductions against float64; test_triton_interpreted.py runs this file."""

import pytest
import torch
from compare import Truth
from kernel_cases import FORMS, problem

from fastsdot.kernels import triton_low, triton_screen, triton_screen_inner, triton_soft, triton_soft_screen as soft
from fastsdot.kernels.form import Form

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INNER = FORMS["inner"]
WEIGHT = torch.linspace(-1, 2, 9)


def run(x, y, bias, epsilon, form=INNER):
    """Value and mass, and softmin's value, which is the same."""
    x, bias, layout = x.to(DEVICE), bias.to(DEVICE), triton_screen.prepare(y.to(DEVICE), form)
    value, mass = soft.soft_marginal(x, layout, bias, form, epsilon, WEIGHT[: len(x)].to(DEVICE))
    assert torch.equal(value, soft.softmin(x, layout, bias, form, epsilon))
    return value.cpu(), mass.cpu()


def listed(x, y, bias, epsilon, form=INNER):
    """How many rows the plain kernels decide."""
    x, bias, layout = x.to(DEVICE), bias.to(DEVICE), triton_screen.prepare(y.to(DEVICE), form)
    lowered = triton_screen_inner.lower(x, layout, bias, form)
    return int(soft.near(x, layout, bias, lowered, form, epsilon).listed[0])


def assert_soft(x, y, bias, epsilon, form=INNER):
    value, mass = run(x, y, bias, epsilon, form)
    truth = Truth(x, y, bias, form)
    assert (truth.softmin(value, epsilon) <= 1).all()
    assert (truth.mass(mass, epsilon, WEIGHT[: len(x)]) <= 1).all()
    torch.testing.assert_close(mass.sum(), WEIGHT[: len(x)].sum(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("b", "n", "d"), [(1, 1, 1), (3, 200, 9), (1, 100, 70)])
@pytest.mark.parametrize("epsilon", [0.02, 0.7])
def test_sums_near_the_best_are_those_of_all(b, n, d, epsilon, monkeypatch):
    monkeypatch.setattr(soft, "FEWEST", 64)
    problem_ = problem(b, n, d)
    assert listed(*problem_, epsilon) == 0
    assert_soft(*problem_, epsilon)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_any_scale(scale):
    x, y, bias = problem(3, 120, 7)
    assert_soft(scale * x, scale * y, bias * scale**2, 0.3 * scale**2, Form("inner", scale=-0.7))


@pytest.mark.parametrize("again", [0, 10**9], ids=["scores kept", "computed again"])
def test_rows_with_too_many_near_targets_are_left_to_the_plain_kernels(again, monkeypatch):
    monkeypatch.setitem(triton_soft.AGAIN, "inner", again)
    x, y, bias = problem(4, 120, 9)
    for few, rows in ((0, {4}), (6, {1, 2, 3})):
        monkeypatch.setattr(soft, "FEWEST", few)
        assert listed(x, y, bias, 0.2) in rows
        assert_soft(x, y, bias, 0.2)
    assert_soft(x, y, bias, 1e4)


def test_a_row_without_bounds_is_left_to_the_plain_kernels():
    x, y, bias = problem(4, 120, 7)
    x[2] *= 1e37
    assert listed(x, y, bias, 0.1) == 1
    rows = torch.arange(4) != 2
    value, _ = run(x, y, bias, 0.1)
    assert (Truth(x[rows], y, bias, INNER).softmin(value[rows], 0.1) <= 1).all()


@pytest.mark.parametrize("dead", [slice(0, 64), slice(40, 130), slice(0, 129)])
def test_an_infinite_bias_has_no_share(dead):
    x, y, bias = problem(3, 130)
    bias[dead] = torch.inf
    assert_soft(x, y, bias, 0.1)
    assert (run(x, y, bias, 0.1)[1][dead] == 0).all()


def test_nothing_to_choose_from_is_infinite_and_has_no_mass():
    x, y, bias = problem(3, 40)
    value, mass = run(x, y, torch.full_like(bias, torch.inf), 0.1)
    assert (value == torch.inf).all()
    assert (mass == 0).all()


def test_slices_change_values_by_no_bit_and_calls_nothing(monkeypatch):
    x, y, bias = problem(3, 120, 9)
    monkeypatch.setattr(soft, "FEWEST", 6)
    first, again = run(x, y, bias, 0.2), run(x, y, bias, 0.2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for again in (10**9, 0):
        monkeypatch.setitem(triton_soft.AGAIN, "inner", again)
        monkeypatch.setattr(soft, "ENTRIES", 1)
        parts = run(x, y, bias, 0.2)
        torch.testing.assert_close(parts[0], first[0], rtol=1e-6, atol=1e-6)  # plain sums depend on the launch
        torch.testing.assert_close(parts[1], first[1], rtol=1e-5, atol=1e-6)


def test_slices_leave_room_for_the_scores_that_are_kept(monkeypatch):
    monkeypatch.setattr(soft, "ENTRIES", 2**14)
    monkeypatch.setattr(soft, "KEPT", 40 * 1000)
    x = torch.zeros(100, 3)
    assert [len(part) for part in soft.slices(x, 1000)] == [64, 36]  # 32 parts of 8 are opened at most
    assert [len(part) for part in soft.slices(x, 1000, kept=True)] == [39, 39, 22]


def test_an_empty_batch_has_no_mass():
    for module in (triton_screen, triton_low):
        y, bias = problem(0, 20)[1:]
        layout = module.prepare(y.to(DEVICE), INNER)
        x = torch.empty(0, y.shape[1], device=DEVICE)
        value, mass = module.soft_marginal(x, layout, bias.to(DEVICE), INNER, 0.5, x.new_empty(0))
        assert value.shape == module.softmin(x, layout, bias.to(DEVICE), INNER, 0.5).shape == (0,)
        assert torch.equal(mass.cpu(), torch.zeros(20))
