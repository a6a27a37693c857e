"""The k smallest scores by Triton against the definition; test_triton_interpreted.py runs this file."""

import pytest
import torch
from compare import Truth, reference
from kernel_cases import FORMS, double, lattice, problem
from triton_screens import DEVICE, INNER, TILES, assert_smallest

from fastsdot.kernels import naive, triton_backend, triton_keep, triton_low, triton_screen as screen, triton_topk
from fastsdot.kernels.triton_launch import Launch


def certify(x, y, bias, k, form=INNER, launch=TILES["inner"]):
    """Values, indices and the number of opened parts, on the CPU."""
    layout = screen.prepare(y.to(DEVICE), form)
    return [r.cpu() for r in screen.certify_topk(x.to(DEVICE), layout, bias.to(DEVICE), form, k, launch)]


def plain(x, y, bias, k, form=INNER, launch=None):
    layout = triton_backend.prepare(y.to(DEVICE), form)
    return [r.cpu() for r in triton_topk.topk(x.to(DEVICE), layout, bias.to(DEVICE), form, k, launch)]


@pytest.mark.parametrize(("b", "n", "d", "k"), [(1, 40, 1, 1), (4, 300, 9, 7), (2, 700, 130, 20)])
def test_the_k_smallest_are_those_of_float64(b, n, d, k):
    x, y, bias = problem(b, n, d)
    value, index, opened = certify(x, y, bias, k)
    assert_smallest(x, y, bias, k, value, index)
    assert (opened <= 2 * k + 4).all()
    assert (opened > 0).all()
    assert_smallest(x, y, bias, k, *plain(x, y, bias, k))


@pytest.mark.parametrize("k", [1, 9, 17])
@pytest.mark.parametrize("run", [certify, plain])
def test_ties_go_to_the_smallest_indices(run, k):
    x, y, bias = lattice(2, 600)
    _, index = run(x, y, bias, k)[:2]
    assert torch.equal(index, naive.topk(*double(x, y, bias), INNER, k)[1])


@pytest.mark.parametrize("alive", [slice(0, 3), slice(300, 500), slice(595, 600)])
def test_targets_that_cannot_be_chosen_come_last(alive):
    x, y, bias = problem(3, 600)
    dead = torch.full_like(bias, torch.inf)
    dead[alive] = bias[alive]
    value, index, _ = certify(x, y, dead, 6)
    assert_smallest(x, y, dead, 6, value, index)
    assert torch.isinf(value).any() == (len(bias[alive]) < 6)


def test_rows_that_are_not_decided_are_kept_by_the_plain_kernels(monkeypatch):
    x, y, bias = problem(4, 300, 7)
    x[2] *= 1e37  # without bounds
    for most in (0, 7):
        monkeypatch.setattr(screen, "most_tiles", lambda *sizes, most=most: most - 4 * 3)
        value, index, opened = certify(x, y, bias, 3)
        undecided = opened > most
        assert undecided[2]
        assert undecided.all() or not undecided[:2].any()
        assert undecided.all() == (most == 0)
        rows = torch.arange(4) != 2
        assert_smallest(x[rows], y, bias, 3, value[rows], index[rows])
        assert (Truth(x, y, bias, INNER).topk(value, index) <= 1).all()


def test_bounds_that_tell_nothing_apart_cost_time_and_no_digit():
    x, y, bias = problem(3, 300, 9)
    x, y = x + 3e3, y + 3e3
    bias = 2 * (y.double() @ x.double().mean(0)).float()
    value, index, opened = certify(x, y, bias, 5)
    assert (opened > 5).all()
    assert (Truth(x, y, bias, INNER).topk(value, index) <= 1).all()


def test_tiles_slices_and_lanes_change_no_bit(monkeypatch):
    x, y, bias = problem(3, 300, 6)
    first = certify(x, y, bias, 5)[:2]
    for columns, bounds, lanes, spread in [(128, 2**27, 64, 4), (32, 80, 128, 0), (32, 0, 512, 1000)]:
        monkeypatch.setattr(screen, "BOUNDS", bounds)
        monkeypatch.setattr(triton_keep, "LANES", lanes)
        monkeypatch.setattr(triton_keep, "SPREAD", spread)
        again = certify(x, y, bias, 5, launch=Launch(16, columns, 32, 4, 2))[:2]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", ["l1", "l2", "lp1.5"])
def test_other_forms_open_parts_of_the_plain_minima(name):
    x, y, bias = problem(3, 300)
    value, index = plain(x, y, bias, 6, FORMS[name])
    assert (Truth(x, y, bias, FORMS[name]).topk(value, index) <= 1).all()


def test_long_lists_come_from_blocks_of_scores(monkeypatch):
    x, y, bias = problem(2, 500)
    assert not triton_topk.keeps(500, 300)
    for run in (screen, triton_low):
        layout = screen.prepare(y.to(DEVICE), INNER)
        value, index = run.topk(x.to(DEVICE), layout, bias.to(DEVICE), INNER, 300)
        assert (Truth(x, y, bias, INNER).topk(value.cpu(), index.cpu()) <= 1).all()


@pytest.mark.parametrize("module", [screen, triton_backend])
def test_nothing_above_a_limit_need_be_found(module):
    x, y, bias = problem(4, 400, 9)
    score = reference(x, y, bias, INNER).float().sort(1)
    limit = torch.stack([score.values[0, 2], score.values[1, 0] - 1, score.values[2, 50], torch.tensor(torch.inf)])
    layout = module.prepare(y.to(DEVICE), INNER)
    value, index = module.topk(x.to(DEVICE), layout, bias.to(DEVICE), INNER, 6, None, limit.to(DEVICE))
    value, index = value.cpu(), index.cpu()
    near = score.values[:, :6] <= limit[:, None]
    assert near.sum(1).tolist() == [3, 0, 6, 6]
    assert torch.equal(index[near], score.indices[:, :6][near])
    assert (value.diff(dim=1)[torch.isfinite(value[:, 1:])] >= 0).all()
    assert (value[~near] > limit[:, None].expand(4, 6)[~near]).all()
    assert ((index >= 0) & (index < 400)).all()


def test_a_limit_leaves_parts_closed():
    x, y, bias = problem(3, 400, 9)
    layout = screen.prepare(y.to(DEVICE), INNER)
    limit = reference(x, y, bias, INNER).float().amin(1).to(DEVICE)
    opened = screen.certify_topk(x.to(DEVICE), layout, bias.to(DEVICE), INNER, 9, None, limit)[2]
    assert (opened < certify(x, y, bias, 9, launch=None)[2].to(DEVICE)).all()


def test_an_empty_batch_gives_empty_lists():
    assert [result.shape for result in certify(*problem(0, 90), 2)] == [(0, 2), (0, 2), (0,)]
    assert [result.shape for result in plain(*problem(0, 90), 2)] == [(0, 2), (0, 2)]
