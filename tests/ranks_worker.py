"""What every rank runs in test_ranks: `torchrun ranks_worker.py FOLDER CASE …`; a case raises where it fails."""

import os
import time
from datetime import timedelta

import numpy as np
import pytest
import spawned
import torch
import torch.distributed as dist

from fastsdot import InvalidArgument, SemiDiscreteOT, SourceError
from fastsdot.errors import RankError

N, SHAPE = 301, (4, 6)
IMAGES = np.random.default_rng(0).integers(0, 256, (N, *SHAPE), dtype=np.uint8)
IMAGES[200:250] = IMAGES[:50]  # equal targets in different shards
RANDOM = torch.Generator().manual_seed(0)
PSI, X = torch.randn(N, generator=RANDOM).mul(0.1), torch.rand(37, *SHAPE, generator=RANDOM)
PSI[200:250] = PSI[:50]


def pair(shards, memory, **options):
    alone = SemiDiscreteOT(IMAGES, **options)
    together = SemiDiscreteOT(IMAGES, group=dist.group.WORLD, shards=shards, memory=memory, **options)
    for ot in (alone, together):
        ot.potential.copy_(PSI)
    return alone, together


def noise(n):
    return torch.rand(n, *SHAPE)


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def same(folder):
    """Every reduction, in shards, in copies and both, gives what one process gives."""
    size = dist.get_world_size()
    for shards, memory in dict.fromkeys([(1, None), (size, None), (2, 20_000), (None, 20_000)]):
        for cost, epsilon in (("sqeuclidean", 0.0), ("l1", 0.3), ("cosine", 0.3)):
            alone, together = pair(shards, memory, cost=cost, epsilon=epsilon)
            assert together.ranks.shards == (shards or size)
            assert torch.equal(together.atoms, alone.atoms)
            assert torch.equal(together.assign(X), alone.assign(X))
            assert torch.equal(together.transport(X), alone.transport(X))
            close(together.topk(X, 160), alone.topk(X, 160))
            for e in (0.0, 0.3):
                close(*(ot._marginal(ot._flat(X), ot.potential, e) for ot in (together, alone)))
            if epsilon:
                close([together.barycenter(X)], [alone.barycenter(X)])
                close(gradients(together), gradients(alone))


def gradients(ot):
    x = X.clone().requires_grad_()
    ot.potential.requires_grad_()
    found = torch.autograd.grad(ot.c_transform(x).sum(), (x, ot.potential))
    ot.potential.requires_grad_(False)
    return found


def solve(folder):
    """The same solve as one process with rank 0's samples, though the others have other seeds."""
    alone, together = pair(dist.get_world_size(), None, cost="l1")
    reports = []
    for ot in (together, alone):
        torch.manual_seed(dist.get_rank() if ot is together else 0)
        reports.append(ot.solve(noise, max_samples=6000).report)
    assert abs(reports[0].chi2 - reports[1].chi2) < 0.05 * (1 + reports[1].chi2)
    assert abs(reports[0].dual - reports[1].dual) < 1e-3 * abs(reports[1].dual)
    everyone = together.ranks.gather(together.potential)
    assert torch.equal(everyone, everyone[:1].expand_as(everyone))


def disagree(folder):
    """Every rank is told what differs."""
    odd, group = dist.get_rank() == 1, dist.group.WORLD
    cases = {
        "targets": (IMAGES[:-1] if odd else IMAGES, {}),
        "cost": (IMAGES, {"cost": "l1" if odd else "dot"}),
        "epsilon": (IMAGES, {"epsilon": 0.5 if odd else 0.0}),
        "weights": (IMAGES, {"weights": np.ones(N) if odd else None}),
        "shards": (IMAGES, {"shards": 1 if odd else None}),
        "targets:": (IMAGES.astype(np.float32) if odd else IMAGES, {}),
    }
    for name, (targets, options) in cases.items():
        with pytest.raises(
            InvalidArgument, match=rf"{name.strip(':')}: expected the same on every rank, received .* on"
        ):
            SemiDiscreteOT(targets, group=group, **options)
    with pytest.raises(InvalidArgument if odd else RankError, match="targets: expected a Tensor, ndarray or memmap"):
        SemiDiscreteOT([1.0] if odd else IMAGES, group=group)
    with pytest.raises(InvalidArgument, match="shards: expected a divisor of 2"):
        SemiDiscreteOT(IMAGES, group=group, shards=3)


