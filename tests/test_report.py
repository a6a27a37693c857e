"""The estimates of a report are unbiased and their standard errors are right, on laws that are known."""

import math

import pytest
import torch
from problems import Uniform, grid, normal_to_points

from fastsdot import InvalidArgument, SemiDiscreteOT
from fastsdot.report import HitMarginal, SoftMarginal, mean_of


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
