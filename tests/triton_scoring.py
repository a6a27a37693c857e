"""What a solve asks of the kernels besides reductions, by Triton; test_triton_interpreted.py runs this file."""

import pytest
import torch
from compare import reference
from kernel_cases import FORMS, problem

from fastsdot import kernels
from fastsdot.kernels import triton_scores

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAMES = ["inner", "l1", "l3"]
every_form = pytest.mark.parametrize("form", [FORMS[name] for name in NAMES], ids=NAMES)


def assert_close(found, expected, error=1e-5):
    torch.testing.assert_close(found.double(), expected, rtol=error, atol=error)


def put(x, y, bias, form, backend="triton"):
    return x.to(DEVICE), kernels.prepare(y.to(DEVICE), form, backend), bias.to(DEVICE)


@every_form
def test_blocks_of_scores_are_the_definition(form, monkeypatch):
    monkeypatch.setattr(triton_scores, "SCORES", 1)  # blocks as narrow as can be
    x, y, bias = problem(3, 1100)
    bias[700:720] = torch.inf
    x_, targets, bias_ = put(x, y, bias, form)
    blocks = [(start, stop, score.cpu().clone()) for start, stop, score in kernels.scores(x_, targets, bias_)]
    assert [block[:2] for block in blocks] == [(0, 512), (512, 1024), (1024, 1100)]
    assert_close(torch.cat([score for *_, score in blocks], 1), reference(x, y, bias, form))


@every_form
def test_moments_are_those_of_the_definition(form):
    x, y, bias = problem(5, 70)
    score = reference(x, y, bias, form)
    mean, row, square = (r.cpu() for r in kernels.moments(*put(x, y, bias, form)))
    assert_close(mean, score.mean(0))
    assert_close(row, (score - score.mean(0)).sum(1), 1e-3)
    assert_close(square, (score - score.mean(0)).square().sum(), 1e-3)


@every_form
@pytest.mark.parametrize(("rows", "wins"), [(90, 1), (90, 5), (4, 7)])
def test_margins_are_those_of_the_definition(form, rows, wins):
    """With more wins than rows none is enough."""
    x, y, bias = problem(rows, 20)
    bias[7] = torch.inf
    score = reference(x, y, bias, form)
    low = score.amin(1)
    smallest = (score - low[:, None]).sort(0).values[:wins]
    x_, targets, bias_ = put(x, y, bias, form)
    last, mean = (r.cpu() for r in kernels.margins(x_, targets, bias_, low.float().to(DEVICE), wins))
    if rows < wins:
        assert torch.isinf(torch.cat([last, mean])).all()
    else:
        assert_close(last, smallest[-1])
        assert_close(mean, smallest.mean(0))


def test_margins_of_targets_that_come_in_blocks():
    x, y, bias = problem(50, 30, 6)
    form, low = FORMS["inner"], reference(x, y, bias, FORMS["inner"]).amin(1).float()
    whole = kernels.margins(*put(x, y, bias, form), low.to(DEVICE), 3)
    targets = kernels.in_blocks(Cut(y.to(DEVICE)), form, "triton")
    blocks = kernels.margins(x.to(DEVICE), targets, bias.to(DEVICE), low.to(DEVICE), 3)
    assert all(torch.equal(a, b) for a, b in zip(whole, blocks, strict=True))


@pytest.mark.parametrize("backend", ["triton", "triton_screen"])
def test_the_k_smallest_of_targets_that_come_in_blocks(backend, monkeypatch):
    x, y, bias = problem(3, 300, 6)
    bias[200:] -= 1.0
    monkeypatch.setattr(Cut, "block", 110)
    form, score = FORMS["inner"], reference(x, y, bias, FORMS["inner"]).float().sort(1)
    targets = kernels.in_blocks(Cut(y.to(DEVICE)), form, backend)
    value, index = (r.cpu() for r in kernels.topk(x.to(DEVICE), targets, bias.to(DEVICE), 3))
    assert torch.equal(index, score.indices[:, :3])
    assert_close(value, score.values[:, :3].double())


class Cut:
    """Targets in blocks of 11."""

    block = 11

    def __init__(self, y):
        self.y, self.n = y, len(y)

    def stream(self):
        for start in range(0, self.n, self.block):
            stop = min(start + self.block, self.n)
            yield start, stop, self.y[start:stop]

    def rows(self, index):
        return self.y[index]
