"""Is `converged` ever wrong? Random problems, every way a solve can end, and χ² again with 100 times the samples.

    python benchmarks/converged.py --problems 200

A problem has 1 to a few hundred targets in 1 to 50 dimensions, any cost, temperature and weights, and targets and a
source that may be badly scaled, repeated, discrete, an atom, a point, or have outliers. It is solved to several
tolerances and by the paper's histogram rule, and cut short by max_samples, by its callback and by a source that raises.
Wrong is: converged where the fresh χ² is above the tolerance by more than three of its own standard errors (for the
histogram rule, χ² of the bins above what bins at its upper bound would have); a reason that disagrees; more samples
than allowed; an exception swallowed; a potential that is not finite. What is printed is Markdown.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fastsdot import Histogram, NotConverged, Reason, SemiDiscreteOT, Solution
from fastsdot.sources import Source

MORE = 100  # times the samples of the check that said converged
MOST = 4_000_000  # fresh samples, at most
ERRORS = 3  # standard errors of the fresh estimate that are allowed
BUDGET = 60  # samples a target, beside 20 000
COSTS = (("sqeuclidean", None), ("euclidean", None), ("l1", None), ("lp", 1.5), ("dot", None), ("cosine", None))
TEMPERATURES = (0.0, 0.0, 0.02, 0.5)  # in units of the cost's spread
UNEXPECTED = (RuntimeError, ValueError, ArithmeticError, LookupError, TypeError)  # findings, like a wrong claim


class SourceBroke(Exception):
    """Raised by a source on purpose."""


def pick(options: tuple, random: Generator) -> object:
    return options[int(torch.randint(len(options), (), generator=random))]


def logarithmic(low: int, high: int, random: Generator) -> int:
    """An integer whose logarithm is uniform."""
    u = float(torch.rand((), generator=random))
    return min(high, int(low * (high / low + 1 / low) ** u))


def stretched(d: int, random: Generator) -> Tensor:
    """Lengths of axes over four decades: poor conditioning."""
    return 10 ** (-4 * torch.rand(d, generator=random))


def points(n: int, d: int, random: Generator) -> Tensor:
    kind = pick(("normal", "normal", "stretched", "repeated", "outliers", "equal"), random)
    y = torch.randn(n, d, generator=random)
    if kind == "stretched":
        return y * stretched(d, random)
    if kind == "repeated":
        return y[torch.randint(max(1, n - n // 10), (n,), generator=random)]
    if kind == "outliers":
        y[: n // 20] *= 1e3
    return y[:1].expand(n, d).clone() if kind == "equal" else y


def source(d: int, random: Generator) -> tuple[str, Source]:
    """A kind, and what draws n samples of it from torch's global generator."""
    lengths, atoms = stretched(d, random), torch.randn(20, d, generator=random)
    kinds: dict[str, Source] = {
        "normal": lambda n: torch.randn(n, d),
        "uniform": lambda n: 2 * torch.rand(n, d) - 1,
        "stretched": lambda n: lengths * torch.randn(n, d),
        "discrete": lambda n: atoms[torch.randint(20, (n,))],
        "atom": lambda n: torch.where(torch.rand(n, 1) < 0.5, atoms[0], torch.randn(n, d)),
        "rare atom": lambda n: torch.where(torch.rand(n, 1) < 0.01, atoms[0], torch.randn(n, d)),
        "outliers": lambda n: torch.randn(n, d) * torch.where(torch.rand(n, 1) < 1e-3, 1e6, 1.0),
        "point": lambda n: atoms[:1].expand(n, d).clone(),
    }
    kind = pick(("normal", "normal", "normal", *kinds), random)
    return kind, kinds[kind]


@dataclass(frozen=True)
class Case:
    """A problem made from its seed."""

    seed: int
    about: str
    build: Callable[[], SemiDiscreteOT]
    source: Source
    n: int


def case(seed: int, most_targets: int) -> Case:
    random = Generator().manual_seed(seed)
    n, d = logarithmic(1, most_targets, random), logarithmic(1, 50, random)
    y, (kind, sample), (cost, p) = points(n, d, random), source(d, random), pick(COSTS, random)
    weighting = pick(("equal", "random", "decades"), random)
    weights = {
        "equal": torch.ones(n),
        "random": 0.1 + torch.rand(n, generator=random),
        "decades": 10 ** (-4 * torch.rand(n, generator=random)) * (torch.rand(n, generator=random) > 0.1),
    }[weighting]
    weights = weights if float(weights.sum()) else None
    hard = SemiDiscreteOT(y, cost=cost, p=p)
    torch.manual_seed(seed)
    costs = hard.cost(sample(64)[:, None], y[None])
    spread = float((costs - costs.mean(0)).std())
    rounding = 1e-4 * float(costs.abs().mean())
    epsilon = pick(TEMPERATURES, random) * spread if spread > rounding else 0.0  # else a plan of rounding errors
    about = f"N={n} D={d} {cost} {kind} {weighting} ε={epsilon:.3g}"
    return Case(seed, about, lambda: SemiDiscreteOT(y, cost=cost, p=p, weights=weights, epsilon=epsilon), sample, n)


