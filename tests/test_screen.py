"""The certified screen: its bounds are bounds, and what it returns is the float64 argmin, whatever the data."""

import threading
import tracemalloc

import pytest
import torch
from compare import assert_argmin, reference, regret
from kernel_cases import CPU, problem
from screen_cases import CASES, INNER, L1, B, D, N, assert_float64, both, every_case, images, make

from fastsdot.costs import make_cost
from fastsdot.kernels import (
    Form,
    argmin,
    byte_grid,
    gemm,
    naive,
    prepare,
    refusal,
    screen,
    screen_bounds,
    screen_inner,
    screen_l1,
    screen_low,
)

pytestmark = pytest.mark.skipif(
    refusal("screen", INNER, "argmin", CPU, 1000, 10) is not None,
    reason=str(refusal("screen", INNER, "argmin", CPU, 1000, 10)),
)


def assert_below(problem, score):
    """What is compared is S − offset as float64 rounds it."""
    score = score - torch.from_numpy(problem.bounds.offset)[:, None]
    panels = torch.nn.functional.pad(score, (0, -N % problem.lanes), value=torch.inf).view(B, -1, problem.lanes)
    assert problem.bounds.certain.all()
    assert (torch.from_numpy(problem.lowest()).double().T[:B] <= panels.amin(2)).all()


@every_case
def test_the_result_is_the_argmin_in_float64(form, family):
    x, y, bias = make(form, family)
    layout = screen.prepare(y, form)
    for rows in (B, 8, 5, 1):
        found = screen.argmin(x[:rows], layout, bias, form)
        assert_argmin(x[:rows], y, bias, form, *found)
        assert_float64(form, x[:rows], y, bias, *found)


@every_case
@pytest.mark.parametrize("centred", [1, 1000], ids=["about the mean", "about zero"])
def test_bounds_are_below_the_scores(monkeypatch, form, family, centred):
    if form is L1 and centred == 1:
        pytest.skip("l1 takes no mean off")
    monkeypatch.setattr(screen_inner, "CENTRED", centred)
    x, y, bias = make(form, family)
    assert_below(screen.Problem(x, screen.prepare(y, form), bias, form), reference(x, y, bias, form))


@pytest.mark.parametrize("family", [case.values[1] for case in CASES if case.values[0] is L1])
def test_a_grid_for_the_samples_has_bounds_below_the_scores_too(monkeypatch, family):
    monkeypatch.setattr(byte_grid, "FINER", torch.inf)
    x, y, bias = make(L1, family)
    layout = screen_l1.finer(x, screen.prepare(y, L1))()
    assert_below(screen.Problem(x, layout, bias, L1), reference(x, y, bias, L1))
    monkeypatch.setattr(screen, "RECODED", -torch.inf)
    assert_float64(L1, x, y, bias, *screen.argmin(x, screen.prepare(y, L1), bias, L1))


def test_codes_of_the_samples_own_are_made_when_the_others_leave_many_targets(monkeypatch):
    made = []
    monkeypatch.setattr(screen_l1, "lay_out", lambda *given, make=screen_l1.lay_out: made.append(given) or make(*given))
    x, y, bias = make(L1, "level")
    layout = screen.prepare(y, L1)
    few, all_but = screen.certify(x, layout, bias, L1), screen.certify(x, layout, 1e3 * torch.arange(float(N)), L1)
    assert len(made) == 2  # the targets' own, and then for the levelled scores alone
    monkeypatch.setattr(screen, "RECODED", torch.inf)
    many = screen.certify(x, layout, bias, L1)
    assert all(map(torch.equal, few[:2], many[:2]))
    assert 50 * few[2].sum() < many[2].sum()
    assert all_but[2].max() <= 2
    assert screen_l1.finer(x, layout) is not None
    x[0, 0] = torch.nan
    assert screen_l1.finer(x, layout) is None


FEW = {
    "inner": (INNER, {"gaussian": 40, "level": 40, "bytes": 40, "aligned": 300}),
    "l1": (L1, {"gaussian": 5, "level": 20, "offset": 5, "tiny": 5, "images": 3, "digits": 3, "outliers": 10}),
}


