"""The Triton kernels against the definition in float64; test_triton_interpreted.py runs this file.

Tiles are small so that few targets fill several tiles and groups. The interpreter multiplies in float32, so rounding of
the tensor cores shows only where these tests run compiled.
"""

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from compare import Truth, assert_argmin, reference, regret, tolerance
from kernel_cases import FORMS, assert_close, double, lattice, problem

from fastsdot.kernels import (
    naive,
    philox,
    triton_argmin,
    triton_backend as backend,
    triton_halves,
    triton_launch,
    triton_sample,
    triton_scores,
    triton_soft,
    triton_topk,
)
from fastsdot.kernels.form import Form
from fastsdot.kernels.triton_launch import Launch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KERNEL_FORMS = {name: form for name, form in FORMS.items() if form.kind != "callable"} | {
    "lp2.7": Form("power", p=2.7),
    "lp0.5": Form("power", p=0.5, root=True),
    "lp9": Form("power", p=9.25),
}
TILES = {"inner": Launch(16, 16, 16, 4, 2), "power": Launch(4, 16, 4, 4, 2)}
every_form = pytest.mark.parametrize("form", KERNEL_FORMS.values(), ids=KERNEL_FORMS)
two_forms = pytest.mark.parametrize("form", [FORMS["inner"], FORMS["l1"]], ids=["inner", "l1"])


def put(x, y, bias, form):
    """Operands on the device that runs the kernels, and tiles that split them."""
    launch = TILES[form.kind]
    if form.kind == "power":
        launch = replace(launch, depth=triton_launch.depth(x.shape[1]))
    return x.to(DEVICE), backend.prepare(y.to(DEVICE), form), bias.to(DEVICE), launch


def run_argmin(x, y, bias, form):
    x, layout, bias, launch = put(x, y, bias, form)
    value, index = backend.argmin(x, layout, bias, form, launch)
    return value.cpu(), index.cpu()


def run_soft(x, y, bias, form, epsilon, row_weight):
    x, layout, bias, launch = put(x, y, bias, form)
    value = backend.softmin(x, layout, bias, form, epsilon, launch)
    again, mass = backend.soft_marginal(x, layout, bias, form, epsilon, row_weight.to(DEVICE), launch)
    assert torch.equal(value, again)
    return value.cpu(), mass.cpu()


def run_topk(x, y, bias, form, k):
    x, layout, bias, launch = put(x, y, bias, form)
    value, index = backend.topk(x, layout, bias, form, k, launch)
    return value.cpu(), index.cpu()


def assert_soft(x, y, bias, form, epsilon, value, row_weight, mass):
    truth = Truth(x, y, bias, form)
    assert (truth.softmin(value, epsilon) <= 1).all()
    assert (truth.mass(mass, epsilon, row_weight) <= 1).all()


@every_form
@pytest.mark.parametrize(("b", "n", "d"), [(1, 1, 1), (3, 50, 5), (9, 45, 18)])
@pytest.mark.parametrize("reread", [0, 10**9], ids=["column after", "column in the loop"])
def test_argmin(form, b, n, d, reread, monkeypatch):
    monkeypatch.setattr(triton_argmin, "REREAD", reread)
    x, y, bias = problem(b, n, d)
    assert_argmin(x, y, bias, form, *run_argmin(x, y, bias, form))


@every_form
@pytest.mark.parametrize(("b", "n", "d", "epsilon"), [(1, 1, 1, 1.0), (3, 50, 5, 0.05), (9, 45, 18, 10.0)])
@pytest.mark.parametrize("again", [0, 10**9], ids=["scores kept", "computed again"])
def test_softmin_and_marginal(form, b, n, d, epsilon, again, monkeypatch):
    monkeypatch.setitem(triton_soft.AGAIN, form.kind, again)
    x, y, bias = problem(b, n, d)
    row_weight = torch.linspace(-1, 2, b)
    value, mass = run_soft(x, y, bias, form, epsilon, row_weight)
    assert_soft(x, y, bias, form, epsilon, value, row_weight, mass)


def test_units_are_of_the_largest_coordinate_wherever_it_lies():
    v = torch.full((40, 300), 1e-3)
    largest = torch.tensor([5.0, 70.0, 2.0**-30, 1e30])
    v[[0, 1, 2, 35], [0, 299, 70, 260]] = torch.tensor([-5.0, 70.0, 2.0**-30, 1e30])
    v[2] = v[2].clamp(max=2.0**-30)
    unit, half = triton_halves.halves(v.to(DEVICE))
    assert torch.equal(unit, triton_halves.units(v.to(DEVICE)))
    scaled = largest * unit.cpu()[[0, 1, 2, 35]]
    assert ((scaled >= 2.0**14) & (scaled < 2.0**15)).all()
    high, low = half.cpu().float().view(40, 2, 304).unbind(1)
    torch.testing.assert_close((high + low)[:, :300], v * unit.cpu()[:, None], rtol=2.0**-22, atol=2.0**-24)
    assert not half.cpu().view(40, 2, 304)[:, :, 300:].any()


