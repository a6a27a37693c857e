"""The CPU's screen in bytes: how many targets its bounds leave to be scored in float64, and its time beside float32.

Fashion-MNIST comes from Debian's package dataset-fashion-mnist; tests of it are skipped where it is not installed.
"levelled" takes the mean cost of each target for its potential, as the start of a solve does. Times are the
processor's, of one thread, which other work disturbs less.
"""

from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from problems import interleave, levels, processor
from target_sets import FASHION, Files, targets
from torch import nn

from fastsdot.costs import make_cost
from fastsdot.kernels import gemm, numba_lp, screen, screen_inner, screen_low
from fastsdot.networks import mlp

COSTS = ("sqeuclidean", "l1")
LEVELLING, ROUNDS = 256, 5
FLOATS = {"inner": gemm, "power": numba_lp}
WITHOUT = {
    "": lambda run: run,
    ", m = 0": patch.object(screen_inner, "CENTRED", torch.inf),
    ", on the targets' grid": patch.object(screen, "RECODED", torch.inf),
}
fashion = pytest.mark.skipif(not FASHION.is_file(), reason="Debian's dataset-fashion-mnist is not installed")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def images():
    return targets("fashion", 60_000, Files(None, Path()))


def near(noise):
    return lambda n: images()[torch.randint(60_000, (n,))] + noise * torch.randn(n, 784)


def untrained(make):
    return lambda n: make().requires_grad_(False)(torch.randn(n, 32))


def perceptron():
    return nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 784), nn.Sigmoid())


IMAGES, NOISE, SIGMOID = "images + 0.1 N(0, I)", "N(0, I)", "untrained perceptron, sigmoid"
TANH, MLP = "networks.mlp, torch's init", "networks.mlp"
SAMPLES = {
    IMAGES: near(0.1),
    "images + N(0, I)": near(1.0),
    NOISE: lambda n: torch.randn(n, 784),
    SIGMOID: lambda n: 2 * untrained(perceptron)(n) - 1,
    TANH: untrained(lambda: mlp(32, (784,), std=None)),
    MLP: untrained(lambda: mlp(32, (784,))),
}
LEFT = [(cost, name, False, "") for cost in COSTS for name in SAMPLES if name not in (TANH, MLP)]
LEFT += [(cost, name, True, "") for cost in COSTS for name in SAMPLES]
LEFT += [("sqeuclidean", name, True, ", m = 0") for name in (SIGMOID, TANH, MLP)]
LEFT += [("l1", name, True, ", on the targets' grid") for name in (TANH, MLP)]


class Screened:
    """A batch of samples [B, D] and targets [N, D] as the screen and float32 kernels see them."""

    def __init__(self, cost, x, y, levelled=False):
        cost = make_cost(cost)
        found = cost.embed_targets(y)
        self.form, self.x, self.bias = found.form, cost.embed(x, found.centre), found.column
        if levelled:
            some, self.x = self.x.split([LEVELLING, len(x) - LEVELLING])
            self.bias = levels(self.form, some, found.y)
        self.codes = screen.prepare(found.y, self.form)
        self.kernel = FLOATS[self.form.kind]
        self.floats = self.kernel.prepare(found.y, self.form)

    def certify(self, k=1):
        return screen.certify(self.x, self.codes, self.bias, self.form, k)

    def float32(self):
        return self.kernel.argmin(self.x, self.floats, self.bias, self.form)

    def faster(self):
        """Float32's time over the screen's, once they agree."""
        value, found = self.float32()[0], self.certify()[0][:, 0]
        assert (value - found).abs().max() <= 1e-4 * value.abs().max()
        seconds = interleave({"screen": self.certify, "float32": self.float32}, ROUNDS, processor)
        return f"{seconds['float32'] / seconds['screen']:.2f} × faster than float32, {1e3 * seconds['screen']:.1f} ms"


