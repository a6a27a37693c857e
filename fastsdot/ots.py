"""OTS: stochastic ascent on the semi-dual, with a step, a start and a stop that need no tuning.

The semi-dual E_x[min_j c(x, y_j) − ψ_j] + Σ_j b_j ψ_j is concave in ψ with gradient b − m(ψ), m_j the mass of the
cell of y_j. With m^t its estimate from a batch of B,

    ψ ← ψ − γ_t (m^t − b),       γ_t = RATE s_t √(N B) t^−DECAY,       s_t = max(gap, REACH σ / t, ε)

- σ is the standard deviation of the cost less its row and column means: the distance that ψ may have to go.
- gap is the mean of (second smallest − smallest) of c − ψ over a row: the distance over which mass changes cell. It
  is σ/6 for noise in 64 dimensions and σ/N on a line, and a step in its units is right for both.
- The start is ψ_j = E_x c(x, y_j): a column's mean changes no assignment that the geometry decides.
- m^t is smoothed at temperature ε_t = max(ε, s_t t^−½); its bias falls with the step (decreasing ε: arXiv 2510.27340).
- What is kept is the average of the iterates with weights t² (Polyak & Juditsky, SIAM J. Control Optim. 1992).
- When the source has moved since the last call, ψ_j moves with the mean cost: ψ_j += E_new c(x, y_j) − E_old c(x, y_j).

Whether to stop is decided on fresh samples, which take no part in the ascent.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from numbers import Real
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from fastsdot import kernels
from fastsdot.errors import InvalidArgument, require_number
from fastsdot.progress import Progress
from fastsdot.report import Report, Survey
from fastsdot.sources import SourceLike, as_source, draw

if TYPE_CHECKING:
    from fastsdot.semidiscrete import SemiDiscreteOT

RATE, DECAY, REACH = 0.8, 0.6, 5.0
GAP_ROWS, GAP_EVERY, GAP_MEMORY = 32, 8, 0.9  # rows, steps between and forgetting of the gap's running mean
PILOT = 1024  # samples behind σ and the mean cost, at most
FIRST_CHECK = 8  # samples a target before the first check
NEXT_CHECK = (1.25, 2.0)  # each next check comes after this many times as many, within these bounds
WARM = 8  # the step at which an ascent resumes after the source has moved
BUDGET = 200  # samples a target, where max_samples is None


class Reason(StrEnum):
    """Why a solve ended."""

    CONVERGED = "the stopping rule held on fresh samples"
    MAX_SAMPLES = "max_samples were drawn before the stopping rule held"
    CALLBACK = "the callback asked to stop"


class NotConverged(RuntimeError):
    """Raised by `solve(..., throw=True)`; `solution` is what was reached, and the potential keeps it."""

    def __init__(self, solution: "Solution"):
        report = solution.report
        super().__init__(
            f"{solution.reason}: chi2 {report.chi2:.4g} ± {report.chi2_error:.2g} after {solution.samples:,} samples"
        )
        self.solution = solution


@dataclass(frozen=True)
class Solution:
    """The outcome of a solve.

    samples counts every draw, those of the checks included; report is the last check's; history has a row per check:
    drawn so far, seconds, step, and the numbers of its report.
    """

    converged: bool
    reason: Reason
    report: Report
    samples: int
    seconds: float
    history: list[dict[str, float]]


class Rule(Protocol):
    """When to stop, told by fresh samples."""

    def samples(self, n: int) -> int:
        """How many samples a first verdict on n targets takes."""

    def verdict(self, survey: Survey) -> bool | None:
        """True or False, or None where more samples are needed to tell."""

    def ahead(self, report: Report) -> float:
        """The factor by which the ascent should grow before it is worth asking again; errors fall as 1/samples."""


@dataclass(frozen=True)
class Chi2:
    """χ² ≤ tol, by two standard errors of at most tol/4: true below, false above by one, undecided between."""

    tol: float

    def __post_init__(self) -> None:
        require_number("tol", self.tol, above=0)

    def samples(self, n: int) -> int:
        """Enough for a standard error of tol/2 at χ² = 0."""
        return math.ceil(2 * math.sqrt(2 * n) / self.tol)

    def verdict(self, survey: Survey) -> bool | None:
        chi2 = survey.marginal.chi2()
        if chi2.value + 2 * chi2.error <= self.tol and chi2.error <= self.tol / 4:
            return True
        return False if chi2.value - chi2.error > self.tol else None

    def ahead(self, report: Report) -> float:
        return report.chi2 / (0.75 * self.tol)


def as_rule(tol: "float | Rule") -> Rule:
    """A bound on χ² as a rule; a rule as it is. Raises `InvalidArgument` for anything else."""
    if isinstance(tol, Real):
        return Chi2(float(tol))
    if not callable(getattr(tol, "verdict", None)):
        raise InvalidArgument("tol", "a number above 0 or a stopping rule", repr(tol), "use tol=0.05, or Histogram()")
    return tol


@dataclass(frozen=True)
class Histogram:
    """The paper's rule: `hits` expected samples in each of `bins` bins of targets, and every bin in [low, high].

    Source: the code of Chen et al. 2019 (256 000 samples in 1 000 bins, each within [200, 320]); bins hold equal
    weight, and there are at most N.
    """

    bins: int = 1000
    hits: int = 256
    low: int = 200
    high: int = 320

    def samples(self, n: int) -> int:
        return self.hits * min(self.bins, n)

    def ahead(self, report: Report) -> float:
        return NEXT_CHECK[1]  # a verdict takes many samples

    def verdict(self, survey: Survey) -> bool | None:
        b = survey.weights.double()
        bins = min(self.bins, int((b > 0).sum()))
        if survey.marginal.samples < self.hits * bins:
            return None
        position = ((b.cumsum(0) - b / 2) * bins).long().clamp(0, bins - 1)
        zero = torch.zeros(bins, dtype=torch.float64, device=b.device)
        expected = zero.index_add(0, position, b)
        ratio = zero.index_add(0, position, survey.marginal.mass.double()) / expected
        ratio = ratio[expected > 0] * self.hits
        return bool(((ratio >= self.low) & (ratio <= self.high)).all())


@dataclass
class Ascent:
    """Where the ascent stands, so that the next call continues it; float64, since late steps are below float32's."""

    iterate: Tensor  # [N] ψ of the last step
    average: Tensor  # [N] what ot.potential was set to
    mean_cost: Tensor  # [N] E_x c(x, y_j) up to a constant, under the source of the last call
    noise: float  # variance of an entry of mean_cost
    scale: float  # σ
    gap: float | None  # running mean, once measured
    step: int
    total: float  # of the averaging weights
    chi2: float = math.inf  # at most, at the last check

    def restart(self) -> None:
        """Take large steps again, from the average."""
        self.iterate, self.gap, self.step, self.total = self.average.clone(), None, WARM, 0.0

    def to(self, device: torch.device) -> "Ascent":
        return replace(
            self, iterate=self.iterate.to(device), average=self.average.to(device), mean_cost=self.mean_cost.to(device)
        )


