"""The certified screen of inner products against the definition; test_triton_interpreted.py runs this file.

The interpreter multiplies float16 exactly and adds in float32, so what tensor cores truncate shows only where these
tests run compiled; the bounds allow for it in both cases.
"""

import pytest
import torch
from compare import assert_argmin, reference, regret
from kernel_cases import FORMS, problem
from triton_screens import DEVICE, INNER, TILES, assert_certified, certify

from fastsdot.kernels import triton_launch, triton_low, triton_screen as screen, triton_screen_inner as inner
from fastsdot.kernels.form import Form
from fastsdot.kernels.triton_encode import WIDTH
from fastsdot.kernels.triton_launch import Launch
from fastsdot.kernels.triton_rescore import rescore


@pytest.mark.parametrize(("b", "n", "d"), [(1, 1, 1), (3, 50, 5), (9, 150, 33)])
@pytest.mark.parametrize("scale", [2.0, -0.7])
def test_the_index_is_the_float64_argmin(b, n, d, scale):
    assert_certified(*problem(b, n, d), Form("inner", scale=scale))


def test_launches_that_users_get():
    assert_certified(*problem(5, 600, 3), launch=None)


def parts_of(x, y, bias, form=INNER, fine=WIDTH.value):
    """Lower bounds of `fine` targets at a time, their smallest scores, and the largest margin that bounds leave."""
    x, y, bias = x.to(DEVICE), y.to(DEVICE), bias.to(DEVICE)
    layout = screen.prepare(y, form)
    bounds = inner.bounds_of(x, layout, inner.lower(x, layout, bias, form), form, TILES["inner"], True, fine)
    score = reference(x, y, bias, form)
    filled = torch.nn.functional.pad(score, (0, -score.shape[1] % fine), value=torch.inf)
    exact = filled.unflatten(1, (-1, fine)).amin(2)
    rest, image = layout[3].repeat_interleave(WIDTH.value // fine, 1)
    margin = bounds.row[1, :, None] * rest + bounds.row[2, :, None] * image
    return bounds.lower[:, : exact.shape[1]].cpu().double(), exact, margin[:, : exact.shape[1]].cpu().double()


@pytest.mark.parametrize("fine", [8, 32])
@pytest.mark.parametrize("case", ["plain", "offset", "tiny", "heavy tails", "large bias", "aligned"])
def test_bounds_hold_and_are_not_idle(case, fine):
    x, y, bias = problem(17, 130, 40)
    if case == "offset":
        x, y = x + 1e3, y + 1e3
    elif case == "tiny":
        x, y, bias = 1e-4 * x, 1e-4 * y, 1e-8 * bias
    elif case == "heavy tails":
        x, y = x.exp() ** 8 * x.sign(), y.exp() ** 8
    elif case == "large bias":
        bias = bias * 1e6
    elif case == "aligned":  # rounding residuals of one sign, which Cauchy–Schwarz meets
        x, y = torch.full_like(x, 1 + 2.0**-11 - 2.0**-20), torch.full_like(y, 1 + 2.0**-11 - 2.0**-20)
    lower, exact, margin = parts_of(x, y, bias, fine=fine)
    assert (lower <= exact).all()
    rounding = 2.0**-20 * exact.abs()
    assert (lower >= exact - 2 * margin - rounding).all()
    if case == "aligned":
        assert (exact - lower < 0.1 * margin).all()


def test_the_margin_of_ordinary_data_is_small():
    _, exact, margin = parts_of(*problem(17, 130, 40))
    assert (margin < 0.01 * exact.abs().mean()).all()


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e4, 1e12])
def test_any_scale(scale):
    x, y, bias = problem(6, 100, 7)
    assert_certified(scale * x, scale * y, bias * scale**2)


def test_rows_without_bounds_are_undecided_alone():
    x, y, bias = problem(6, 100, 7)
    x[2] *= 1e37
    _, index, _, undecided, expected = certify(x, y, bias)
    assert undecided.tolist() == [False, False, True, False, False, False]
    assert torch.equal(index, expected)


def test_rows_with_too_many_candidates_are_decided_by_the_plain_kernels(monkeypatch):
    monkeypatch.setattr(screen, "FEWEST", 1)
    x, y, bias = problem(12, 230, 9)
    y[200] = y[3]
    bias[3] = bias[200] = -40  # two tiles for every row that one of them wins
    bias[225] = -39.5
    value, index, tiles, undecided, expected = certify(x, y, bias)
    assert 0 < int(undecided.sum()) < 12
    assert torch.equal(undecided, tiles > 1)
    assert torch.equal(index[~undecided], expected[~undecided])
    assert_argmin(x, y, bias, INNER, value, index)


