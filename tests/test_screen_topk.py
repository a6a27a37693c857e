"""The topk of the certified screen: the k smallest float64 scores, ties by index, whatever the data."""

import pytest
import torch
from compare import Truth, reference
from kernel_cases import CPU
from screen_cases import INNER, L1, B, N, both, every_case, make

from fastsdot.kernels import gemm, naive, numba_lp, prepare, refusal, screen, screen_bounds, screen_low, topk

pytestmark = pytest.mark.skipif(
    refusal("screen", INNER, "topk", CPU, 1000, 10) is not None,
    reason=str(refusal("screen", INNER, "topk", CPU, 1000, 10)),
)


def whole(form, high=4):
    """Numbers whose scores float64 and float32 hold exactly, with many ties."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randint(0, high, (n, 9), generator=g).float() for n in (B, 2003))
    return x, y, torch.randint(0, high, (2003,), generator=g).float()


def assert_topk(form, x, y, bias, k, value, index):
    score = reference(x, y, bias, form)
    expected = torch.sort(score, dim=1, stable=True)
    assert value.shape == index.shape == (x.shape[0], k)
    assert (value.dtype, index.dtype) == (x.dtype, torch.int64)
    assert torch.equal(index, expected.indices[:, :k])
    assert torch.equal(value, expected.values[:, :k].to(x.dtype))


@both
@pytest.mark.parametrize("k", [1, 2, 16, 41, 42, 100, 250, 251, 2003])
def test_ties_go_to_the_smaller_index(form, k):
    """2 003 targets make 42 panels of products and 63 of distances."""
    x, y, bias = whole(form)
    assert_topk(form, x, y, bias, k, *screen.topk(x, screen.prepare(y, form), bias, form, k))
    found = screen.certify(x, screen.prepare(y, form), bias, form, k)[:2]
    assert_topk(form, x, y, bias, k, *found)


@every_case
def test_the_result_is_the_topk_in_float64(form, family):
    x, y, bias = make(form, family)
    layout, score = screen.prepare(y, form), reference(x, y, bias, form)
    size = float(score.abs().max())
    for k in (2, 16, 100):
        value, index, count = screen.certify(x, layout, bias, form, k)
        best = torch.sort(score, dim=1).values[:, :k]
        chosen = score.gather(1, index)
        assert (index.sort(1).values.diff(dim=1) > 0).all()
        assert (count >= k).all()
        assert torch.allclose(chosen, best, rtol=0, atol=2.0**-44 * size)
        assert torch.allclose(value.double(), best, rtol=2.0**-23, atol=2.0**-44 * size + 1e-45)
        assert (Truth(x, y, bias, form).topk(value, index) <= 1).all()


@both
def test_few_targets_are_left_to_be_scored_exactly(form):
    x, y, bias = make(form, "gaussian")
    count = screen.certify(x, screen.prepare(y, form), bias, form, 16)[2]
    assert count.float().mean() < 60


@both
@pytest.mark.parametrize("family", ["gaussian", "duplicated", "near ties", "outliers"])
def test_rows_threads_and_tasks_do_not_change_a_bit(monkeypatch, form, family):
    if form is INNER and family == "outliers":
        pytest.skip("a family of l1")
    x, y, bias = make(form, family)
    layout = screen.prepare(y, form)
    threads = torch.get_num_threads()
    for k in (3, 16, 31):
        expected = screen.topk(x, layout, bias, form, k)
        assert all(map(torch.equal, (t[:, 0] for t in expected), screen.argmin(x, layout, bias, form)))
        for rows in (1, 17):
            parts = zip(*(screen.topk(part, layout, bias, form, k) for part in x.split(rows)), strict=True)
            assert all(torch.equal(a, torch.cat(b)) for a, b in zip(expected, parts, strict=True))
        with monkeypatch.context() as patch:
            for module, name, value in [(screen, "PAIRS", 1), (screen_bounds, "TASKS", 3), (screen, "WORTH", 1)]:
                patch.setattr(module, name, value)
                for count in (1, 2, 3):
                    torch.set_num_threads(count)
                    try:
                        assert all(map(torch.equal, expected, screen.topk(x, layout, bias, form, k)))
                    finally:
                        torch.set_num_threads(threads)


@both
@pytest.mark.parametrize("dead", [slice(0, 480), slice(5, 2000), slice(7, None), slice(1, 2003, 2), slice(None)])
def test_infinite_biases_come_last_by_index(form, dead):
    x, y, bias = whole(form)
    bias[dead] = torch.inf
    layout = screen.prepare(y, form)
    for k in (1, 16, 70):
        found = screen.certify(x, layout, bias, form, k)[:2]
        assert_topk(form, x, y, bias, k, *found)
        assert torch.equal(found[1], gemm.topk(x, [y], bias, form, k)[1])


@pytest.mark.parametrize(("form", "size"), [(INNER, 1e32), (L1, torch.inf)], ids=["inner", "l1"])
def test_rows_without_bounds_are_scored_exactly_beside_others(form, size):
    x, y, bias = (t.double() for t in make(form, "gaussian"))
    x[3] *= 1e32
    x[3, 0] = min(size, 1.7e308)  # twice this is infinite
    value, index, count = screen.certify(x, screen.prepare(y, form), bias, form, 16)
    rest = torch.arange(B) != 3
    expected = torch.sort(reference(x, y, bias, form), dim=1, stable=True)
    assert count[3] == N
    assert count[rest].float().mean() < 60
    if form is INNER:
        assert torch.equal(index, expected.indices[:, :16])
    assert torch.equal(index[rest], expected.indices[rest, :16])
    assert torch.allclose(value[rest], expected.values[rest, :16], rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e30, 1e35])
def test_l1_at_the_ends_of_float32(size):
    x, y, bias = (size * t for t in make(L1, "gaussian"))
    value, index = screen.topk(x, screen.prepare(y, L1), bias, L1, 16)
    score = reference(x, y, bias, L1)
    best = torch.sort(score, dim=1).values[:, :16]
    assert torch.allclose(score.gather(1, index), best, rtol=0, atol=2.0**-44 * float(score.abs().max()))
    assert torch.allclose(value.double(), best, rtol=2.0**-23, atol=1e-45)


@both
def test_no_samples_and_nothing_asked_for(form):
    x, y, bias = make(form, "gaussian")
    layout = screen.prepare(y, form)
    for k in (1, 5, N):
        assert [t.shape for t in screen.topk(x[:0], layout, bias, form, k)] == [(0, k), (0, k)]
    assert [t.shape for t in screen.topk(x, layout, bias, form, 0)] == [(B, 0), (B, 0)]


@both
def test_a_large_part_of_the_targets_is_left_to_floats(form, monkeypatch):
    x, y, bias = make(form, "gaussian")
    layout, floats = screen.prepare(y, form), numba_lp if form is L1 else gemm
    expected = floats.topk(x, floats.prepare(y, form), bias, form, N // 2)
    monkeypatch.setattr(screen, "certify", None)
    assert all(map(torch.equal, screen.topk(x, layout, bias, form, N // 2), expected))
    wide = [t.double() for t in (x, y, bias)]
    assert torch.equal(screen.topk(*wide[:1], screen.prepare(wide[1], form), wide[2], form, N // 2)[1],
                       naive.topk(wide[0], wide[1:2], wide[2], form, N // 2)[1])  # fmt: skip
    if form is INNER:  # torch has no cdist in half precision
        half = [t.bfloat16() for t in (x, y, bias)]
        found = screen.topk(half[0], screen.prepare(half[1], form), half[2], form, 5)
        assert all(map(torch.equal, found, gemm.topk(half[0], half[1:2], half[2], form, 5)))


@both
def test_topk_and_argmin_share_a_layout_and_its_choice(form):
    y = torch.rand(1100, 64)
    for precision, name in ((None, "screen"), ("low", "screen_low")):
        targets = prepare(y, form, precision=precision)
        assert {targets.plan[reduction] for reduction in ("argmin", "topk")} == {name}
    x = torch.rand(5, 64)
    exact = [topk(x, prepare(y, form, precision=p), torch.zeros(1100), 9) for p in (None, "low")]
    assert all(map(torch.equal, *exact))
    assert screen_low.topk is screen.topk


def test_l1_of_targets_that_bounds_do_not_tell_apart_is_left_to_floats():
    same = torch.randn(1, 64) * (1 + 1e-6 * torch.randn(1100, 64))
    same[:50] += 1  # the unit has to reach from these to the others
    assert not {"screen"} & set(prepare(same, L1).plan.values())
