"""The k smallest of rows and of columns over blocks: those of a stable sort, compiled or not."""

import pytest
import torch

from fastsdot.kernels import smallest


def blocks(score):
    return lambda start, stop: score[:, start:stop]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 3, 40])
def test_the_smallest_columns_are_those_of_a_stable_sort(dtype, k):
    g = torch.Generator().manual_seed(0)
    score = torch.randint(-3, 4, (7, 40), generator=g).to(dtype)
    score[0, 3:9], score[1, 5], score[2] = torch.inf, -torch.inf, torch.inf
    score[3, ::2] = -0.0
    score[4] = torch.randn(40, generator=g).to(dtype) * torch.finfo(dtype).tiny / 100
    expected = torch.sort(score, dim=1, stable=True)
    assert torch.equal(smallest.smallest(score, k), expected.indices[:, :k])
    for width in (1, 7, 40):
        value, index = smallest.topk(blocks(score), 40, width, k)
        assert torch.equal(index, expected.indices[:, :k])
        assert torch.equal(value, expected.values[:, :k])


@pytest.mark.parametrize("values", ["distinct", "falling", "tied"])
@pytest.mark.parametrize("k", [1, 16, 200, 2000])
def test_long_rows_fill_their_lists_many_times(values, k):
    g = torch.Generator().manual_seed(0)
    score = torch.randn(300, 2000, generator=g)
    if values == "falling":  # every score is smaller than all before it
        score = score.sort(dim=1, descending=True).values
    elif values == "tied":
        score = (2 * score).round()
    expected = torch.sort(score, dim=1, stable=True)
    for width in (256, 2000):
        value, index = smallest.topk(blocks(score), 2000, width, k)
        assert torch.equal(index, expected.indices[:, :k])
        assert torch.equal(value, expected.values[:, :k])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_columns_of_several_batches(dtype, k):
    g = torch.Generator().manual_seed(0)
    score = torch.randn(90, 70, generator=g).to(dtype)
    value = score.amin(1)
    score[:, 3] = torch.inf
    least = torch.full((k, 70), torch.inf, dtype=dtype)
    for rows in (slice(0, 50), slice(50, 90)):
        for start, stop in ((0, 33), (33, 70)):
            smallest.fold_columns(least, start, score[rows, start:stop], value[rows])
    assert torch.equal(least, (score - value[:, None]).sort(0).values[:k])
