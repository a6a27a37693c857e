"""Every way in which a solve can end, and what it leaves."""

import time
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import torch
from closed_forms import Uniform, grid

from fastsdot import Chi2, Histogram, InvalidArgument, NotConverged, Reason, SemiDiscreteOT, SourceError
from fastsdot.data import load, pixels
from fastsdot.report import Survey

DIGITS = pixels(load("digits").images).flatten(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_exit_converged_reports_fresh_samples():
    seen = []
    ot = SemiDiscreteOT(grid(5))
    solution = ot.solve(lambda n: torch.rand(n, 2) ** 2, callback=lambda row: seen.append(row))
    assert solution.converged
    assert solution.reason is Reason.CONVERGED
    assert seen == solution.history
    assert solution.report.chi2 + 2 * solution.report.chi2_error <= 0.05
    assert float((ot.weights * ot.potential).sum()) == pytest.approx(0, abs=1e-6)


def test_exit_max_samples():
    solution = SemiDiscreteOT(DIGITS[:200], cost="l1").solve(64, tol=1e-3, max_samples=3000)
    assert not solution.converged
    assert solution.reason is Reason.MAX_SAMPLES
    assert solution.samples <= 3000
    with pytest.raises(NotConverged, match="max_samples were drawn before") as caught:
        SemiDiscreteOT(DIGITS[:200], cost="l1").solve(64, tol=1e-3, max_samples=3000, throw=True)
    assert caught.value.solution.samples <= 3000


@pytest.mark.parametrize("samples", [4, 5, 50])
@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_a_budget_below_a_batch_is_kept_and_reported(samples, epsilon):
    ot = SemiDiscreteOT(DIGITS[:200], cost="l1", epsilon=epsilon)
    solution = ot.solve(64, max_samples=samples)
    assert not solution.converged
    assert 1 <= solution.samples <= samples
    assert torch.isfinite(ot.potential).all()


@pytest.mark.parametrize("x", [torch.zeros(1, 5), torch.tensor([[1e6]]).expand(1, 5)])
def test_a_source_of_one_point_ends_with_all_mass_on_one_target(x):
    ot = SemiDiscreteOT(torch.randn(30, 5))
    solution = ot.solve(lambda n: x.repeat(n, 1), max_samples=600)
    assert solution.reason is Reason.MAX_SAMPLES
    assert solution.report.chi2 == pytest.approx(29)
    assert torch.isfinite(ot.potential).all()


def test_targets_that_tie_for_every_sample_end_the_cooling():
    ot = SemiDiscreteOT(torch.cat([torch.randn(17).repeat(187, 1), torch.randn(187, 1)], 1), cost="dot")
    x = torch.cat([torch.ones(17), torch.zeros(1)])
    assert ot.solve(lambda n: x * torch.randn(n, 18), max_samples=31_000).reason is Reason.MAX_SAMPLES
    assert bool(ot.potential.isfinite().all())


def test_exit_max_seconds():
    ot = SemiDiscreteOT(DIGITS)
    solution = ot.solve(lambda n: torch.randn(n, 64), tol=1e-6, max_samples=10**8, max_seconds=0.5)
    assert solution.reason is Reason.MAX_SECONDS
    assert not solution.converged
    assert 0.5 < solution.seconds < 20
    assert solution.report.samples >= 3
    assert bool(ot.potential.any())


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_no_time_at_all_still_ends_in_a_report(epsilon):
    ot = SemiDiscreteOT(grid(5), epsilon=epsilon)
    for _ in range(2):  # cold, then warm
        solution = ot.solve(Uniform(2), tol=1e-9, max_seconds=1e-9)
        assert solution.reason is Reason.MAX_SECONDS
        assert len(solution.history) == 1
    with pytest.raises(InvalidArgument, match="max_seconds"):
        ot.solve(Uniform(2), max_seconds=0)


def test_a_callback_stops_by_true_and_by_nothing_that_counts_as_true():
    for answer, reason in ((1, Reason.MAX_SAMPLES), ("yes", Reason.MAX_SAMPLES), (np.True_, Reason.CALLBACK)):
        solution = SemiDiscreteOT(grid(3)).solve(
            Uniform(2), tol=1e-9, max_samples=4000, callback=lambda row, answer=answer: answer
        )
        assert solution.reason is reason


def test_exit_callback():
    solution = SemiDiscreteOT(DIGITS[:200], cost="l1").solve(64, tol=1e-6, callback=lambda row: True)
    assert not solution.converged
    assert solution.reason is Reason.CALLBACK


def test_exit_by_the_papers_histogram_rule():
    ot = SemiDiscreteOT(DIGITS[:100], cost="l1")
    solution = ot.solve(64, tol=Histogram())
    assert solution.converged
    hits = solution.report.mass * 100 * 256
    assert hits.min() >= 200
    assert hits.max() <= 320


def test_histogram_bins_hold_several_targets_of_unequal_weight():
    ot = SemiDiscreteOT(DIGITS[:100], cost="l1", weights=torch.linspace(1, 2, 100))
    assert ot.solve(64, tol=Histogram(bins=10)).converged


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: x[:, :1], r"source: expected shape \(\d+, 2\), received shape \(\d+, 1\)"),
        (lambda x: x.fill_(float("nan")), "source: expected finite values"),
        (lambda x: x.numpy(), "source: expected a torch.Tensor, received ndarray"),
        (lambda x: x.long(), "source: expected a floating point dtype"),
        (lambda x: x.to("meta"), "source: expected device cpu, received device meta"),
    ],
)
def test_a_source_that_turns_bad_leaves_what_was_solved(bad, message):
    calls = []

    def source(n):
        calls.append(n)
        x = torch.rand(n, 2) ** 2
        return bad(x) if len(calls) > 200 else x

    ot = SemiDiscreteOT(grid(8))
    with pytest.raises(SourceError, match=message):
        ot.solve(source, tol=1e-9)
    reached = ot.potential.clone()
    assert torch.isfinite(reached).all()
    assert reached.abs().max() > 0
    assert (
        ot.evaluate(lambda n: torch.rand(n, 2) ** 2, 20_000).chi2
        < SemiDiscreteOT(grid(8)).evaluate(lambda n: torch.rand(n, 2) ** 2, 20_000).chi2
    )
    assert ot.solve(lambda n: torch.rand(n, 2) ** 2).converged


