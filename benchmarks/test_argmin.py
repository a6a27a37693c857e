"""The argmin over all targets: every contestant on every problem, checked before it is timed."""

import time

import pytest
from contestants import CONTESTANTS, OURS, AbsentError
from problems import LARGE, LARGEST, LOW, Problem, interleave

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
PEERS = ("torch.cdist + argmin", "FAISS", "scikit-learn", "torch.compile", "fastsdot[keops]")
PRODUCTS = ("torch.addmm + argmin", "blocked torch", "fastsdot[gemm]")  # of float32
CLAIMS = [
    # the screen in bytes, where the processor has it; elsewhere these are the same
    *((Problem("sqeuclidean", b, 60_000, 784), peer, 2, 1.2) for b in (256, 1024) for peer in PRODUCTS),
    *((Problem("sqeuclidean", b, 60_000, 784), peer, 1, 0.8) for b in (1, 16, 64) for peer in PRODUCTS),
    *((Problem("l1", b, 60_000, 784), "torch.cdist + argmin", 15, 4) for b in (16, 64, 1024)),
    *(
        (Problem(cost, 1024, 60_000, d), "fastsdot[keops]", 3, 1.2)
        for cost in ("sqeuclidean", "l1")
        for d in (2, 3, 16)
    ),
]
STATED = {(problem, peer) for problem, peer, *_ in CLAIMS}
# and everyone else is slower at every shape of the table
CLAIMS += [(problem, peer, 1, 0.8) for problem in (*LARGE, *LOW) for peer in PEERS if (problem, peer) not in STATED]
CLAIMS += [
    (problem, peer, 1, 0.8)
    for problem in LARGEST  # KeOps, several hundred times slower at B = 256, would take minutes a call
    for peer in PEERS
    if (problem, peer) not in STATED and peer != "fastsdot[keops]"
]
ROUNDS, PATIENCE = 7, 20.0  # rounds of each contest, and the seconds after which no more are begun, one at least


@pytest.mark.parametrize("problem", dict.fromkeys(claim[0] for claim in CLAIMS), ids=short)
def test_ratios(benchmark, row, problem):
    """Peers over fastsdot, interleaved: noise moves all alike, so the ratio is what a claim rests on."""
    claims = {peer: rest for claimed, peer, *rest in CLAIMS if claimed == problem}
    title, runs, seconds = f"{problem}, interleaved", {}, {}
    for name in (OURS, *claims):
        try:
            runs[name], seconds[name] = contest(problem, name)
        except AbsentError as reason:
            row(title, name, str(reason))
    rounds = max(1, min(ROUNDS, int(PATIENCE / sum(seconds.values()))))
    medians = benchmark.pedantic(interleave, (runs, rounds), rounds=1)
    for name, value in medians.items():
        row(title, name, value)
    for peer, (claim, floor) in claims.items():
        if peer in medians:
            ratio = medians[peer] / medians[OURS]
            benchmark.extra_info["rounds"] = rounds
            benchmark.extra_info[f"ratio to {peer}"] = {"measured": ratio, "claimed": claim}
            assert ratio >= floor, f"{problem}: {peer} takes {ratio:.2f} times as long as fastsdot, claimed {claim}"