@pytest.mark.parametrize(
    ("form", "family", "most"),
    [
        pytest.param(form, family, most, id=f"{name}-{family}")
        for name, (form, mosts) in FEW.items()
        for family, most in mosts.items()
    ],
)
def test_few_targets_are_left_to_be_scored_exactly(form, family, most):
    x, y, bias = make(form, family)
    count = screen.certify(x, screen.prepare(y, form), bias, form)[2]
    assert count.min() >= 1
    assert count.float().mean() <= most


@pytest.mark.parametrize(("levels", "unit"), [(2, 1 / 255), (17, 1 / 240), (65, 1 / 192), (256, 1 / 255)])
def test_the_grid_of_images_is_found(levels, unit):
    y = images(torch.Generator().manual_seed(0), levels)[1]
    _, _, (excess, rest), grid, found = screen.prepare(y - 0.5, L1)
    assert found.item() == pytest.approx(unit, rel=1e-6)
    assert max(excess.max(), rest.max()) < 1e-5 * D
    assert (grid[0] <= grid[1]).all()


@every_case
def test_the_best_estimate_is_nearly_the_best_score(form, family):
    x, y, bias = make(form, family)
    layout = screen.prepare(y, form)
    value, index = screen_low.argmin(x, layout, bias, form)
    score = reference(x, y, bias, form)
    chosen = score.gather(1, index[:, None]).squeeze(1)
    assert torch.allclose(value.double(), chosen, rtol=2.0**-20, atol=2.0**-20 * float(score.abs().max()))
    expected = torch.from_numpy(screen.Problem(x, layout, bias, form).solve()[0]).squeeze(1)
    assert (expected <= value.double() * (1 + 1e-6 * value.sign()) + 1e-30).all()
    if family in ("gaussian", "images", "bytes", "duplicated", "level"):
        assert (chosen - score.amin(1) <= 0.05 * (score.mean(1) - score.amin(1))).all()


def test_a_common_mean_of_the_samples_does_not_blunt_the_bounds(monkeypatch):
    x, y, bias = make(INNER, "level")
    layout = screen.prepare(y, INNER)
    sharp = screen.certify(x, layout, bias, INNER)
    monkeypatch.setattr(screen_inner, "CENTRED", 1000)
    blunt = screen.certify(x, layout, bias, INNER)
    assert all(map(torch.equal, sharp[:2], blunt[:2]))
    assert 20 * sharp[2].sum() < blunt[2].sum()


@every_case
def test_rows_threads_and_tasks_do_not_change_a_bit(monkeypatch, form, family):
    x, y, bias = make(form, family)
    layout = screen.prepare(y, form)
    expected = screen.argmin(x, layout, bias, form)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(1))
    shuffled = screen.argmin(x[order], layout, bias, form)
    assert all(torch.equal(a[order], b) for a, b in zip(expected, shuffled, strict=True))
    for rows in (1, 3, 17):
        parts = zip(*(screen.argmin(part, layout, bias, form) for part in x.split(rows)), strict=True)
        assert all(torch.equal(a, torch.cat(b)) for a, b in zip(expected, parts, strict=True))
    threads = torch.get_num_threads()
    changes = [(screen, {"TASK_WORDS": 1, "BLOCK_BYTES": 1, "PAIRS": 1})]
    changes += [(screen_bounds, {"TASKS": 3, "ENCODED": 1}), (screen_inner, {"CENTRED": 1000})]
    for module, name, value in [(module, *pair) for module, values in changes for pair in values.items()]:
        monkeypatch.setattr(module, name, value)
        torch.set_num_threads(1 if name == "PAIRS" else 2)
        try:
            assert all(map(torch.equal, expected, screen.argmin(x, layout, bias, form)))
        finally:
            torch.set_num_threads(threads)


@both
def test_equal_targets_give_the_smallest_index(form):
    x, y, bias = make(form, "duplicated")
    index = screen.argmin(x, screen.prepare(y, form), bias, form)[1]
    assert torch.equal(index, reference(x, y[:100], bias[:100], form).argmin(1))