def test_tiles_groups_and_slices_change_no_bit(monkeypatch):
    x, y, bias = problem(10, 230, 6)
    first = certify(x, y, bias)
    for programs, columns, bounds in [(1, 128, 2**27), (3, 32, 64), (1000, 32, 0)]:
        monkeypatch.setattr(triton_launch, "PROGRAMS", programs)
        monkeypatch.setattr(screen, "BOUNDS", bounds)
        again = certify(x, y, bias, launch=Launch(16, columns, 32, 4, 2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_slices_share_one_centre_and_the_biases_about_it(monkeypatch):
    x, y, bias = problem(10, 230, 6)
    lower, shared = inner.lower, []
    monkeypatch.setattr(inner, "lower", lambda *of: shared.append(lower(*of)) or shared[-1])
    monkeypatch.setattr(inner, "CENTRED", 10)
    monkeypatch.setattr(screen, "BOUNDS", 0)
    certify(x + 300, y, bias)
    assert len(shared) == 1
    torch.testing.assert_close(shared[0].centre.cpu(), (x + 300).mean(0))


def test_samples_that_share_a_mean_are_coded_about_it(monkeypatch):
    x, y, bias = problem(9, 300, 20)
    x = x + 300
    bias = bias + 2 * y @ x.mean(0)  # what the mean adds is taken off again
    far = certify(x, y, bias)
    monkeypatch.setattr(inner, "CENTRED", 4)
    near = certify(x, y, bias)
    assert torch.equal(far[1], far[-1])
    assert torch.equal(near[1], near[-1])
    assert near[2].sum() < far[2].sum()
    assert inner.centre_of(x.to(DEVICE)).abs().min() > 200
    assert (inner.centre_of((x - 300).to(DEVICE)) == 0).all()
    lower, exact, _ = parts_of(x, y, bias)
    assert (lower <= exact).all()


def test_without_the_certificate_the_score_is_near_the_best_and_exact_for_its_target():
    x, y, bias = problem(9, 300, 33)
    layout = triton_low.prepare(y.to(DEVICE), INNER)
    value, index = (r.cpu() for r in triton_low.argmin(x.to(DEVICE), layout, bias.to(DEVICE), INNER, TILES["inner"]))
    score = reference(x, y, bias, INNER)
    torch.testing.assert_close(value.double(), score.gather(1, index[:, None]).squeeze(1), rtol=1e-6, atol=1e-6)
    margin = parts_of(x, y, bias)[2].amax(1)
    assert (regret(score, index) <= 2 * margin).all()
    assert [r.shape for r in triton_low.argmin(x[:0].to(DEVICE), layout, bias.to(DEVICE), INNER)] == [(0,), (0,)]


def test_refusals_say_why():
    assert "a draw may be any other" in screen.refusal(INNER, "sample", DEVICE, 10, 5)
    assert screen.refusal(INNER, "softmin", DEVICE, 10, 5) is None
    assert "200000" in screen.refusal(INNER, "argmin", DEVICE, 10, 200_000)
    assert "not meta" in screen.refusal(INNER, "argmin", torch.device("meta"), 10, 5)
    assert screen.refusal(INNER, "argmin", DEVICE, 10, 5) is None


@pytest.mark.skipif(DEVICE.type != "cpu", reason="reserves memory that only an idle page table affords")
def test_offsets_beyond_32_bits(monkeypatch):
    """The last rows of 8.6 GB of targets, of which only those are ever touched."""
    from triton.runtime.interpreter import GridExecutor

    monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *arguments: None)  # copies all storage onto itself
    d, n = 2**17, 2**14 + 32
    try:
        y = torch.empty(n, d)
    except RuntimeError as error:
        pytest.skip(str(error))
    x, y[-32:] = torch.randn(2, d), torch.randn(32, d)
    lower = torch.full((2, n // 32), torch.inf)
    lower[:, -1] = -1e30
    found = screen.Candidates(
        torch.empty(2), torch.empty(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int32), torch.zeros(3).int()
    )
    rescore[(2,)](
        x, y, torch.zeros(n), torch.zeros(3, 2), 2, n, d, lower, lower, n // 32, n // 32, 1, n // 32, 4, *found,
        **triton_launch.form_constants(INNER), WIDTH=32, BK=4096, LANES=128, CERTIFY=True,
    )  # fmt: skip
    assert torch.equal(found.index, reference(x, y[-32:], torch.zeros(32), INNER).argmin(1) + 2**14)
    assert found.tiles.tolist() == [1, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("n", [20, 70])
@pytest.mark.parametrize("name", ["inner", "l1"])
def test_samples_that_are_no_numbers_have_indices_all_the_same(bad, name, n):
    """On a GPU samples are looked at after the kernels have seen them; an index past the end would end the process."""
    x, y, bias = problem(3, n, 6)
    x[1], x[2, 3] = bad, -bad
    form = FORMS[name]
    x, bias, layout = x.to(DEVICE), bias.to(DEVICE), screen.prepare(y.to(DEVICE), form)
    found = [run.argmin(x, layout, bias, form)[1] for run in (screen, triton_low)]
    found += [screen.topk(x, layout, bias, form, k)[1] for k in (1, 2, 5)]
    assert all(((index >= 0) & (index < n)).all() for index in found)
