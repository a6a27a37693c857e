"""Quasi-random samples: distributed as the source's own, nearer to expectations, and for sources that allow it only."""

import pytest
import torch
from torch import distributions, nn

from fastsdot import SemiDiscreteOT
from fastsdot.quasirandom import WIDEST, evenly
from fastsdot.sources import Gaussian, Pushforward

CPU = torch.device("cpu")


def expected(source, draw, values, repeats=40, n=256):
    """Means of `values` over n samples of either, [repeats, 2]."""
    return torch.tensor([[float(values(s(n)).mean()) for s in (source, draw())] for _ in range(repeats)])


@pytest.mark.parametrize(
    ("source", "own"),
    [
        (3, Gaussian(3)),
        (distributions.Uniform(torch.zeros(3), torch.ones(3)), None),
        (distributions.Independent(distributions.Exponential(torch.tensor([1.0, 2.0])), 1), None),
        (Pushforward(nn.Sequential(nn.Linear(2, 3), nn.Tanh()).requires_grad_(False), Gaussian(2), 0.01), None),
    ],
)
def test_means_agree_with_the_sources_and_scatter_less(source, own):
    own = own or (source if isinstance(source, Pushforward) else lambda n: source.sample((n,)))
    torch.manual_seed(0)
    found = expected(own, lambda: evenly(source, CPU, None), lambda x: x.square().sum(1) + x[:, 0])
    error = (found.var(0).sum() / len(found)).sqrt()
    assert abs(float(found[:, 0].mean() - found[:, 1].mean())) < 4 * float(error)
    assert found[:, 1].std() < 0.5 * found[:, 0].std()


def test_points_continue_one_sequence():
    torch.manual_seed(0)
    draw = evenly(2, CPU, None)
    parts = torch.cat([draw(n) for n in (1, 100, 27, 384)])
    cells = distributions.Normal(0.0, 1.0).cdf(parts).mul(8).long() @ torch.tensor([8, 1])
    assert torch.equal(torch.bincount(cells, minlength=64), torch.full((64,), 8))


def test_a_generator_seeds_them():
    a, b, c = (evenly(2, CPU, torch.Generator().manual_seed(seed))(64) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_point_is_at_infinity(dtype):
    x = evenly(Gaussian(1, dtype=dtype), CPU, None)(2**17)
    assert x.dtype == dtype
    assert bool(x.isfinite().all())


@pytest.mark.parametrize("source", [1, distributions.Normal(torch.zeros(1), torch.ones(1))])
def test_points_at_the_ends_of_the_sequence_are_finite(source, monkeypatch):
    ends = torch.tensor([[0.0], [1 - 2.0**-31]], dtype=torch.float64)  # the second is 1 in float32
    monkeypatch.setattr(torch.quasirandom.SobolEngine, "draw", lambda *_, **__: ends)
    assert bool(evenly(source, CPU, None)(2).isfinite().all())


@pytest.mark.parametrize(
    "source",
    [
        WIDEST + 1,
        lambda n: torch.randn(n, 2),
        distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        distributions.Gamma(torch.ones(2), torch.ones(2)),
        Pushforward(nn.Identity(), lambda n: torch.randn(n, 2)),
        Pushforward(nn.Identity(), Gaussian(WIDEST + 1)),
    ],
)
def test_no_other_source_has_them(source):
    assert evenly(source, CPU, None) is None


def test_a_solve_in_the_plane_gains_from_them():
    torch.manual_seed(0)
    y = torch.rand(400, 2)
    chi2 = []
    for source in (distributions.Uniform(torch.zeros(2), torch.ones(2)), lambda n: torch.rand(n, 2)):
        ot = SemiDiscreteOT(y)
        ot.solve(source, tol=1e-9, max_samples=12_000)
        chi2.append(ot.evaluate(source, 40_000).chi2)
    assert chi2[0] < 0.6 * chi2[1]


@pytest.mark.parametrize("seed", [0, 6])
def test_points_crowded_on_a_line_converge(seed):
    torch.manual_seed(seed)
    targets = torch.cat([2 * torch.rand(150, 1) - 1, 0.5 + 0.03 * torch.randn(150, 1)])
    assert SemiDiscreteOT(targets).solve(1, max_samples=80 * 300).converged