def inner_products(x, y):
    """⟨x_i, y_j⟩ as the kernels' tiles have them, float64."""
    form = Form("inner", scale=-1.0)
    x, y = x.to(DEVICE), y.to(DEVICE)
    score, _ = triton_scores.block_score(x, backend.prepare(y, form), torch.zeros(len(y), device=DEVICE), form)
    return score(0, len(y)).double().cpu()


def test_halves_keep_twenty_two_bits_of_rows_of_any_size():
    x, y, _ = problem(9, 40, 18)
    x *= torch.logspace(-18, 18, 9)[:, None]
    y *= torch.logspace(18, -18, 40)[:, None]
    size = x.double().abs() @ y.double().abs().T
    error = (inner_products(x, y) - x.double() @ y.double().T).abs()
    assert (size > 1e-35).all()
    assert (error < 2.0**-20 * size).all()
    assert (error > 2.0**-24 * size).any()  # so that the bound says something


def test_halves_lose_little_of_coordinates_far_below_their_largest():
    x, y, _ = problem(6, 20, 48)
    x *= torch.logspace(0, -12, 48)
    y *= torch.logspace(-12, 0, 48)
    x[:3], y[:10] = x[:3].flip(1), y[:10].flip(1)
    size = x.double().abs() @ y.double().abs().T
    largest = x.double().abs().amax(1)[:, None] * y.double().abs().amax(1)
    error = (inner_products(x, y) - x.double() @ y.double().T).abs()
    assert (error < 2.0**-20 * size + 48 * 2.0**-38 * largest).all()


def test_a_sample_that_is_not_finite_spoils_itself_alone():
    x, layout, bias, launch = put(*problem(4, 40, 18), FORMS["inner"])
    expected = backend.softmin(x, layout, bias, FORMS["inner"], 0.5, launch)
    rest = torch.arange(4, device=DEVICE) != 2
    for bad in (torch.nan, torch.inf):
        x[2, 5] = bad
        value = backend.softmin(x, layout, bias, FORMS["inner"], 0.5, launch)
        assert torch.equal(value[rest], expected[rest])
        assert value[2].isnan()


