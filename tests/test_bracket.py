"""The bracket holds the true cost, where that is known in closed form or by a linear program, whatever ψ is."""

import numpy as np
import pytest
import torch
from closed_forms import Uniform, grid, normal_to_points, shifted_line
from scipy import optimize

import fastsdot.bracket as module
from fastsdot import Bracket, InvalidArgument, SemiDiscreteOT, flow


def weights_of(ot):
    b = ot.weights.double().numpy()
    return b / b.sum()


def atoms(points, n):
    return points[torch.randint(points.shape[0], (n,))]


def line(cost, power):
    """N(0, 1) onto ten points of unequal weight, one of them without any, and two of them equal."""
    y = torch.tensor([-2.0, -1.0, -0.8, 0.0, 0.3, 0.3, 0.9, 1.4, 2.2, 5.0])
    ot = SemiDiscreteOT(y[:, None], cost=cost, weights=torch.tensor([1.0, 2, 3, 1, 4, 1, 2, 3, 1, 0]))
    ot.solve(1, max_samples=4_000)
    return ot, 1, normal_to_points(y.double().numpy(), weights_of(ot), power)


def closed_forms():
    torch.manual_seed(0)
    yield "grid", SemiDiscreteOT(grid(6)), Uniform(2), 1 / 6**3
    y, psi = shifted_line(12, 0.3)
    shifted = SemiDiscreteOT(y)
    shifted.potential.copy_(psi)
    centres = (np.arange(12) + 0.5) / 12 + 0.3  # of the cells, intervals of length 1/12
    yield "shifted", shifted, Uniform(1, 0.3), float(((centres - y[:, 0].numpy()) ** 2).mean()) + 1 / 12**3
    yield "l1", *line("l1", 1)
    yield "sqeuclidean", *line("sqeuclidean", 2)


def test_the_true_cost_is_inside_as_often_as_promised():
    missed = []
    for name, ot, source, truth in closed_forms():
        found = [ot.bracket(source, 1000, confidence=0.9) for _ in range(12)]
        missed += [name for bracket in found if truth not in bracket]
        assert np.median([bracket.relative_width for bracket in found]) < 0.6, name
    assert len(missed) <= 11, missed  # of 48 at 90 %: 11 is three deviations above


@pytest.mark.parametrize("cost", ["l1", "sqeuclidean", "dot"])
def test_it_agrees_with_a_linear_program(cost):
    pot = pytest.importorskip("ot")
    torch.manual_seed(1)
    x, y = torch.randn(60, 3), torch.randn(15, 3) + 0.5
    ot = SemiDiscreteOT(y, cost=cost, weights=torch.rand(15))
    matrix = ot.cost(x[:, None], y[None]).double().numpy()
    truth = pot.emd2(np.full(60, 1 / 60), weights_of(ot), matrix)
    ot.solve(lambda n: atoms(x, n), max_samples=6000)
    bracket = ot.bracket(lambda n: atoms(x, n), 20_000, confidence=0.999)
    assert truth in bracket
    assert bracket.width < 0.1 * matrix.std()


class Recorded:
    """A source that keeps what it drew."""

    def __init__(self, source):
        self.source, self.drawn = source, []

    def __call__(self, n):
        self.drawn.append(self.source(n))
        return self.drawn[-1]


@pytest.mark.parametrize("samples", [90, 100, 237])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_the_coupling_is_the_cheapest_one_of_its_samples(samples, scale):
    pot = pytest.importorskip("ot")
    torch.manual_seed(2)
    ot = SemiDiscreteOT(torch.randn(30, 2), weights=torch.rand(30) * (torch.arange(30) % 5 > 0))
    ot.potential.copy_(scale * torch.randn(30))
    source = Recorded(lambda n: torch.randn(n, 2))
    bracket = ot.bracket(source, samples)
    matrix = ot.cost(torch.cat(source.drawn)[:, None], ot.targets[None]).double().numpy()
    least = pot.emd2(np.full(samples, 1 / samples), weights_of(ot), matrix)
    assert least - 1e-5 <= bracket.primal <= least + 0.1 * bracket.dual_error
    assert bracket.dual <= least + 1e-5


