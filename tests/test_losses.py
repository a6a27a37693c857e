"""TransportLoss against the definition, with its two gradients and temperatures, compiled and cast; Refresh."""

import pytest
import torch
from torch import nn

from fastsdot import InvalidArgument, SemiDiscreteOT, fit, kernels
from fastsdot.losses import Refresh, TransportLoss
from fastsdot.networks import mlp
from fastsdot.sources import Gaussian, Pushforward

COSTS = ["sqeuclidean", "euclidean", "l1", "dot", "cosine"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(cost="sqeuclidean", epsilon=0.0, n=50, shape=(4, 3)):
    ot = SemiDiscreteOT(torch.randn(n, *shape) + 1, cost=cost, epsilon=epsilon)
    ot.potential.copy_(0.3 * torch.randn(n))
    return ot, torch.randn(16, *shape, requires_grad=True)


def plan(ot, x):
    """c(x_i, y_j) [B, N] and p_j(x_i) in float64."""
    c = ot.cost(x.double().flatten(1)[:, None], ot.targets.double().flatten(1)[None])
    score = c.detach() - ot.potential.double()
    if ot.epsilon:
        return c, (-score / ot.epsilon).softmax(1)
    return c, nn.functional.one_hot(score.argmin(1), score.shape[1]).double()


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
@pytest.mark.parametrize("cost", COSTS)
def test_the_gradient_is_that_of_the_cost_to_the_plans_targets(cost, epsilon):
    ot, x = make(cost, epsilon)
    (found,) = torch.autograd.grad(TransportLoss(ot)(x), x)
    c, p = plan(ot, x)
    (expected,) = torch.autograd.grad((p * c).sum(1).mean(), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cost", COSTS)
def test_fit_has_the_same_gradient_where_the_sample_is_its_own_reference(cost):
    ot, x = make(cost)
    loss = TransportLoss(ot)
    (semidual,) = torch.autograd.grad(loss(x), x)
    (held,) = torch.autograd.grad(loss(x, x), x)
    torch.testing.assert_close(held, semidual, rtol=1e-5, atol=1e-6)
    other = torch.randn_like(x)
    c = ot.cost(x.flatten(1), ot.transport(other).flatten(1)).mean()
    torch.testing.assert_close(loss(x, other), c)
    assert c.detach() > ot.cost(x.flatten(1), ot.transport(x).flatten(1)).mean().detach() + 0.01


def test_the_value_is_the_semidual():
    ot = SemiDiscreteOT(torch.randn(40, 2), weights=torch.arange(1.0, 41.0), epsilon=0.0)
    ot.solve(2, max_samples=2000)
    report = ot.evaluate(2, 20_000)
    value = TransportLoss(ot)(torch.randn(20_000, 2)).item()
    assert value == pytest.approx(report.dual, abs=6 * report.dual_error)


@pytest.mark.parametrize("cost", ["sqeuclidean", "dot", "l1"])
def test_soft_fit_has_the_plans_gradient(cost):
    """Exactly by the barycentre where the cost is affine in y; in the mean over draws elsewhere."""
    ot, x = make(cost, epsilon=0.5, n=8)
    loss, draws = TransportLoss(ot), 1 if cost != "l1" else 400
    found = sum(torch.autograd.grad(loss(x, x), x)[0] for _ in range(draws)) / draws
    (expected,) = torch.autograd.grad(loss(x), x)
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < (1e-4 if draws == 1 else 0.25)
    assert torch.equal(loss(x, x), loss(x, x)) == (draws == 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_samples_of_any_precision(dtype):
    """The loss is float32, the gradient comes in the dtype of the samples, and targets are not rounded to it."""
    ot, _ = make()
    x = torch.randn(16, 4, 3, dtype=dtype, requires_grad=True)
    for value in (TransportLoss(ot)(x), TransportLoss(ot)(x, x)):
        assert value.dtype == torch.float32
        (gradient,) = torch.autograd.grad(value, x)
        assert gradient.dtype == dtype
    assert TransportLoss(ot).target(x).dtype == torch.float32
    assert torch.equal(TransportLoss(ot).target(x), ot.targets[ot.assign(x)])


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
@pytest.mark.parametrize("cost", COSTS)
def test_autocast_changes_nothing(cost, epsilon):
    ot, x = make(cost, epsilon)

    def outcome():
        soft = ot.barycenter(x.detach()) if epsilon else ot.transport(x.detach())
        return TransportLoss(ot)(x), ot.c_transform(x), ot.assign(x), soft, ot.topk(x, 3)[0]

    expected = outcome()
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def product(x, y):
    return -torch.einsum("...d,...d->...", x, y)


@pytest.mark.parametrize("memory", [None, 40_000])
@pytest.mark.parametrize("cost", ["sqeuclidean", "l1", product])
def test_autocast_changes_no_kernel_and_no_solve(cost, memory):
    x, y, psi = torch.randn(64, 30), torch.randn(200, 30).numpy(), 0.1 * torch.randn(200)

    def outcome():
        ot = SemiDiscreteOT(y, cost=cost, memory=memory, epsilon=0.5)
        rest = x, ot._kernel, ot._bias(psi, 0.5)
        value, mass = kernels.soft_marginal(*rest, 0.5)
        found = [value, mass, *kernels.moments(*rest), *kernels.margins(*rest, value, 3), ot.sample(x)]
        found += [ot.barycenter(x), *kernels.ops.gradient(*rest, value, torch.rand(64), 0.5), *kernels.topk(*rest, 3)]
        ot.solve(lambda n: torch.randn(n, 30), max_samples=500)
        return [*found, ot.potential]

    def seeded():
        torch.manual_seed(1)
        return outcome()

    expected = seeded()
    with torch.autocast("cpu", torch.bfloat16):
        found = seeded()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_a_training_step_compiles_into_one_graph_for_any_batch_size():
    generator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 12), nn.Unflatten(1, (4, 3)))
    hard, soft, mean = (
        TransportLoss(make(*case)[0]) for case in (("sqeuclidean", 0.0, 600), ("l1", 0.5), ("dot", 0.5))
    )

    def step(z):
        with torch.autocast("cpu", torch.bfloat16):
            x = generator(z)
        return hard(x) + soft(x) + hard(x, generator(z + 1)) + mean(x, generator(z + 1))

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (8, 24):
        z = torch.randn(batch, 4)
        found, expected = compiled(z), step(z)
        torch.testing.assert_close(found, expected)
        for a, b in zip(*(torch.autograd.grad(v, generator.parameters()) for v in (found, expected)), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-4)  # bfloat16 products


def test_the_potential_travels_with_the_loss():
    ot, x = make()
    state = TransportLoss(ot).state_dict()
    assert set(state) == {"ot.weights", "ot.potential"}
    other = TransportLoss(SemiDiscreteOT(ot.targets))
    other.load_state_dict(state)
    torch.testing.assert_close(other(x), TransportLoss(ot)(x))


def test_refresh_solves_when_it_is_due_and_follows_the_generator():
    ot, generator, rows = SemiDiscreteOT(0.5 * torch.randn(40, 2)), mlp(4, (2,), (32,), std=None), []
    source = Pushforward(generator, Gaussian(4))
    refresh, loss = Refresh(ot, source, every=20, max_samples=3000, log=rows.append), TransportLoss(ot)
    optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3)
    solved = []
    for step in range(41):
        if refresh.step() is not None:
            solved.append(step)
        optimizer.zero_grad()
        loss(generator(torch.randn(64, 4))).backward()
        optimizer.step()
    assert solved == [0, 20, 40]
    w = [row["transport/w"] for row in rows]
    assert w[-1] < 0.8 * w[0]
    assert rows[-1]["transport/samples"] <= 3000
    assert all(isinstance(value, float) for value in rows[0].values())


