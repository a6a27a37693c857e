"""Streams of coupled batches: the same for any number of workers, another for every rank, worker and epoch."""

import pickle
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes
from torch.utils.data import DataLoader

from fastsdot import InvalidArgument, SemiDiscreteOT
from fastsdot.couplings import CoupledBatches, Coupling

N, SHAPE, BATCH = 100, (2, 3), 8
RANDOM = torch.Generator().manual_seed(0)
TARGETS = torch.randn(N, *SHAPE, generator=RANDOM)
LABELS = torch.randint(10, (N,), generator=RANDOM)


def uniform(n, generator):
    return torch.rand(n, *SHAPE, generator=generator)


def batches(epsilon=0.0, labels=LABELS, **options):
    return CoupledBatches(Coupling(SemiDiscreteOT(TARGETS, epsilon=epsilon), labels), BATCH, **options)


def noise(dataset, seed=0, take=None, **options):
    """The noise of one epoch, [batches, B, *shape]."""
    loader = DataLoader(dataset, batch_size=None, generator=torch.Generator().manual_seed(seed), **options)
    return torch.stack([x0 for x0, *_ in islice(loader, take)])


def distinct(*epochs):
    rows = torch.cat([epoch.reshape(-1, *SHAPE) for epoch in epochs])
    return len(rows.unique(dim=0)) == len(rows)


def test_a_batch_is_noise_target_label_and_index():
    dataset = batches()
    for x0, x1, label, index in islice(DataLoader(dataset, batch_size=None), 3):
        assert x0.shape == (BATCH, *SHAPE)
        assert torch.equal(index, dataset.coupling.ot.assign(x0))
        assert torch.equal(x1, TARGETS[index])
        assert torch.equal(label, LABELS[index])
    assert next(iter(batches(labels=None)))[2] is None


def test_any_number_of_workers_gives_the_same_batches_in_the_same_order():
    one, two = (noise(batches(batches=7), num_workers=workers) for workers in (1, 2))
    assert one.shape[0] == 7
    assert torch.equal(one, two)
    assert distinct(one)


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}])
def test_seeds_repeat_a_run_and_epochs_do_not_repeat_each_other(options):
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        loader = DataLoader(batches(batches=3), batch_size=None, **options)
        runs.append([torch.stack([x0 for x0, *_ in loader]) for _ in range(2)])
    assert distinct(*runs[0])
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_draws_from_the_plan_are_seeded_too():
    def index(seed):
        loader = DataLoader(
            batches(2.0, batches=3), batch_size=None, num_workers=1, generator=torch.Generator().manual_seed(seed)
        )
        return torch.stack([batch[3] for batch in loader])

    assert torch.equal(index(1), index(1))
    assert not torch.equal(index(1), index(2))


def test_noise_of_the_users_own():
    x0 = noise(batches(noise=uniform), take=4)
    assert ((x0 >= 0) & (x0 < 1)).all()


def test_lengths_are_those_of_the_loader():
    assert len(DataLoader(batches(batches=7), batch_size=None, num_workers=2)) == 7
    with pytest.raises(TypeError, match="endless"):
        len(batches())
    for wrong in (0, 2.5):
        with pytest.raises(InvalidArgument, match="batches"):
            batches(batches=wrong)


def test_ranks_draw_different_noise_in_workers_too(tmp_path):
    start_processes(rank_main, (tmp_path,), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for where in ("main", "worker", "sent"):
        assert distinct(first[where], second[where])
    for rank in (first, second):
        assert torch.equal(rank["worker"], rank["sent"])


def rank_main(rank: int, folder: Path) -> None:
    """The seeds are equal, as a training script sets them."""
    torch.set_num_threads(1)
    dataset = batches(batches=2)  # made before torch.distributed is initialised
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {"main": noise(dataset), "worker": noise(dataset, num_workers=1)}
    sent = pickle.dumps(dataset)
    dist.destroy_process_group()
    found["sent"] = noise(pickle.loads(sent), num_workers=1)  # a process that was not forked has only this
    torch.save(found, folder / f"{rank}.pt")
