"""l1 between images and samples that differ little, those of an untrained generator, once potentials are levelled."""

from unittest.mock import patch

import pytest
import torch
from problems import interleave, levels

from fastsdot.kernels import Form, numba_lp, screen
from fastsdot.networks import mlp

L1, N, D, ROUNDS = Form("power"), 60_000, 784, 5
BY_THE_TARGETS = patch.object(screen, "RECODED", torch.inf)


@pytest.fixture(scope="module")
def problem():
    """Targets in bytes, most of them black, samples, and biases that level the mean scores of 256 of them."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 256, (N, D), generator=g) * (torch.rand(N, D, generator=g) > 0.7) / 127.5 - 1
    torch.manual_seed(0)
    x = mlp(32, (D,)).requires_grad_(False)(torch.randn(2048, 32))
    return y, x, levels(L1, x[:256], y)


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
