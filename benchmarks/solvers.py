"""Contestants of the races: each yields potentials at growing numbers of samples, with the seconds they took.

On a CPU the time is that of the processor, over all threads, which other work on a machine disturbs less; on a GPU it
is the wall's, up to the last kernel's end.

fastsdot and POT are called as a user calls them, anew for every number of samples. OTT-JAX and the published Adam step
are loops, so their potentials are read as they go; the clock stands still meanwhile. What is compiled is compiled
before the clock starts. A rate is a step's length in ψ; `spread` is the standard deviation σ of the cost less its row
and column means, and makes rates comparable between problems.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from suite_problems import Problem, spread_of
from target_sets import Files
from torch import Tensor, nn

from fastsdot import SemiDiscreteOT
from fastsdot.sources import Gaussian, Pushforward, Source, SourceLike, as_source

GROWTH = 1.5  # of the number of samples between two potentials
FIRST = 0.5  # samples a target at the first
PAPER_BATCH, OTT_BATCH, POT_BATCH = 64, 512, 32  # published, OTT's order of magnitude, POT's default
LARGE_BATCH = 4096  # which fills a GPU
PAPER_RATE = 0.1  # published, in units of ψ
RATES = (1e-2, 3e-3, 3e-2, 1e-3, 1e-1)  # in units of σ, the likeliest first
STEPS = (1e-1, 3e-2, 3e-1, 1e-2, 1.0)  # likewise, of averaged SGD at its first step, for a target that no sample chose


class Absent(Exception):
    """A contestant that cannot run here; the message says why."""


@dataclass(frozen=True)
class Snapshot:
    """A potential [N], and the samples, seconds and processor seconds (over all threads) that it took.

    `spent` is the one of both that counts.
    """

    samples: int
    seconds: float
    processor: float
    spent: float
    potential: Tensor


class Clock:
    """Seconds and processor seconds while it runs, to the end of what a GPU was given to do."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.processor = device, 0.0, 0.0

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def __enter__(self) -> None:
        self.wait()
        self.began = time.perf_counter(), time.process_time()

    def __exit__(self, *error: object) -> None:
        self.wait()
        self.seconds += time.perf_counter() - self.began[0]
        self.processor += time.process_time() - self.began[1]

    @property
    def spent(self) -> float:
        return self.seconds if self.device.type == "cuda" else self.processor

    def snapshot(self, samples: int, potential: Tensor) -> Snapshot:
        return Snapshot(samples, self.seconds, self.processor, self.spent, potential)


class Setting:
    """A hard problem with its tensors at hand, on the device that everyone computes on."""

    def __init__(
        self,
        problem: Problem,
        files: Files | None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        backend: str | None = None,
    ):
        self.problem, self.seed, self.device, self.backend = problem, seed, torch.device(device), backend
        self.fresh: int | None = None  # samples that judge a potential, where they are not by the number of targets
        self.y, self.source = problem.targets(files).to(device), moved(problem.source(files), self.device)
        self.ot = self.transport()
        self.weights, self.n = self.ot.weights, len(self.y)
        self.spread = spread_of(problem, self.y, self.source)

    @property
    def measure(self) -> str:
        """The key of a judged potential under which its time is."""
        return "seconds" if self.device.type == "cuda" else "processor"

    @property
    def sampler(self) -> Source:
        return as_source(self.source, device=self.device)

    def transport(self) -> SemiDiscreteOT:
        about = {"cost": self.problem.cost, "weights": self.problem.weights(), "backend": self.backend}
        return SemiDiscreteOT(self.y, **about)

    def costs(self, x: Tensor, y: Tensor) -> Tensor:
        """c(x_i, y_j) [B, N] as one writes it in torch."""
        name = self.problem.cost
        if name == "dot":
            return -x @ y.T
        distance = torch.cdist(x, y, p=1.0 if name == "l1" else 2.0)
        return distance.square() if name == "sqeuclidean" else distance


def moved(source: SourceLike, device: torch.device) -> SourceLike:
    """A problem's source on a device; an int draws where it is asked to."""
    if isinstance(source, torch.distributions.Uniform):
        return torch.distributions.Uniform(source.low.to(device), source.high.to(device))
    if isinstance(source, Gaussian):
        return replace(source, device=device)
    if isinstance(source, Pushforward):
        return replace(source, generator=source.generator.to(device), latent=moved(source.latent, device))
    return source


def anew(setting: Setting, solve: Callable[[int], Tensor], start: int, cap: float) -> Iterator[Snapshot]:
    """Whole solves with more and more samples; the last takes as much time as the cap allows."""
    samples = start
    while True:
        clock = Clock(setting.device)
        with clock:
            potential = solve(samples)
        yield clock.snapshot(samples, potential)
        if clock.spent > 0.9 * cap:
            return
        samples = int(samples * min(GROWTH, max(1.1, cap / clock.spent)))


