"""Is the default the fastest? It against every other backend and form that gives the same answer, interleaved.

sqeuclidean is given the power form up to `costs.LOW_DIMENSION` and the inner form above, and both are timed everywhere.
In low dimension the inner form is only shown: it cancels, and a faster answer that is less accurate does not count.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product

import pytest
import torch
from problems import interleave
from torch import Tensor

from fastsdot import costs
from fastsdot.kernels import BACKENDS, Prepared, argmin, prepare, refusal

COSTS = {"l1": None, "sqeuclidean": None, "cosine": None, "euclidean": None, "lp": 1.5}
SLOWER = 1.15  # times the best contestant, above which the default is the wrong choice
SLACK = 5e-5  # seconds: the noise of one call, more than is told apart in calls below 0.1 ms
ROUNDS, RETRY = 7, 25  # of a first look, and of the one that a failure rests on
PATIENCE = 1.5, 6.0  # seconds of timing for each of the two
DEFAULT = "default"
DIMENSIONS = (2, 4, 6, 8, 9, 10, 12, 14, 16, 20)  # at which the two forms are compared
Run = Callable[[], object]
LONG = 0.3  # seconds of a call that is not repeated to see who is near
LOST = 3.0  # a contestant this many times slower in its first calls is timed no more

# D, B and N of every cell: all dimensions at one size of batch and of targets, and the other sizes at three dimensions.
CELLS = sorted(
    {(d, 64, 10_000) for d in (2, 3, 8, 16, 32, 64, 784)}
    | {(d, b, n) for d in (3, 784) for b, n in product((1, 64, 1024), (500, 2000, 60_000)) if d * b * n < 2**32}
    | {(16, b, 60_000) for b in (1, 16, 256)}
)
UNFAVOURED = {("l1", 16, 1, 60_000)}  # shown alone: kernels/select.py does not know B, and favours batches of 64
FEW = [(3, 64, 10_000), (64, 64, 500), (64, 64, 10_000), (784, 64, 10_000)]  # for costs with the kernels of these two
GRID = [(cost, *cell) for cost in COSTS for cell in (CELLS if cost in ("l1", "sqeuclidean") else FEW)]


FORMS = {"sqeuclidean": {" (inner)": 0, " (power)": 2**31}}  # the LOW_DIMENSION that gives each


@contextmanager
def low_dimension(value: int) -> Iterator[None]:
    before, costs.LOW_DIMENSION = costs.LOW_DIMENSION, value
    try:
        yield
    finally:
        costs.LOW_DIMENSION = before


def bind(cost: costs.Cost, e: costs.Embedding, x: Tensor, targets: Prepared) -> Run:
    return lambda: argmin(cost.embed(x, e.centre), targets, e.column)[1]


def contestants(name: str, d: int, b: int, n: int) -> dict[str, Run]:
    """The default, and each other backend that accepts under its name and that of the form."""
    y = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    x = torch.randn(b, d, generator=torch.Generator().manual_seed(1))
    cost = costs.make_cost(name, COSTS[name])
    e = cost.embed_targets(y)
    targets = prepare(e.y, e.form)
    ran, found = (targets.plan["argmin"], e.form.kind), {DEFAULT: bind(cost, e, x, targets)}
    for form, low in FORMS.get(name, {"": costs.LOW_DIMENSION}).items():
        with low_dimension(low):
            e = cost.embed_targets(y)
        exact = (backend for backend, b in BACKENDS.items() if b.precision != "low" and backend != "naive")
        others = [backend for backend in exact if (backend, e.form.kind) != ran]
        usable = [backend for backend in others if refusal(backend, e.form, "argmin", y.device, n, d) is None]
        found |= {backend + form: bind(cost, e, x, prepare(e.y, e.form, backend)) for backend in usable}
    return found


def seconds_of(run: Run) -> float:
    run()  # compiles
    once = interleave({"": run}, 1)[""]
    return once if once > LONG else min(once, interleave({"": run}, 1)[""])


def less_accurate(cost: str, d: int) -> tuple[str, ...]:
    """How the names of those end that are timed and not held against the default."""
    return (" (inner)",) if cost == "sqeuclidean" and d <= costs.LOW_DIMENSION else ()


def judge(runs: dict[str, Run], shown: tuple[str, ...], rounds: int, patience: float) -> tuple[dict[str, float], bool]:
    """Median seconds of each, and whether the default is fast enough beside those that do not end in `shown`."""
    once = {name: seconds_of(run) for name, run in runs.items()}
    near = {name: run for name, run in runs.items() if name == DEFAULT or once[name] < LOST * min(once.values())}
    rounds = max(3, min(rounds, int(patience / sum(once[name] for name in near))))
    medians = interleave(near, rounds)
    rivals = [value for name, value in medians.items() if not name.endswith(shown)]
    return once | medians, medians[DEFAULT] <= SLOWER * min(rivals) + SLACK


@pytest.mark.parametrize(("cost", "d", "b", "n"), GRID, ids=str)
def test_the_default_is_the_fastest(benchmark, row, cost, d, b, n):
    title, runs = f"{cost}, D={d}, B={b}, N={n}", contestants(cost, d, b, n)
    shown = less_accurate(cost, d)
    seconds, fast = benchmark.pedantic(judge, (runs, shown, ROUNDS, PATIENCE[0]), rounds=1)
    if not fast:
        seconds, fast = judge(runs, shown, RETRY, PATIENCE[1])
    for name, value in seconds.items():
        row(title, "fastsdot" if name == DEFAULT else name, value)
    benchmark.extra_info["seconds"] = seconds
    best = min((name for name in seconds if not name.endswith(shown)), key=seconds.get)
    ratio = seconds[DEFAULT] / seconds[best]
    assert fast or (cost, d, b, n) in UNFAVOURED, f"{title}: the default takes {ratio:.2f} times as long as {best}"


@pytest.mark.parametrize("b", [16, 256])
@pytest.mark.parametrize("n", [2000, 60_000])
def test_low_dimension(benchmark, row, n, b):
    """The dimension up to which the power form is the faster one for sqeuclidean, which `LOW_DIMENSION` should be."""
    ratios = {}
    for d in DIMENSIONS:
        usual = "(power)" if d <= costs.LOW_DIMENSION else "(inner)"
        runs = {name: run for name, run in contestants("sqeuclidean", d, b, n).items() if "keops" not in name}
        seconds, _ = judge(runs, (), ROUNDS, PATIENCE[0])
        best = {form: min(v for name, v in seconds.items() if form in name or (name == DEFAULT and form == usual))
                for form in ("(inner)", "(power)")}  # fmt: skip
        ratios[d] = best["(inner)"] / best["(power)"]
    benchmark.pedantic(lambda: None, rounds=1)
    benchmark.extra_info["inner over power"] = ratios
    last = max((d for d, ratio in ratios.items() if ratio > 1), default=0)
    title = (
        f"sqeuclidean, N={n}, B={b}: the power form is faster up to D={last}, LOW_DIMENSION is {costs.LOW_DIMENSION}"
    )
    row(title, "inner ÷ power", ", ".join(f"D={d}: {ratio:.2f}" for d, ratio in ratios.items()))
