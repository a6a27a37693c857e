"""The k smallest scores of rows and of columns in blocks of targets, compiled and by torch's selection."""

import pytest
import torch
from problems import interleave, processor

from fastsdot.kernels import smallest

SAMPLES, BLOCK, ROUNDS = 1024, 256, 9


@pytest.fixture
def scores():
    def make(n):
        score = torch.randn(SAMPLES, n, generator=torch.Generator().manual_seed(0))
        return [part.contiguous() for part in score.split(BLOCK, dim=1)]

    return make


def contest(benchmark, row, monkeypatch, title, run):
    """The medians of both, once they agree."""

    def by_torch():
        with monkeypatch.context() as patch:
            patch.setattr(smallest, "compiled", lambda score: None)
            return run()

    assert all(map(torch.equal, run(), by_torch()))
    runs = {"fastsdot": run, "torch": by_torch}
    for name, median in benchmark.pedantic(interleave, (runs, ROUNDS, processor), rounds=1).items():
        row(title, name, median)


@pytest.mark.parametrize("k", [16, 64, 256])
@pytest.mark.parametrize("n", [1797, 16_384])
def test_topk(benchmark, row, monkeypatch, scores, n, k):
    blocks = scores(n)
    title = f"{k} smallest of {n:,}, {SAMPLES:,} rows"
    contest(benchmark, row, monkeypatch, title, lambda: smallest.topk(lambda j, _: blocks[j // BLOCK], n, BLOCK, k))


@pytest.mark.parametrize("k", [2, 8])
@pytest.mark.parametrize("n", [1797, 16_384])
def test_columns(benchmark, row, monkeypatch, scores, n, k):
    blocks = scores(n)
    low = torch.stack([block.amin(1) for block in blocks]).amin(0)

    def run():
        least = torch.full((k, n), torch.inf)
        for j, block in enumerate(blocks):
            smallest.fold_columns(least, j * BLOCK, block, low)
        return least[-1:]

    contest(benchmark, row, monkeypatch, f"{k} smallest margins of each of {n:,}, {SAMPLES:,} rows", run)
