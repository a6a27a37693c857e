"""Rare targets: where the tail is known, and where it is that of a copy."""

import math

import pytest
import torch

from fastsdot import SemiDiscreteOT
from fastsdot.tails import EXTREMES, hold, rare


def transport(weights, **options):
    """Targets 0 at the origin and 1 far to the right on a line."""
    return SemiDiscreteOT(torch.tensor([[0.0], [1.0]]), cost="dot", weights=torch.tensor(weights), **options)


@pytest.mark.parametrize("start", [0.0, -20.0, 20.0])
def test_an_exponential_tail_is_met(start):
    # c = −x y, so target 1 wins where x > −ψ_1, which for x ~ Exp(1) has mass exp(ψ_1)
    b, shares = 1e-5, []
    for seed in range(20):
        torch.manual_seed(seed)
        ot = transport([1 - b, b])
        ot.potential[1] = start
        x = torch.distributions.Exponential(1.0).sample((8000, 1))
        hold(ot, x, torch.tensor([False, True]), 0.0)
        shares.append(math.exp(float(ot.potential[1])) / b)
    middle = sorted(shares)[10]
    beyond = math.log(EXTREMES / 8000 / b)
    assert math.exp(-2 * beyond / EXTREMES**0.5) < middle < 1.2  # one standard error below b, and not above it


def test_others_are_left_alone_and_near_copies_kept_below():
    ot = SemiDiscreteOT(torch.tensor([[0.0], [1e-9], [1.0]]), weights=torch.tensor([0.7, 1e-6, 0.3]))
    x = torch.rand(4000, 1)
    hold(ot, x, torch.tensor([False, True, False]), 0.01)
    assert float(ot.potential[0]) == float(ot.potential[2]) == 0.0
    assert float(ot.potential[1]) < -0.01
    assert not bool((ot.assign(x) == 1).any())


def test_what_is_rare():
    weights = torch.tensor([0.0, 1e-6, 0.02, 0.98])
    assert rare(transport([0.5, 0.5]), 1).sum() == 0
    ot = SemiDiscreteOT(torch.randn(4, 2), weights=weights)
    assert rare(ot, 100).tolist() == [False, True, True, False]
    assert rare(ot, 1000).tolist() == [False, True, False, False]
    assert rare(SemiDiscreteOT(torch.randn(4, 2), weights=weights, epsilon=0.1), 100).sum() == 0
    assert rare(SemiDiscreteOT(torch.randn(400, 2)), 100).sum() == 0  # few samples, but of all alike


@pytest.mark.parametrize("seed", range(3))
def test_weights_over_four_decades_are_met(seed):
    torch.manual_seed(seed)
    ot = SemiDiscreteOT(torch.randn(300, 8), weights=10 ** (-4 * torch.rand(300)))
    ot.solve(lambda n: torch.randn(n, 8), tol=1e-9, max_samples=6000)
    report = ot.evaluate(lambda n: torch.randn(n, 8), 200_000)
    assert report.chi2 < 0.1
    few = rare(ot, 0)
    assert 0.1 < float(report.mass[few].sum() / ot.weights[few].sum()) < 1  # told anew by every stage
