"""Entropic transport end to end, against Sinkhorn's iterations on a discrete source."""

import math

import numpy as np
import ot as pot
import pytest
import torch
from scipy import stats

from fastsdot import InvalidArgument, SemiDiscreteOT

EPSILON = 0.4
POINTS, TARGETS = 16, 30


class Discrete:
    """Uniform on a few points, and Sinkhorn's plan, potentials and value onto weighted targets, one of weight 0."""

    def __init__(self, cost="sqeuclidean"):
        random = torch.Generator().manual_seed(0)
        self.points = torch.randn(POINTS, 2, 3, generator=random)
        self.targets = 0.7 * torch.randn(TARGETS, 2, 3, generator=random) + 0.3
        self.weights = torch.rand(TARGETS, generator=random) + 0.2
        self.weights[5] = 0
        self.ot = SemiDiscreteOT(self.targets, cost=cost, weights=self.weights, epsilon=EPSILON)
        x, y = self.points.flatten(1).double()[:, None], self.targets.flatten(1).double()[None]
        a, b = np.full(POINTS, 1 / POINTS), self.ot.weights.double().numpy()
        self.kept = b > 0
        b = b[self.kept] / b.sum()
        matrix = self.ot.cost(x, y).numpy()[:, self.kept]
        plan, log = pot.sinkhorn(
            a, b, matrix, EPSILON, method="sinkhorn_log", stopThr=1e-13, numItermax=50_000, log=True
        )
        self.plan = torch.zeros(POINTS, TARGETS, dtype=torch.float64)
        self.plan[:, self.kept] = torch.from_numpy(plan / a[:, None])  # rows sum to 1
        # Sinkhorn's plan is exp(u + v − c/ε), ours a b exp((φ + ψ − c)/ε).
        self.phi, psi = EPSILON * (log["log_u"] - np.log(a)), EPSILON * (log["log_v"] - np.log(b))
        self.dual = a @ self.phi + b @ psi
        self.potential = torch.zeros(TARGETS)
        self.potential[self.kept] = torch.from_numpy(psi).float()

    def __call__(self, n):
        return self.points[torch.randint(POINTS, (n,))]


@pytest.fixture(scope="module", params=["sqeuclidean", "l1"])
def discrete(request):
    return Discrete(request.param)


@pytest.fixture
def solved(discrete):
    discrete.ot.potential.copy_(discrete.potential)
    return discrete.ot


def test_solve_finds_the_value_of_sinkhorn(discrete):
    torch.manual_seed(0)
    ot = SemiDiscreteOT(discrete.targets, cost=discrete.ot.cost.name, weights=discrete.weights, epsilon=EPSILON)
    ot.solve(discrete, tol=1e-3, max_samples=60_000)
    report = ot.evaluate(discrete, 40_000)
    assert abs(report.dual - discrete.dual) < 3 * report.dual_error
    assert report.dual_error < 0.01 * discrete.dual
    assert abs(report.primal - discrete.dual) < 3 * report.primal_error
    assert report.chi2 < 2e-3
    # The marginal that was measured, the one of the plan at the potential found, and the weights.
    ot.potential -= ot.potential[torch.from_numpy(discrete.kept)].mean()
    _, mass = ot._marginal(discrete.points.flatten(1), ot.potential, EPSILON)
    assert (report.mass - mass).abs().max() < 0.01
    assert (mass - ot.weights).abs().max() < 0.1 * ot.weights.max()


def test_sinkhorn_itself_has_the_weights_as_marginal_and_its_own_potential(discrete, solved):
    torch.testing.assert_close(
        solved.c_transform(discrete.points).numpy(), discrete.phi.astype(np.float32), atol=1e-5, rtol=1e-5
    )
    _, mass = solved._marginal(discrete.points.flatten(1), solved.potential, EPSILON)
    torch.testing.assert_close(mass, solved.weights, atol=1e-6, rtol=1e-4)


def test_barycenters_are_those_of_the_plan(discrete, solved):
    expected = (discrete.plan @ discrete.targets.flatten(1).double()).view(POINTS, 2, 3)
    torch.testing.assert_close(solved.barycenter(discrete.points).double(), expected, atol=1e-5, rtol=1e-5)
    assert solved.barycenter(discrete.points.half()).dtype == torch.float16
    assert solved.barycenter(discrete.points[:0]).shape == (0, 2, 3)


