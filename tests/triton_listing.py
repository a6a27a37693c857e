"""The sums over lists by Triton against float64; test_triton_interpreted.py runs this file."""

import math

import pytest
import torch
from list_cases import SHAPES, N, assert_sums, definition, problem

from fastsdot import kernels
from fastsdot.kernels import lists, triton_lists

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _by_triton(monkeypatch):
    monkeypatch.setattr(lists, "fused", lambda device: triton_lists)
    monkeypatch.setattr(triton_lists, "WIDEST", 16)  # so that 33 take several tiles


def run(score, index, shift, temperature):
    """Sums, on the CPU."""
    shared = lists.shared(index) is not None  # which a copy to another device would not be
    index = index[:1].to(DEVICE).expand_as(index) if shared else index.to(DEVICE)
    value, entropy, mass = kernels.soft_lists(score.to(DEVICE), index, shift.to(DEVICE), temperature)
    assert mass.dtype == torch.float64
    return kernels.Sums(value, entropy, mass.cpu())


@pytest.mark.parametrize("temperature", [0.02, 1e4])
@pytest.mark.parametrize(("rows", "k"), SHAPES)
def test_sums_are_those_of_float64(rows, k, temperature):
    score, index, shift = problem(rows, k)
    found = run(score, index, shift, temperature)
    truth = definition(score, index, shift, temperature)
    assert_sums(found, truth, rows, cost=max(1.0, temperature))


def test_a_list_that_all_rows_share_is_as_its_copies():
    score, _, shift = problem(37, N)
    index = torch.randperm(N)[:21].int().expand(37, -1)
    score = score[:, :21]
    truth = definition(score, index, shift, 0.05)
    for given in (index, index.contiguous()):
        assert_sums(run(score, given, shift, 0.05), truth, 37)


def test_the_coldest_choose_the_best():
    score, index, shift = problem(50, 20)
    found = run(score, index, shift, 1e-9)
    u = shift[index.long()] - score
    best = index.gather(1, u.argmax(1, keepdim=True)).reshape(-1).long()
    torch.testing.assert_close(found.mass, best.bincount(minlength=N).double(), rtol=0, atol=1e-6)
    assert found.value == pytest.approx(float(u.amax(1).sum()), abs=1e-4)
    assert found.entropy == pytest.approx(0, abs=1e-4)


def test_targets_of_no_weight_have_no_share_and_a_row_of_them_no_mass():
    score, index, shift = problem(50, 20)
    shift[index[0].long()] = -math.inf
    chosen = ~torch.isinf(shift[index.long()]).all(1)
    found = run(score, index, shift, 0.1)
    truth = definition(score[chosen], index[chosen], shift, 0.1)
    assert found.value == -math.inf
    torch.testing.assert_close(found.mass, truth[2], rtol=0, atol=1e-5)
    assert found.entropy == pytest.approx(truth[1], abs=1e-3)


@pytest.mark.parametrize("k", [16, 33])
def test_masses_do_not_depend_on_the_order_of_the_rows(k):
    score, index, shift = problem(70, k)
    order = torch.randperm(70)
    mass = run(score, index, shift, 0.02).mass
    assert torch.equal(mass, run(score[order], index[order], shift, 0.02).mass)


def test_no_rows_make_no_sums():
    found = run(*problem(0, 16), 0.1)
    assert found[:2] == (0.0, 0.0)
    assert not found.mass.any()
