"""Every cost agrees with scipy, splits exactly into a kernel's form, and knows its FIT loss and uniqueness."""

import pytest
import torch
from scipy.spatial.distance import cdist

from fastsdot import InvalidArgument, SemiDiscreteOT
from fastsdot.costs import LOW_DIMENSION, make_cost

SCIPY = [
    ("sqeuclidean", None, {"metric": "sqeuclidean"}),
    ("euclidean", None, {"metric": "euclidean"}),
    ("l1", None, {"metric": "cityblock"}),
    ("cityblock", None, {"metric": "cityblock"}),
    ("cosine", None, {"metric": "cosine"}),
]


@pytest.fixture
def points():
    random = torch.Generator().manual_seed(0)
    return torch.randn(17, 20, generator=random).double(), torch.randn(23, 20, generator=random).double()


@pytest.mark.parametrize(("name", "p", "options"), SCIPY)
def test_definition_is_scipys(points, name, p, options):
    x, y = points
    cost = make_cost(name, p)(x[:, None], y[None])
    torch.testing.assert_close(cost, torch.from_numpy(cdist(x, y, **options)))


@pytest.mark.parametrize("p", [0.5, 1.5, 3.0])
def test_lp_is_scipys_minkowski_to_the_p(points, p):
    x, y = points
    cost = make_cost("lp", p)(x[:, None], y[None])
    torch.testing.assert_close(cost, ((x[:, None] - y[None]).abs() ** p).sum(-1))
    if p >= 1:
        torch.testing.assert_close(cost ** (1 / p), torch.from_numpy(cdist(x, y, "minkowski", p=p)))


@pytest.mark.parametrize("dimension", [3, LOW_DIMENSION, LOW_DIMENSION + 1, 40])
@pytest.mark.parametrize(
    ("name", "p"),
    [("sqeuclidean", None), ("euclidean", None), ("l1", None), ("lp", 1.5), ("dot", None), ("cosine", None)],
)
def test_row_form_and_column_add_up_to_the_cost(name, p, dimension):
    random = torch.Generator().manual_seed(1)
    x = 3 + torch.randn(9, dimension, generator=random)
    y = 3 + torch.randn(11, dimension, generator=random)
    cost = make_cost(name, p)
    embedding = cost.embed_targets(y)
    form = embedding.form.pairwise(cost.embed(x, embedding.centre), embedding.y)
    total = cost.row(x, embedding)[:, None] + form + embedding.column
    torch.testing.assert_close(total, cost(x[:, None], y[None]), rtol=1e-5, atol=1e-4)


def test_cosine_of_a_zero_vector_is_finite():
    cost = make_cost("cosine")
    assert float(cost(torch.zeros(3), torch.ones(3))) == 1.0


@pytest.mark.parametrize(
    ("name", "p", "unique"),
    [
        ("sqeuclidean", None, True),
        ("l1", None, False),
        ("euclidean", None, False),
        ("lp", 1.5, True),
        ("lp", 1.0, False),
        ("dot", None, True),
    ],
)
def test_uniqueness_is_that_of_strictly_convex_superlinear_costs(name, p, unique):
    assert make_cost(name, p).unique is unique


def test_fit_loss_is_the_mean_cost(points):
    x, y = points
    loss = make_cost("l1").fit_loss(x, y[:17])
    torch.testing.assert_close(loss, (x - y[:17]).abs().sum(1).mean())


@pytest.mark.parametrize(
    ("cost", "p", "message"),
    [
        ("manhattan", None, r"cost: expected one of sqeuclidean, .* received 'manhattan'"),
        (3, None, r"cost: expected one of"),
        ("lp", None, r"p: expected a finite number above 0 .* received None"),
        ("lp", 0.0, r"p: .* received 0.0"),
        ("lp", -1.0, r"p: .* received -1.0"),
        ("lp", float("nan"), r"p: .* received nan"),
        ("l1", 2.0, r"p: expected no value unless cost='lp'"),
    ],
)
def test_unusable_costs_are_named(cost, p, message):
    with pytest.raises(InvalidArgument, match=message):
        SemiDiscreteOT(torch.zeros(2, 2), cost=cost, p=p)


def test_a_power_below_one_has_a_slope_where_a_coordinate_coincides():
    ot = SemiDiscreteOT(torch.zeros(3, 2), cost="lp", p=0.5)
    x = torch.tensor([[0.0, 1.0]], requires_grad=True)
    value = ot.c_transform(x)
    assert value.item() == pytest.approx(1)
    assert torch.autograd.grad(value.sum(), x)[0].tolist() == [[0.0, 0.5]]