class Sampler:
    """Checked batches from a source, and how many samples were drawn."""

    def __init__(self, ot: "SemiDiscreteOT", source: SourceLike, generator: torch.Generator | None = None):
        self.source = as_source(source, device=ot.device, generator=generator)
        self.shape, self.device, self.ranks, self.samples = ot.shape, ot.device, ot.ranks, 0

    def __call__(self, n: int) -> Tensor:
        def make() -> Tensor:
            return draw(self.source, n, self.shape, self.device)

        x = make() if self.ranks is None else self.ranks.first(make, (n, self.shape.numel()), self.device)
        self.samples += n
        return x


def cost_statistics(ot: "SemiDiscreteOT", x: Tensor) -> tuple[Tensor, float]:
    """E_x c(x, y_j) up to a constant, [N], and σ, over a batch x [B, D]."""
    n, batch = ot.targets.shape[0], x.shape[0]
    mean, row, square = kernels.moments(ot._embed(x), ot._kernel, ot._embedding.column)
    variance = float(square / (batch * n) - (row / n).square().mean())
    return mean - mean.mean(), math.sqrt(max(0.0, variance))


def begin(ot: "SemiDiscreteOT", sampler: Sampler, pilot: int) -> Ascent:
    """The first state, or the last one moved to where the source is now."""
    mean, scale = cost_statistics(ot, sampler(pilot))
    scale = scale or 1.0  # every target costs the same: any step is right
    noise = scale**2 / pilot
    last = ot.ascent
    if last is None or not torch.equal(last.average.float(), ot.potential):
        given = bool(ot.potential.any())
        start = ot.potential.double() if given else mean
        return Ascent(start.clone(), start.clone(), mean, noise, scale, None, step=WARM if given else 0, total=0.0)
    drift = mean - last.mean_cost
    drift -= drift.mean()
    signal = float(drift.square().mean())
    kept = max(0.0, 1 - (noise + last.noise) / signal) if signal else 0.0  # James-Stein: noise alone moves nothing
    if kept < 0.8:
        return last
    moved = replace(last, average=last.average + kept * drift, mean_cost=mean, noise=noise, scale=scale, chi2=math.inf)
    moved.restart()
    return moved


