"""Soft choices among lists, compiled and by torch's operators, against their definition in float64."""

import math
import multiprocessing

import pytest
import torch
from list_cases import SHAPES, N, assert_sums, definition, problem

from fastsdot import kernels
from fastsdot.kernels import lists, numba_lists


@pytest.fixture(params=["fused", "torch"])
def either(request, monkeypatch):
    """Both implementations on the CPU."""
    if request.param == "torch":
        monkeypatch.setattr(lists, "fused", lambda device: None)


@pytest.mark.parametrize("temperature", [0.02, 0.3, 1e4])
@pytest.mark.parametrize(("rows", "k"), SHAPES)
def test_sums_are_those_of_float64(either, rows, k, temperature):
    score, index, shift = problem(rows, k)
    found = kernels.soft_lists(score, index, shift, temperature)
    truth = definition(score, index, shift, temperature)
    assert_sums(found, truth, rows, cost=max(1.0, temperature))
    assert found.mass.dtype == torch.float64
    assert float(found.mass.sum()) == pytest.approx(rows)


@pytest.mark.parametrize("temperature", [0.05, 1e-9])
def test_a_list_that_all_rows_share_is_as_its_copies(either, temperature):
    score, _, shift = problem(37, N)
    for one in (torch.arange(N), torch.randperm(N)[:21]):
        index = one.int().expand(37, -1)
        part = score[:, : one.numel()].contiguous()
        found = kernels.soft_lists(part, index, shift, temperature)
        other = kernels.soft_lists(part, index.contiguous(), shift, temperature)
        assert found.value == pytest.approx(other.value, rel=1e-6)
        torch.testing.assert_close(found.mass, other.mass, rtol=0, atol=1e-5)


def test_the_coldest_choose_the_best_and_share_between_ties(either):
    score, index, shift = problem(90, 16)
    score, shift = (score * 64).round() / 64, (shift * 64).round() / 64
    u = shift[index.long()] - score
    best = (u == u.amax(1, keepdim=True)).double()
    found = kernels.soft_lists(score, index, shift, 1e-9)
    mass = (
        torch.zeros(N).double().index_add_(0, index.reshape(-1).long(), (best / best.sum(1, keepdim=True)).reshape(-1))
    )
    torch.testing.assert_close(found.mass, mass, rtol=0, atol=1e-5)
    assert found.value == pytest.approx(float(u.amax(1).sum()), abs=1e-4)
    assert found.entropy == pytest.approx(float(best.sum(1).log().sum()), abs=1e-4)


def test_the_best_of_a_list():
    score, index, shift = problem(30, 7)
    u = shift[index.long()] - score
    value, target = kernels.best_of_lists(score, index, shift)
    assert torch.equal(value, u.amax(1))
    assert torch.equal(target, index.gather(1, u.argmax(1, keepdim=True)).squeeze(1))
    score, index = torch.rand(30, N), torch.arange(N, dtype=torch.int32).expand(30, -1)
    value, target = kernels.best_of_lists(score, index, shift)
    assert torch.equal(value, (shift - score).amax(1))
    assert torch.equal(target.long(), (shift - score).argmax(1))


def test_targets_of_no_weight_have_no_share_and_a_row_of_them_no_mass(either):
    score, index, shift = problem(50, 16)
    shift[index[0].long()] = -math.inf
    found = kernels.soft_lists(score, index, shift, 0.1)
    chosen = ~torch.isinf(shift[index.long()]).all(1)
    truth = definition(score[chosen], index[chosen], shift, 0.1)
    assert found.value == -math.inf
    torch.testing.assert_close(found.mass, truth[2], rtol=0, atol=1e-5)
    assert found.entropy == pytest.approx(truth[1], abs=1e-3)


def test_laws(either):
    score, index, shift = problem(300, 12)
    base = kernels.soft_lists(score, index, shift, 0.1)
    moved = kernels.soft_lists(score, index, shift + 2, 0.1)
    assert moved.value == pytest.approx(base.value + 600, rel=1e-6)
    order = torch.randperm(300)
    permuted = kernels.soft_lists(score[order], index[order], shift, 0.1)
    columns = torch.randperm(12)
    turned = kernels.soft_lists(score[:, columns], index[:, columns], shift, 0.1)
    for other in (moved, permuted, turned):
        torch.testing.assert_close(other.mass, base.mass, rtol=0, atol=2e-5)
        assert other.entropy == pytest.approx(base.entropy, rel=1e-5)


def test_no_rows_make_no_sums(either):
    score, index, shift = problem(0, 16)
    found = kernels.soft_lists(score, index, shift, 0.1)
    assert found[:2] == (0.0, 0.0)
    assert found.mass.tolist() == [0.0] * N


def test_masses_are_the_gradient(either):
    score, index, shift = problem(200, 16)
    temperature = 0.2

    def value(point):
        z = (point[index.long()] - score.double()) / temperature
        return temperature * z.logsumexp(1).sum()

    found = kernels.soft_lists(score, index, shift, temperature)
    torch.testing.assert_close(found.mass, torch.autograd.functional.jacobian(value, shift.double()), rtol=0, atol=2e-5)


def test_strided_scores_and_double_precision_are_taken():
    score, index, shift = problem(60, 16)
    truth = definition(score[::2, ::2], index[::2, ::2], shift, 0.1)
    assert_sums(kernels.soft_lists(score[::2, ::2], index[::2, ::2], shift, 0.1), truth, 30)
    found = kernels.soft_lists(score[::2, ::2].double(), index[::2, ::2], shift.double(), 0.1)
    assert found.value == pytest.approx(truth[0], rel=1e-13)


@pytest.mark.parametrize("k", [16, N])
def test_bits_do_not_depend_on_threads(monkeypatch, k):
    monkeypatch.setattr(numba_lists, "CHUNK", 512)
    score, index, shift = problem(2000, k)
    index = torch.arange(N, dtype=torch.int32).expand(2000, -1) if k == N else index
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(kernels.soft_lists(score, index, shift, 0.1))
    finally:
        torch.set_num_threads(before)
    assert numba_lists.chunks(2000, k, N)[0] == numba_lists.CHUNKS
    truth = definition(score, index, shift, 0.1)
    assert_sums(found[0], truth, 2000)
    for other in found[1:]:
        assert other[:2] == found[0][:2]
        assert torch.equal(other.mass, found[0].mass)


def test_every_row_is_in_one_chunk():
    for rows, k, n in [(0, 5, 9), (1, 1, 1), (10**5, 16, 5000), (37, 2**16, 2**16), (2**20 + 1, 16, 100)]:
        count, size = numba_lists.chunks(rows, k, n)
        assert (count - 1) * size < rows <= count * size or rows == count == 0


def _in_child(queue, operands):
    torch.set_num_threads(2)
    queue.put(kernels.soft_lists(*operands).mass.tolist())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_after_the_parent_has_called():
    operands = *problem(20_000, 16), 0.1
    expected = kernels.soft_lists(*operands).mass.tolist()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(queue, operands))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert queue.get() == expected
