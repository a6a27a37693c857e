"""Targets that come, go and change weight: what stays keeps its assignments, what enters wins about its mass."""

import numpy as np
import pytest
import torch

from fastsdot import InvalidArgument, SemiDiscreteOT
from fastsdot.storage import Storage
from fastsdot.views import Joined, Picked

COSTS = ["sqeuclidean", "l1", "dot"]


def normal(n, *shape, seed):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def noise(shape, seed=1):
    random = torch.Generator().manual_seed(seed)
    return lambda n: torch.randn(n, *shape, generator=random)


def solved(cost="sqeuclidean", n=60, shape=(20,), seed=0, **options):
    ot = SemiDiscreteOT(normal(n, *shape, seed=seed), cost=cost, **options)
    ot.solve(noise(shape), tol=0.1)
    return ot


@pytest.fixture(scope="module")
def ot():
    return solved()


@pytest.fixture(scope="module")
def x():
    return normal(300, 20, seed=5)


def test_what_enters_wins_about_its_mass_at_once(ot):
    new = ot.add(normal(6, 20, seed=3), source=noise((20,), 2))
    report = new.evaluate(noise((20,), 4), 20_000)
    torch.testing.assert_close(new.weights, torch.full((66,), 1 / 66))
    assert report.mass[60:].sum() == pytest.approx(6 / 66, rel=0.5)
    assert report.chi2 < 0.25  # 7 with a potential of 0
    blind = ot.add(normal(6, 20, seed=3)).evaluate(noise((20,), 4), 20_000)
    assert blind.mass[60:].sum() < 0.3


@pytest.mark.parametrize("cost", COSTS)
def test_the_level_is_the_quantile_of_the_margin(cost):
    ot = SemiDiscreteOT(normal(50, 20, seed=0), cost=cost)
    ot.potential.copy_(normal(50, seed=1))
    y, samples = normal(3, 20, seed=2), normal(10**5, 20, seed=3)
    new = ot.add(y, weights=[0.1, 0.25, 0.0], source=iterate(samples))
    # Each is told from its first wins/b samples, of which it is to win 16.
    for j, n in ((0, 160), (1, 64)):
        x = samples[:n]
        margin = ot.cost(x, y[j]) - ot.c_transform(x)
        torch.testing.assert_close(new.potential[50 + j], margin.sort().values[15], rtol=1e-4, atol=1e-4)


def iterate(samples):
    place = 0

    def source(n):
        nonlocal place
        place += n
        return samples[place - n : place]

    return source


