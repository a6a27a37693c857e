"""FIT: any module, loss and optimizer; fresh pairs and replay; what it refuses."""

from importlib import import_module
from itertools import count

import pytest
import torch
from test_waits import WAITS, Seen
from torch import nn

from fastsdot import InvalidArgument, SemiDiscreteOT, SourceError, fit
from fastsdot.fit import stored_pairs
from fastsdot.networks import mlp
from fastsdot.sources import Gaussian, Pushforward


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def transport():
    return SemiDiscreteOT(0.9 * torch.tensor([[-1.0, -1.0], [1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]]), cost="l1")


@pytest.mark.parametrize("options", [{}, {"replay": 4}, {"perturbation": 0.05}])
def test_the_generator_moves_onto_the_targets(options):
    ot, generator = transport(), mlp(4, (2,), (64,), std=None)
    before = ot.evaluate(Pushforward(generator, Gaussian(4)), 4096).primal
    fitted = fit(generator, ot, 4, steps=200, batch_size=128, **options)
    assert len(fitted.losses) == 200
    assert fitted.loss < 0.5 * before
    assert ot.evaluate(Pushforward(generator, Gaussian(4)), 4096).primal < 0.5 * before


def test_the_target_is_the_map_of_the_generator_as_it_was():
    """With T∘g fixed, mean-squared regression has one answer per latent; the map of the moving g would have another."""
    ot = SemiDiscreteOT(torch.tensor([[0.0], [10.0]]))
    generator = nn.Linear(1, 1, bias=False)
    nn.init.constant_(generator.weight, 4.0)
    z = torch.tensor([[1.0], [2.0]])  # g(z) = 4 and 8: T = 0 and 10; least squares: w = 2·10 / 5 = 4

    def latent(n):
        return z[:n]

    fit(generator, ot, latent, steps=300, batch_size=2, optimizer=torch.optim.SGD(generator.parameters(), lr=0.05))
    assert generator.weight.item() == pytest.approx(4.0, abs=1e-3)


def test_a_loss_and_an_optimizer_of_the_users():
    ot, generator = transport(), mlp(4, (2,), (64,), std=None)
    seen = []

    def loss(x, y):
        seen.append((x.shape, y.shape))
        return (x - y).square().mean()

    optimizer = torch.optim.SGD(generator.parameters(), lr=0.1)
    fitted = fit(generator, ot, 4, steps=20, batch_size=8, loss=loss, optimizer=optimizer)
    assert set(seen) == {((8, 2), (8, 2))}
    assert fitted.loss < fitted.losses[0]


@pytest.mark.parametrize("together", [1, 7])
def test_a_loss_that_is_not_finite_is_refused_with_its_step(monkeypatch, together):
    monkeypatch.setattr(import_module("fastsdot.fit"), "together", lambda device: together)
    ot, generator, calls = transport(), mlp(4, (2,), (8,), std=None), count(1)

    def loss(x, y):
        return (x - y).square().mean() * (torch.nan if next(calls) == 12 else 1)

    with pytest.raises(SourceError, match="loss: expected a finite value, received nan at step 12"):
        fit(generator, ot, 4, steps=20, batch_size=8, loss=loss)


def test_losses_that_are_looked_at_together_are_the_same_and_wait_less(monkeypatch):
    ot, found, looks = transport(), [], []
    for together in (1, 8):
        monkeypatch.setattr(import_module("fastsdot.fit"), "together", lambda device, most=together: most)
        torch.manual_seed(0)
        generator, told = mlp(4, (2,), (8,), std=None), []
        optimizer = torch.optim.SGD(generator.parameters(), lr=0.1)
        with Seen() as seen:
            fitted = fit(generator, ot, 4, steps=20, batch_size=8, replay=2, optimizer=optimizer, progress=told.append)
        found.append(fitted.losses)
        looks.append(seen.names["stack"])
        assert sum(seen.names[name] for name in WAITS) <= 6  # of the stored pairs
        known = [event.values.get("loss") for event in told]
        assert [event.done for event in told] == [*range(1, 21)]
        assert known[together - 1 :: together] == fitted.losses[together - 1 :: together]
    assert found[0] == found[1]
    assert known[: together - 1] == [None] * 7
    assert len(found[0]) == 20
    assert looks == [20, 3]


def test_the_default_loss_is_the_cost_over_all_axes():
    ot = SemiDiscreteOT(torch.zeros(1, 2, 3), cost="l1")
    generator = nn.Unflatten(1, (2, 3))
    generator.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    fitted = fit(generator, ot, lambda n: torch.ones(n, 6, requires_grad=True), steps=1, batch_size=4)
    assert fitted.losses == [6.0]


def test_replayed_pairs_are_the_stored_ones():
    ot, generator = transport(), mlp(4, (2,), (8,), std=None)
    pairs = stored_pairs(Pushforward(generator, Gaussian(4)), ot, 16, 3)
    first = [next(pairs) for _ in range(3)]
    second = [next(pairs) for _ in range(3)]
    assert {id(z) for z, _ in first} == {id(z) for z, _ in second}
    for z, y in first:
        assert torch.equal(y, ot.transport(generator(z).detach()))


def test_other_modules_than_the_papers():
    generator = nn.Sequential(
        nn.Unflatten(1, (2, 1, 1)),
        nn.ConvTranspose2d(2, 4, 4),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 1),
        nn.Tanh(),
    )
    ot = SemiDiscreteOT(torch.rand(10, 3, 4, 4), cost="sqeuclidean")
    assert fit(generator, ot, 2, steps=30, batch_size=32).loss < 48


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, InvalidArgument, "steps: expected an integer above 0"),
        ({"batch_size": 0}, InvalidArgument, "batch_size: expected an integer above 0"),
        ({"replay": 0}, InvalidArgument, "replay: expected an integer above 0"),
        ({"perturbation": -0.1}, InvalidArgument, "perturbation: expected a finite number of at least 0"),
        ({"latent": "noise"}, InvalidArgument, "latent: expected a callable"),
        (
            {"loss": lambda x, y: x.sum() * float("nan")},
            SourceError,
            "loss: expected a finite value, received nan at step 1",
        ),
        (
            {"generator": mlp(4, (3,), (8,))},
            SourceError,
            r"source: expected shape \(512, 2\), received shape \(512, 3\)",
        ),
    ],
)
def test_unusable_arguments_are_named(options, error, message):
    arguments = {"generator": mlp(4, (2,), (8,)), "latent": 4, "steps": 3} | options
    with pytest.raises(error, match=message):
        fit(arguments.pop("generator"), transport(), arguments.pop("latent"), **arguments)