def broken_source(folder):
    """A source that raises on rank 0 ends the solve on all."""
    _, together = pair(2, None)
    error, message = (SourceError, "shape") if dist.get_rank() == 0 else (RankError, "rank 0 could not draw")
    with pytest.raises(error, match=message):
        together.solve(lambda n: torch.rand(n, 3))


def broken_file(folder):
    """A file that rank 0 cannot write ends the call on all."""
    _, together = pair(2, None)
    error = FileNotFoundError if dist.get_rank() == 0 else RankError
    with pytest.raises(error):
        together.save(folder / "missing" / "ot")


def unreachable(folder):
    """A rank that never answers is an error within the timeout of the group."""
    _, together = pair(2, None)
    together.assign(X)  # compile
    together.ranks.group = dist.new_group(timeout=timedelta(seconds=3))
    done, clock = folder / "done", time.monotonic()
    if dist.get_rank() == 1:
        while not done.exists() and time.monotonic() - clock < 60:
            time.sleep(0.1)
        os._exit(0)
    with pytest.raises(RankError, match="rank 0 of 2: all_gather failed"):
        together.assign(X)
    assert time.monotonic() - clock < 50
    done.touch()
    os._exit(0)


def changed(folder):
    """Over ranks, targets that change carry the same potentials over as in one process; add and remove are refused."""
    inverted, origin = np.concatenate([IMAGES[30:], 255 - IMAGES[:20]]), [*range(30, N), *[-1] * 20]

    def fixed():
        random = torch.Generator().manual_seed(3)
        return lambda n: torch.rand(n, *SHAPE, generator=random)

    for shards, memory in ((1, None), (2, 20_000)):
        pairs = [pair(shards, memory)]
        pairs.append([ot.retarget(inverted, origin, source=fixed()) for ot in pairs[0]])
        pairs.append([ot.reweight(torch.arange(N) % 3) for ot in pairs[0]])
        pairs.append([ot.reweight(None, source=fixed()) for ot in pairs[2]])
        for alone, together in pairs:
            assert together.ranks.shards == shards
            close([together.potential, together.weights], [alone.potential, alone.weights])
            together.potential.copy_(alone.potential)
            assert torch.equal(together.assign(X), alone.assign(X))
        for change in (lambda ot: ot.add(IMAGES[:2]), lambda ot: ot.remove([1])):
            with pytest.raises(InvalidArgument, match=r"group: expected none, .* use retarget"):
                change(pairs[0][1])


def killed(folder):
    """Rank 1 dies in the middle of the first start; the second continues from the last save."""
    path, starts = folder / "ot.safetensors", folder / f"starts-{dist.get_rank()}"
    start = int(starts.read_text()) if starts.exists() else 0
    starts.write_text(str(start + 1))
    options = {"group": dist.group.WORLD, "shards": 2}
    ot = SemiDiscreteOT.load(path, IMAGES, **options) if path.exists() else SemiDiscreteOT(IMAGES, **options)
    fitted = ot.ascent.fitted if ot.ascent else 0
    assert (fitted > 0) == (start > 0)

    def callback(row):
        ot.save(path)
        if start == 0 and dist.get_rank() == 1 and row["fitted"] > 0:
            os.kill(os.getpid(), 9)

    solution = ot.solve(noise, max_samples=6000, callback=callback)
    assert solution.report.chi2 < 1
    (folder / f"done-{dist.get_rank()}").write_text(str(fitted))


if __name__ == "__main__":
    spawned.main(globals(), 100)
