"""A solve that stops on the width of a bracket returns one that is as narrow as asked, and that holds W."""

import pytest
import torch
from closed_forms import Uniform, grid

from fastsdot import InvalidArgument, Reason, SemiDiscreteOT, Width
from fastsdot.report import Survey

W = 1 / 6 / 64  # of the 8 × 8 grid


def far(seed):
    """The grid, with a potential that is far from optimal."""
    torch.manual_seed(seed)
    ot = SemiDiscreteOT(grid(8))
    ot.potential.copy_(0.02 * torch.randn(64))
    return ot


def test_a_solve_converges_with_a_bracket_as_narrow_as_asked():
    ot = far(0)
    rule = Width(0.15, ot, Uniform(2), confidence=0.99)
    assert rule.bracket is None
    solution = ot.solve(Uniform(2), tol=rule)
    assert solution.converged
    assert solution.reason is Reason.CONVERGED
    assert rule.bracket.relative_width <= 0.15
    assert W in rule.bracket
    assert all(bracket.relative_width > 0.15 for bracket in rule.brackets[:-1])
    assert rule.drawn == sum(bracket.samples for bracket in rule.brackets) >= 10_000


def test_the_end_of_the_samples_is_not_convergence():
    ot = far(1)
    rule = Width(1e-3, ot, Uniform(2), confidence=0.99, max_samples=12_000)
    solution = ot.solve(Uniform(2), tol=rule, max_samples=4000)
    assert not solution.converged
    assert solution.reason is Reason.MAX_SAMPLES
    assert solution.samples <= 4000
    assert [bracket.samples for bracket in rule.brackets] == [10_000] + [12_000] * (len(rule.brackets) - 1)
    assert all(W in bracket for bracket in rule.brackets)


def test_every_bracket_has_a_share_of_the_failures_that_are_allowed():
    ot = far(2)
    rule = Width(1e-3, ot, Uniform(2), confidence=0.9, max_samples=300)
    for _ in range(3):
        ot.solve(Uniform(2), tol=rule, max_samples=2500)
    failures = [1 - bracket.confidence for bracket in rule.brackets]
    assert failures == pytest.approx([0.1 / (k * (k + 1)) for k in range(1, len(failures) + 1)])
    assert len(failures) >= 3
    assert sum(failures) < 0.1


def test_the_bracket_that_ends_a_solve_holds_the_cost_as_often_as_promised():
    missed = 0
    for seed in range(20):
        ot = far(seed)
        rule = Width(0.6, ot, Uniform(2), confidence=0.8, max_samples=400)
        ot.solve(Uniform(2), tol=rule, max_samples=4000)
        missed += any(W not in bracket for bracket in rule.brackets)
    assert missed <= 4 + 2 * 1.8  # of 20 at 80 %: two deviations above


def test_noise_alone_asks_for_more_samples_at_once():
    ot = SemiDiscreteOT(torch.zeros(1, 2))  # of one target, any potential is optimal
    torch.manual_seed(3)
    rule, survey = Width(0.03, ot, 2), Survey(ot.weights, ot.potential, soft=False)
    assert rule.ahead(survey.report()) > 1
    assert rule.verdict(survey)
    first, last = rule.brackets
    assert first.relative_width > 0.03 > last.relative_width
    assert last.samples > 4 * first.samples
    assert rule.ahead(survey.report()) < 1


def test_a_poor_potential_does_not():
    ot = far(5)
    rule = Width(0.03, ot, Uniform(2))
    assert not rule.verdict(Survey(ot.weights, ot.potential, soft=False))
    assert len(rule.brackets) == 1


def test_what_it_refuses():
    ot = far(4)
    with pytest.raises(InvalidArgument, match="tol: expected a Width of this SemiDiscreteOT"):
        ot.solve(Uniform(2), tol=Width(0.1, SemiDiscreteOT(grid(8)), Uniform(2)), max_samples=5000)
    with pytest.raises(InvalidArgument, match="epsilon: expected 0, the cost without entropy"):
        Width(0.1, SemiDiscreteOT(grid(2), epsilon=0.5), Uniform(2))
    with pytest.raises(InvalidArgument, match="relative: expected a finite number above 0"):
        Width(0, ot, Uniform(2))
    with pytest.raises(InvalidArgument, match="confidence: expected a number between 0 and 1"):
        Width(0.1, ot, Uniform(2), confidence=95)
    with pytest.raises(InvalidArgument, match="max_samples: expected an integer above 1"):
        Width(0.1, ot, Uniform(2), max_samples=1)
