"""OTS: the potential that maximises the semi-dual over samples of the source, with no parameter to set.

The semi-dual E_x[min_j c(x, y_j) − ψ_j] + Σ_j b_j ψ_j is concave in ψ with gradient b − m(ψ), m_j the mass of the cell
of y_j. It is maximised over a finite sample, smoothed at a temperature τ (`fastsdot.candidates`), by quasi-Newton steps
(`fastsdot.maximise`). Scale enters through τ alone, and τ through a number of targets: the perplexity P, the number
that share a sample at τ.

1. The start is the last potential, moved with the mean cost of each target where the source has moved, if a pilot
   finds χ² ≤ `WARM` by a standard error, or is too small to tell; otherwise it is cold.
2. From a cold start τ falls from σ, the standard deviation of the cost less its row and column means, so that P
   falls by `COOLING` at a time to `PERPLEXITY`. A level has N/P directions to learn and draws `PER_DIRECTION` times as
   many samples.
3. At the last level samples accumulate. Each stage draws fresh ones, which first tell how good the potential is that
   has not seen them, and then join the lists; or, where the source has quasi-random samples, those are drawn for the
   lists, and fresh ones judge alone. τ falls further where that serves the samples better.
4. Targets of so little weight that they win few samples are put where the tail of their margins says
   (`fastsdot.tails`).

No fit moves a potential further than its lists reach, nor a target up to where it would win many times its share of
the fresh samples: lists do not say what targets that are in none of them would win. Where that holds back more than
a part of the noise, the stage's samples are listed again at the potential reached, in lists twice as long.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastsdot import kernels
from fastsdot.errors import require_number
from fastsdot.fitting import cool, improve, ready, settle, sharing, size_of
from fastsdot.progress import Progress
from fastsdot.report import Report, Survey
from fastsdot.sources import SourceLike
from fastsdot.stages import Ascent, Sampler, Stage, collect, following
from fastsdot.stopping import Rule, as_rule, asks

if TYPE_CHECKING:
    from fastsdot.semidiscrete import SemiDiscreteOT

WARM = 0.5  # χ² on the pilot, and a standard error, from which a potential is learnt again
PILOT = 1024  # samples behind σ and the mean cost, at most
ROWS, DEVICE_ROWS = 1024, 4096  # samples a call of the kernels, by default; on a GPU the launches are paid for by more
BUDGET = 200  # samples a target, where max_samples is None


class Reason(StrEnum):
    """Why a solve ended."""

    CONVERGED = "the stopping rule held on fresh samples"
    MAX_SAMPLES = "max_samples were drawn before the stopping rule held"
    MAX_SECONDS = "max_seconds passed before the stopping rule held"
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

    samples counts every draw; report is on the last samples, which the potential has not seen; history has a row per
    potential that was judged: drawn so far, seconds, fitted (the samples behind it), and the numbers of its report.
    """

    converged: bool
    reason: Reason
    report: Report
    samples: int
    seconds: float
    history: list[dict[str, float]]


def cost_statistics(ot: "SemiDiscreteOT", x: Tensor) -> tuple[Tensor, float]:
    """E_x c(x, y_j) up to a constant, [N], and σ, over a batch x [B, D]."""
    n, batch = ot.targets.shape[0], x.shape[0]
    mean, row, square = kernels.moments(ot._embed(x), ot._kernel, ot._embedding.column)
    variance = float(square / (batch * n) - (row / n).square().mean())
    return mean - mean.mean(), math.sqrt(max(0.0, variance))


