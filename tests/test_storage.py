"""Targets read in blocks give what the same targets give in memory, and a file that fails says so."""

import copy
import os
import pickle
import threading

import numpy as np
import pytest
import torch

from fastsdot import DataError, InvalidArgument, SemiDiscreteOT, storage
from fastsdot.kernels import streaming
from fastsdot.storage import fingerprint
from fastsdot.views import Picked

COSTS = [("sqeuclidean", None), ("euclidean", None), ("l1", None), ("lp", 1.5), ("dot", None), ("cosine", None)]
N, SHAPE = 600, (4, 6)
BLOCKED = 100_000  # bytes of layouts: blocks of 130 targets


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (N, *SHAPE), dtype=np.uint8)


@pytest.fixture
def mapped(images, tmp_path):
    np.save(tmp_path / "y.npy", images)
    return np.load(tmp_path / "y.npy", mmap_mode="r")


def pair(images, blocked, **options):
    """The transport in memory and in blocks, with the same potential, and samples."""
    random = torch.Generator().manual_seed(0)
    psi = 0.1 * torch.randn(len(images), generator=random)
    whole, parts = SemiDiscreteOT(images, **options), SemiDiscreteOT(blocked, memory=BLOCKED, **options)
    for ot in (whole, parts):
        ot.potential.copy_(psi)
    assert isinstance(parts.targets, storage.Storage)
    assert parts.targets.block < len(images) / 3
    return whole, parts, torch.rand(70, *images.shape[1:], generator=random)


def curved(x, y):
    return (x - y).abs().sum(-1) ** 2