@fashion
@pytest.mark.parametrize(("cost", "name", "levelled", "without"), LEFT)
def test_left(benchmark, row, cost, name, levelled, without):
    problem = Screened(cost, SAMPLES[name](256 + LEVELLING * levelled), images(), levelled)

    def left():
        _, index, count = problem.certify()
        low = screen_low.argmin(problem.x, problem.codes, problem.bias, problem.form)[1]
        count, agrees = count.double(), (low == index[:, 0]).double().mean()
        return f"median {count.median():g}, mean {count.mean():.1f}, most {count.max():g}; agrees {agrees:.1%}"

    kind = f"{name}{', levelled' if levelled else ''}{without}"
    row(f"{cost}: of 60,000 images left to 256 samples", kind, benchmark.pedantic(WITHOUT[without](left), rounds=1))


@fashion
@pytest.mark.parametrize("n", [60_000, 5_000])
@pytest.mark.parametrize("name", [NOISE, IMAGES])
@pytest.mark.parametrize("cost", COSTS)
def test_topk(benchmark, row, cost, name, n):
    problem = Screened(cost, SAMPLES[name](1024 + LEVELLING), images()[:n], levelled=True)
    counts = {k: problem.certify(k)[2].double().mean() for k in (2, 16, 64)}
    runs = {k: lambda k=k: problem.certify(k) for k in (1, *counts)}
    seconds = benchmark.pedantic(interleave, (runs, 3, processor), rounds=1)
    for k, count in counts.items():
        found = f"{count:.1f} left, {seconds[k] / seconds[1]:.2f} of the argmin's {1e3 * seconds[1]:.0f} ms"
        row(f"{cost}, {n:,} images, 1,024 samples", f"{name}, k = {k}", found)


@fashion
@pytest.mark.parametrize("b", [1, 16, 64, 256])
@pytest.mark.parametrize("cost", COSTS)
def test_images(benchmark, row, cost, b):
    problem = Screened(cost, SAMPLES[NOISE](b), images())
    row(f"{cost}, 60,000 images, N(0, I)", f"B = {b}", benchmark.pedantic(problem.faster, rounds=1))


@pytest.mark.parametrize("b", [1, 16, 64, 256])
@pytest.mark.parametrize(
    ("n", "d"), [*((60_000, d) for d in (8, 12, 24, 64, 128)), (1000, 64), (1797, 64), (1000, 784)]
)
def test_gaussian(benchmark, row, n, d, b):
    problem = Screened("l1", torch.randn(b, d), torch.randn(n, d))
    row(f"l1, Gaussian, N = {n:,}, D = {d}", f"B = {b}", benchmark.pedantic(problem.faster, rounds=1))


@pytest.mark.parametrize("b", [1, 64])
def test_equal(benchmark, row, b):
    """Targets that no bound can separate."""
    problem = Screened("sqeuclidean", torch.randn(b, 784), torch.randn(784).expand(60_000, -1).contiguous())
    row("sqeuclidean, 60,000 equal targets, D = 784", f"B = {b}", benchmark.pedantic(problem.faster, rounds=1))


def clusters(n, d):
    return torch.randn(10, d)[torch.randint(10, (n,))] + 10 ** (torch.rand(n, 1) * 2 - 3) * torch.randn(n, d)


TAILS = {
    "Laplace": lambda *shape: torch.distributions.Laplace(0.0, 1.0).sample(shape),
    "log-normal": lambda *shape: torch.randn(shape).exp(),
    "Student's t, 3 degrees": lambda *shape: torch.distributions.StudentT(3.0).sample(shape),
    "ten clusters": clusters,
    "scales, σ = 1": lambda n, d: torch.randn(n, d) * torch.randn(d).exp(),
    "scales, σ = 2": lambda n, d: torch.randn(n, d) * (2 * torch.randn(d)).exp(),
    "Cauchy": lambda *shape: torch.distributions.Cauchy(0.0, 1.0).sample(shape),
}


@pytest.mark.parametrize("kind", TAILS)
@pytest.mark.parametrize("cost", COSTS)
def test_tails(benchmark, row, cost, kind):
    both = TAILS[kind](20_000 + 32 + LEVELLING, 784)
    problem = Screened(cost, both[20_000:].clone(), both[:20_000].clone(), levelled=True)
    told = "suits" if screen.told_apart(problem.codes[0], problem.form) else "does not suit"
    found = f"{benchmark.pedantic(problem.faster, rounds=1)}; {told}"
    row(f"{cost}, N = 20,000, D = 784, B = 32, levelled", kind, found)