def test_samples_follow_the_rows_of_the_plan(discrete, solved):
    draws = 5000
    torch.manual_seed(0)
    index = solved.sample(discrete.points.repeat_interleave(draws, 0)).view(POINTS, draws)
    count = torch.stack([torch.bincount(row, minlength=TARGETS) for row in index])
    assert count[:, 5].sum() == 0
    expected = draws * discrete.plan
    often = expected > 10
    total = float(((count - expected).square() / expected)[often].sum())
    freedom = int(often.sum()) - POINTS  # rare targets of a row take up the constraint; the test is a little strict
    assert stats.chi2.sf(total, freedom + POINTS) > 1e-3
    assert stats.chi2.cdf(total, freedom) > 1e-3


def test_draws_are_repeated_by_a_seed_alone(discrete, solved):
    x = discrete.points.repeat(50, 1, 1)
    torch.manual_seed(3)
    first, second = solved.sample(x), solved.sample(x)
    torch.manual_seed(3)
    assert torch.equal(solved.sample(x), first)
    assert not torch.equal(first, second)
    a, b = (solved.sample(x, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a, b)
    assert solved.sample(x[:0]).shape == (0,)


def test_targets_in_blocks_give_the_same(discrete, solved):
    blocks = SemiDiscreteOT(
        discrete.targets, cost=solved.cost.name, weights=discrete.weights, epsilon=EPSILON, memory=6 * 4 * 7 * 8
    )
    blocks.potential.copy_(discrete.potential)
    assert blocks.targets.block < TARGETS
    torch.testing.assert_close(
        blocks.barycenter(discrete.points), solved.barycenter(discrete.points), atol=1e-5, rtol=1e-5
    )
    draws = [ot.sample(discrete.points, torch.Generator().manual_seed(7)) for ot in (blocks, solved)]
    assert torch.equal(*draws)


def test_a_plan_of_small_temperature_is_the_transport():
    random = torch.Generator().manual_seed(1)
    x, y = torch.rand(20, 4, generator=random), torch.rand(50, 4, generator=random)
    hard, soft = SemiDiscreteOT(y), SemiDiscreteOT(y, epsilon=1e-9)
    assert torch.equal(soft.sample(x), hard.assign(x))
    torch.testing.assert_close(soft.barycenter(x), hard.transport(x))


def test_a_plan_of_large_temperature_is_the_product():
    y = torch.tensor([[0.0], [1.0], [4.0]])
    ot = SemiDiscreteOT(y, weights=torch.tensor([1.0, 2.0, 1.0]), epsilon=1e8)
    torch.testing.assert_close(ot.barycenter(torch.rand(5, 1)), torch.full((5, 1), 1.5))
    count = torch.bincount(ot.sample(torch.rand(4000, 1), torch.Generator().manual_seed(0)), minlength=3)
    assert stats.chisquare(count.numpy(), [1000, 2000, 1000]).pvalue > 1e-3


@pytest.mark.parametrize("name", ["sample", "barycenter"])
def test_hard_transport_has_no_plan_to_draw_from(name):
    ot = SemiDiscreteOT(torch.zeros(3, 2))
    with pytest.raises(InvalidArgument, match=r"epsilon: expected a number above 0, received 0\.0; use transport"):
        getattr(ot, name)(torch.zeros(1, 2))
    soft = SemiDiscreteOT(torch.zeros(3, 2), epsilon=1.0)
    with pytest.raises(InvalidArgument, match=r"x: expected shape \[B, 2\]"):
        getattr(soft, name)(torch.zeros(1, 3))
    with pytest.raises(InvalidArgument, match="x: expected finite values"):
        getattr(soft, name)(torch.full((1, 2), math.nan))


def test_sample_and_barycenter_compile_into_one_graph():
    ot = SemiDiscreteOT(torch.randn(40, 20), epsilon=0.5)
    x = torch.randn(6, 20)
    torch.compiler.reset()
    compiled = torch.compile(ot.sample, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    first = compiled(x)
    torch.manual_seed(1)
    assert torch.equal(first, ot.sample(x))
