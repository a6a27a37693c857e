"""OTS on problems with known answers, and every way in which a solve can end."""

import time
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import torch
from closed_forms import Uniform, grid, normal_to_points, relative, shifted_line
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits

from fastsdot import Chi2, Histogram, InvalidArgument, NotConverged, Reason, SemiDiscreteOT, SourceError
from fastsdot.networks import mlp
from fastsdot.ots import WARM, begin
from fastsdot.report import Survey
from fastsdot.sources import Gaussian, Pushforward

NORMAL = torch.distributions.Normal(torch.zeros(1), torch.ones(1))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_a_line_shifted_by_delta():
    targets, potential = shifted_line(20, 0.3)
    ot = SemiDiscreteOT(targets)
    solution = ot.solve(Uniform(1, low=0.3), tol=0.002)
    assert solution.converged
    error = relative(ot.potential) - relative(potential)
    assert error.abs().max() < 0.05 * relative(potential).abs().max()


def test_a_grid_keeps_equal_potentials():
    ot = SemiDiscreteOT(grid(6))
    assert ot.solve(Uniform(2), tol=0.01).converged
    assert relative(ot.potential).abs().max() < 0.5 / 36


@pytest.mark.parametrize(("cost", "p", "power"), [("sqeuclidean", None, 2), ("lp", 1.5, 1.5), ("l1", None, 1)])
def test_a_normal_onto_weighted_points_on_a_line(cost, p, power):
    y, weights = torch.linspace(-2, 3, 15), torch.linspace(1, 4, 15)
    ot = SemiDiscreteOT(y[:, None], cost=cost, p=p, weights=weights)
    truth = normal_to_points(y.double().numpy(), ot.weights.double().numpy(), power)
    solution = ot.solve(NORMAL, tol=0.01, max_samples=None if ot.cost.unique else 4_000)
    report = ot.evaluate(NORMAL, 100_000)
    assert 0.99 * truth - 4 * report.dual_error < report.dual < truth + 4 * report.dual_error
    if ot.cost.unique:  # in one dimension l1 ties whole half-lines, and no potential reaches the weights
        assert solution.converged
        assert abs(report.primal - truth) < 0.1 * truth


def test_a_discrete_source_against_the_linear_program():
    random = torch.Generator().manual_seed(1)
    points, targets = torch.randn(300, 3, generator=random), torch.randn(30, 3, generator=random)
    pairs = torch.cdist(points, targets.repeat_interleave(10, 0), p=1).double().numpy()
    truth = pairs[linear_sum_assignment(pairs)].mean()
    ot = SemiDiscreteOT(targets, cost="l1")
    ot.solve(lambda n: points[torch.randint(0, 300, (n,))], tol=0.01)
    dual = float(ot.c_transform(points).mean() + ot.potential.mean())
    assert 0.99 * truth < dual <= truth * (1 + 1e-5)


def test_zero_weights_and_duplicates():
    targets = torch.tensor([[0.0], [1.0], [1.0], [2.0]])
    ot = SemiDiscreteOT(targets, weights=torch.tensor([2.0, 1.0, 0.0, 1.0]))
    solution = ot.solve(Uniform(1), tol=0.01)
    assert solution.converged
    torch.testing.assert_close(solution.report.mass, torch.tensor([0.5, 0.25, 0.0, 0.25]), atol=0.08, rtol=0)
    assert torch.isfinite(ot.potential).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_answer_scales_with_the_data(scale):
    targets = scale * torch.randn(60, 8, generator=torch.Generator().manual_seed(2))
    ot = SemiDiscreteOT(targets, cost="sqeuclidean")
    solution = ot.solve(lambda n: scale * torch.randn(n, 8), tol=0.05)
    assert solution.converged
    assert solution.samples < 150 * 60 + 4000


def test_entropic_potential_gives_the_weights_back():
    targets, weights = torch.randn(25, 2), torch.linspace(1, 3, 25)
    ot = SemiDiscreteOT(targets, weights=weights, epsilon=0.5)
    solution = ot.solve(2, tol=0.01)
    assert solution.converged
    report = ot.evaluate(2, 50_000)
    torch.testing.assert_close(report.mass, ot.weights, atol=0.01, rtol=0.1)