def test_a_source_that_raises_or_an_interrupt_leaves_what_was_solved():
    for error in (RuntimeError, KeyboardInterrupt):
        left = iter(range(200))

        def source(n, left=left, error=error):
            if next(left, None) is None:
                raise error
            return torch.rand(n, 2) ** 2

        ot = SemiDiscreteOT(grid(8))
        with pytest.raises(error):
            ot.solve(source, tol=1e-9)
        assert ot.potential.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tol": 0}, "tol: expected a finite number above 0"),
        ({"tol": "0.05"}, "tol: expected a number above 0 or a stopping rule, received '0.05'"),
        ({"max_samples": 1e4}, "max_samples: expected an integer above 3"),
        ({"tol": float("nan")}, "tol: expected a finite number above 0"),
        ({"max_samples": 0}, "max_samples: expected an integer above 3"),
        ({"batch_size": -1}, "batch_size: expected an integer above 0"),
        ({"source": "noise"}, "source: expected a callable"),
        ({"source": 0}, "source: expected a callable"),
    ],
)
def test_unusable_arguments_are_named(options, message):
    with pytest.raises(InvalidArgument, match=message):
        SemiDiscreteOT(grid(2)).solve(**({"source": 2} | options))


def test_a_chi2_verdict_waits_until_a_small_weight_would_have_shown():
    weights = torch.tensor([1 - 1e-6, 1e-6])
    for samples, verdict in ((10_000, None), (20_000, True)):  # 3 / √(0.05 · 1e-6) = 13 416
        found = Survey(weights, torch.zeros(2), soft=False)
        found.add(torch.zeros(samples), torch.zeros(samples, dtype=torch.int64))
        assert Chi2(0.05).verdict(found) is verdict


def test_a_rule_is_asked_at_doubling_sizes():
    class Undecided:
        asked: ClassVar[list[int]] = []

        def samples(self, n):
            return 100

        def verdict(self, survey):
            self.asked.append(survey.marginal.samples)

        def ahead(self, report):
            return 0.5  # near: no other potential is tried

    rule = Undecided()
    SemiDiscreteOT(DIGITS[:200]).solve(64, tol=rule, batch_size=16, max_samples=10_000)
    *before, last, end = rule.asked  # the end of the samples asks once more
    assert before[0] >= 100
    assert all(later >= 2 * earlier for earlier, later in pairwise([*before, last]))
    assert end > last > 3000


def test_a_chi2_verdict_waits_for_evidence():
    weights = torch.full((100,), 0.01)
    found = Survey(weights, torch.zeros(100), soft=False)
    found.add(torch.zeros(100), torch.arange(100))
    assert Chi2(0.05).verdict(found) is None
    found.add(torch.zeros(10_000), torch.arange(100).repeat(100))
    assert Chi2(0.05).verdict(found) is True
    found.add(torch.zeros(10_000), torch.zeros(10_000, dtype=torch.int64))
    assert Chi2(0.05).verdict(found) is False


def test_a_chi2_under_the_tolerance_by_less_than_two_errors_is_undecided():
    found = Survey(torch.full((100,), 0.01), torch.zeros(100), soft=False)
    hits = torch.arange(100).repeat_interleave(torch.tensor([26, 14]).repeat(50))
    found.add(torch.zeros(2000), hits)
    chi2 = found.marginal.chi2()
    assert chi2.value < 0.05 < chi2.value + 2 * chi2.error
    assert chi2.error <= 0.05 / 4
    assert Chi2(0.05).verdict(found) is None


def test_cooling_tells_of_each_batch_and_ends_in_time():
    told = []
    ot = SemiDiscreteOT(torch.randn(400, 12))
    ot.solve(12, max_samples=8000, batch_size=64, progress=told.append)
    steps = [event.done for event in told]
    assert steps == sorted(steps)
    assert max(after - before for before, after in pairwise(steps)) <= 64
    drawn = []

    def slow(n):
        drawn.append(n)
        time.sleep(0.02)
        return torch.randn(n, 12)

    ot = SemiDiscreteOT(torch.randn(400, 12))
    solution = ot.solve(slow, max_seconds=1e-9, batch_size=64)
    assert solution.reason is Reason.MAX_SECONDS
    assert len(drawn) <= 3


@pytest.mark.parametrize(
    ("values", "name"), [({"bins": 0}, "bins"), ({"hits": 0, "low": 0}, "hits"), ({"low": 300}, "hits")]
)
def test_a_histogram_that_nothing_fits_is_refused(values, name):
    with pytest.raises(InvalidArgument, match=f"{name}: expected"):
        Histogram(**values)