def breaking(draw: Source, after: int) -> Source:
    """A source that raises once it has given so many samples."""
    given = [0]

    def sample(n: int) -> Tensor:
        given[0] += n
        if given[0] > after:
            raise SourceBroke
        return draw(n)

    return sample


def claim_wrong(ot: SemiDiscreteOT, solution: Solution, draw: Source, rule: float | Histogram) -> str | None:
    """What a fresh estimate holds against the claim that the rule is met."""
    samples = min(MOST, MORE * solution.report.samples)
    found = ot.evaluate(draw, samples, batch_size=min(16_384, max(1, samples // 64)))
    chi2, tol = found.chi2, rule
    if isinstance(rule, Histogram):
        chi2, tol = binned_chi2(found.mass, ot.atoms, rule.bins), (rule.high / rule.hits - 1) ** 2
    if chi2 - ERRORS * found.chi2_error > tol:
        return f"converged at {tol}, but χ² {chi2:.4g} ± {found.chi2_error:.2g}"
    return None


def binned_chi2(mass: Tensor, weights: Tensor, bins: int) -> float:
    """χ² of the masses of bins of targets, as many as targets at most, in each of which the middle of a weight lies."""
    b = weights.double()
    bins = min(bins, int((b > 0).sum()))
    position = ((b.cumsum(0) - b / 2) * bins).long().clamp(0, bins - 1)
    zero = torch.zeros(bins, dtype=torch.float64)
    expected, reached = (zero.index_add(0, position, share.double()) for share in (b, mass))
    full = expected > 0
    return float(((reached - expected)[full].square() / expected[full]).sum())


EXITS: dict[str, dict] = {
    "tol 0.2": {"tol": 0.2},
    "tol 0.05": {"tol": 0.05},
    "tol 0.01": {"tol": 0.01},
    "histogram": {"tol": Histogram()},
    "max_samples": {"max_samples": 4},  # times a random number
    "callback": {"callback": lambda row: True},
    "throw": {"throw": True},
    "source raises": {},
}


def run(problem: Case, name: str) -> tuple[str, str | None]:
    """How a solve ended, and what is wrong with that."""
    random, options = Generator().manual_seed(problem.seed), dict(EXITS[name])
    most = 20_000 + BUDGET * problem.n
    short = logarithmic(4, most, random)
    options["max_samples"] = short if name == "max_samples" else most
    ot, draw = problem.build(), problem.source
    torch.manual_seed(problem.seed)
    try:
        solution = ot.solve(breaking(draw, short) if name == "source raises" else draw, **options)
    except NotConverged as error:
        solution = error.solution
        if not options.get("throw") or solution.converged:
            return "raised", "NotConverged without need"
    except SourceBroke:
        return "source broke", None if bool(torch.isfinite(ot.potential).all()) else "a potential that is not finite"
    else:
        if options.get("throw") and not solution.converged:
            return "returned", "not converged, and nothing raised"
    outcome = solution.reason.name.lower()
    if solution.converged != (solution.reason is Reason.CONVERGED):
        return outcome, f"converged={solution.converged} with reason {solution.reason.name}"
    if solution.samples > options["max_samples"]:
        return outcome, f"{solution.samples} samples where {options['max_samples']} are allowed"
    if not bool(torch.isfinite(ot.potential).all()):
        return outcome, "a potential that is not finite"
    if not solution.converged:
        return outcome, None
    torch.manual_seed(problem.seed + 10**6)
    return outcome, claim_wrong(ot, solution, draw, options.get("tol", 0.05))


Finding = tuple[Case, str, str, str | None]


def check(seeds: range, most_targets: int, exits: tuple[str, ...] = tuple(EXITS)) -> Iterator[Finding]:
    """(problem, exit, outcome, what is wrong) of every problem by every exit."""
    for seed in seeds:
        problem = case(seed, most_targets)
        for name in exits:
            try:
                found = run(problem, name)
            except UNEXPECTED as error:
                found = "raised", f"{type(error).__name__}: {error}"
            yield problem, name, *found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--targets", type=int, default=200, help="at most")
    options = parser.parse_args(arguments)
    counts, wrong, began = Counter(), 0, time.perf_counter()
    seeds = range(options.first, options.first + options.problems)
    for problem, name, outcome, reason in check(seeds, options.targets):
        counts[name, outcome] += 1
        if reason is not None:
            wrong += 1
            print(f"- WRONG: seed {problem.seed}, {problem.about}, {name}: {reason}", flush=True)
    outcomes = sorted({outcome for _, outcome in counts})
    print("\n| exit | " + " | ".join(outcomes) + " |\n" + "|---" * (len(outcomes) + 1) + "|")
    for name in EXITS:
        print(f"| {name} | " + " | ".join(str(counts[name, outcome]) for outcome in outcomes) + " |")
    claimed = sum(count for (_, outcome), count in counts.items() if outcome == "converged")
    print(f"\n{counts.total()} solves, {claimed} converged, {wrong} wrong, {time.perf_counter() - began:.0f} s.")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