def test_entropic_cost_agrees_with_sinkhorn():
    random = torch.Generator().manual_seed(3)
    points, targets, epsilon = torch.randn(200, 2, generator=random), torch.randn(20, 2, generator=random), 0.3
    cost = torch.cdist(points.double(), targets.double()) ** 2
    psi = torch.zeros(20, dtype=torch.float64)
    for _ in range(2000):
        phi = -epsilon * (torch.logsumexp((psi - cost) / epsilon, 1) - np.log(20))
        psi = -epsilon * (torch.logsumexp((phi[:, None] - cost) / epsilon, 0) - np.log(200))
    truth = float(phi.mean() + psi.mean())
    ot = SemiDiscreteOT(targets, epsilon=epsilon)
    ot.solve(lambda n: points[torch.randint(0, 200, (n,))], tol=0.002)
    dual = float(ot.c_transform(points).mean() + ot.potential.mean())
    assert 0.995 * truth < dual <= truth + 1e-5


def test_one_target_converges_at_once():
    solution = SemiDiscreteOT(torch.ones(1, 3)).solve(3)
    assert solution.converged
    assert solution.report.chi2 == pytest.approx(0, abs=1e-12)


def digits():
    return torch.from_numpy(load_digits().data).float() / 8 - 1


@pytest.mark.slow
def test_untrained_generator_to_digits_after_50_samples_a_target():
    y = digits()
    source = Pushforward(mlp(32, (64,), (256, 256)), Gaussian(32))
    ot = SemiDiscreteOT(y, cost="l1")
    ot.solve(source, max_samples=50 * len(y))
    assert ot.evaluate(source, 200_000).chi2 <= 0.1


def test_a_solve_continues_and_follows_a_source_that_moved():
    y = digits()[:300]
    ot = SemiDiscreteOT(y, cost="l1")
    assert ot.solve(64).converged
    again = ot.solve(64, tol=0.1)
    assert again.converged
    assert len(again.history) == 1
    moved = ot.solve(lambda n: 0.5 + torch.randn(n, 64))
    assert moved.converged


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
    solution = SemiDiscreteOT(digits()[:200], cost="l1").solve(64, tol=1e-3, max_samples=3000)
    assert not solution.converged
    assert solution.reason is Reason.MAX_SAMPLES
    assert solution.samples <= 3000
    with pytest.raises(NotConverged, match="max_samples were drawn before") as caught:
        SemiDiscreteOT(digits()[:200], cost="l1").solve(64, tol=1e-3, max_samples=3000, throw=True)
    assert caught.value.solution.samples <= 3000


@pytest.mark.parametrize("samples", [4, 5, 50])
@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_a_budget_below_a_batch_is_kept_and_reported(samples, epsilon):
    ot = SemiDiscreteOT(digits()[:200], cost="l1", epsilon=epsilon)
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


def test_a_few_samples_a_million_away_do_not_keep_the_rest_from_converging():
    def source(n):
        x = torch.randn(n, 5)
        return torch.where(torch.rand(n, 1) < 1e-3, 1e6 * x, x)

    assert SemiDiscreteOT(torch.randn(100, 5)).solve(source).converged


def test_targets_that_tie_for_every_sample_end_the_cooling():
    ot = SemiDiscreteOT(torch.cat([torch.randn(17).repeat(187, 1), torch.randn(187, 1)], 1), cost="dot")
    x = torch.cat([torch.ones(17), torch.zeros(1)])
    assert ot.solve(lambda n: x * torch.randn(n, 18), max_samples=31_000).reason is Reason.MAX_SAMPLES
    assert bool(ot.potential.isfinite().all())


def test_exit_max_seconds():
    ot = SemiDiscreteOT(digits())
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
    solution = SemiDiscreteOT(digits()[:200], cost="l1").solve(64, tol=1e-6, callback=lambda row: True)
    assert not solution.converged
    assert solution.reason is Reason.CALLBACK


def test_exit_by_the_papers_histogram_rule():
    ot = SemiDiscreteOT(digits()[:100], cost="l1")
    solution = ot.solve(64, tol=Histogram())
    assert solution.converged
    hits = solution.report.mass * 100 * 256
    assert hits.min() >= 200
    assert hits.max() <= 320


def test_histogram_bins_hold_several_targets_of_unequal_weight():
    ot = SemiDiscreteOT(digits()[:100], cost="l1", weights=torch.linspace(1, 2, 100))
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


