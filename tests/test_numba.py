import multiprocessing
import threading

import pytest
import torch
from compare import ROUNDING, assert_argmin, reference

from fastsdot import kernels
from fastsdot.errors import BackendUnavailable
from fastsdot.kernels import naive, numba_lp, prepare
from fastsdot.kernels.form import Form

L1 = Form("power", p=1.0)
FORMS = {
    "l1": L1,
    "squares": Form("power", p=2.0),
    "euclidean": Form("power", p=2.0, root=True),
    "p=1.5": Form("power", p=1.5),
    "p=3": Form("power", p=3.0),
    "p=0.5": Form("power", p=0.5),
    "p=1.3": Form("power", p=1.3),
    "p=1.3, root": Form("power", p=1.3, root=True),
}


@pytest.fixture(params=FORMS.values(), ids=FORMS.keys())
def form(request):
    return request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def problem(batch, n, d, seed=0, scale=1.0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, d, generator=generator) * scale + offset
    y = torch.randn(n, d, generator=generator) * scale + offset
    return x, y, torch.randn(n, generator=generator) * scale


def argmin(x, y, bias, form):
    return numba_lp.argmin(x, numba_lp.prepare(y, form), bias, form)


@pytest.mark.parametrize("batch", [0, 1, 2, 7, 8, 9, 33])
def test_every_power_and_batch_against_float64(form, batch):
    x, y, bias = problem(batch, 301, 37)
    assert_argmin(x, y, bias, form, *argmin(x, y, bias, form))


@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 300), (47, 3), (48, 2), (49, 257), (500, 16), (97, 1030)])
def test_odd_sizes_against_float64(form, n, d):
    x, y, bias = problem(5, n, d, seed=n)
    assert_argmin(x, y, bias, form, *argmin(x, y, bias, form))


@pytest.mark.parametrize(("scale", "offset"), [(1e-30, 0.0), (1e-4, 0.0), (1e30, 0.0), (1.0, 1e3)])
def test_scales_and_offsets(scale, offset):
    x, y, bias = problem(9, 301, 37, scale=scale, offset=offset)
    assert_argmin(x, y, bias, L1, *argmin(x, y, bias, L1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_targets_than_float32_are_refused_by_name_and_go_to_gemm_by_default(dtype):
    x, y, bias = (t.to(dtype) for t in problem(9, 301, 7))
    with pytest.raises(BackendUnavailable, match=rf"expected float32 targets, received 'numba' with {str(dtype)[6:]}"):
        prepare(y, L1, "numba")
    targets = prepare(y, L1)
    assert set(targets.plan.values()) == {"gemm"}
    if dtype is torch.float64:  # the others have no cdist in torch
        value, index = kernels.argmin(x, targets, bias)
        expected = reference(x, y, bias, L1)
        assert torch.equal(index, expected.argmin(1))
        assert torch.allclose(value, expected.amin(1), rtol=1e-14)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.7, 1.3, 2.2, 3.7, 8.25])
def test_general_powers_are_accurate_to_rounding_of_each_term(p):
    """With one coordinate nothing is summed, so the error is that of the power alone."""
    form, reach = Form("power", p=p), 110 / max(1.0, p)
    y = torch.exp2(torch.linspace(-reach, reach, 10_001, dtype=torch.float64)).float()[:, None]
    score, _ = numba_lp.block_score(torch.zeros(1, 1), numba_lp.prepare(y, form), torch.zeros(10_001), form)
    error = score(0, 10_001).double() / (y[:, 0].double() ** p) - 1
    assert error.abs().max() < (1.5 + 0.5 * p) * ROUNDING


def test_powers_of_zero_and_out_of_range_are_ordered_and_finite():
    form = Form("power", p=20.3)
    y = torch.tensor([[0.0], [1e-20], [1e-3], [1.0], [1e20], [3e38]])
    score, _ = numba_lp.block_score(torch.zeros(1, 1), numba_lp.prepare(y, form), torch.zeros(6), form)
    s = score(0, 6)[0]
    assert torch.isfinite(s).all()
    assert s[0] == 0
    assert s[3] == 1
    assert (s.diff() >= 0).all()


def test_ties_go_to_the_smallest_index(form):
    x, y, bias = problem(9, 40, 5)
    y, bias = y.repeat(50, 1), bias.repeat(50)
    _, index = argmin(x, y, bias, form)
    assert (index < 40).all()
    _, index = argmin(x, y[:1].expand(500, -1).contiguous(), torch.zeros(500), form)
    assert (index == 0).all()


