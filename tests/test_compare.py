"""The comparison by regret: it must see a wrong answer and must not see one in rounding or in ties."""

import pytest
import torch
from compare import Truth, assert_argmin, reference, regret, tolerance

from fastsdot.kernels import Form, naive

FORMS = {
    "inner": Form("inner", scale=2.0),
    "l1": Form("power"),
    "l2": Form("power", p=2.0, root=True),
    "callable": Form("callable", function=lambda x, y: (x - y).abs().amax(-1)),
}


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def form(request):
    return request.param


@pytest.fixture
def problem(form):
    g = torch.Generator().manual_seed(0)
    x, y, bias = (torch.randn(shape, generator=g) for shape in ((9, 6), (50, 6), (50,)))
    value, index = reference(x, y, bias, form).min(1)
    return x, y, bias, form, value.float(), index


def test_the_best_choice_is_accepted(problem):
    assert_argmin(*problem)


def test_the_second_best_choice_is_seen(problem):
    x, y, bias, form, value, index = problem
    index = index.clone()
    index[3] = reference(x, y, bias, form)[3].argsort()[1]
    with pytest.raises(AssertionError, match="1 rows have regret"):
        assert_argmin(x, y, bias, form, value, index)


def test_a_value_that_is_not_the_score_is_seen(problem):
    x, y, bias, form, value, index = problem
    value = value.clone()
    value[4] += 1e-4
    with pytest.raises(AssertionError, match="1 values are off"):
        assert_argmin(x, y, bias, form, value, index)


def test_a_value_that_is_not_a_number_is_seen(problem):
    x, y, bias, form, value, index = problem
    value = value.clone()
    value[0] = torch.nan
    with pytest.raises(AssertionError):
        assert_argmin(x, y, bias, form, value, index)


@pytest.mark.parametrize("change", [lambda i: i.int(), lambda i: i[:-1], lambda i: i[:, None]])
def test_an_index_of_another_type_or_shape_is_seen(problem, change):
    *rest, value, index = problem
    with pytest.raises(AssertionError):
        assert_argmin(*rest, value, change(index))


def test_either_of_two_equal_targets_is_accepted(problem):
    x, y, bias, form, value, index = problem
    assert_argmin(x, torch.cat([y, y]), torch.cat([bias, bias]), form, value, index + 50)


@pytest.mark.parametrize(("step", "fine"), [(0.5, True), (2.0, False)])
def test_a_target_within_rounding_is_accepted_and_one_beyond_is_not(problem, step, fine):
    x, y, bias, form, _, index = problem
    allowed = float(tolerance(x, y, bias, form)[0])
    best = index[:1]
    y, bias = torch.cat([y, y[best]]).double(), torch.cat([bias, bias[best]]).double()
    bias[50] += step * allowed
    assert (float(regret(reference(x, y, bias, form), torch.full((9,), 50))[0]) <= allowed) == fine


def test_a_target_that_cannot_be_chosen_has_infinite_regret(problem):
    x, y, bias, form, _, index = problem
    bias = bias.clone()
    bias[index[0]] = torch.inf
    assert regret(reference(x, y, bias, form), index)[0] == torch.inf


def test_the_allowance_is_that_of_float32(problem):
    x, y, bias, form, value, _ = problem
    allowed = tolerance(x, y, bias, form)
    assert (allowed < 1e-4 * (1 + value.abs())).all()
    assert (allowed > 1e-8 * value.abs()).all()
    assert torch.allclose(tolerance(1e6 * x, 1e6 * y, bias * 0, form), tolerance(x, y, bias * 0, form) * scale(form))


def scale(form):
    return 1e12 if form.kind == "inner" else 1e6


def exact(problem, k=4, epsilon=0.5):
    """The results of all reductions, as float32 has them."""
    x, y, bias, form = problem[:4]
    operands, weight = (x.double(), [y.double()], bias.double(), form), torch.linspace(-1, 2, 9)
    value, mass = naive.soft_marginal(*operands, epsilon, weight.double())
    low, index = naive.topk(*operands, k)
    return Truth(x, y, bias, form), value.float(), mass.float(), weight, low.float(), index


def test_results_that_are_rounded_once_are_within_rounding(problem):
    truth, value, mass, weight, low, index = exact(problem)
    assert (truth.argmin(low[:, 0], index[:, 0]) <= 1).all()
    assert (truth.softmin(value, 0.5) <= 1).all()
    assert (truth.mass(mass, 0.5, weight) <= 1).all()
    assert (truth.topk(low, index) <= 1).all()


def test_wrong_results_are_seen_in_their_row_alone(problem):
    truth, value, mass, weight, low, index = exact(problem)
    off = torch.zeros(9)
    off[2] = 2 * float(truth.allowed.max()) + 1e-5
    assert (truth.softmin(value + off, 0.5) > 1).tolist() == (off > 0).tolist()
    assert (truth.argmin(low[:, 0] + off, index[:, 0]) > 1).tolist() == (off > 0).tolist()
    assert (truth.topk(low + off[:, None], index) > 1).tolist() == (off > 0).tolist()
    assert (truth.mass(mass * 1.01, 0.5, weight) > 1).any()
    index[2, 3] = index[2, 0]
    assert torch.isinf(truth.topk(low, index)).tolist() == (off > 0).tolist()