def test_what_the_auction_leaves_is_far_below_the_noise():
    above = []
    for seed in range(6):
        torch.manual_seed(seed)
        ot, source = SemiDiscreteOT(torch.randn(64, 2)), Recorded(lambda n: torch.randn(n, 2))
        bracket = ot.bracket(source, 64)
        matrix = ot.cost(torch.cat(source.drawn)[:, None], ot.targets[None]).double().numpy()
        least = matrix[optimize.linear_sum_assignment(matrix)].mean()
        above.append((bracket.primal - least) / bracket.dual_error)
    assert np.mean(above) < 0.005


def test_fractions_of_many_targets_are_the_cheapest_too():
    pot = pytest.importorskip("ot")
    torch.manual_seed(0)
    ot, source = SemiDiscreteOT(torch.randn(200, 2), weights=torch.rand(200)), Recorded(lambda n: torch.randn(n, 2))
    bracket = ot.bracket(source, 1000)
    matrix = ot.cost(torch.cat(source.drawn)[:, None], ot.targets[None]).double().numpy()
    least = pot.emd2(np.full(1000, 1e-3), weights_of(ot), matrix)
    assert bracket.primal == pytest.approx(least, rel=1e-4)


def coupling_of(ot, source, samples, monkeypatch):
    """The bracket and the coupling behind it, [M, N]: from the lists, from what they did not reach, and the corner."""
    dense, kept = torch.zeros(samples, ot.targets.shape[0], dtype=torch.float64).numpy(), {}
    shift, corner, place, finish = flow.shift, flow.corner, flow.place, module.finish

    def shifted(margin, column, *rest):
        row, slot, mass = shift(margin, column, *rest)
        np.add.at(dense, (row, column[row, slot]), mass)
        return row, slot, mass

    def finished(lists, left, free):
        kept["left"] = left
        return finish(lists, left, free)

    def placed(order, margin, column, left, free):
        (rows,) = (kept["left"] > flow.TOLERANCE).nonzero()
        for choice in order:
            i, k = divmod(int(choice), column.shape[1])
            one = left[i : i + 1].copy(), free.copy()
            place(np.array([choice]), margin, column, left, free)
            dense[rows[i], column[i, k]] += one[0][0] - left[i]
        return 0.0

    def cornered(supply, demand):
        row, column, mass = corner(supply, demand)
        np.add.at(dense, (row, column), mass)
        return row, column, mass

    monkeypatch.setattr(flow, "shift", shifted)
    monkeypatch.setattr(module, "finish", finished)
    monkeypatch.setattr(flow, "place", placed)
    monkeypatch.setattr(flow, "corner", cornered)
    return ot.bracket(source, samples), dense