def test_infinite_bias_is_never_chosen(form):
    x, y, bias = problem(9, 400, 5)
    bias[:150] = torch.inf  # whole panels, and part of one
    bias[200:399] = torch.inf
    value, index = argmin(x, y, bias, form)
    assert_argmin(x, y, bias, form, value, index)
    bias[:] = torch.inf
    bias[311] = 2.0
    value, index = argmin(x, y, bias, form)
    assert (index == 311).all()
    assert torch.isfinite(value).all()


def test_rows_do_not_depend_on_their_batch(form):
    x, y, bias = problem(35, 301, 300)
    layout = numba_lp.prepare(y, form)
    value, index = numba_lp.argmin(x, layout, bias, form)
    for rows in ([3], [0, 34], list(range(7)), list(range(1, 10))):
        part_value, part_index = numba_lp.argmin(x[rows], layout, bias, form)
        assert torch.equal(part_value, value[rows])
        assert torch.equal(part_index, index[rows])


def test_results_do_not_depend_on_the_number_of_threads(threads):
    x, y, bias = problem(40, 9001, 100)
    y[4000:8000] = y[:4000]  # ties across the parts that threads take
    bias[4000:8000] = bias[:4000]
    layout, results = numba_lp.prepare(y, L1), []
    for count in (1, 2, 5):
        threads(count)
        results.append((*numba_lp.argmin(x, layout, bias, L1), numba_lp.softmin(x, layout, bias, L1, 2.0)))
    index = results[0][1]
    assert ((index < 4000) | (index >= 8000)).all()
    assert (index < 4000).any()
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_layout_of_the_samples_in_memory_does_not_matter():
    x, y, bias = problem(12, 100, 20)
    value, index = argmin(x, y, bias, L1)
    strided = torch.empty(20, 24)[:, ::2].T.copy_(x)
    assert not strided.is_contiguous()
    again_value, again_index = argmin(strided, y, bias, L1)
    assert torch.equal(value, again_value)
    assert torch.equal(index, again_index)


@pytest.mark.parametrize("batch", [0, 1, 9])
@pytest.mark.parametrize("name", ["l1", "euclidean", "p=1.3"])
def test_soft_reductions_and_topk_against_float64(name, batch, monkeypatch):
    monkeypatch.setattr(numba_lp, "SCORES", 2000)  # several blocks
    form, (x, y, bias) = FORMS[name], problem(batch, 301, 11)
    bias[50:160] = torch.inf
    layout, row_weight, epsilon = numba_lp.prepare(y, form), torch.rand(batch), 0.7
    exact = (x.double(), [y.double()], bias.double(), form)
    value, mass = numba_lp.soft_marginal(x, layout, bias, form, epsilon, row_weight)
    true_value, true_mass = naive.soft_marginal(*exact, epsilon, row_weight.double())
    close = {"rtol": 1e-4, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(value, true_value, **close)
    torch.testing.assert_close(mass, true_mass, **close)
    torch.testing.assert_close(numba_lp.softmin(x, layout, bias, form, epsilon), true_value, **close)
    assert (mass[50:160] == 0).all()
    low, index = numba_lp.topk(x, layout, bias, form, 5)
    torch.testing.assert_close(low, naive.topk(*exact, 5)[0], **close)
    torch.testing.assert_close(reference(x, y, bias, form).gather(1, index), low, **close)


def test_two_python_threads_at_once():
    x, y, bias = problem(64, 6000, 100)
    layout = numba_lp.prepare(y, L1)
    expected, wrong, barrier = numba_lp.argmin(x, layout, bias, L1)[1], [], threading.Barrier(4)

    def work():
        barrier.wait()
        for _ in range(20):
            if not torch.equal(numba_lp.argmin(x, layout, bias, L1)[1], expected):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert not wrong


def _in_child(queue, x, layout, bias):
    queue.put(numba_lp.argmin(x, layout, bias, L1)[1].tolist())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_after_the_parent_has_called():
    x, y, bias = problem(64, 6000, 100)
    layout = numba_lp.prepare(y, L1)
    expected = numba_lp.argmin(x, layout, bias, L1)[1].tolist()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(queue, x, layout, bias))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert queue.get() == expected


def test_refusals_say_why():
    cpu = torch.device("cpu")
    assert numba_lp.refusal(L1, "argmin", cpu, 10, 3) is None
    assert "inner" in numba_lp.refusal(Form("inner"), "argmin", cpu, 10, 3)
    assert "cuda" in numba_lp.refusal(L1, "argmin", torch.device("cuda"), 10, 3)
