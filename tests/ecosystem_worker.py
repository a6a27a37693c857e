"""What every rank runs in test_ecosystem: `torchrun ecosystem_worker.py FOLDER CASE …`; cases raise where they fail."""

import pytest
import spawned
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from fastsdot import (
    ConditionalOT,
    InvalidArgument,
    Precision,
    RunError,
    SemiDiscreteOT,
    SourceError,
    Stop,
    fit,
    train,
)
from fastsdot.fit import draw_pairs, take
from fastsdot.losses import Refresh, TransportLoss
from fastsdot.sources import EveryRank, Gaussian, Pushforward

RANDOM = torch.Generator().manual_seed(0)
TARGETS = torch.randn(60, 3, generator=RANDOM) + 2


def network():
    """The same weights on every rank, and a layer whose buffers DistributedDataParallel sends around."""
    torch.manual_seed(7)
    net = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    torch.manual_seed(dist.get_rank())
    return net


def sharded():
    net, mesh = network(), init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (net[0], net[3]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def agree(value):
    found = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(found, value.detach())
    return all(torch.equal(value, other) for other in found)


def alternate(generator, **options):
    """`train` with the targets in two shards."""
    few = {"cost": "sqeuclidean", "rounds": 3, "steps": 20, "batch_size": 64, "max_samples": 4000}
    return train(generator, TARGETS, 4, **(few | {"group": dist.group.WORLD, "shards": 2} | options))


def descend(generator, ot, source, steps=30):
    """The loop of a user: W(ψ) descended, the potential refreshed; the W of every refresh."""
    seen, loss = [], TransportLoss(ot)
    refresh = Refresh(ot, source, every=15, max_samples=6000, log=lambda row: seen.append(row["transport/w"]))
    optimizer = torch.optim.Adam(generator.parameters(), lr=3e-3)
    for _ in range(steps):
        refresh.step()
        optimizer.zero_grad()
        loss(generator(torch.randn(64, 4))).backward()
        optimizer.step()
    assert len(seen) == 2
    assert seen[1] < 0.8 * seen[0]
    assert agree(ot.potential)
    assert bool(ot.potential.any())


def ddp(folder):
    """Ranks that solve for themselves agree, and so do those that solve together; T is each rank's own."""
    for group in (None, dist.group.WORLD):
        generator = DistributedDataParallel(network())
        ot = SemiDiscreteOT(TARGETS, group=group)
        source = Pushforward(generator, Gaussian(4))
        descend(generator, ot, source if group else EveryRank(source))
        assert agree(next(generator.parameters()))
        fitted = fit(generator, ot, 4, steps=40, batch_size=64)
        assert fitted.loss < 0.8 * fitted.losses[0]
        assert agree(next(generator.parameters()))


def apart(folder):
    """With a group, each rank's own batch goes where one process would send it, in copies and in shards."""
    alone, z = SemiDiscreteOT(TARGETS), torch.randn(16, 3)
    alone.potential.copy_(torch.randn(60, generator=RANDOM))
    for shards in (1, 2):
        ot = SemiDiscreteOT(TARGETS, group=dist.group.WORLD, shards=shards)
        ot.potential.copy_(alone.potential)
        x, y = z.clone().requires_grad_(), z.clone().requires_grad_()
        mine, reference = TransportLoss(ot)(x), TransportLoss(alone)(y)
        torch.testing.assert_close(mine, reference)
        for a, b in zip(torch.autograd.grad(mine, x), torch.autograd.grad(reference, y), strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(TransportLoss(ot)(z, z), TransportLoss(alone)(z, z))
        latent, index = draw_pairs(Pushforward(nn.Identity(), lambda n: z[:n]), ot, 16)
        assert torch.equal(index, alone.assign(latent))
        assert torch.equal(take(ot, index), alone.transport(latent))


def fsdp(folder):
    """A generator in shards: solved for by samples of every rank, trained by the loss and by FIT on stored pairs."""
    for group in (None, dist.group.WORLD):
        generator, ot = sharded(), SemiDiscreteOT(TARGETS, group=group)
        source = EveryRank(Pushforward(generator, Gaussian(4)))
        descend(generator, ot, source)
    before = ot.solve(source.source, max_samples=6000).report.dual
    with pytest.raises(InvalidArgument, match=r"one in shards \(FSDP\); give replay="):
        fit(generator, ot, 4)
    fit(generator, ot, 4, steps=60, batch_size=64, replay=5)
    assert ot.solve(source, max_samples=6000).report.dual < 0.8 * before
    assert agree(ot.potential)


def plain(folder):
    """A `Pushforward` of a generator in shards is drawn from on every rank without being told; no call waits."""
    for generator in (sharded(), FullyShardedDataParallel(network(), device_id=torch.device("cpu"))):
        for group in (None, dist.group.WORLD):
            ot = SemiDiscreteOT(TARGETS, group=group)
            source = Pushforward(generator, Gaussian(4))
            assert ot.solve(source, tol=0.5).report.chi2 < 0.6
            assert agree(ot.potential)
            ot.evaluate(source, samples=1000)
            assert agree(torch.tensor(ot.bracket(source, samples=1000).lower))
        labels = torch.arange(60) % 2
        by_class = ConditionalOT(TARGETS, labels)
        by_class.solve(Pushforward(generator, Gaussian(4)), tol=0.5)
        assert agree(by_class[1].potential)


def tensors(folder):
    """Tensor parallelism runs on the same latents everywhere: refused where rank 0 would wait, and possible without."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    net = parallelize_module(network(), mesh, {"0": ColwiseParallel(output_layouts=Replicate())})
    alike = torch.Generator().manual_seed(3)
    source = Pushforward(net, lambda n: torch.randn(n, 4, generator=alike))
    with pytest.raises(SourceError, match="parameters that are DTensors; leave group= out"):
        SemiDiscreteOT(TARGETS, group=dist.group.WORLD).solve(source)
    ot = SemiDiscreteOT(TARGETS)
    ot.solve(source, tol=0.5)
    assert agree(ot.potential)


def alternation(folder):
    """`train` over ranks: W falls, all end with one generator and potential, and a resumed run is the whole one."""

    def run(seed=0, dtype=torch.float32, **options):
        generator = DistributedDataParallel(network().to(dtype))
        torch.manual_seed(10 * seed + dist.get_rank())
        return alternate(generator, **options)

    whole = run()
    run(out=folder / "run", callback=lambda state: dist.get_rank() == 0 and state.round == 1)
    resumed = run(seed=9, out=folder / "run", resume=True)
    for result in (whole, resumed):
        w = [row["w"] for row in result.history]
        assert len(w) == 4
        assert w[-1] < 0.7 * w[0]
        for value in (result.ot.potential, *result.generator.parameters()):
            assert agree(value)
    assert torch.equal(whole.ot.potential, resumed.ot.potential)
    for a, b in zip(whole.generator.parameters(), resumed.generator.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RunError, match=r"a run with {'ranks': None}, received one with {'ranks': 2}"):
        run(out=folder / "run", resume=True, group=None, shards=None)
    slow = run(precision=Precision(alpha=0.4, ot1=5.0, tries=1), steps=1, dtype=torch.bfloat16)
    assert slow.stop is Stop.PROGRESS
    in_shards = alternate(sharded(), replay=5, callback=lambda state: dist.get_rank() == 0 and state.round == 1)
    assert in_shards.stop is Stop.CALLBACK
    assert in_shards.history[1]["w"] < 0.9 * in_shards.history[0]["w"]
    for generator, options, message in (
        (network(), {}, "generator: expected one that the ranks train together, received Sequential; wrap it"),
        (sharded(), {}, "replay: expected a number for a generator in shards"),
        (sharded(), {"replay": 5, "out": folder}, "out: expected None for a generator in shards"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            alternate(generator, **options)


def seeds(folder):
    """Ranks that would draw the same samples are told so; a source of one point is not."""
    same, ot = torch.Generator().manual_seed(1), SemiDiscreteOT(TARGETS)
    with pytest.raises(SourceError, match="the same on ranks 0 and 1; seed every rank differently"):
        ot.solve(EveryRank(lambda n: torch.randn(n, 3, generator=same)))
    assert EveryRank(lambda n: torch.ones(n, 3))(5).shape == (5, 3)
    x = EveryRank(lambda n: torch.randn(n, 3))(7)
    assert x.shape == (7, 3)
    assert agree(x)


def lightning(folder):
    """Under Lightning's DDP the potentials agree, and the targets are not sent at every step."""
    from ecosystem_module import Callback, Module, make_trainer, transport

    class Sent(Callback):
        def on_train_start(self, trainer, pl_module):
            self.shapes = [buffer.shape for buffer in trainer.model.modules_buffers]

    module, sent = Module(TARGETS), Sent()
    trainer = make_trainer(folder, transport(module), sent, strategy="ddp", devices=2, max_steps=20)
    trainer.fit(module, torch.utils.data.DataLoader(torch.randn(1280, 4), batch_size=32))
    assert sent.shapes == [(60,), (60,)]  # weights and potential
    assert agree(module.loss.ot.potential)
    assert agree(next(module.generator.parameters()))


if __name__ == "__main__":
    spawned.main(globals(), 60)
