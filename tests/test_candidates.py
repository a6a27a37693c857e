"""The semi-dual over lists against the semi-dual over all targets."""

import math

import pytest
import torch

from fastsdot import SemiDiscreteOT, kernels, stages
from fastsdot.candidates import Candidates, listed

N, K, B = 60, 24, 200


def problem(weights=None):
    torch.manual_seed(0)
    ot = SemiDiscreteOT(torch.randn(N, 3), cost="l1", weights=weights)
    ot.potential.copy_(0.1 * torch.randn(N))
    return ot, torch.randn(B, 3)


def candidates(ot, x, k):
    found = Candidates(ot.weights)
    bias = ot._bias(ot.potential)
    found.add([listed(part, ot._kernel, bias, k) for part in x.split(64)], ot.potential, 2**20)
    return found


def dense(ot, x, psi, temperature):
    cost = torch.cdist(x.double(), ot.targets.double(), p=1)
    z = (psi - cost) / temperature + ot.weights.double().log()
    value = -temperature * torch.logsumexp(z, 1).mean() + ot.weights.double() @ psi
    return float(value), ot.weights.double() - z.softmax(1).mean(0)


@pytest.mark.parametrize("weights", [None, torch.linspace(0, 3, N)])
@pytest.mark.parametrize("k", [K, N])
def test_value_differences_and_gradients_are_those_of_all_targets(k, weights):
    ot, x = problem(weights)
    found = candidates(ot, x, k)
    start = ot.potential.double()
    other = start + 0.05 * torch.randn(N).double()
    values = [found(psi, 0.05)[0] for psi in (start, other)]
    truth = [dense(ot, x, psi, 0.05) for psi in (start, other)]
    assert values[1] - values[0] == pytest.approx(truth[1][0] - truth[0][0], abs=1e-5)
    torch.testing.assert_close(found(other, 0.05)[1], truth[1][1], rtol=0, atol=1e-5)


def test_lists_made_at_several_potentials_agree():
    ot, x = problem()
    whole = candidates(ot, x, K)
    parts = Candidates(ot.weights)
    for part in x.split(50):
        ot.potential.copy_(ot.potential + 0.02 * torch.randn(N))
        parts.add([listed(part, ot._kernel, ot._bias(ot.potential), K)], ot.potential, 2**20)
    psi = ot.potential.double()
    torch.testing.assert_close(parts(psi, 0.05)[1], whole(psi, 0.05)[1], rtol=0, atol=1e-5)


def test_the_oldest_lists_make_way():
    ot, x = problem()
    found = Candidates(ot.weights)
    for part in x.split(50):
        found.add([listed(part, ot._kernel, ot._bias(ot.potential), K)], ot.potential, 120 * K)
    assert found.samples == 100


def test_perplexity_runs_from_one_to_all_and_temperature_inverts_it():
    ot, x = problem()
    found, psi = candidates(ot, x, N), ot.potential.double()
    assert found.perplexity(psi, 1e-6) == pytest.approx(1, abs=1e-3)
    assert found.perplexity(psi, 1e6) == pytest.approx(N, rel=1e-3)
    assert found.perplexity(psi, found.temperature(psi, 4.0, 1e3)) == pytest.approx(4, rel=1e-3)


def test_the_unsmoothed_dual_is_the_mean_of_the_smallest():
    ot, x = problem()
    found, psi = candidates(ot, x, K), ot.potential.double()
    other = psi + 0.02 * torch.randn(N).double()
    change = float((found.dual(other) - found.dual(psi)).mean())
    cost = torch.cdist(x.double(), ot.targets.double(), p=1)
    truth = [float((cost - p).amin(1).mean() + ot.weights.double() @ p) for p in (psi, other)]
    assert change == pytest.approx(truth[1] - truth[0], abs=1e-5)


@pytest.mark.parametrize("weights", [None, torch.linspace(0, 3, N)])
def test_what_lists_win_is_what_targets_win(weights):
    ot, x = problem(weights)
    found, psi = candidates(ot, x, K), ot.potential.double() + 0.02 * torch.randn(N).double()
    found.add([listed(x[:90], ot._kernel, ot._bias(ot.potential), K)], ot.potential, 2**20)
    cost = (torch.cdist(x.double(), ot.targets.double(), p=1) - psi).masked_fill(ot.weights == 0, math.inf)
    mass = torch.bincount(cost[[*range(B), *range(90)]].argmin(1), minlength=N).double() / (B + 90)
    torch.testing.assert_close(found.masses(psi, 0), mass, rtol=0, atol=1.5 / B)  # a near tie in float32 at most
    b, over = ot.weights.double(), torch.arange(N) % 3 != 1
    truth = sum(float((b[j] - mass[j]) ** 2 / b[j]) for j in range(N) if over[j] and b[j] > 0)
    assert found.misfit(mass, over) == pytest.approx(truth, rel=1e-9)


def test_reach_is_half_the_width_of_the_lists_that_a_target_is_in():
    ot, x = problem()
    found = candidates(ot, x[:1], K)
    part = found.parts[0]
    assert found.reach()[part.index[0].long()] == pytest.approx(float(part.score[0, -1]) / 2)
    assert candidates(ot, x, N).reach().min() == math.inf


@pytest.mark.parametrize("wins", [12, 30])
def test_margins_are_the_rises_at_which_a_target_wins_so_many_rows(wins):
    ot, x = problem()
    bias = ot._bias(ot.potential)
    low = kernels.argmin(x, ot._kernel, bias)[0]
    rise, mean = kernels.margins(x, ot._kernel, bias, low, wins)
    every = torch.stack([kernels.margins(x, ot._kernel, bias, low, k)[0] for k in range(1, wins + 1)])
    torch.testing.assert_close(mean, every.mean(0))
    for j in (0, 17, 59):
        won = []
        for factor in (0.9999, 1.0001):
            moved = bias.clone()
            moved[j] -= factor * rise[j]
            won.append(int((kernels.argmin(x, ot._kernel, moved)[1] == j).sum()))
        assert won[0] < wins <= won[1]  # l1 ties rows


def test_lists_of_many_targets_have_more_room_up_to_a_limit():
    cpu = torch.device("cpu")
    assert [stages.room(n, cpu) for n in (10, 2**16, 2**17, 10**7)] == [2**26, 2**26, 2**27, 2**28]