def begin(ot: "SemiDiscreteOT", x: Tensor) -> tuple[Ascent, bool]:
    """The start on a pilot sample x, and whether it is a cold one."""
    mean, scale = cost_statistics(ot, x)
    scale = scale or 1.0  # every target costs the same: any temperature is right
    fresh = Ascent(0 * mean, mean, scale**2 / x.shape[0], scale)
    last, starts = ot.ascent, []
    if last is not None and torch.equal(last.potential.float(), ot.potential):
        starts = [last, follow(last, fresh)]
    elif bool(ot.potential.any()):
        starts = [replace(fresh, potential=ot.potential.double())]
    best, lowest = fresh, WARM
    for start in starts:
        hits = Survey(ot.atoms, ot.potential, soft=False)
        hits.add(x.new_zeros(x.shape[0]), ot._assign(x, start.potential.float()))
        chi2 = hits.marginal.chi2()
        blurred = best is fresh and not chi2.error < WARM / 2  # a few samples have to show that it is bad
        if chi2.value + chi2.error < lowest or (blurred and not chi2.value - 2 * chi2.error > WARM):
            best, lowest = start, chi2.value - chi2.error  # the first of those that the pilot cannot tell apart
    return best, best is fresh


def follow(last: Ascent, now: Ascent) -> Ascent:
    """The last potential moved by E_new c(x, y_j) − E_old c(x, y_j), where that is more than noise (James-Stein)."""
    drift = now.mean_cost - last.mean_cost
    drift -= drift.mean()
    signal = float(drift.square().mean())
    kept = max(0.0, 1 - (now.noise + last.noise) / signal) if signal else 0.0
    return replace(now, potential=last.potential + kept * drift)


