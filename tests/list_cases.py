"""Lists of candidates, and the definition of the sums over them in float64."""

import pytest
import torch

N = 40
SHAPES = [(1, 1), (70, 1), (3, 16), (100, 16), (130, 7), (64, 33), (5, N)]  # rows, k


def problem(rows, k, seed=0):
    torch.manual_seed(seed)
    score = torch.rand(rows, k).sort(1).values
    index = torch.rand(rows, N).topk(k, 1).indices.int() if rows else torch.empty(0, k, dtype=torch.int32)
    return score, index, 0.3 * torch.randn(N)


def definition(score, index, shift, temperature):
    """Value, entropy and masses, in float64 throughout."""
    z = (shift.double()[index.long()] - score.double()) / temperature
    log = z.log_softmax(1)
    p = log.exp()
    mass = torch.zeros(N).double().index_add_(0, index.reshape(-1).long(), p.reshape(-1))
    value = temperature * float(z.logsumexp(1).sum())
    return value, -float((p * log.clamp(min=-1e300)).sum()), mass


def assert_sums(found, truth, rows, cost=1.0, atol=2e-6):
    assert found.value == pytest.approx(truth[0], abs=atol * cost * rows)
    assert found.entropy == pytest.approx(truth[1], abs=10 * atol * rows)
    torch.testing.assert_close(found.mass, truth[2], rtol=0, atol=10 * atol * max(1.0, rows**0.5))