def test_an_int_source_draws_from_the_generator_given():
    def solve():
        ot = SemiDiscreteOT(torch.linspace(-1, 1, 30).reshape(10, 3))
        ot.solve(3, generator=torch.Generator().manual_seed(7))
        return ot.potential

    assert torch.equal(solve(), solve())


def test_a_potential_set_by_hand_is_the_start():
    ot = SemiDiscreteOT(grid(6))
    ot.solve(lambda n: torch.rand(n, 2) ** 2, tol=0.01)
    other = SemiDiscreteOT(grid(6))
    other.load_state_dict(ot.state_dict())
    solution = other.solve(lambda n: torch.rand(n, 2) ** 2, tol=0.05)
    assert solution.converged
    assert len(solution.history) == 1


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
    SemiDiscreteOT(digits()[:200]).solve(64, tol=rule, batch_size=16, max_samples=10_000)
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


def test_a_potential_that_learns_can_be_solved_for():
    ot = SemiDiscreteOT(grid(4))
    ot.potential.requires_grad_()
    assert ot.solve(Uniform(2)).converged
    assert ot.potential.requires_grad


def test_a_chi2_under_the_tolerance_by_less_than_two_errors_is_undecided():
    found = Survey(torch.full((100,), 0.01), torch.zeros(100), soft=False)
    hits = torch.arange(100).repeat_interleave(torch.tensor([26, 14]).repeat(50))
    found.add(torch.zeros(2000), hits)
    chi2 = found.marginal.chi2()
    assert chi2.value < 0.05 < chi2.value + 2 * chi2.error
    assert chi2.error <= 0.05 / 4
    assert Chi2(0.05).verdict(found) is None


def test_the_start_follows_the_mean_cost_and_only_when_it_moved():
    y = digits()[:300]
    ot = SemiDiscreteOT(y, cost="l1")
    ot.solve(64)
    before = ot.ascent
    start, cold = begin(ot, torch.randn(1024, 64))
    assert start is before
    assert not cold
    start, cold = begin(ot, 0.5 + torch.randn(1024, 64))
    assert not cold
    x = torch.randn(4096, 64)
    drift = torch.cdist(x + 0.5, y, p=1).mean(0) - torch.cdist(x, y, p=1).mean(0)
    change = relative(start.potential - before.potential)
    assert (change - relative(drift)).norm() < 0.3 * relative(drift).norm()
    assert start.candidates is None


@pytest.mark.parametrize("samples", [4, 5, 40, 300])
def test_a_budget_too_small_to_judge_the_potential_does_not_lose_it(samples):
    ot = SemiDiscreteOT(torch.randn(1000, 8))
    assert ot.solve(8, tol=0.1).converged
    for _ in range(5):
        ot.solve(8, max_samples=samples)
    assert ot.evaluate(8, 50_000).chi2 < 0.2


def test_a_potential_that_a_few_samples_show_to_be_bad_is_learnt_anew():
    ot = SemiDiscreteOT(torch.randn(1000, 8))
    ot.potential.copy_(5 * torch.randn(1000))
    ot.solve(8, max_samples=1000)
    assert ot.evaluate(8, 50_000).chi2 < 2


@pytest.mark.parametrize("source", [2, lambda n: torch.randn(n, 2)], ids=["quasi-random", "independent"])
def test_a_potential_set_by_hand_is_learnt_further(source):
    ot = SemiDiscreteOT(torch.randn(500, 2))
    ot.solve(2, tol=0.02)
    ot.potential += 0.002 * torch.randn(500)
    assert 0.03 < ot.evaluate(2, 100_000).chi2 < WARM / 2
    judged = []
    assert ot.solve(source, tol=0.02, callback=lambda row: judged.append(row) or len(judged) > 50).converged
    assert len(judged) > 1


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


def test_a_distribution_that_does_not_know_its_mean_is_a_source():
    normal = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
    moved = torch.distributions.TransformedDistribution(normal, [torch.distributions.AffineTransform(1.0, 2.0)])
    assert SemiDiscreteOT(torch.randn(30, 2)).solve(moved, tol=0.2).converged


@pytest.mark.parametrize(
    ("values", "name"), [({"bins": 0}, "bins"), ({"hits": 0, "low": 0}, "hits"), ({"low": 300}, "hits")]
)
def test_a_histogram_that_nothing_fits_is_refused(values, name):
    with pytest.raises(InvalidArgument, match=f"{name}: expected"):
        Histogram(**values)
