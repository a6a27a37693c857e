"""What a step asks of torch, as a GPU would see it: no result that the host waits for, and few operators."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fastsdot import SemiDiscreteOT, kernels, stages
from fastsdot.errors import SourceError
from fastsdot.stages import Sampler, Stage

WAITS = {"_local_scalar_dense", "bincount", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}
N, D, BATCH = 300, 5, 64
MOST = 21  # operators of a step besides its kernel, views included


class Seen(TorchDispatchMode):
    """The names of operators, and of those that read what a mask selects."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function._schema.name.split("::")[1]
        if name in ("index", "index_put_"):
            masks = [i for i in arguments[1] if i is not None and i.dtype == torch.bool]
            name = "nonzero" if masks else name
        self.names[name] += 1
        return function(*arguments, **options or {})


@pytest.fixture
def started(monkeypatch):
    """A transport with an ascent, and a sampler as on a GPU; kernels are not looked into."""

    def apart(*arguments):
        with _disable_current_modes():
            return topk(*arguments)

    topk = kernels.topk
    monkeypatch.setattr(kernels, "topk", apart)
    ot = SemiDiscreteOT(torch.randn(N, D))
    ot.solve(D, max_samples=600)
    sampler = Sampler(ot, D)
    sampler.later = True
    return ot, sampler


def test_a_step_waits_for_nothing_and_asks_little(started):
    ot, sampler = started
    stage = Stage(ot, 4.0)
    stage.add(sampler(BATCH))
    with torch.no_grad(), Seen() as seen:
        stage.add(sampler(BATCH))
    assert seen.names.keys() & WAITS == set()
    assert seen.names.total() <= MOST, seen.names
    with Seen() as seen:
        stage.found.report()
    assert seen.names["_local_scalar_dense"] > 0  # the test sees waits where there are some


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_samples_that_are_looked_at_later_are_refused_all_the_same(monkeypatch, bad):
    made, calls = stages.Sampler.__init__, []

    def later(self, *arguments, **options):
        made(self, *arguments, **options)
        self.later = True

    def source(n):
        calls.append(n)
        x = torch.rand(n, 2)
        if len(calls) == 40:
            x[-1, 1] = bad
        return x

    monkeypatch.setattr(stages.Sampler, "__init__", later)
    ot = SemiDiscreteOT(torch.rand(40, 2))
    with pytest.raises(SourceError, match="source: expected finite values, received NaN or infinite ones in"):
        ot.solve(source, tol=1e-9)
    assert torch.isfinite(ot.potential).all()
    assert ot.potential.abs().max() > 0
    calls.clear()
    with pytest.raises(SourceError, match="finite"):
        ot.evaluate(source, 10_000, batch_size=100)