@torch.no_grad()
def evaluate(ot: "SemiDiscreteOT", source: SourceLike, samples: int, batch_size: int | None = None) -> Report:
    """Survey `samples` fresh samples of `source` at the potential."""
    require_number("samples", samples, above=1, whole=True)
    if batch_size is not None:
        require_number("batch_size", batch_size, above=0, whole=True)
    return survey(ot, Sampler(ot, source), samples, min(batch_size or 4096, max(1, samples // 16))).report()


def survey(ot: "SemiDiscreteOT", sampler: Sampler, samples: int, batch: int, onto: Survey | None = None) -> Survey:
    """Add batches to a survey until it holds `samples`, or less than a batch under it for soft masses."""
    onto = onto or Survey(ot.weights, ot.potential, soft=ot.epsilon > 0)
    while (left := samples - onto.marginal.samples) >= (batch if ot.epsilon else 1):
        onto.add(*ot._marginal(sampler(min(batch, left)), ot.potential, ot.epsilon))
    return onto


def check(ot: "SemiDiscreteOT", sampler: Sampler, rule: Rule, most: int) -> tuple[bool, Survey]:
    """Ask the rule with twice the samples each time, until it knows or `most` are drawn."""
    samples, found = min(most, rule.samples(ot.targets.shape[0])), None
    batch = max(1, min(2048, samples // 8))
    while True:
        found = survey(ot, sampler, samples, batch, found)
        verdict = rule.verdict(found)
        if verdict is not None or samples >= most:
            return verdict is True, found
        samples = min(most, 2 * samples)


def measure_gap(ot: "SemiDiscreteOT", state: Ascent, x: Tensor) -> None:
    """Move the running mean of the gap towards that of a few rows."""
    if int((ot.weights > 0).sum()) < 2:
        state.gap = 0.0
        return
    value, _ = kernels.topk(ot._embed(x[:GAP_ROWS]), ot._kernel, ot._bias(state.iterate.float()), 2)
    gap = float((value[:, 1] - value[:, 0]).mean())
    state.gap = gap if state.gap is None else GAP_MEMORY * state.gap + (1 - GAP_MEMORY) * gap


def ascend(ot: "SemiDiscreteOT", state: Ascent, x: Tensor) -> Tensor:
    """One step; returns the batch's estimate of the (smoothed) semi-dual."""
    n, batch = ot.targets.shape[0], x.shape[0]
    state.step += 1
    if state.gap is None or state.step < 4 * GAP_EVERY or state.step % GAP_EVERY == 0:
        measure_gap(ot, state, x)
    unit = max(state.gap, REACH * state.scale / state.step, ot.epsilon)
    phi, mass = ot._marginal(x, state.iterate.float(), max(ot.epsilon, unit * state.step**-0.5))
    step = RATE * unit * math.sqrt(n * batch) * state.step**-DECAY
    state.iterate -= step * (mass.double() - ot.weights)
    weight = float(state.step**2)
    state.total += weight
    state.average += (state.iterate - state.average) * (weight / state.total)
    return phi.mean()


@torch.no_grad()
def solve(
    ot: "SemiDiscreteOT",
    source: SourceLike,
    *,
    tol: float | Rule = 0.05,
    max_samples: int | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[Progress], None] | None = None,
    callback: Callable[[dict[str, float]], bool | None] | None = None,
    throw: bool = False,
) -> Solution:
    """Maximise the semi-dual over ψ, and set `ot.potential` to the result.

    tol is a bound on χ² or a `Rule`; max_samples (by default 200 a target, and enough for some verdicts) bounds the
    draws, the checks' included; generator draws an int source; callback sees a row after every check, and stops the
    solve by returning True.
    The potential is set even when the source raises or the solve is interrupted. A call continues the last one, and
    follows the source when that has moved.

    Raises `SourceError` for a batch that is not usable, `NotConverged` if `throw`, `InvalidArgument` otherwise.
    Source: Chen et al. 2019, algorithm 1.
    """
    rule = as_rule(tol)
    for name, value, above in (("max_samples", max_samples, 3), ("batch_size", batch_size, 0)):
        if value is not None:
            require_number(name, value, above, whole=True)
    n = ot.targets.shape[0]
    max_samples = max(BUDGET * n, 100 * rule.samples(n)) if max_samples is None else max_samples
    batch = batch_size or default_batch(n)
    started, sampler, history = time.perf_counter(), Sampler(ot, source, generator), []
    ascent_budget = max_samples - min(2 * rule.samples(n), max_samples // 5)  # the rest is for the last check
    state = begin(ot, sampler, max(2, min(PILOT, max(256, n), ascent_budget // 4)))
    settle(ot, state)
    next_check, ascended = (sampler.samples if state.step else FIRST_CHECK * n), 0
    try:
        while True:
            spent = sampler.samples + batch > ascent_budget
            if spent or sampler.samples >= next_check:
                settle(ot, state)
                left = max(3, (max_samples if spent else ascent_budget) - sampler.samples)
                most = left if spent else min(left, 3 * rule.samples(n), max(ascended, 4 * n, 4096))
                converged, found = check(ot, sampler, rule, most)
                report = found.report()
                seconds = time.perf_counter() - started
                if not ascended and report.chi2 - 2 * report.chi2_error > 2 * state.chi2:  # the source has moved
                    state.restart()
                state.chi2 = report.chi2 + 2 * report.chi2_error
                row = {"drawn": sampler.samples, "seconds": seconds, "step": state.step}
                history.append(row | report.to_dict())
                stop = bool(callback(history[-1])) if callback else False
                stop = stop if ot.ranks is None else ot.ranks.agree(stop)
                if converged or spent or stop:
                    break
                growth = min(NEXT_CHECK[1], max(NEXT_CHECK[0], rule.ahead(report))) - 1
                next_check = sampler.samples + int(growth * max(ascended, FIRST_CHECK * n))
                continue
            value = ascend(ot, state, sampler(batch))
            ascended += batch
            if progress:
                chi2 = history[-1]["chi2"] if history else math.nan
                progress(Progress("solve", None, sampler.samples, max_samples, {"w": float(value), "chi2": chi2}))
    finally:
        settle(ot, state)
    reason = Reason.CONVERGED if converged else Reason.CALLBACK if stop else Reason.MAX_SAMPLES
    solution = Solution(converged, reason, report, sampler.samples, time.perf_counter() - started, history)
    if throw and not converged:
        raise NotConverged(solution)
    return solution


def default_batch(n: int) -> int:
    """A power of two near N/8, so that the first checks come after tens of steps; from 64 to 1 024."""
    return 2 ** min(10, max(6, round(math.log2(max(1, n / 8)))))


def settle(ot: "SemiDiscreteOT", state: Ascent) -> None:
    """Make the average the potential, with Σ_j b_j ψ_j = 0; the state keeps the same constant."""
    constant = (ot.weights.double() * state.average).sum()
    state.average -= constant
    state.iterate -= constant
    ot.potential.copy_(state.average)
    ot.ascent = state