@both
@pytest.mark.parametrize("dead", [slice(0, 1), slice(0, 480), slice(5, 3000), slice(1, None), slice(0, 3000)])
def test_an_infinite_bias_is_never_chosen(form, dead):
    x, y, bias = make(form, "gaussian")
    bias[dead] = torch.inf
    layout = screen.prepare(y, form)
    found = screen.argmin(x, layout, bias, form)
    assert_float64(form, x, y, bias, *found)
    assert (bias[screen_low.argmin(x, layout, bias, form)[1]] < torch.inf).all()


@both
def test_nothing_to_choose_from_is_infinite_as_in_gemm(form):
    x, y, bias = make(form, "gaussian")
    bias[:] = torch.inf
    layout = screen.prepare(y, form)
    value, index, count = screen.certify(x, layout, bias, form)
    expected = gemm.argmin(x, [y], bias, form)
    assert all(map(torch.equal, (value.squeeze(1), index.squeeze(1)), expected))
    assert all(map(torch.equal, screen_low.argmin(x, layout, bias, form), expected))
    assert (count == 0).all()


@both
def test_no_samples(form):
    _, y, bias = make(form, "gaussian")
    layout = screen.prepare(y, form)
    for found in (screen.argmin(y[:0], layout, bias, form), screen_low.argmin(y[:0], layout, bias, form)):
        assert [t.shape for t in found] == [(0,), (0,)]
        assert found[1].dtype == torch.int64


@pytest.mark.parametrize(("form", "size"), [(INNER, 1e32), (L1, torch.inf)], ids=["inner", "l1"])
def test_rows_without_bounds_are_scored_exactly_beside_others(form, size):
    x, y, bias = (t.double() for t in make(form, "gaussian"))
    x[3] *= 1e32
    x[3, 0] = min(size, 1.7e308)  # twice this is infinite
    layout = screen.prepare(y, form)
    value, index, count = (t.view(B) for t in screen.certify(x, layout, bias, form))
    low_value, low_index = screen_low.argmin(x, layout, bias, form)
    rest = torch.arange(B) != 3
    assert_float64(form, x[rest], y, bias, value[rest], index[rest])
    assert count[rest].float().mean() < 40
    if form is INNER:
        assert_float64(form, x[3:4], y, bias, value[3:4], index[3:4])
        assert count[3] == N
        assert low_value[3] == value[3]
        assert low_index[3] == index[3]


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e30, 1e35])
def test_l1_at_the_ends_of_float32(size):
    x, y, bias = (size * t for t in make(L1, "gaussian"))
    assert_float64(L1, x, y, bias, *screen.argmin(x, screen.prepare(y, L1), bias, L1))


def test_l1_far_outside_the_targets_keeps_its_bounds():
    """The distance to the targets' range is a constant of the row, in float64."""
    x, y, bias = make(L1, "images")
    count = screen.certify(1e4 + x, screen.prepare(y, L1), bias, L1)[2]
    assert count.float().mean() < 3


@pytest.mark.parametrize("form", [Form("inner"), Form("inner", scale=0.3), L1], ids=["1", "0.3", "l1"])
@pytest.mark.parametrize("d", [1, 3, 4, 5, 8, 16, 31, 64, 200])
def test_dimensions_and_scales(d, form):
    x, y, bias = problem(19, 777, d)
    assert_argmin(x, y, bias, form, *screen.argmin(x, screen.prepare(y, form), bias, form))


@pytest.mark.parametrize("form", [INNER, L1], ids=["inner", "l1"])
def test_every_number_of_rows_and_targets(form):
    x, y, bias = problem(70, 200, 9)
    for rows in range(1, 71):
        n = 200 - rows
        found = screen.argmin(x[:rows], screen.prepare(y[:n], form), bias[:n], form)
        assert torch.equal(found[1], reference(x[:rows], y[:n], bias[:n], form).argmin(1))


@pytest.mark.parametrize("cost", ["sqeuclidean", "dot", "cosine"])
def test_costs_choose_it_and_get_the_definition(cost):
    g = torch.Generator().manual_seed(0)
    x, y = (3 + torch.rand(n, 60, generator=g) for n in (B, 2000))
    c = make_cost(cost)
    e = c.embed_targets(y)
    targets = prepare(e.y, e.form)
    assert [name for name, backend in targets.plan.items() if backend == "screen"] == ["argmin", "topk"]
    index = argmin(c.embed(x, e.centre), targets, e.column)[1]
    expected = c(x[:, None].double(), y[None].double())
    assert (regret(expected, index) <= 1e-5 * expected.amin(1).abs() + 1e-6).all()


