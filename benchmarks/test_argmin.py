"""The argmin over all targets: every contestant on every problem, checked before it is timed."""

import time

import pytest
from contestants import CONTESTANTS, OURS, AbsentError
from problems import LARGE, LOW, Problem, interleave

SECONDS = 1.5  # of timing for each contestant and problem, two rounds at least


def short(problem: Problem) -> str:
    return f"{problem.cost}-D{problem.d}-B{problem.b}"


def contest(problem: Problem, name: str):
    """The checked and warm function, and the seconds that its last call took."""
    run = CONTESTANTS[name](problem)
    problem.check(run())
    start = time.perf_counter()
    run()
    return run, time.perf_counter() - start


@pytest.mark.parametrize("name", CONTESTANTS)
@pytest.mark.parametrize("problem", [*LARGE, *LOW], ids=short)
def test_argmin(benchmark, row, problem, name):
    benchmark.group = str(problem)
    try:
        run, seconds = contest(problem, name)
    except AbsentError as reason:
        row(problem, name, str(reason))
        pytest.skip(str(reason))
    benchmark.pedantic(run, rounds=max(2, min(30, int(SECONDS / seconds))))
    row(problem, name, benchmark.stats.stats.median)
    benchmark.extra_info |= {"coordinates_per_second": problem.b * problem.n * problem.d / benchmark.stats.stats.median}


# (problem, peer, the ratio that is claimed, the ratio below which something is broken)
CLAIMS = [
    (Problem("l1", 64, 60_000, 784), "torch.cdist + argmin", 12, 4),
    (Problem("l1", 64, 60_000, 784), "FAISS", 12, 3),
    (Problem("sqeuclidean", 64, 60_000, 784), "FAISS", 5, 2),
    (Problem("sqeuclidean", 64, 60_000, 784), "scikit-learn", 5, 1.2),
    *((Problem("sqeuclidean", b, 60_000, 784), "torch.addmm + argmin", 1, 0.7) for b in (1, 16, 64, 256)),
    # the screen, where the processor has it; elsewhere these are the same
    *((Problem("sqeuclidean", b, 60_000, 784), "fastsdot[gemm]", 2, 0.7) for b in (1, 16, 64, 256, 1024)),
]


@pytest.mark.parametrize("problem", dict.fromkeys(claim[0] for claim in CLAIMS), ids=short)
def test_ratios(benchmark, row, problem):
    """Peers over fastsdot, interleaved: noise moves all alike, so the ratio is what a claim rests on."""
    claims = {peer: rest for claimed, peer, *rest in CLAIMS if claimed == problem}
    title, runs = f"{problem}, interleaved", {}
    for name in (OURS, *claims):
        try:
            runs[name] = contest(problem, name)[0]
        except AbsentError as reason:
            row(title, name, str(reason))
    medians = benchmark.pedantic(interleave, (runs, 7), rounds=1)
    for name, seconds in medians.items():
        row(title, name, seconds)
    for peer, (claim, floor) in claims.items():
        if peer in medians:
            ratio = medians[peer] / medians[OURS]
            benchmark.extra_info[f"ratio to {peer}"] = {"measured": ratio, "claimed": claim}
            assert ratio >= floor, f"{problem}: {peer} takes {ratio:.2f} times as long as fastsdot, claimed {claim}"
