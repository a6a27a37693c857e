"""Draws from the softmax: the generator, the noise, the race on every backend, and the law of what is drawn."""

import math

import numpy as np
import pytest
import torch
from compare import reference, regret, tolerance
from kernel_cases import FORMS, D, cases, every_case, lattice, need, problem
from scipy import stats

from fastsdot.kernels import argmin, gemm, naive, numba_lp, numba_race, philox, prepare, sample

three_forms = pytest.mark.parametrize(("backend", "form"), cases("inner", "l1", "callable"))
SEED = torch.tensor(2024)

# Random123's known answers for philox4x32 with 10 rounds: counter, key, words.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([philox.MASK] * 4, [philox.MASK] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_generator_gives_the_published_words(counter, key, words):
    found = philox.philox(*(tuple(map(torch.tensor, numbers)) for numbers in (counter, key)))
    assert [int(word) for word in found] == words


@pytest.mark.parametrize("first", [0, 2**32 - 3, 2**40])
@pytest.mark.parametrize("seed", [0, -1, 2**62 + 5])
def test_compiled_noise_is_the_definition(first, seed):
    noise = philox.gumbel(torch.tensor(seed), 5, first, first + 7)
    key = np.uint64(seed & philox.MASK), np.uint64(seed >> 32 & philox.MASK)
    compiled = [[numba_race.gumbel(i, first + j, key) for j in range(7)] for i in range(5)]
    torch.testing.assert_close(noise, torch.tensor(compiled, dtype=torch.float64), rtol=1e-14, atol=1e-14)
    assert noise.unique().numel() == noise.numel()


def test_the_noise_is_right_to_both_ends():
    """U = 2⁻⁶⁵ and 1 − 2⁻⁶⁵."""
    words = torch.tensor([0, philox.MASK])
    ends = torch.tensor([65 * math.log(2), -math.log(65 * math.log(2))], dtype=torch.float64)
    torch.testing.assert_close(philox.to_gumbel(words, words), ends)
    assert ends[0] < philox.LARGEST


def test_noise_is_gumbel_and_seeds_rows_and_targets_are_independent():
    noise = philox.gumbel(SEED, 64, 0, 4096)
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    others = philox.gumbel(SEED + 1, 64, 0, 4096), noise.roll(1, 0), noise.roll(1, 1), noise.roll(2, 0)
    for other in others:
        correlation = torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 4 / noise.numel() ** 0.5


@pytest.mark.parametrize("n", [100_000, 10_000_000])
def test_the_winning_noise_of_many_targets_has_no_end(n):
    """max_j G_j − log n is Gumbel whatever n is; numbers of 24 bits end at 16.6."""
    rows = 400 if n < 10**6 else 4
    value, index = torch.full((rows,), torch.inf, dtype=torch.float64), torch.zeros(rows, dtype=torch.int64)
    for start in range(0, n, 2**16):
        numba_race.race(torch.zeros(rows, min(2**16, n - start)), start, 1.0, SEED, value, index)
    assert stats.kstest((-value - math.log(n)).numpy(), "gumbel_r").pvalue > 1e-3
    assert stats.kstest((index / n).numpy(), "uniform").pvalue > 1e-3


@every_case
@pytest.mark.parametrize("epsilon", [1e-3, 0.5, 1e4])
@pytest.mark.parametrize(("b", "n"), [(13, 2500), (1, 1), (2, 7001)])
def test_every_backend_draws_what_the_definition_draws(backend, form, b, n, epsilon):
    need(backend, form, "argmin", "sample", n=n)
    x, y, bias = problem(b, n)
    index = sample(x, prepare(y, form, backend), bias, epsilon, SEED)
    noisy = reference(x, y, bias, form) - epsilon * philox.gumbel(SEED, b, 0, n)
    assert index.shape == (b,)
    assert index.dtype == torch.int64
    assert (regret(noisy, index) <= 2 * tolerance(x, y, bias, form)).all()


def test_keops_refuses_with_a_reason():
    need("keops", FORMS["l1"], "argmin")
    x, y, bias = problem()
    with pytest.raises(ValueError, match="no integers to draw random numbers with"):
        sample(x, prepare(y, FORMS["l1"], "keops"), bias, 0.5, 0)


@pytest.mark.parametrize(("backend", "form"), cases("inner", "l1", "callable", without="keops"))
@pytest.mark.parametrize("epsilon", [0.02, 1.0])
def test_blocks_parts_and_threads_change_no_draw(backend, form, epsilon, monkeypatch):
    need(backend, form, "argmin", "sample")
    x, y, bias = lattice(n=5000)
    targets = prepare(y, form, backend)
    first = sample(x, targets, bias, epsilon, SEED)
    threads = torch.get_num_threads()
    settings = [(1, 2**12, 1, 64, 7), (2, 2**15, 2**25, 512, 50), (3, 2**10, 1, 1024, 9)]
    try:
        for count, scores, products, chunk, width in settings:
            torch.set_num_threads(count)
            monkeypatch.setattr(gemm, "BLOCK_SCORES", scores)
            monkeypatch.setattr(gemm, "PART_PRODUCTS", products)
            monkeypatch.setattr(gemm, "BLOCK", width)
            monkeypatch.setattr(numba_lp, "SCORES", 20 * chunk)
            monkeypatch.setattr(numba_race, "TASK_SCORES", chunk)
            assert torch.equal(sample(x, targets, bias, epsilon, SEED), first)
    finally:
        torch.set_num_threads(threads)