@pytest.mark.parametrize(("cost", "p"), [*COSTS, (curved, None)])
def test_every_reduction_agrees_with_targets_in_memory(images, mapped, cost, p):
    options = {"cost": cost, "p": p, "weights": torch.arange(N) % 5, "backend": "gemm" if callable(cost) else None}
    whole, parts, x = pair(images, mapped, **options)
    assert torch.equal(parts.assign(x), whole.assign(x))
    assert torch.equal(parts.transport(x), whole.transport(x))
    for a, b in zip(parts.topk(x, 150), whole.topk(x, 150), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    for epsilon in (0.0, 0.3):
        for a, b in zip(*(ot._marginal(ot._flat(x), ot.potential, epsilon) for ot in (parts, whole)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_equal_targets_of_different_blocks_keep_their_order(images):
    images[N // 2 :] = images[: N // 2]
    parts = SemiDiscreteOT(torch.from_numpy(images), cost="l1", epsilon=1.0, memory=BLOCKED)
    x = torch.from_numpy(images[:40]) / 255
    assert torch.equal(parts.assign(x), torch.arange(40))
    value, index = parts.topk(x, 2)
    assert torch.equal(index, torch.stack([torch.arange(40), torch.arange(40) + N // 2], 1))
    assert not value.any()


@pytest.mark.parametrize("cost", ["sqeuclidean", "l1"])
def test_a_block_in_which_no_target_can_be_chosen_has_no_mass(images, mapped, cost):
    whole, parts, x = pair(images, mapped, cost=cost, weights=torch.arange(N) >= 350, epsilon=0.3)
    (value, mass), (again, expected) = (ot._marginal(ot._flat(x), ot.potential, 0.3) for ot in (parts, whole))
    torch.testing.assert_close(value, again, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mass, expected, rtol=1e-5, atol=1e-5)
    assert not mass[:350].any()
    assert bool((parts.sample(x, torch.Generator().manual_seed(0)) >= 350).all())
    torch.testing.assert_close(parts.barycenter(x), whole.barycenter(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
@pytest.mark.parametrize("cost", ["sqeuclidean", "l1"])
def test_gradients_agree_with_targets_in_memory(images, mapped, cost, epsilon):
    found = []
    for ot in (*(both := pair(images, mapped, cost=cost, epsilon=epsilon))[:2],):
        x = both[2].clone().requires_grad_()
        ot.potential.requires_grad_()
        value = ot.c_transform(x).sum() + ot.topk(x, 3)[0].sum()
        found.append(torch.autograd.grad(value, (x, ot.potential)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
def test_stored_dtypes_are_kept_and_mean_the_same(images, tmp_path, dtype):
    images = images if dtype == np.uint8 else (images / 255).astype(dtype)
    np.save(tmp_path / "y.npy", images)
    whole, parts, x = pair(images, np.load(tmp_path / "y.npy", mmap_mode="r"), cost="l1")
    assert parts.targets.dtype == whole.targets.dtype
    assert torch.equal(parts.transport(x), whole.transport(x))
    assert storage.fingerprint(parts.targets) == storage.fingerprint(whole.targets)


def test_targets_in_host_memory_are_read_in_blocks_without_a_copy(images):
    y = torch.from_numpy(images)
    whole, parts, x = pair(images, y)
    assert parts.targets.rows.read(3, 5).data_ptr() == y[3].data_ptr()
    assert torch.equal(parts.assign(x), whole.assign(x))


def test_blocks_large_enough_for_the_screen(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (8000, 20), dtype=np.uint8)
    x = torch.rand(300, 20, generator=torch.Generator().manual_seed(1))
    whole, parts = SemiDiscreteOT(images), SemiDiscreteOT(torch.from_numpy(images), memory=8 * 80 * 1500)
    assert parts.targets.block == 1500
    assert parts.backend == whole.backend
    assert torch.equal(parts.assign(x), whole.assign(x))  # a layout of bytes is worth it for 300 rows
    assert torch.equal(parts.assign(x[:9]), whole.assign(x[:9]))  # and not for nine


@pytest.mark.parametrize("view", [slice(0, 300), slice(200, 600), slice(599, 600)], ids=str)
def test_consecutive_rows_of_a_map_are_found_in_the_file(images, mapped, view):
    for array in (mapped[view], np.asarray(mapped)[view], mapped.reshape(N, -1)[view].reshape(-1, *SHAPE)):
        stored = storage.place(array, None, 0)
        assert isinstance(stored.rows, storage.MappedRows)
        assert np.array_equal(stored.rows.read(0, len(array)).numpy(), images[view])


def test_arrays_that_are_not_rows_of_a_file_are_taken_from_memory(images, mapped):
    changed = np.load(mapped.filename, mmap_mode="c")
    changed[0] = 7
    for array in (mapped[::2], changed, np.memmap.copy(mapped)):
        stored = storage.place(array, None, 0)
        assert isinstance(stored.rows, storage.HostRows)
        assert np.array_equal(stored.rows.read(0, len(array)).numpy(), array)


def test_small_maps_are_laid_out_in_memory(mapped):
    assert isinstance(SemiDiscreteOT(mapped).targets, torch.Tensor)
    assert isinstance(SemiDiscreteOT(mapped, memory=0).targets, storage.Storage)
    with pytest.raises(InvalidArgument, match=r"memory: expected an integer above -1, received 0\.5"):
        SemiDiscreteOT(mapped, memory=0.5)


def test_one_target(mapped):
    ot = SemiDiscreteOT(mapped[:1], memory=0)
    assert ot.assign(torch.rand(5, *SHAPE)).tolist() == [0] * 5
    assert ot.solve(lambda n: torch.rand(n, *SHAPE)).converged


def test_solve_agrees_with_targets_in_memory(images, mapped):
    solutions = []
    for ot in pair(images, mapped, cost="l1")[:2]:
        random = torch.Generator().manual_seed(2)
        solutions.append(ot.solve(lambda n, r=random: torch.rand(n, *SHAPE, generator=r), max_samples=12_000))
    whole, parts = (s.report for s in solutions)
    assert solutions[0].samples == solutions[1].samples
    assert abs(whole.chi2 - parts.chi2) < 0.02 * (1 + whole.chi2)
    assert abs(whole.dual - parts.dual) < 1e-4 * abs(whole.dual)


def test_copies_and_pickles_hold_the_path_and_not_the_targets(images, mapped):
    _, parts, x = pair(images, mapped, cost="l1")
    content = pickle.dumps(parts.targets)
    assert len(content) < 2000
    for other in (copy.deepcopy(parts), pickle.loads(pickle.dumps(parts))):
        assert torch.equal(other.assign(x), parts.assign(x))


def test_save_and_load(images, mapped, tmp_path):
    whole, parts, x = pair(images, mapped, cost="l1")
    parts.save(tmp_path / "ot.safetensors")
    for targets, options in ((images, {}), (mapped, {"memory": BLOCKED})):
        back = SemiDiscreteOT.load(tmp_path / "ot.safetensors", targets, **options)
        assert torch.equal(back.assign(x), whole.assign(x))
    with pytest.raises(InvalidArgument, match="targets: expected those the file was saved for"):
        SemiDiscreteOT.load(tmp_path / "ot.safetensors", mapped[::-1], memory=0)


def test_non_finite_targets_are_found_block_by_block(tmp_path):
    y = np.zeros((N, 4), np.float32)
    y[N - 1, 2] = np.nan
    np.save(tmp_path / "y.npy", y)
    with pytest.raises(InvalidArgument, match="targets: expected finite values"):
        SemiDiscreteOT(np.load(tmp_path / "y.npy", mmap_mode="r"), memory=0)


@pytest.mark.parametrize("dtype", [np.int32, ">f4", np.complex64], ids=str)
def test_dtypes_that_cannot_be_stored_are_named(tmp_path, dtype):
    np.save(tmp_path / "y.npy", np.ones((5, 3), dtype))
    with pytest.raises(InvalidArgument, match="targets: expected float or uint8, received"):
        SemiDiscreteOT(np.load(tmp_path / "y.npy", mmap_mode="r"), memory=0)


@pytest.mark.parametrize("memory", [None, 0])
def test_a_file_cut_short_is_an_error_and_not_a_signal(mapped, memory):
    os.truncate(mapped.filename, 5000)
    with pytest.raises(DataError, match=r"targets: expected 14528 bytes of targets in .*, received 5000; the file"):
        SemiDiscreteOT(mapped, memory=memory)


def test_a_file_cut_short_later_is_an_error_from_the_thread_beside(images, mapped):
    _, parts, x = pair(images, mapped)
    os.truncate(mapped.filename, 5000)
    with pytest.raises(DataError, match="received 5000; the file was cut short"):
        parts.assign(x)
    with pytest.raises(DataError, match="received 5000; the file was cut short"):
        parts.targets[torch.tensor([N - 1])]


def test_a_missing_file_is_named(mapped):
    os.remove(mapped.filename)
    with pytest.raises(DataError, match=r"targets: expected a file that can be read, received .*y\.npy"):
        SemiDiscreteOT(mapped, memory=0)


def test_reads_that_return_little_are_continued(images, mapped, monkeypatch):
    whole, parts, x = pair(images, mapped)
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: read(file, [buffers[0][:100]], at))
    assert torch.equal(parts.assign(x), whole.assign(x))


def test_the_next_block_is_read_while_one_is_in_use():
    loaded, used = [threading.Event() for _ in range(4)], []

    def load(turn, start, stop):
        loaded[start].set()
        return start

    for i in storage.ahead(load, list(streaming.blocks(4, 1))):
        assert i == 3 or loaded[i + 1].wait(timeout=10)
        used.append(i)
    assert used == [0, 1, 2, 3]


def test_a_pass_that_ends_early_or_fails_leaves_the_next_one_whole(images, mapped):
    whole, parts, x = pair(images, mapped)
    passes = parts.targets.blocks(storage.flat)
    next(passes)
    passes.close()
    read = parts.targets.rows.read

    def broken(start, stop):
        if start:
            raise OSError("unplugged")
        return read(start, stop)

    parts.targets.rows.read = broken
    with pytest.raises(OSError, match="unplugged"):
        parts.assign(x)
    parts.targets.rows.read = read
    assert torch.equal(parts.assign(x), whole.assign(x))


def test_passes_of_several_threads_do_not_disturb_each_other(images, mapped):
    whole, parts, x = pair(images, mapped)
    found = {}

    def run(i):
        found[i] = parts.assign(x[i::4])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], whole.assign(x[i::4])) for i in range(4))


@pytest.mark.parametrize("cost", ["sqeuclidean", "l1"])
def test_blocks_that_are_where_they_are_wanted_are_laid_out_there(images, cost, monkeypatch):
    there = storage.Storage(storage.DeviceRows(torch.from_numpy(images)), torch.device("cpu"), BLOCKED)
    monkeypatch.setattr(storage, "HostStage", None)
    whole, parts, x = pair(images, there, cost=cost)
    for a, b in zip(parts.topk(x, 150), whole.topk(x, 150), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    index = torch.tensor([5, 2, 2])
    assert torch.equal(there[index], torch.from_numpy(images)[index])
    assert torch.equal(Picked(there.rows, index).read(0, 3), torch.from_numpy(images)[index])


def test_a_default_dtype_of_float64_changes_nothing():
    y, x = torch.randn(60, 3), torch.randn(9, 3)
    torch.set_default_dtype(torch.float64)
    try:
        for cost in ("sqeuclidean", "l1"):
            ot = SemiDiscreteOT(y, cost=cost, memory=0)
            assert torch.equal(ot.assign(x), SemiDiscreteOT(y, cost=cost).assign(x))
            ot.solve(3, max_samples=500)
            assert ot.bracket(3, 500).lower > 0
    finally:
        torch.set_default_dtype(torch.float32)


def test_fingerprints_of_more_targets_than_float32_counts():
    y = torch.zeros(2**24 + 4, 1, dtype=torch.uint8)
    before = fingerprint(y)
    y[-1] = 1
    assert fingerprint(y) != before
