"""l1 between images and samples that differ little, those of an untrained generator, once potentials are levelled."""

from unittest.mock import patch

import pytest
import torch
from problems import interleave
from target_sets import FASHION

from fastsdot.data import load, pixels
from fastsdot.kernels import Form, numba_lp, screen, screen_low
from fastsdot.networks import mlp

L1, N, D, ROUNDS = Form("power"), 60_000, 784, 5
BY_THE_TARGETS = patch.object(screen, "RECODED", torch.inf)


def untrained(y, std=0.02):
    """2 048 samples, and the biases that level the mean scores of the first 256."""
    torch.manual_seed(0)
    x = mlp(32, (D,), std=std).requires_grad_(False)(torch.randn(2048, 32))
    return x, -torch.cat([L1.pairwise(x[:256], part).mean(0) for part in y.split(1000)])


@pytest.fixture(scope="module")
def problem():
    """Targets in bytes, most of them black."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 256, (N, D), generator=g) * (torch.rand(N, D, generator=g) > 0.7) / 127.5 - 1
    return y, *untrained(y)


@pytest.mark.parametrize("b", [64, 256, 2048])
def test_argmin(benchmark, row, problem, b):
    y, x, bias = problem
    layout, floats = screen.prepare(y, L1), numba_lp.prepare(y, L1)

    def by_their_own():
        return screen.certify(x[:b], layout, bias, L1)

    by_the_targets = BY_THE_TARGETS(by_their_own)
    assert all(map(torch.equal, by_their_own()[:2], by_the_targets()[:2]))
    runs = {
        "fastsdot": by_their_own,
        "the targets' codes": by_the_targets,
        "float32": lambda: numba_lp.argmin(x[:b], floats, bias, L1),
    }
    for name, median in benchmark.pedantic(interleave, (runs, ROUNDS), rounds=1).items():
        row(f"l1, {b:,} nearly equal samples, {N:,} × {D}", name, median)


@pytest.mark.skipif(not FASHION.is_file(), reason="Debian's dataset-fashion-mnist is not installed")
@pytest.mark.parametrize("std", [0.02, None], ids=["networks.mlp", "torch's initialisation"])
def test_targets_left(benchmark, row, std):
    """How many of 60 000 the bounds leave to 256 fresh samples, and how often the best estimate is the argmin."""
    y = pixels(load(FASHION).images).flatten(1)
    x, bias = untrained(y, std)
    layout = screen.prepare(y, L1)

    def left():
        _, index, count = screen.certify(x[256:512], layout, bias, L1)
        agrees = (screen_low.argmin(x[256:512], layout, bias, L1)[1] == index[:, 0]).double().mean()
        count = count.double()
        median, mean, most = count.median(), count.mean(), count.max()
        return f"median {median:g}, mean {mean:.1f}, most {most:g} of {N:,} left; agrees {agrees:.1%}"

    title = f"Fashion-MNIST, tanh, std={std}"
    row(title, "their own codes", benchmark.pedantic(left, rounds=1))
    row(title, "the targets' codes", BY_THE_TARGETS(left)())