BUDGETS = [{}, {"MOVES": 0}, {"BIDS": 1, "MOVES": 0}, {"BIDS": 1, "MOVES": 1, "RELISTED": 0.0}]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("samples", [50, 331])
def test_the_marginals_of_the_coupling_are_exact(samples, budget, monkeypatch):
    for name, value in budget.items():
        monkeypatch.setattr(module, name, value)
    torch.manual_seed(3)
    ot = SemiDiscreteOT(torch.randn(90, 2), weights=torch.rand(90) ** 4)
    _, dense = coupling_of(ot, 2, samples, monkeypatch)
    assert (dense >= 0).all()
    np.testing.assert_allclose(dense.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(dense.sum(0), samples * weights_of(ot), atol=1e-6)


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_a_budget_that_ends_makes_it_wide_and_leaves_it_valid(budget, monkeypatch):
    for name, value in budget.items():
        monkeypatch.setattr(module, name, value)
    torch.manual_seed(4)
    ot = SemiDiscreteOT(grid(12))
    bracket = ot.bracket(Uniform(2), 700, confidence=0.999)
    assert 1 / 6 / 144 in bracket
    assert bracket.primal > bracket.dual


@pytest.mark.parametrize("scale", [0.0, 0.1, 10.0])
def test_a_poor_potential_makes_it_wide_and_leaves_it_valid(scale):
    torch.manual_seed(5)
    y = 3 + torch.randn(100)
    ot = SemiDiscreteOT(y[:, None])
    ot.potential.copy_(scale * torch.randn(100))
    truth = normal_to_points(y.double().numpy(), weights_of(ot), 2)
    bracket = ot.bracket(1, 2000, confidence=0.999)
    assert truth in bracket
    assert bracket.lower < 0.8 * truth
    assert bracket.upper < 2 * truth  # the coupling does not depend on ψ's being good
    ot.solve(1, max_samples=40_000)
    assert ot.bracket(1, 2000, confidence=0.999).width < 0.5 * bracket.width


def test_one_target_and_equal_targets():
    torch.manual_seed(6)
    one = SemiDiscreteOT(torch.zeros(1, 2)).bracket(2, 4000, confidence=0.999)
    assert 2.0 in one
    assert one.primal == one.dual
    same = SemiDiscreteOT(torch.ones(7, 2), weights=torch.arange(7)).bracket(2, 4000, confidence=0.999)
    assert 4.0 in same
    assert same.primal == pytest.approx(same.dual)


def test_a_source_of_one_point_has_no_error():
    ot = SemiDiscreteOT(torch.tensor([[0.0], [1.0], [3.0]]), cost="l1", weights=torch.tensor([1.0, 1.0, 2.0]))
    bracket = ot.bracket(lambda n: torch.zeros(n, 1), 101)
    assert bracket.dual_error == bracket.primal_error == 0
    assert bracket.lower <= bracket.upper == pytest.approx(0.25 + 1.5)


def curved(x, y):
    return (x - y).abs().sum(-1) ** 1.5


@pytest.mark.parametrize(("cost", "backend"), [("cosine", None), ("euclidean", None), (curved, "gemm")])
def test_targets_in_blocks_and_other_costs(cost, backend, tmp_path):
    np.save(tmp_path / "y.npy", np.random.default_rng(0).integers(0, 256, (300, 4, 6), dtype=np.uint8))
    mapped = np.load(tmp_path / "y.npy", mmap_mode="r")
    found = []
    for options in ({"memory": 60_000}, {}):
        ot = SemiDiscreteOT(mapped, cost=cost, backend=backend, **options)
        torch.manual_seed(7)
        found.append(ot.bracket(lambda n: torch.rand(n, 4, 6), 900))
    assert found[0].lower == pytest.approx(found[1].lower, rel=1e-4)
    assert found[0].upper == pytest.approx(found[1].upper, rel=1e-3)


def test_what_it_says_and_what_it_refuses():
    bracket = Bracket(1.0, 3.0, 0.95, 1000, 1.5, 0.1, 2.5, 0.1)
    assert (bracket.width, bracket.relative_width) == (2.0, 1.0)
    assert str(bracket) == "1 ≤ W ≤ 3 at 0.95, width 100.00%, 1,000 samples"
    assert 1.0 in bracket
    assert 3.1 not in bracket
    with pytest.raises(InvalidArgument, match="epsilon: expected 0, the cost without entropy"):
        SemiDiscreteOT(grid(2), epsilon=0.5).bracket(2)
    with pytest.raises(InvalidArgument, match="samples: expected an integer above 1"):
        SemiDiscreteOT(grid(2)).bracket(2, 1)
    with pytest.raises(InvalidArgument, match="confidence: expected a number between 0 and 1"):
        SemiDiscreteOT(grid(2)).bracket(2, 10, confidence=95)