def as_it_goes(
    setting: Setting, step: Callable[[int], None], read: Callable[[], Tensor], batch: int, cap: float
) -> Iterator[Snapshot]:
    """One loop that is looked into, until it has taken so much time."""
    steps, following, clock = 0, max(1, round(FIRST * setting.n / batch)), Clock(setting.device)
    while clock.spent < cap:
        with clock:
            step(following)
            potential = read()
        steps += following
        yield clock.snapshot(steps * batch, potential)
        left = int((cap - clock.spent) / clock.spent * steps)
        following = max(1, min(round((GROWTH - 1) * steps), left + 1))


def fastsdot(setting: Setting, cap: float) -> Iterator[Snapshot]:
    """Defaults, but for a tolerance that no solve reaches, so that all samples are used."""

    def solve(samples: int) -> Tensor:
        torch.manual_seed(setting.seed)
        ot = setting.transport()
        ot.solve(setting.source, tol=1e-6, max_samples=samples)
        return ot.potential

    solve(10 * setting.n)  # as many samples as compile what longer solves call
    return anew(setting, solve, 2 * setting.n, cap)


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
    return anew(setting, solve, max(POT_BATCH, setting.n), cap)


def adam(setting: Setting, cap: float, rate: float, batch: int = PAPER_BATCH) -> Iterator[Snapshot]:
    """Chen et al. 2019, algorithm 1: Adam on ψ from 0, as published with batches of 64."""
    potential = torch.zeros(setting.n, requires_grad=True, device=setting.device)
    optimizer = torch.optim.Adam([potential], lr=rate)

    def ascend(gradient: Tensor) -> None:
        potential.grad = -gradient
        optimizer.step()

    return ascent(setting, cap, batch, potential, ascend, lambda: potential.detach().clone())


def averaged(setting: Setting, cap: float, rate: float, batch: int = LARGE_BATCH) -> Iterator[Snapshot]:
    """Genevay et al. 2016, algorithm 2: ψ ← ψ + C/√t (1 − m/b) from 0, and the mean of all ψ."""
    potential, mean, taken = (torch.zeros(size, device=setting.device) for size in (setting.n, setting.n, 1))

    def ascend(gradient: Tensor) -> None:
        taken.add_(1)
        potential.add_(gradient / setting.weights * rate / taken.sqrt())
        mean.add_((potential - mean) / taken)

    return ascent(setting, cap, batch, potential, ascend, mean.clone)


def ascent(
    setting: Setting,
    cap: float,
    batch: int,
    potential: Tensor,
    ascend: Callable[[Tensor], None],
    read: Callable[[], Tensor],
) -> Iterator[Snapshot]:
    """Stochastic ascent in plain torch: `ascend` is given b − m of a batch, [N]."""
    y, b, sampler = setting.y, setting.weights, setting.sampler
    torch.manual_seed(setting.seed)

    @torch.no_grad()
    def step(count: int) -> None:
        for _ in range(count):
            score = setting.costs(sampler(batch), y) - potential
            ascend(b - torch.bincount(score.argmin(1), minlength=setting.n) / batch)

    return as_it_goes(setting, step, read, batch, cap)


def ott(setting: Setting, cap: float, rate: float) -> Iterator[Snapshot]:
    """OTT-JAX's `SemidiscreteSolver`, its steps compiled as one loop, with `optax.adam`; its averaged potential."""
    import jax
    import optax
    from ott.geometry.semidiscrete_pointcloud import SemidiscretePointCloud
    from ott.problems.linear.semidiscrete_linear_problem import SemidiscreteLinearProblem
    from ott.solvers.linear.semidiscrete import SemidiscreteSolver, SemidiscreteState

    if setting.device.type == "cuda" and jax.default_backend() != "gpu":
        raise Absent("jax sees no GPU")
    weights = None if setting.problem.weighting == "equal" else jax.numpy.asarray(setting.weights.cpu().numpy())
    points = SemidiscretePointCloud(
        jax_sampler(setting), jax.numpy.asarray(setting.y.cpu().numpy()), cost_fn=ott_cost(setting), epsilon=0.0
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
        return torch.tensor(jax.device_get(state[0].g_ema)).to(setting.device)

    return as_it_goes(setting, step, read, OTT_BATCH, cap)


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
            matrix, bias = (jax.numpy.asarray(t.detach().cpu().numpy()) for t in (module.weight.T, module.bias))
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


def in_spreads(rates: tuple[float, ...]) -> Callable[[Setting], tuple[float, ...]]:
    return lambda setting: tuple(setting.spread * rate for rate in rates)


OURS = Contestant("fastsdot", fastsdot)
RIVALS = [
    Contestant("POT", pot),
    Contestant("OTT-JAX", ott, in_spreads(RATES)),
    Contestant("Adam, batch 64", adam, lambda setting: (PAPER_RATE, *(setting.spread * r for r in RATES[:4]))),
]
# Batches that fill a GPU, for races on one.
LARGE = [
    Contestant(f"Adam, batch {LARGE_BATCH}", partial(adam, batch=LARGE_BATCH), in_spreads(RATES)),
    Contestant(f"averaged SGD, batch {LARGE_BATCH}", averaged, in_spreads(STEPS)),
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
