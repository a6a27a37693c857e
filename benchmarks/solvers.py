"""Contestants of the races: each yields potentials at growing numbers of samples, with the seconds they took.

fastsdot and POT are called as a user calls them, anew for every number of samples. OTT-JAX and the published Adam step
are loops, so their potentials are read as they go; the clock stands still meanwhile. What is compiled is compiled
before the clock starts. A rate is a step's length in ψ; `spread` is the standard deviation σ of the cost less its row
and column means, and makes rates comparable between problems.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from suite_problems import Problem, spread_of
from target_sets import Files
from torch import Tensor, nn

from fastsdot import SemiDiscreteOT
from fastsdot.sources import Pushforward, Source, SourceLike, as_source

GROWTH = 1.5  # of the number of samples between two potentials
FIRST = 0.5  # samples a target at the first
PAPER_BATCH, OTT_BATCH, POT_BATCH = 64, 512, 32  # published, OTT's order of magnitude, POT's default
PAPER_RATE = 0.1  # published, in units of ψ
RATES = (1e-2, 3e-3, 3e-2, 1e-3, 1e-1)  # in units of σ, the likeliest first


@dataclass(frozen=True)
class Snapshot:
    """A potential [N], and the samples, seconds and processor seconds (over all threads) that it took."""

    samples: int
    seconds: float
    processor: float
    potential: Tensor


class Clock:
    """Seconds and processor seconds while it runs. Other work on a machine disturbs the latter less."""

    def __init__(self) -> None:
        self.seconds = self.processor = 0.0

    def __enter__(self) -> None:
        self.began = time.perf_counter(), time.process_time()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self.began[0]
        self.processor += time.process_time() - self.began[1]


class Setting:
    """A hard problem with its tensors at hand."""

    def __init__(self, problem: Problem, files: Files, seed: int = 0):
        self.problem, self.seed = problem, seed
        self.y, self.source = problem.targets(files), problem.source(files)
        self.ot = SemiDiscreteOT(self.y, cost=problem.cost, weights=problem.weights())
        self.weights, self.n = self.ot.weights, len(self.y)
        self.spread = spread_of(problem, self.y, self.source)

    @property
    def sampler(self) -> Source:
        return as_source(self.source)

    def transport(self) -> SemiDiscreteOT:
        return SemiDiscreteOT(self.y, cost=self.problem.cost, weights=self.problem.weights())

    def costs(self, x: Tensor, y: Tensor) -> Tensor:
        """c(x_i, y_j) [B, N] as one writes it in torch."""
        name = self.problem.cost
        if name == "dot":
            return -x @ y.T
        distance = torch.cdist(x, y, p=1.0 if name == "l1" else 2.0)
        return distance.square() if name == "sqeuclidean" else distance


def anew(solve: Callable[[int], Tensor], start: int, cap: float) -> Iterator[Snapshot]:
    """Whole solves with more and more samples; the last takes as many processor seconds as the cap allows."""
    samples = start
    while True:
        clock = Clock()
        with clock:
            potential = solve(samples)
        yield Snapshot(samples, clock.seconds, clock.processor, potential)
        if clock.processor > 0.9 * cap:
            return
        samples = int(samples * min(GROWTH, max(1.1, cap / clock.processor)))


def as_it_goes(
    step: Callable[[int], None], read: Callable[[], Tensor], batch: int, n: int, cap: float
) -> Iterator[Snapshot]:
    """One loop that is looked into, until it has taken so many processor seconds."""
    steps, following, clock = 0, max(1, round(FIRST * n / batch)), Clock()
    while clock.processor < cap:
        with clock:
            step(following)
            potential = read()
        steps += following
        yield Snapshot(steps * batch, clock.seconds, clock.processor, potential)
        left = int((cap - clock.processor) / clock.processor * steps)
        following = max(1, min(round((GROWTH - 1) * steps), left + 1))


def fastsdot(setting: Setting, cap: float) -> Iterator[Snapshot]:
    """Defaults, but for a tolerance that no solve reaches, so that all samples are used."""

    def solve(samples: int) -> Tensor:
        torch.manual_seed(setting.seed)
        ot = setting.transport()
        ot.solve(setting.source, tol=1e-6, max_samples=samples)
        return ot.potential

    solve(10 * setting.n)  # as many samples as compile what longer solves call
    return anew(solve, 2 * setting.n, cap)


def pot(setting: Setting, cap: float) -> Iterator[Snapshot]:
    """`ot.semidiscrete.solve_semidiscrete` with its defaults; costs other than its own as a function."""
    from ot.semidiscrete import solve_semidiscrete

    metric = None if setting.problem.cost == "sqeuclidean" else setting.costs

    def solve(samples: int) -> Tensor:
        torch.manual_seed(setting.seed)
        weights = None if setting.problem.weighting == "equal" else setting.weights
        iterations = max(1, samples // POT_BATCH)
        return solve_semidiscrete(setting.y, setting.sampler, weights, metric=metric, max_iter=iterations)

    solve(POT_BATCH)
    return anew(solve, max(POT_BATCH, setting.n), cap)


def adam(setting: Setting, cap: float, rate: float) -> Iterator[Snapshot]:
    """Chen et al. 2019, algorithm 1 as published: Adam on ψ from 0 with batches of 64."""
    y, b, sampler = setting.y, setting.weights, setting.sampler
    potential = torch.zeros(setting.n, requires_grad=True)
    optimizer = torch.optim.Adam([potential], lr=rate)
    torch.manual_seed(setting.seed)

    @torch.no_grad()
    def step(count: int) -> None:
        for _ in range(count):
            score = setting.costs(sampler(PAPER_BATCH), y) - potential
            mass = torch.bincount(score.argmin(1), minlength=setting.n) / PAPER_BATCH
            potential.grad = mass - b
            optimizer.step()

    return as_it_goes(step, lambda: potential.detach().clone(), PAPER_BATCH, setting.n, cap)


def ott(setting: Setting, cap: float, rate: float) -> Iterator[Snapshot]:
    """OTT-JAX's `SemidiscreteSolver`, its steps compiled as one loop, with `optax.adam`; its averaged potential."""
    import jax
    import optax
    from ott.geometry.semidiscrete_pointcloud import SemidiscretePointCloud
    from ott.problems.linear.semidiscrete_linear_problem import SemidiscreteLinearProblem
    from ott.solvers.linear.semidiscrete import SemidiscreteSolver, SemidiscreteState

    weights = None if setting.problem.weighting == "equal" else jax.numpy.asarray(setting.weights.numpy())
    points = SemidiscretePointCloud(
        jax_sampler(setting), jax.numpy.asarray(setting.y.numpy()), cost_fn=ott_cost(setting), epsilon=0.0
    )
    problem = SemidiscreteLinearProblem(points, weights)
    solver = SemidiscreteSolver(num_iterations=1, batch_size=OTT_BATCH, optimizer=optax.adam(rate))

    @jax.jit
    def advance(state: SemidiscreteState, count: int) -> SemidiscreteState:
        def body(i: int, state: SemidiscreteState) -> SemidiscreteState:
            return solver.step(jax.random.fold_in(jax.random.key(setting.seed), state.it), state, problem)

        return jax.lax.fori_loop(0, count, body, state)

    zero, none = jax.numpy.zeros(setting.n), jax.numpy.full(1, jax.numpy.inf)
    start = SemidiscreteState(jax.numpy.array(0), jax.numpy.array(0.0), zero, zero, solver.optimizer.init(zero),
                              none, none, none)  # fmt: skip
    state = [jax.block_until_ready(advance(advance(start, 0), 0))]  # twice, since a first result has stricter types

    def step(count: int) -> None:
        state[0] = jax.block_until_ready(advance(state[0], count))

    def read() -> Tensor:
        return torch.tensor(jax.device_get(state[0].g_ema))

    return as_it_goes(step, read, OTT_BATCH, setting.n, cap)