def test_the_race_in_torch_is_the_compiled_one(monkeypatch):
    x, y, bias = lattice(n=3000)
    targets = prepare(y, FORMS["inner"], "gemm")
    compiled = sample(x, targets, bias, 0.5, SEED)
    monkeypatch.setattr(philox, "find_spec", lambda name: None)
    assert philox.compiled_race(x.device) is philox.race
    assert torch.equal(sample(x, targets, bias, 0.5, SEED), compiled)


@three_forms
def test_laws_of_the_bias(backend, form):
    need(backend, form, "argmin", "sample")
    x, y, bias = lattice(n=3000)
    targets = prepare(y, form, backend)
    index = sample(x, targets, bias, 0.5, SEED)
    assert torch.equal(sample(x, targets, bias + 8, 0.5, SEED), index)  # a constant moves nothing
    bias[: int(index.max())] = torch.inf
    left = sample(x, targets, bias, 0.5, SEED)
    assert (left >= index.max()).all()
    kept = index == index.max()
    assert torch.equal(left[kept], index[kept])  # taking others away does not change a winner
    bias[:] = torch.inf
    bias[1234] = 5.0
    assert (sample(x, targets, bias, 0.5, SEED) == 1234).all()


@three_forms
def test_without_temperature_the_best_is_drawn(backend, form):
    need(backend, form, "argmin", "sample")
    x, y, bias = problem(n=2500)
    targets = prepare(y, form, backend)
    assert torch.equal(sample(x, targets, bias, 1e-30, SEED), argmin(x, targets, bias)[1])


@pytest.mark.parametrize(("backend", "form"), cases("inner", "l1", without="keops"))
def test_frequencies_are_those_of_the_softmax(backend, form):
    need(backend, form, "argmin", "sample")
    draws = 20_000
    x, y, bias = problem(1, 60)
    index = sample(x.expand(draws, D), prepare(y, form, backend), bias, 2.0, SEED)
    p = torch.softmax(reference(x, y, bias, form)[0] / -2.0, 0)
    assert chi_square(torch.bincount(index, minlength=60), draws * p) > 1e-3
    pairs = torch.bincount((index[::2] % 3) * 3 + index[1::2] % 3, minlength=9).view(3, 3)  # rows that share a counter
    assert stats.chi2_contingency(pairs.numpy()).pvalue > 1e-3


def chi_square(count, expected):
    """p-value; cells of few expected draws are put together."""
    rare = expected < 10
    count, expected = (torch.cat([t[~rare], t[rare].sum()[None]]).double() for t in (count, expected))
    found = expected > 0
    assert (count[~found] == 0).all()
    return stats.chi2.sf(float(((count - expected).square() / expected)[found].sum()), int(found.sum()) - 1)


def test_another_seed_draws_others():
    x, y, bias = problem(200, 500)
    targets = prepare(y, FORMS["inner"])
    first, again, other = (sample(x, targets, bias, 5.0, seed) for seed in (1, torch.tensor(1), 2))
    assert torch.equal(first, again)
    assert (first == other).float().mean() < 0.1


@three_forms
def test_an_empty_batch_draws_nothing(backend, form):
    need(backend, form, "argmin", "sample")
    _, y, bias = problem()
    assert torch.equal(sample(torch.empty(0, D), prepare(y, form, backend), bias, 0.5, 0), torch.empty(0).long())


@pytest.mark.parametrize(("backend", "form"), cases("inner", "l1", "callable", without="keops"))
def test_the_operator_obeys_the_rules_of_torch_library(backend, form):
    need(backend, form, "argmin", "sample")
    x, y, bias = problem(4, 60)
    layout = prepare(y, form, backend).layouts[backend]
    torch.library.opcheck(torch.ops.fastsdot.sample.default, (x, layout, bias, SEED, backend, form.key, 0.5))


@pytest.mark.parametrize("name", ["inner", "l1", "callable"])
def test_scores_are_never_all_in_memory(name, monkeypatch):
    x, y, bias = problem(64, 100_000)
    sizes = []

    def race(score, *rest):
        sizes.append(score.untyped_storage().nbytes())
        return numba_race.race(score, *rest)

    monkeypatch.setattr(philox, "compiled_race", lambda device: race)
    sample(x, prepare(y, FORMS[name], "gemm"), bias, 0.5, SEED)
    assert max(sizes) < x.shape[0] * y.shape[0] * 4 / 16


def test_the_definition_is_the_argmin_of_noisy_scores():
    x, y, bias = problem(6, 50)
    form = FORMS["l1"]
    noisy = reference(x, y, bias, form) - 0.5 * philox.gumbel(SEED, 6, 0, 50)
    assert torch.equal(naive.sample(x.double(), [y.double()], bias.double(), form, 0.5, SEED), noisy.argmin(1))
