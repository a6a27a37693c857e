"""A thread that solves while training uses the coupling."""

import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader

from fastsdot import InvalidArgument, Reason, SemiDiscreteOT
from fastsdot.background import Background, twin
from fastsdot.conditional import ConditionalOT
from fastsdot.conditional_coupling import ConditionalCoupling
from fastsdot.couplings import CoupledBatches, Coupling

N = 300
TARGETS = torch.randn(N, 5, generator=torch.Generator().manual_seed(0)) + 1


def coupling(**options):
    return Coupling(SemiDiscreteOT(TARGETS, **options))


def noise(n):
    return torch.randn(n, 5)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastsdot-background")]


def test_training_gets_a_solved_coupling_without_waiting():
    pairs, seen = coupling(), []
    before = pairs.ot.evaluate(noise, 20_000).chi2
    with Background(pairs, noise, tol=0.05) as background:
        while not background.solution:
            psi = pairs.ot.potential
            pairs(noise(64))
            seen.append(psi is not pairs.ot.potential)
            time.sleep(0.01)  # the rest of a training step
        pairs(noise(64))
    assert background.solution.converged
    assert 0 < sum(seen) <= background.refreshes < len(seen)
    after = pairs.ot.evaluate(noise, 20_000)
    assert after.chi2 - 3 * after.chi2_error < 0.05 < before
    assert pairs.background is None
    assert not threads()


def test_a_batch_sees_one_potential_and_each_is_a_whole_one():
    pairs = coupling()
    with Background(pairs, noise, tol=0.02) as background:
        background.wait()
        assert abs(float(pairs.ot.potential.mean())) < 1e-4  # settled: Σ b ψ = 0
        kept = pairs.ot.potential
        pairs(noise(8))
        assert pairs.ot.potential is kept


def test_leaving_the_block_stops_a_solve_within_a_step():
    pairs = coupling()
    with Background(pairs, noise, tol=1e-6, max_samples=10**9):
        time.sleep(0.3)
        leaving = time.perf_counter()
    assert time.perf_counter() - leaving < 5
    assert not threads()


def test_an_error_in_the_thread_is_raised_at_the_next_batch():
    def broken(n):
        raise ZeroDivisionError("the user's source")

    pairs = coupling()

    def train():
        with Background(pairs, broken):
            for _ in range(1000):
                pairs(noise(8))
                time.sleep(0.01)
            pytest.fail("it went unseen")

    with pytest.raises(ZeroDivisionError, match="the user's source"):
        train()
    assert pairs.background is None
    pairs(noise(8))


def test_an_error_that_no_batch_met_is_raised_at_the_end():
    reached = threading.Event()

    def broken(n):
        reached.set()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Background(coupling(), broken):
        reached.wait()


def test_an_error_of_the_block_is_not_hidden():
    with pytest.raises(KeyError), Background(coupling(), noise, tol=1e-6, max_samples=10**9):
        raise KeyError


def test_a_source_that_moves_is_followed():
    shift = torch.zeros(5)
    pairs = Coupling(SemiDiscreteOT(TARGETS[:50]))
    with Background(pairs, lambda n: noise(n) + shift, every=0.01, tol=0.1) as background:
        while not background.refreshes:
            pairs(noise(8))
            time.sleep(0.01)
        moved = shift + 2
        stale = chi2 = pairs.ot.evaluate(lambda n: noise(n) + moved, 4_000).chi2
        shift = moved
        deadline = time.monotonic() + 30
        while chi2 > 0.15 and time.monotonic() < deadline:
            time.sleep(0.1)
            pairs(noise(8))
            chi2 = pairs.ot.evaluate(lambda n: noise(n) + moved, 4_000).chi2
    assert chi2 <= 0.15 < stale


def test_workers_start_with_the_newest_potential():
    pairs = coupling()
    loader = DataLoader(CoupledBatches(pairs, 16, batches=4), batch_size=None, num_workers=2)
    with Background(pairs, noise, tol=0.05) as background:
        for _ in range(2):
            background.refresh()
            potential = pairs.ot.potential.clone()
            for x0, _, _, index in loader:
                assert torch.equal(index, pairs.ot.assign(x0))
            assert torch.equal(pairs.ot.potential, potential)
            background.wait()
    assert background.refreshes > 0


def test_progress_and_callback_are_the_users_too():
    steps, rows = [], []
    with Background(
        coupling(), noise, progress=steps.append, callback=lambda row: rows.append(row) or True
    ) as background:
        background.wait()
    assert background.solution.reason == Reason.CALLBACK
    assert len(rows) == 1
    assert steps


@pytest.mark.parametrize("unconditional", [False, True])
def test_each_class_gets_its_own_potential(unconditional):
    pairs = ConditionalCoupling(ConditionalOT(TARGETS, torch.arange(N) % 3, unconditional=unconditional))
    labels = pairs.ot.classes + [None] * unconditional
    before = pairs.ot.evaluate(noise, 5_000)
    shared = [pairs.ot[label].targets for label in labels]
    with Background(pairs, noise, tol=0.1) as background:
        while not background.solution:
            pairs(noise(64), y=torch.arange(64) % 3)
            time.sleep(0.01)
    assert background.solution.converged
    assert background.refreshes >= len(labels)
    after = pairs.ot.evaluate(noise, 5_000)
    assert all(after.classes[label].chi2 < 0.5 * before.classes[label].chi2 for label in labels)
    assert all(pairs.ot[label].targets is own for label, own in zip(labels, shared, strict=True))


def test_a_twin_shares_all_but_its_potential():
    ot = SemiDiscreteOT(TARGETS, epsilon=0.5)
    ot.solve(noise, max_samples=5_000)
    before, lists = ot.potential.clone(), ot.ascent.candidates
    other = twin(ot)
    assert other.targets is ot.targets
    assert other._kernel is ot._kernel
    assert other.ascent.candidates is lists
    other.solve(lambda n: noise(n) + 1, max_samples=5_000)
    assert torch.equal(ot.potential, before)
    assert not torch.equal(other.potential, before)
    assert ot.ascent.candidates is lists


def test_one_background_at_a_time():
    pairs = coupling()
    with Background(pairs, noise), pytest.raises(InvalidArgument, match="background"), Background(pairs, noise):
        pass
    with pytest.raises(InvalidArgument, match="every"):
        Background(pairs, noise, every=0)
