"""The estimates of a report are unbiased and their standard errors are right, on laws that are known."""

import math

import pytest
import torch
from closed_forms import Uniform, grid, normal_to_points
from scipy import stats

from fastsdot import InvalidArgument, SemiDiscreteOT
from fastsdot.report import HitMarginal, SoftMarginal, Survey, mean_of, student


def hits(mass, weights, samples, seed):
    marginal = HitMarginal(weights)
    random = torch.Generator().manual_seed(seed)
    marginal.add(torch.multinomial(mass, samples, replacement=True, generator=random))
    return marginal.chi2()


@pytest.mark.parametrize("tilt", [0.0, 0.5])
def test_chi2_of_hits_is_unbiased_with_the_right_error(tilt):
    n, samples = 50, 400
    weights = torch.full((n,), 1 / n)
    mass = weights * (1 + tilt * torch.linspace(-1, 1, n))
    truth = float((mass.double() ** 2 / weights.double()).sum() - 1)
    found = [hits(mass, weights, samples, seed) for seed in range(400)]
    values = torch.tensor([e.value for e in found], dtype=torch.float64)
    assert abs(values.mean() - truth) < 4 * values.std() / 20
    typical = torch.tensor([e.error for e in found]).median()
    assert 0.8 < typical / values.std() < 1.35


def test_chi2_of_soft_masses_is_unbiased_with_the_right_error():
    n, batches = 30, 12
    weights = torch.full((n,), 1 / n)
    truth_mass = weights * (1 + 0.3 * torch.linspace(-1, 1, n))
    truth = float((truth_mass.double() ** 2 / weights.double()).sum() - 1)
    random = torch.Generator().manual_seed(0)
    values, errors = [], []
    for _ in range(400):
        marginal = SoftMarginal(weights)
        for _ in range(batches):
            noise = torch.randn(n, generator=random) * 0.3 / n
            marginal.add((truth_mass + noise).double(), 10)
        estimate = marginal.chi2()
        values.append(estimate.value)
        errors.append(estimate.error)
    values = torch.tensor(values)
    assert abs(values.mean() - truth) < 4 * values.std() / 20
    assert 0.6 < torch.tensor(errors).median() / values.std() < 1.6


def test_too_few_samples_claim_nothing():
    marginal = HitMarginal(torch.full((4,), 0.25))
    marginal.add(torch.tensor([0, 1]))
    assert marginal.chi2().error == math.inf
    assert mean_of([1.0], [10]).error == math.inf


def test_groups_that_happen_to_cancel_claim_no_more_than_chi2_may_be():
    marginal = SoftMarginal(torch.tensor([0.5, 0.5]))
    for sign in (1, -1, 1, -1):  # any three of them say the same
        marginal.add(0.5 + sign * torch.tensor([0.2, -0.2], dtype=torch.float64), 2)
    estimate = marginal.chi2()
    assert estimate.value == pytest.approx(-(0.4**2) / 3)
    assert estimate.error == -estimate.value


def test_zero_weights_do_not_enter_chi2():
    weights = torch.tensor([0.5, 0.0, 0.5])
    estimate = hits(torch.tensor([0.5, 0.0, 0.5]), weights, 5000, 0)
    assert abs(estimate.value) < 4 * estimate.error < 0.01


def test_report_of_an_optimal_potential():
    ot = SemiDiscreteOT(grid(8))
    torch.manual_seed(0)
    report = ot.evaluate(Uniform(2), 40_000)
    side = 1 / 8
    assert report.samples >= 40_000
    assert abs(report.chi2) < 4 * report.chi2_error
    assert report.empty == 0
    assert abs(report.gap) < 1e-9
    assert abs(report.primal - side**2 / 6) < 4 * report.primal_error
    assert report.primal == pytest.approx(report.dual, abs=1e-9)
    assert 1 < report.max_ratio < 1 + 6 * report.max_ratio_error
    assert report.mass.sum() == pytest.approx(1)
    assert "chi2" in str(report)
    assert "mass" not in report.to_dict()


def test_the_dual_bounds_the_cost_from_below_for_any_potential():
    y = torch.linspace(-1, 2, 7)
    torch.manual_seed(0)
    for cost, power in (("l1", 1), ("sqeuclidean", 2)):
        ot = SemiDiscreteOT(y[:, None], cost=cost)
        truth = normal_to_points(y.double().numpy(), ot.weights.double().numpy(), power)
        for scale in (0.0, 0.3, 2.0):
            ot.potential.copy_(scale * torch.randn(7))
            report = ot.evaluate(torch.distributions.Normal(torch.zeros(1), torch.ones(1)), 20_000)
            assert report.dual < truth + 4 * report.dual_error