def test_half_precision_generators_are_solved_for_fitted_and_evaluated():
    """An int latent is drawn in the generator's dtype; samples are float32 from there on."""
    ot, generator = SemiDiscreteOT(0.5 * torch.randn(30, 2)), mlp(4, (2,), (64,), std=None).bfloat16()
    source = Pushforward(generator, Gaussian(4, dtype=torch.bfloat16))
    before = ot.solve(source, max_samples=3000).report.dual
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.1)
    fitted = fit(generator, ot, 4, steps=60, batch_size=64, optimizer=optimizer)
    assert fitted.loss < 0.8 * fitted.losses[0]
    assert ot.evaluate(source, 2000).samples == 2000
    with torch.autocast("cpu", torch.bfloat16):
        assert ot.solve(source, max_samples=3000).report.dual < before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ot: Refresh(ot, 3, every=0), "every: expected an integer above 0"),
        (lambda ot: TransportLoss(ot)(torch.full((2, 4, 3), torch.nan)), "x: expected finite values"),
        (lambda ot: TransportLoss(ot)(torch.zeros(2, 3)), r"x: expected shape \[B, 4, 3\]"),
        (lambda ot: TransportLoss(ot)(torch.zeros(2, 4, 3), torch.zeros(2, 5)), r"x: expected shape \[B, 4, 3\]"),
    ],
)
def test_unusable_arguments_are_named(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call(make()[0])