def ott_cost(setting: Setting) -> object:
    from ott.geometry import costs

    known = {
        "sqeuclidean": costs.SqEuclidean,
        "euclidean": costs.Euclidean,
        "dot": costs.NegDotProduct,
        "l1": lambda: costs.PNormP(1.0),
    }
    return known[setting.problem.cost]()


def jax_sampler(setting: Setting) -> Callable:
    """The problem's source in JAX, as `(rng, shape, dtype) -> samples`."""
    import jax

    source: SourceLike = setting.source
    if isinstance(source, int):
        return jax.random.normal
    if isinstance(source, Pushforward):
        network = jax_network(source.generator)
        return lambda rng, shape, dtype: network(jax.random.normal(rng, (shape[0], source.latent.width), dtype))
    edge = float(source.high[0])
    return lambda rng, shape, dtype: jax.random.uniform(rng, shape, dtype, -edge, edge)


def jax_network(network: nn.Module) -> Callable:
    """A perceptron of the suite in JAX."""
    import jax

    def layers(module: nn.Module) -> Iterator[Callable]:
        if isinstance(module, nn.Sequential):
            for part in module:
                yield from layers(part)
        elif isinstance(module, nn.Linear):
            matrix, bias = (jax.numpy.asarray(t.detach().numpy()) for t in (module.weight.T, module.bias))
            yield lambda x: x @ matrix + bias
        elif hasattr(module, "scale"):
            yield lambda x: module.scale * x
        else:
            known = {nn.ReLU: jax.nn.relu, nn.Tanh: jax.numpy.tanh, nn.Unflatten: lambda x: x}
            yield known[type(module)]

    parts = list(layers(network))

    def run(x: object) -> object:
        for part in parts:
            x = part(x)
        return x

    return run


@dataclass(frozen=True)
class Contestant:
    """A solver, and the rates it is tried with; None for one that needs none."""

    name: str
    run: Callable[..., Iterator[Snapshot]]
    rates: Callable[[Setting], tuple[float, ...]] | None = None

    def tries(self, setting: Setting, cap: float) -> Iterator[tuple[float | None, Iterator[Snapshot]]]:
        for rate in self.rates(setting) if self.rates else (None,):
            yield rate, self.run(setting, cap) if rate is None else self.run(setting, cap, rate)


OURS = Contestant("fastsdot", fastsdot)
RIVALS = [
    Contestant("POT", pot),
    Contestant("OTT-JAX", ott, lambda setting: tuple(setting.spread * rate for rate in RATES)),
    Contestant("Adam, batch 64", adam, lambda setting: (PAPER_RATE, *(setting.spread * r for r in RATES[:4]))),
]


def crossing(samples_or_seconds: list[float], chi2: list[float], bound: float) -> float | None:
    """Where χ² first falls to the bound, interpolated between potentials in logarithms; None if it does not."""
    for i, value in enumerate(chi2):
        if value <= bound:
            if i == 0 or not math.isfinite(chi2[i - 1]):
                return samples_or_seconds[i]
            (a, b), (high, low) = (samples_or_seconds[i - 1 : i + 1]), (chi2[i - 1], max(value, 1e-4))
            share = math.log(high / bound) / math.log(high / low)
            return math.exp(math.log(a) + share * math.log(b / a))
    return None