def test_half_of_the_targets_never_chosen_is_seen():
    ot = SemiDiscreteOT(torch.tensor([[0.0], [1.0], [10.0], [11.0]]))
    report = ot.evaluate(Uniform(1), 1000)
    assert report.empty == 2
    assert report.chi2 == pytest.approx(1.0, abs=0.1)


def test_evaluate_needs_samples():
    with pytest.raises(InvalidArgument, match="samples: expected an integer above 1"):
        SemiDiscreteOT(grid(2)).evaluate(Uniform(2), 1)


def test_a_last_batch_of_few_samples_weighs_little():
    values, sizes = [1.0, 1.0, 1.0, 9.0], [300, 300, 300, 6]
    assert mean_of(values, sizes).value == pytest.approx((900 + 54) / 906)


def test_fewer_samples_than_a_batch_are_all_drawn():
    ot = SemiDiscreteOT(grid(4), epsilon=0.1)
    assert 96 <= ot.evaluate(2, 100, batch_size=4096).samples <= 100


@pytest.mark.parametrize("freedom", [1, 2, 3, 15, 200, 1000, 1001, 10**6])
def test_students_quantile(freedom):
    for p in (0.5, 0.9, 0.975, 0.995):
        assert student(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=2e-3, abs=1e-9)


@pytest.mark.parametrize("name", ["primal", "dual"])
def test_an_interval_holds_the_cost_as_often_as_it_says(name):
    ot = SemiDiscreteOT(grid(3))  # ψ = 0 is optimal, so that primal and dual are W
    torch.manual_seed(0)
    intervals = [ot.evaluate(Uniform(2), 400).interval(name, 0.8) for _ in range(200)]
    held = sum(low <= 1 / 54 <= high for low, high in intervals)
    assert abs(held - 160) < 4 * math.sqrt(200 * 0.8 * 0.2)


def test_an_interval_of_one_batch_claims_nothing():
    survey = Survey(torch.ones(2) / 2, torch.zeros(2), soft=False)
    survey.add(torch.zeros(8), torch.zeros(8, dtype=torch.int64))
    assert survey.report().interval("dual") == (-math.inf, math.inf)


def starving(samples, share):
    """Of 100 targets the first ten get `share` of their weight, the others what is over."""
    mass = torch.ones(100)
    mass[:10] = share
    mass[10:] += 10 * (1 - share) / 90
    survey = Survey(torch.full((100,), 0.01), torch.zeros(100), soft=False)
    index = torch.multinomial(mass / 100, samples, replacement=True)
    survey.add(torch.zeros(samples), index)
    return survey.report()


def test_starved_targets_are_all_counted_and_others_are_ruled_out():
    torch.manual_seed(0)
    report = starving(20_000, 0.0)
    assert report.empty == report.starved() == report.starved(0.5) == 10
    for share in (0.05, 0.2):
        reports = [starving(20_000, share) for _ in range(50)]
        assert all(report.starved(share) >= 10 for report in reports)
        assert all(report.starved(0.5) == 10 for report in reports)
        assert sum(report.starved(share / 8) for report in reports) < 250
    assert starving(200, 0.2).starved(0.2) > 50  # few samples rule little out


def test_unseen_targets_have_little_mass():
    torch.manual_seed(0)
    worst = torch.full((100,), 0.01)
    held = 0
    for _ in range(200):
        report = starving(600, 1.0)
        held += bool((worst[report.mass == 0] <= report.unseen(0.9)).all())
    assert held >= 180 - 4 * math.sqrt(18)
    assert report.unseen(0.9) == pytest.approx(math.log(1000) / 600)


def test_what_cannot_be_asked_of_a_report():
    report = starving(100, 1.0)
    with pytest.raises(InvalidArgument, match="name: expected one of chi2, primal, dual, gap, received 'empty'"):
        report.interval("empty")
    with pytest.raises(InvalidArgument, match="confidence: expected a number between 0 and 1"):
        report.interval("dual", 95)
    with pytest.raises(InvalidArgument, match="share: expected a number from 0 to 1"):
        report.starved(1.0)