@both
def test_float64_stays_float64_and_half_precision_goes_to_gemm(form):
    x, y, bias = (t.double() for t in make(form, "gaussian"))
    value, index = screen.argmin(x, screen.prepare(y, form), bias, form)
    assert torch.allclose(value, reference(x, y, bias, form).amin(1), rtol=1e-13)
    assert torch.equal(index, naive.argmin(x, [y], bias, form)[1])
    if form is INNER:  # torch has no cdist in half precision
        x, y, bias = (t.bfloat16() for t in (x, y, bias))
        found = screen.argmin(x, screen.prepare(y, form), bias, form)
        assert all(map(torch.equal, found, gemm.argmin(x, [y], bias, form)))


@both
def test_memory_is_a_small_part_of_the_scores(form):
    x, y, bias = problem(256, 50_000, 24)
    layout = screen.prepare(y, form)
    screen.argmin(x, layout, bias, form)
    tracemalloc.start()
    screen.argmin(x, layout, bias, form)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.06 * x.shape[0] * y.shape[0] * 4
    assert sum(t.numel() * t.element_size() for t in layout[1:]) < y.shape[0] * (24 + 20) * 1.01


def test_several_threads_may_call_at_once():
    x, y, bias = make(INNER, "gaussian")
    layout = screen.prepare(y, INNER)
    expected, wrong = screen.argmin(x, layout, bias, INNER)[1], []

    def work():
        wrong.extend(1 for _ in range(20) if not torch.equal(screen.argmin(x, layout, bias, INNER)[1], expected))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert not wrong


def test_few_targets_are_left_to_gemm_unless_it_is_named():
    y = torch.randn(499, 200)
    assert prepare(y, INNER).plan["argmin"] == "gemm"
    assert prepare(y, INNER, "screen").plan["argmin"] == "screen"


@pytest.mark.parametrize(("d", "backend"), [(11, "numba"), (12, "screen")])
def test_few_coordinates_are_left_to_numba(d, backend):
    assert prepare(torch.randn(6000, d), L1).plan["argmin"] == backend


TOLD = [pytest.param(INNER, "screen", "gemm", id="inner"), pytest.param(L1, "numba", "numba", id="l1")]


@pytest.mark.parametrize(("form", "exact", "low"), TOLD)
def test_targets_that_bounds_do_not_tell_apart(form, exact, low):
    """l1 goes to float32, whose sums no thread changes; products of float32 would depend on the threads."""
    y = torch.randn(1, 30) * (1 + 1e-6 * torch.randn(3000, 30))
    y[:50] += 1  # the unit has to reach from these to the others
    assert prepare(y, form).plan["argmin"] == exact
    assert prepare(y, form, precision="low").plan["argmin"] == low
    assert prepare(y, form, "screen").plan["argmin"] == "screen"
    assert [screen.told_apart(torch.randn(n, 30), form) for n in (1, 3, 1000)] == [True] * 3


def test_refusals_say_why(monkeypatch):
    assert "callable" in screen.refusal(Form("callable", function=torch.dist), "argmin", CPU, 10, 3)
    assert "p = 1.5" in screen.refusal(Form("power", p=1.5), "argmin", CPU, 10, 3)
    assert "cuda" in screen.refusal(INNER, "argmin", torch.device("cuda"), 10, 3)
    assert "softmin" in screen.refusal(L1, "softmin", CPU, 10, 3)
    assert "32 bits" in screen.refusal(INNER, "argmin", CPU, 10, 200_000)
    assert "2097152" in screen.refusal(L1, "argmin", CPU, 10, 2**21)
    monkeypatch.setattr(screen_inner, "AVAILABLE", False)
    assert "VNNI" in screen.refusal(INNER, "argmin", CPU, 10, 3)
    monkeypatch.setattr(screen_l1, "AVAILABLE", False)
    assert "AVX-512BW" in screen.refusal(L1, "argmin", CPU, 10, 3)