@torch.no_grad()
def evaluate(ot: "SemiDiscreteOT", source: SourceLike, samples: int, batch_size: int | None = None) -> Report:
    """Survey `samples` fresh samples of `source` at the potential."""
    require_number("samples", samples, above=1, whole=True)
    if batch_size is not None:
        require_number("batch_size", batch_size, above=0, whole=True)
    return survey(ot, Sampler(ot, source, later=True), samples, min(batch_size or 4096, max(1, samples // 16))).report()


def survey(ot: "SemiDiscreteOT", sampler: Sampler, samples: int, batch: int) -> Survey:
    """`samples` in batches, or less than a batch under it for soft masses."""
    found = Survey(ot.atoms, ot.potential, soft=ot.epsilon > 0)
    while (left := samples - found.marginal.samples) >= (batch if ot.epsilon else 1):
        found.add(*ot._marginal(sampler(min(batch, left)), ot.potential, ot.epsilon))
    sampler.check()
    return found


@torch.no_grad()
def solve(
    ot: "SemiDiscreteOT",
    source: SourceLike,
    *,
    tol: float | Rule = 0.05,
    max_samples: int | None = None,
    max_seconds: float | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[Progress], None] | None = None,
    callback: Callable[[dict[str, float]], bool | None] | None = None,
    throw: bool = False,
) -> Solution:
    """Maximise the semi-dual over ψ, and set `ot.potential` to the result.

    tol is a bound on χ² or a `Rule`; max_samples (by default 200 a target, and enough for some verdicts) bounds the
    draws, and max_seconds the wall time: the solve ends with the first batch after that, which a fit may delay;
    batch_size is the number of samples that kernels are given at once, and changes no result but by rounding; generator
    draws an int source; callback sees a row whenever a potential has been judged, and returns True to stop the solve.
    The potential is the last, unless one that was judged before has a smaller χ² and a larger dual; it is set even when
    the source raises or the solve is interrupted. A call continues the last one, and follows the source when that has
    moved.

    Raises `SourceError` for a batch that is not usable, `NotConverged` if `throw`, `InvalidArgument` otherwise.
    Source: the problem is Chen et al. 2019, algorithm 1.
    """
    rule = as_rule(tol)
    if max_seconds is not None:
        require_number("max_seconds", max_seconds, above=0)
    for name, value, above in (("max_samples", max_samples, 3), ("batch_size", batch_size, 0)):
        if value is not None:
            require_number(name, value, above, whole=True)
    n, started, history = ot.targets.shape[0], time.perf_counter(), []
    max_samples = max(BUDGET * n, 100 * rule.samples(n)) if max_samples is None else max_samples
    budget = max_samples - max(2, min(2 * rule.samples(n), max_samples // 5))  # the rest is for the last verdict
    batch, sampler = batch_size or default_batch(ot), Sampler(ot, source, generator, later=True)
    pilot = sampler(max(2, min(PILOT, max(256, n // 4), budget // 4)))
    sampler.check()
    state, cold = begin(ot, pilot)
    ot.ascent = state
    settle(ot, state.potential)

    def show(w: float) -> None:
        values = {"w": w, "chi2": history[-1]["chi2"] if history else math.nan}
        progress(Progress("solve", None, sampler.samples, max_samples, values))

    def judge(report: Report) -> bool:
        row = {"drawn": sampler.samples, "seconds": time.perf_counter() - started, "fitted": state.fitted}
        history.append(row | report.to_dict())
        stop = asks(callback(history[-1])) if callback else False
        return stop if ot.ranks is None else ot.ranks.agree(stop)

    def late() -> bool:
        if max_seconds is None:
            return False
        passed = time.perf_counter() - started > max_seconds
        return passed if ot.ranks is None else ot.ranks.agree(passed)

    def step() -> bool:
        if progress:
            show(history[-1]["dual"] if history else math.nan)
        return late()

    def learn(stage: Stage, samples: int) -> None:
        """Fit to the stage, or to so many samples that are for that alone."""
        if sampler.even:
            stage = Stage(ot, perplexity).extend(sampler, min(samples, budget - sampler.samples), batch)
        if stage.samples:
            improve(ot, state, stage, perplexity)

    sampler.step = step
    if cold:
        state.candidates = cool(ot, sampler, pilot, batch, budget // 2, late)
        state.fitted = state.candidates.samples
    perplexity = sharing(ot, pilot)
    wanted = size_of(perplexity, n) // (1 if cold else 4)
    if cold and sampler.even:
        learn(Stage(ot, perplexity), wanted)
    stage, best = Stage(ot, perplexity), None
    while True:
        last = sampler.samples + max(1, stage.rows) > budget
        some = min(wanted, rule.samples(n)) if sampler.even else wanted
        left = max_samples - sampler.samples if last else min(some, budget - sampler.samples)
        verdict, expired = collect(stage, sampler, rule, left, batch, last, progress and show, late)
        over = last or expired or sampler.samples >= max_samples
        report = stage.found.report()
        if not history and report.chi2 - 2 * report.chi2_error > state.chi2:
            state.candidates = None  # the source has moved
        if not (verdict or over or ready(state, stage, rule, verdict, report, bool(sampler.even))):
            continue
        stop = judge(report)
        state.chi2 = report.chi2 + 2 * report.chi2_error
        if best is None or state.chi2 < best[0]:
            best = state.chi2, report, state.potential
        if verdict or over or stop:
            break
        learned = state.fitted
        learn(stage, following(learned, learned, rule, report) or wanted)  # a start that was moved has no samples
        wanted = following(state.fitted, learned, rule, report)
        stage = Stage(ot, perplexity)
    converged = verdict is True
    if report.chi2 - 2 * report.chi2_error > best[0] and report.dual < best[1].dual:  # the last fit made it worse
        state.chi2, report, potential = best
        settle(ot, potential)
    reason = Reason.MAX_SECONDS if expired else Reason.MAX_SAMPLES
    reason = Reason.CONVERGED if converged else Reason.CALLBACK if stop else reason
    solution = Solution(converged, reason, report, sampler.samples, time.perf_counter() - started, history)
    if throw and not converged:
        raise NotConverged(solution)
    return solution


def default_batch(ot: "SemiDiscreteOT") -> int:
    """`ROWS`, and more on a GPU, or where each call reads all targets again."""
    local = ot._kernel.local if isinstance(ot._kernel, kernels.Shards) else ot._kernel
    if isinstance(local, kernels.Blocks):
        return 8 * ROWS
    return ROWS if ot.device.type == "cpu" else DEVICE_ROWS