@two_forms
def test_scores_are_kept_for_as_many_rows_as_there_is_room_for(form, monkeypatch):
    x, y, bias = problem(9, 45, 6)
    row_weight = torch.linspace(-1, 2, 9)
    computed = run_soft(x, y, bias, form, 0.5, row_weight)
    monkeypatch.setitem(triton_soft.AGAIN, form.kind, 6)
    marginal, sizes = triton_soft.marginal, []
    monkeypatch.setattr(triton_soft, "marginal", lambda *of: sizes.append(of[0].sizes[0]) or marginal(*of))
    for kept, fewest, rows in ((9 * 45, 9, 9), (4 * 45, 4, 4), (45, 1, 1), (44, 1, 0)):
        monkeypatch.setattr(triton_soft, "KEPT", kept)
        monkeypatch.setattr(triton_soft, "FEWEST", fewest)
        assert triton_soft.keeps(form, 9, 45, 6) == (rows > 0)
        assert not triton_soft.keeps(form, 9, 45, 5)
        sizes.clear()
        found = run_soft(x, y, bias, form, 0.5, row_weight)
        assert max(sizes) == (rows or 9)
        assert sum(sizes) == 9
        for a, b in zip(computed, found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert_soft(x, y, bias, form, 0.5, found[0], row_weight, found[1])


@every_form
def test_no_target_gets_more_than_all_mass_where_scores_are_far_above_the_temperature(form):
    x, y, bias = problem(24, 40, 3)
    _, mass = run_soft(1e5 * x, 1e5 * y, bias, form, 1e-3, torch.full((24,), 1 / 24))
    assert ((mass >= 0) & (mass <= 1 + 1e-5)).all()


@every_form
def test_launches_that_users_get(form):
    x, y, bias = problem(5, 130, 3)
    layout = backend.prepare(y.to(DEVICE), form)
    operands = x.to(DEVICE), layout, bias.to(DEVICE), form
    assert_argmin(x, y, bias, form, *(result.cpu() for result in backend.argmin(*operands)))
    value, mass = (result.cpu() for result in backend.soft_marginal(*operands, 0.5, torch.ones(5, device=DEVICE)))
    assert_soft(x, y, bias, form, 0.5, value, torch.ones(5), mass)


@two_forms
def test_tiles_groups_and_the_way_to_the_column_change_no_bit_of_the_argmin(form, monkeypatch):
    x, y, bias = problem(7, 150, 6)
    first = run_argmin(x, y, bias, form)
    soft = run_soft(x, y, bias, form, 0.5, torch.ones(7))
    for programs, columns, reread in [(1, 32, 0), (3, 16, 0), (1000, 16, 10**9), (2, 64, 10**9)]:
        monkeypatch.setattr(triton_launch, "PROGRAMS", programs)
        monkeypatch.setattr(triton_argmin, "REREAD", reread)
        monkeypatch.setitem(TILES, form.kind, replace(TILES[form.kind], columns=columns))
        assert all(torch.equal(a, b) for a, b in zip(first, run_argmin(x, y, bias, form), strict=True))
        for a, b in zip(soft, run_soft(x, y, bias, form, 0.5, torch.ones(7)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@every_form
@pytest.mark.parametrize("reread", [0, 10**9])
def test_ties_go_to_the_smallest_index(form, reread, monkeypatch):
    monkeypatch.setattr(triton_argmin, "REREAD", reread)
    monkeypatch.setattr(triton_launch, "PROGRAMS", 6)
    x, y, bias = lattice(5, 90)
    index = run_argmin(x, y, bias, form)[1]
    assert torch.equal(index, naive.argmin(*double(x, y, bias), form)[1])


def test_ties_between_more_groups_than_are_read_at_once(monkeypatch):
    form = FORMS["l1"]
    monkeypatch.setattr(triton_launch, "PROGRAMS", 1000)
    x, y, bias = lattice(1, 16 * 130)
    y[16 * 129 + 3], bias[16 * 129 + 3] = x[0], -5.0
    y[16 + 2], bias[16 + 2] = x[0], -5.0  # the same, 128 groups before
    value, index = run_argmin(x, y, bias, form)
    assert index.tolist() == [18]
    assert torch.equal(value.double(), naive.argmin(*double(x, y, bias), form)[0])


@two_forms
@pytest.mark.parametrize("dead", [slice(0, 32), slice(40, 70), slice(1, 70), slice(0, 69)])
def test_an_infinite_bias_is_never_chosen_and_has_no_mass(form, dead, monkeypatch):
    monkeypatch.setattr(triton_launch, "PROGRAMS", 5)
    x, y, bias = problem(4, 70)
    bias[dead] = torch.inf
    assert_argmin(x, y, bias, form, *run_argmin(x, y, bias, form))
    value, mass = run_soft(x, y, bias, form, 0.5, torch.ones(4))
    assert_soft(x, y, bias, form, 0.5, value, torch.ones(4), mass)
    assert (mass[dead] == 0).all()


@two_forms
def test_nothing_to_choose_from_is_infinite_and_never_nan(form):
    x, y, bias = problem(4, 40)
    bias[:] = torch.inf
    value, index = run_argmin(x, y, bias, form)
    assert (value == torch.inf).all()
    assert (index == 0).all()
    value, mass = run_soft(x, y, bias, form, 0.5, torch.ones(4))
    assert (value == torch.inf).all()
    assert (mass == 0).all()


@two_forms
@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e4, 1e12])
def test_any_scale(form, scale):
    x, y, bias = problem(6, 60, 7, scale=scale)
    bias = bias * (form(x, y[:6]).abs().mean())
    assert_argmin(x, y, bias, form, *run_argmin(x, y, bias, form))


@two_forms
def test_a_large_offset_cancels_no_better_and_no_worse_than_in_float32(form):
    x, y, bias = problem(6, 60, 7)
    assert_argmin(x + 1e3, y + 1e3, bias, form, *run_argmin(x + 1e3, y + 1e3, bias, form))


@every_form
def test_operands_need_not_be_contiguous(form):
    x, y, bias = problem(6, 40, 5)
    spread = torch.empty(5, 12).T[::2]
    spread.copy_(x)
    wide = torch.empty(40, 3)
    wide[:, 1] = bias
    expected = run_argmin(x, y, bias, form)
    assert all(torch.equal(a, b) for a, b in zip(expected, run_argmin(spread, y, wide[:, 1], form), strict=True))


@two_forms
def test_an_empty_batch_gives_empty_results(form):
    x, y, bias = problem(0, 20)
    assert [result.shape for result in run_argmin(x, y, bias, form)] == [(0,), (0,)]
    value, mass = run_soft(x, y, bias, form, 0.5, torch.ones(0))
    assert value.shape == (0,)
    assert torch.equal(mass, torch.zeros(20))
    assert [result.shape for result in run_topk(x, y, bias, form, 3)] == [(0, 3), (0, 3)]


@every_form
@pytest.mark.parametrize(("n", "k"), [(100, 3), (20, 20)])
def test_topk(form, n, k, monkeypatch):
    monkeypatch.setattr(triton_topk, "MINIMA", 30)  # fewer rows at a time than there are
    assert triton_topk.keeps(n, k) == (k == 3)
    x, y, bias = problem(3, n)
    value, index = run_topk(x, y, bias, form, k)
    assert value.shape == index.shape == (3, k)
    assert (Truth(x, y, bias, form).topk(value, index) <= 1).all()


@two_forms
def test_ties_among_the_k_best_are_in_order_of_index(form, monkeypatch):
    monkeypatch.setattr(triton_topk, "WORTH", 0)
    x, y, bias = lattice(4, 90)
    bias[50:] = torch.inf
    for k in (1, 9, 60):
        index = run_topk(x, y, bias, form, k)[1]
        assert torch.equal(index, naive.topk(*double(x, y, bias), form, k)[1])


def assert_draws(x, y, bias, form, epsilon, launch):
    seed = torch.tensor(2**40 + 3)
    noisy = reference(x, y, bias, form) - epsilon * philox.gumbel(seed, x.shape[0], 0, y.shape[0])
    layout = backend.prepare(y.to(DEVICE), form)
    index = backend.sample(x.to(DEVICE), layout, bias.to(DEVICE), form, epsilon, seed.to(DEVICE), launch).cpu()
    assert index.dtype == torch.int64
    assert (regret(noisy, index) <= 2 * tolerance(x, y, bias, form) + 1e-5 * epsilon).all()


@every_form
def test_a_draw_is_that_of_the_definition(form):
    x, y, bias = problem(9, 90)
    bias[40:60] = torch.inf
    assert_draws(x, y, bias, form, 1.0, put(x, y, bias, form)[-1])


@two_forms
@pytest.mark.parametrize("epsilon", [1e-3, 1e4])
def test_groups_and_launches_change_no_draw(form, epsilon, monkeypatch):
    x, y, bias = problem(5, 90)
    for programs in (1, 1000):
        monkeypatch.setattr(triton_launch, "PROGRAMS", programs)
        assert_draws(x, y, bias, form, epsilon, put(x, y, bias, form)[-1])
    assert_draws(x, y, bias, form, epsilon, None)


@triton.jit
def noise(seed_ptr, out_ptr, first, rows: tl.constexpr, width: tl.constexpr):
    i, j = tl.arange(0, rows), tl.arange(0, width)
    tl.store(out_ptr + i[:, None] * width + j[None, :], triton_sample.gumbel(tl.load(seed_ptr), i, first + j))


@pytest.mark.parametrize("seed", [0, -5, 2**62 + 9])
def test_noise_is_that_of_the_definition(seed):
    seed, out = torch.tensor(seed), torch.empty(16, 8192, device=DEVICE)
    noise[(1,)](seed.to(DEVICE), out, 2**30, 16, 8192)
    assert_close(out.cpu(), philox.gumbel(seed, 16, 2**30, 2**30 + 8192), 1e-5)


@triton.jit
def noise_of_words(words_ptr, out_ptr, count: tl.constexpr):
    at = tl.arange(0, count)
    high, low = tl.load(words_ptr + at).to(tl.uint32), tl.load(words_ptr + count + at).to(tl.uint32)
    tl.store(out_ptr + at, triton_sample.to_gumbel(high, low))


def test_noise_is_right_in_both_tails():
    edges = torch.tensor([0, 1, 2**29, 2**30 - 1, 2**30, 2**31, philox.MASK - 1, philox.MASK])
    words = torch.cartesian_prod(edges, edges).T.contiguous()
    out = torch.empty(64, device=DEVICE)
    noise_of_words[(1,)](words.to(DEVICE), out, 64)
    expected = philox.to_gumbel(*words)
    assert_close(out.cpu(), expected, 1e-5)
    assert expected.max() > 45  # 64 bits: numbers of 32 end at 22.9


def test_refusals_say_why():
    assert "callable" in backend.refusal(FORMS["callable"], "argmin", DEVICE, 10, 5)
    assert "not meta" in backend.refusal(FORMS["l1"], "argmin", torch.device("meta"), 10, 5)
    assert backend.refusal(FORMS["l1"], "argmin", DEVICE, 10, 5) is None
