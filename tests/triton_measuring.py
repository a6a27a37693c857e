"""The certified screen of l1 in bytes against the definition; test_triton_interpreted.py runs this file."""

import pytest
import torch
from compare import reference, regret
from kernel_cases import FORMS, problem
from triton_screens import DEVICE, L1, TILES, assert_certified, assert_smallest, certify

from fastsdot.kernels import triton_launch, triton_low, triton_screen as screen, triton_screen_l1 as l1
from fastsdot.kernels.form import Form
from fastsdot.kernels.triton_launch import Launch


@pytest.mark.parametrize(("b", "n", "d"), [(1, 1, 1), (3, 50, 5), (17, 300, 33)])
def test_the_index_is_the_float64_argmin(b, n, d):
    assert_certified(*problem(b, n, d), L1)


@pytest.mark.parametrize("b", [2, 20, 33])
def test_launches_that_users_get(b):
    assert_certified(*problem(b, 140, 3), L1, launch=None)


def pairs(x, y, bias, margin=True):
    """The lower bound of every pair, its float64 score, and the most that bounds take off, [B, N].

    Each target is repeated four times, the fewest that share a bound.
    """
    layout = screen.prepare(y.repeat_interleave(4, 0).to(DEVICE), L1)
    x_ = x.to(DEVICE)
    lowered = l1.lower(x_, layout, bias.repeat_interleave(4).to(DEVICE), L1, margin)
    bounds = l1.bounds_of(x_, layout, lowered, L1, TILES["power"], margin, 4)
    _, row_sums = l1.encode(x_, *layout[3:], 16, 16 * -(-len(x) // 16), 4)
    taken = row_sums[1:, : len(x)].sum(0)[:, None] + layout[2][2, : 4 * len(y) : 4]
    return bounds.lower[:, : len(y)].cpu().double(), reference(x, y, bias, L1), 2 * taken.cpu(), bounds.row


def images(b, n, d):
    """Bytes as float32 in [0, 1], some coordinates the same in all targets; a third of the samples are targets too."""
    x, y, bias = problem(b, n, d)
    y = (y.abs() * 100).round().clamp(max=255) / 255
    y[:, ::5] = 0
    x[: b // 3] = y[: b // 3]
    return x, y, bias


def cases(b=17, n=60, d=37):
    x, y, bias = problem(b, n, d)
    far, from_far = y.clone(), x.clone()
    far[::30] *= 1e3
    from_far[::4] *= 1e3
    tail = y.exp() ** 4
    return {
        "plain": (x, y, bias),
        "images": images(b, n, d),
        "offset": (x + 1e3, y + 1e3, bias),
        "far samples": (x + 30, y, bias),
        "tiny": (1e-4 * x, 1e-4 * y, 1e-4 * bias),
        "minute": (1e-35 * x, 1e-35 * y, 0 * bias),
        "huge": (1e30 * x, 1e30 * y, 1e30 * bias),
        "outliers": (from_far, far, bias),
        "heavy tails": (x.exp() ** 4 * x.sign(), tail, bias),
        "large bias": (x, y, 1e6 * bias),
        "levelled": (x, y, -reference(x, y, 0 * bias, L1).mean(0).float()),
        "one value": (x, torch.full_like(y, 0.3), bias),
    }


@pytest.mark.parametrize("case", cases())
def test_bounds_hold_for_every_pair_and_are_not_idle(case):
    x, y, bias = cases()[case]
    lower, exact, taken, row = pairs(x, y, bias)
    assert (row[1] == 0).all()
    assert (lower <= exact).all()
    rounding = 2.0**-19 * (exact.abs() + bias.abs().max() + reference(x, y, 0 * bias, L1).amax()) + 2.0**-90
    assert (lower >= exact - taken - rounding).all()


def test_bytes_are_coded_without_loss():
    _, y, _ = images(1, 200, 37)
    _, _, sums, _, unit = screen.prepare(y.to(DEVICE), L1)
    assert unit.item() == pytest.approx(1 / 255, rel=1e-6)
    assert sums[:2, :200].max() < 1e-6  # nothing lies outside of the range that codes have
    assert sums[2, :200].max() < 37 * 2.0**-23


def test_samples_outside_of_the_targets_range_lose_nothing_to_it():
    x, y, bias = images(9, 60, 37)
    lower, exact, *_ = pairs(x + 3e3 * x.sign(), y, bias)  # beyond an end in every coordinate but zeros
    assert (exact - lower).max() < 1.0  # of about 1e5
    near, nearer, *_ = pairs((x > 0).float(), y, bias)  # at the ends
    assert (nearer - near).max() < 1e-3


def test_estimates_take_nothing_off_for_codes():
    """They differ from the scores by what a row adds to all of them, and by the residuals of codes, either way."""
    estimate, exact, taken, row = pairs(*cases()["plain"], margin=False)
    off = exact - estimate
    assert (off - off.mean(1, keepdim=True)).abs().max() < taken.max() / 4
    assert (row == 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e4, 1e30])
def test_any_scale(scale):
    x, y, bias = problem(6, 100, 7)
    assert_certified(scale * x, scale * y, scale * bias, L1)


def test_rows_without_bounds_are_undecided_alone():
    x, y, bias = problem(6, 100, 7)
    x[2] *= 1e37
    _, index, _, undecided, expected = certify(x, y, bias, L1)
    assert undecided.tolist() == [False, False, True, False, False, False]
    decided = torch.arange(6) != 2
    assert torch.equal(index[decided], expected[decided])
    assert (regret(reference(x, y, bias, L1), index)[2] <= 1e32).all()  # of scores of 1e37


def test_tiles_groups_and_slices_change_no_bit(monkeypatch):
    x, y, bias = problem(18, 300, 6)
    first = certify(x, y, bias, L1)
    for programs, launch, bounds in [(1, (16, 512), 2**27), (3, (32, 256), 100), (1000, (64, 128), 0)]:
        monkeypatch.setattr(triton_launch, "PROGRAMS", programs)
        monkeypatch.setattr(screen, "BOUNDS", bounds)
        again = certify(x[: 4 if bounds == 0 else 18], y, bias, L1, launch=Launch(*launch, 4, 4, 2))
        assert all(torch.equal(a[: len(b)], b) for a, b in zip(first, again, strict=True))


def test_without_the_certificate_the_score_is_near_the_best_and_exact_for_its_target():
    x, y, bias = problem(9, 300, 33)
    layout = triton_low.prepare(y.to(DEVICE), L1)
    value, index = (r.cpu() for r in triton_low.argmin(x.to(DEVICE), layout, bias.to(DEVICE), L1, TILES["power"]))
    score = reference(x, y, bias, L1)
    torch.testing.assert_close(value.double(), score.gather(1, index[:, None]).squeeze(1), rtol=1e-6, atol=1e-6)
    assert (regret(score, index) <= 33 * float(layout[4])).all()


@pytest.mark.parametrize("most", [None, 0])
def test_the_k_smallest_are_those_of_float64(most, monkeypatch):
    """Certified, and by the plain kernels where no part may be opened."""
    if most is not None:
        monkeypatch.setattr(screen, "most_tiles", lambda *sizes: -4 * 7)
    x, y, bias = images(5, 300, 9)
    layout = screen.prepare(y.to(DEVICE), L1)
    value, index, opened = screen.certify_topk(x.to(DEVICE), layout, bias.to(DEVICE), L1, 7, TILES["power"])
    assert_smallest(x, y, bias, 7, value.cpu(), index.cpu(), L1)
    assert (opened.cpu() == 1).all() if most == 0 else (opened.cpu() <= 2 * 7 + 4).all()


def test_refusals_say_why():
    assert screen.refusal(L1, "argmin", DEVICE, 10, 5) is None
    assert "p = 1.5" in screen.refusal(FORMS["lp1.5"], "argmin", DEVICE, 10, 5)
    assert "p = 2" in screen.refusal(FORMS["l2"], "topk", DEVICE, 10, 5)
    assert "sums are of inner products" in screen.refusal(L1, "softmin", DEVICE, 10, 5)
    assert "2000000" in screen.refusal(L1, "argmin", DEVICE, 10, 2_000_000)
    assert "the form is a callable" in screen.refusal(Form("callable", function=min), "argmin", DEVICE, 10, 5)
