"""OTS on problems with known answers, and from where it starts."""

import numpy as np
import pytest
import torch
from closed_forms import Uniform, grid, normal_to_points, relative, shifted_line
from scipy.optimize import linear_sum_assignment

from fastsdot import SemiDiscreteOT
from fastsdot.data import load, pixels
from fastsdot.networks import mlp
from fastsdot.ots import WARM, begin
from fastsdot.sources import Gaussian, Pushforward

DIGITS = pixels(load("digits").images).flatten(1)
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


@pytest.mark.slow
def test_untrained_generator_to_digits_after_50_samples_a_target():
    y = DIGITS
    source = Pushforward(mlp(32, (64,), (256, 256)), Gaussian(32))
    ot = SemiDiscreteOT(y, cost="l1")
    ot.solve(source, max_samples=50 * len(y))
    assert ot.evaluate(source, 200_000).chi2 <= 0.1


def test_a_solve_continues_and_follows_a_source_that_moved():
    y = DIGITS[:300]
    ot = SemiDiscreteOT(y, cost="l1")
    assert ot.solve(64).converged
    again = ot.solve(64, tol=0.1)
    assert again.converged
    assert len(again.history) == 1
    moved = ot.solve(lambda n: 0.5 + torch.randn(n, 64))
    assert moved.converged


def test_a_few_samples_a_million_away_do_not_keep_the_rest_from_converging():
    def source(n):
        x = torch.randn(n, 5)
        return torch.where(torch.rand(n, 1) < 1e-3, 1e6 * x, x)

    assert SemiDiscreteOT(torch.randn(100, 5)).solve(source).converged


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


def test_a_potential_that_learns_can_be_solved_for():
    ot = SemiDiscreteOT(grid(4))
    ot.potential.requires_grad_()
    assert ot.solve(Uniform(2)).converged
    assert ot.potential.requires_grad


def test_the_start_follows_the_mean_cost_and_only_when_it_moved():
    y = DIGITS[:300]
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


def test_a_distribution_that_does_not_know_its_mean_is_a_source():
    normal = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
    moved = torch.distributions.TransformedDistribution(normal, [torch.distributions.AffineTransform(1.0, 2.0)])
    assert SemiDiscreteOT(torch.randn(30, 2)).solve(moved, tol=0.2).converged