def test_an_entropic_level_is_sinkhorns_update():
    ot = SemiDiscreteOT(normal(50, 5, seed=0), epsilon=0.5)
    ot.potential.copy_(normal(50, seed=1))
    y, drawn = normal(2, 5, seed=2), []
    random = torch.Generator().manual_seed(3)

    def source(n):
        drawn.append(torch.randn(n, 5, generator=random))
        return drawn[-1]

    new = ot.add(y, source=source)
    x = torch.cat(drawn).double()
    exponent = (ot.c_transform(x.float()).double()[:, None] - ot.cost(x[:, None], y.double()[None])) / 0.5
    expected = -0.5 * (torch.logsumexp(exponent, 0) - np.log(len(x)))
    torch.testing.assert_close(new.potential[50:].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("source", [None, noise((20,), 7)])
def test_copies_of_old_targets_change_no_transport(cost, source, x):
    ot = solved(cost)
    new = ot.add(ot.targets[5:15], torch.full((10,), 1e-3), source=source)
    torch.testing.assert_close(new.transport(x), ot.transport(x))
    if source is not None:
        torch.testing.assert_close(new.potential[60:], ot.potential[5:15], rtol=1e-3, atol=1e-3)


def test_adding_and_removing_gives_the_same_assignments(ot, x):
    there = ot.add(normal(30, 20, seed=3), weights=torch.rand(30) / 60, source=noise((20,), 2))
    back = there.remove(range(60, 90))
    assert torch.equal(back.assign(x), ot.assign(x))
    torch.testing.assert_close(back.weights, ot.weights)
    assert torch.equal(back.potential, ot.potential)


def test_weight_zero_is_removal(ot, x):
    gone = torch.arange(60) % 4 == 0
    lighter, fewer = ot.reweight((~gone).float()), ot.remove(gone)
    assert torch.equal(torch.arange(60)[~gone][fewer.assign(x)], lighter.assign(x))
    assert torch.equal(fewer.assign(x), ot.remove(gone.nonzero().squeeze(1)).assign(x))
    assert torch.equal(lighter.reweight(None).assign(x), ot.assign(x))


def test_a_weight_that_was_zero_enters_at_its_level():
    weights = torch.ones(60)
    weights[:5] = 0
    ot = solved(weights=weights)
    ot.potential[:5] = 99.0
    new = ot.reweight(None, source=noise((20,), 3))
    assert new.evaluate(noise((20,), 4), 20_000).chi2 < 0.3


def test_the_old_transport_stays_as_it_was(ot, x):
    index, potential, weights = ot.assign(x), ot.potential.clone(), ot.weights.clone()
    other = ot.reweight(torch.arange(60.0))
    assert other.targets is ot.targets
    assert other._kernel is ot._kernel
    other.solve(20, max_samples=5_000)
    other.double()
    assert torch.equal(ot.assign(x), index)
    assert torch.equal(ot.potential, potential)
    assert torch.equal(ot.weights, weights)


def test_a_solve_goes_on_from_the_carried_potential(ot):
    new = ot.add(normal(3, 20, seed=3), source=noise((20,), 2))
    solution = new.solve(noise((20,), 3), tol=0.3)
    assert solution.converged
    assert len(solution.history) == 1  # at the first check


def test_without_a_solve_there_is_nothing_to_carry():
    new = SemiDiscreteOT(normal(10, 3, seed=0)).add(normal(2, 3, seed=1), source=3)
    assert not new.potential.any()


def test_retarget_permutes_adds_and_removes(ot, x):
    origin = torch.cat([torch.arange(60).flip(0)[:50], torch.tensor([-1, -1])])
    y = torch.cat([ot.targets[origin[:50]], normal(2, 20, seed=9)])
    new = ot.retarget(y, origin, source=noise((20,), 2))
    assert torch.equal(new.potential[:50], ot.potential[origin[:50]])
    direct = ot.remove(range(10)).add(y[50:])
    assert torch.equal(direct.weights.sort().values, new.weights.sort().values)
    old = new.assign(x) < 50
    torch.testing.assert_close(new.transport(x)[old], ot.remove(range(10)).transport(x)[old])


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_targets_in_blocks_change_as_those_in_memory_do(tmp_path, dtype):
    random = np.random.default_rng(0)
    array = random.integers(0, 256, (80, 4, 5)).astype(dtype)
    np.save(tmp_path / "y.npy", array)
    mapped = np.load(tmp_path / "y.npy", mmap_mode="r")
    ot, there = (SemiDiscreteOT(y[:60], cost="l1", memory=memory) for y, memory in ((mapped, 500), (array, None)))
    potential = torch.from_numpy(random.normal(size=60)).float()
    x = torch.from_numpy(random.normal(size=(50, 4, 5))).float() * (255 if dtype == np.float32 else 1)
    for each in (ot, there):
        each.potential.copy_(potential)
    gone = random.permutation(60)[:20]

    def changed(ot, y):
        return ot.remove(gone).add(y, source=noise((4, 5), 3)).remove([0, 45])

    one, other = changed(ot, mapped[60:]), changed(there, array[60:])
    assert isinstance(one.targets, Storage)
    assert isinstance(other.targets, torch.Tensor)
    torch.testing.assert_close(one.potential, other.potential, rtol=1e-4, atol=1e-2)
    one.potential.copy_(other.potential)
    assert torch.equal(one.assign(x), other.assign(x))
    assert torch.equal(one.transport(x), other.transport(x))


def test_views_read_what_they_stand_for():
    from fastsdot.storage import HostRows

    a, b = torch.arange(20.0).reshape(10, 2), torch.arange(6.0).reshape(3, 2) - 50
    whole, joined = torch.cat([a, b]), Joined([HostRows(a), HostRows(b)])
    index = torch.tensor([3, 4, 5, 12, 0, 10, 11, 0])
    picked = Picked(joined, index)
    for start in range(8):
        for stop in range(start, 9):
            assert torch.equal(joined.read(start, stop), whole[start:stop])
            assert torch.equal(picked.read(start, stop), whole[index[start:stop]])
    assert torch.equal(joined.gather(index), whole[index])
    assert torch.equal(picked.gather(torch.tensor([7, 1])), whole[index[[7, 1]]])


def test_what_was_changed_saves_and_loads(ot, x, tmp_path):
    new = ot.add(normal(3, 20, seed=3), source=noise((20,), 2))
    new.save(tmp_path / "ot")
    assert torch.equal(SemiDiscreteOT.load(tmp_path / "ot", new.targets).assign(x), new.assign(x))
    with pytest.raises(InvalidArgument, match="targets: expected those the file was saved for"):
        SemiDiscreteOT.load(tmp_path / "ot", new.targets.flip(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ot: ot.add(torch.zeros(2, 3)), r"targets: expected shape \[K, 20\], received \[2, 3\]"),
        (lambda ot: ot.add(torch.zeros(2, 20, dtype=torch.uint8)), "targets: expected torch.float32, like the old"),
        (lambda ot: ot.add(torch.full((2, 20), torch.nan)), "targets: expected finite values"),
        (lambda ot: ot.add(torch.zeros(2, 20), [0.5, 0.5]), "weights: expected shape .2., values ≥ 0 of sum below 1"),
        (lambda ot: ot.add(torch.zeros(2, 20), [0.5]), "weights: expected shape .2., values"),
        (lambda ot: ot.remove([60]), "index: expected integers from 0 to 59"),
        (lambda ot: ot.remove([0.5]), "index: expected integers from 0 to 59"),
        (lambda ot: ot.remove(range(60)), "index: expected some targets of positive weight to remain"),
        (lambda ot: ot.reweight(torch.ones(59)), r"weights: expected shape \[60\]"),
        (lambda ot: ot.reweight(torch.zeros(60)), "weights: expected values ≥ 0 with a sum above 0"),
        (lambda ot: ot.retarget(ot.targets[:, 1:], range(60)), r"targets: expected shape \[K, 20\]"),
        (lambda ot: ot.retarget([[0.0]], [0]), "targets: expected a Tensor"),
        (lambda ot: ot.retarget(ot.targets, range(61)), "origin: expected integers from −1 to 59"),
        (lambda ot: ot.retarget(ot.targets, range(1, 61)), "origin: expected integers from −1 to 59"),
    ],
)
def test_changes_that_cannot_be_made_are_named(ot, change, message):
    with pytest.raises(InvalidArgument, match=message):
        change(ot)
