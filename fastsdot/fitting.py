"""Fits of a stage: the potential that maximises the smoothed semi-dual over lists, and the temperature for it."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastsdot.candidates import COLDEST, Candidates
from fastsdot.maximise import maximise
from fastsdot.report import Report
from fastsdot.stages import ENTRIES, SHOWING, Ascent, Sampler, Stage
from fastsdot.stopping import Rule
from fastsdot.tails import hold, rare

if TYPE_CHECKING:
    from fastsdot.semidiscrete import SemiDiscreteOT

PERPLEXITY = 4.0
COOLING = 6.0
PER_DIRECTION = 8
TOLERANCE, GAIN = 0.01, 1e-4  # of the noise of a sample: the residual χ², and the growth in units of τ, that end a fit
LISTINGS = 4  # of the samples of a stage, at most
HELD = 0.3  # of the noise of a sample: the residual χ² up to which lists are not made again
FRESH = 1.25  # of the noise of a sample: by how much χ² of other samples exceeds the misfit of those that were fitted
FALL, SURE = 0.4, 2.0  # of the temperature at a time, and the standard errors by which fresh samples must ask for it
SCORES = 2**28  # of samples and targets that tell where rare targets belong, or `SHOWING` samples


def maximum(ot: "SemiDiscreteOT", candidates: Candidates, box: tuple[Tensor, Tensor], temperature: float) -> Tensor:
    """The potential in the box that maximises the semi-dual over the candidates."""
    weights, potential = candidates.weights, ot.potential.double()
    noise = candidates.noise(potential, temperature)
    return maximise(
        lambda psi: candidates(psi, temperature),
        potential,
        box,
        torch.where(weights > 0, 1 / weights, 0.0),
        temperature,
        TOLERANCE * noise,
        GAIN * noise * temperature,
    )


def settle(ot: "SemiDiscreteOT", potential: Tensor) -> None:
    """Make it the potential, with Σ_j b_j ψ_j = 0 and one ψ for identical targets, and the state's."""
    potential = potential - (ot.atoms.double() * potential).sum()
    ot.potential.copy_(potential if ot.first is None else potential[ot.first])
    ot.ascent.potential = ot.potential.detach().double()


def fit(ot: "SemiDiscreteOT", stage: Stage, before: Candidates | None, temperature: float) -> Candidates:
    """Fit the potential to a stage and to the lists before it, and list the stage again while the box holds back more
    than noise; returns the lists."""
    for listing in range(LISTINGS):
        candidates = stage.candidates(before)
        held = rare(ot, candidates.samples)
        ot.potential.copy_(maximum(ot, candidates, stage.box(candidates, held), temperature))
        psi = ot.potential.double()
        misfit = candidates.misfit(candidates.masses(psi, temperature), ~held)
        enough = misfit <= HELD * candidates.noise(psi, temperature)
        if enough or listing == LISTINGS - 1 or not stage.list_again():
            break
    return candidates


def hold_rare(ot: "SemiDiscreteOT", stage: Stage, candidates: Candidates, temperature: float) -> None:
    """End a fit: put rare targets where the tails of the stage's samples say, and settle the potential."""
    held = rare(ot, candidates.samples)
    if bool(held.any()):
        hold(ot, stage.shown(max(SHOWING, SCORES // len(held))), held, temperature)
    settle(ot, ot.potential.double())


def size_of(perplexity: float, n: int) -> int:
    """Samples that a level takes: `PER_DIRECTION` for each of N/P directions."""
    return max(256, math.ceil(PER_DIRECTION * n / perplexity))


def cool(
    ot: "SemiDiscreteOT", sampler: Sampler, pilot: Tensor, batch: int, budget: int, late: Callable[[], bool]
) -> Candidates:
    """The levels before the last one, each on samples of its own, the first on the pilot's; the lists of the last."""
    n, temperature, stage = ot.targets.shape[0], max(ot.ascent.scale, ot.epsilon), Stage(ot, ot.targets.shape[0])
    for x in pilot[: max(1, ENTRIES // (4 * n))].split(batch):
        stage.take(x)
    while True:
        candidates = fit(ot, stage, None, temperature)
        ot.ascent.widened = 1  # other levels need other lists
        perplexity = candidates.perplexity(ot.potential.double(), temperature) / COOLING
        coldest = max(ot.epsilon, COLDEST * ot.ascent.scale)  # where targets tie, no temperature tells them apart
        enough = temperature <= coldest or perplexity <= PERPLEXITY or late()
        if enough or sampler.samples + size_of(perplexity, n) > budget:
            hold_rare(ot, stage, candidates, temperature)
            return candidates
        temperature = max(ot.epsilon, candidates.temperature(ot.potential.double(), perplexity, temperature))
        settle(ot, ot.potential.double())
        stage = Stage(ot, perplexity).extend(sampler, size_of(perplexity, n), batch)


def sharing(ot: "SemiDiscreteOT", x: Tensor) -> float:
    """The perplexity at which fits of a solve begin: `PERPLEXITY`, or that of the plan at ε where it is larger."""
    if not ot.epsilon:
        return PERPLEXITY
    stage = Stage(ot, ot.targets.shape[0])
    stage.take(x[:64])
    return max(PERPLEXITY, stage.candidates().perplexity(ot.potential.double(), ot.epsilon))


def by_dual(ot: "SemiDiscreteOT", before: Candidates, fresh: Candidates, box: tuple[Tensor, Tensor]) -> float:
    """Fit to the lists before at the last temperature and at lower ones for as long as the dual of fresh samples grows
    by more than noise, and return the last that served."""
    temperature = ot.ascent.temperature
    ot.potential.copy_(maximum(ot, before, box, temperature))
    dual = fresh.dual(ot.potential.double())
    while FALL * temperature > COLDEST * ot.ascent.scale:
        potential = maximum(ot, before, box, FALL * temperature)
        gain = fresh.dual(potential) - dual
        if float(gain.mean()) <= SURE * float(gain.std()) / math.sqrt(len(gain)):
            break
        temperature, dual = FALL * temperature, dual + gain
        ot.potential.copy_(potential)
    return temperature


def by_misfit(ot: "SemiDiscreteOT", stage: Stage, candidates: Candidates, temperature: float, told: float) -> float:
    """Fit at lower temperatures, down to `told` and further for as long as the χ² that is to be expected falls, and
    return the last that served.

    That is the misfit of the masses, which has what smoothing puts in the wrong place, and the noise that the fit has
    taken up, N/(P M), which other samples add: `FRESH` times for independent samples, by measurement.
    """
    held = rare(ot, candidates.samples)

    def expected(psi: Tensor, temperature: float) -> float:
        noise = candidates.noise(psi, temperature) * (1 if stage.even else FRESH)
        return candidates.misfit(candidates.masses(psi, ot.epsilon), ~held) + noise

    least, coldest = expected(ot.potential.double(), temperature), max(ot.epsilon, COLDEST * ot.ascent.scale)
    while temperature > coldest:
        lower = max(FALL * temperature, told if told < temperature else coldest)
        psi = maximum(ot, candidates, stage.box(candidates, held), lower)
        error = expected(psi, lower)
        if error >= least and lower < told:
            break
        ot.potential.copy_(psi)
        temperature, least = lower, error
    return temperature


def ready(state: Ascent, stage: Stage, rule: Rule, verdict: bool | None, report: Report, even: bool) -> bool:
    """Whether to fit now: not while the verdict is near, nor to samples that say less than the potential holds."""
    if verdict is None and rule.ahead(report) < 1:
        return False
    if even:
        return True
    samples = stage.samples + (state.candidates.samples if state.candidates else 0)
    return report.chi2 - 2 * report.chi2_error > stage.ot.targets.shape[0] / (stage.perplexity * samples)


def improve(ot: "SemiDiscreteOT", state: Ascent, stage: Stage, perplexity: float) -> None:
    """Fit the potential to the stage's samples and to those before.

    From the temperature of `perplexity` down, whatever the last one was: where few samples are shared a fit has no
    slope to go by, and has to start near its end.
    """
    before, fresh = state.candidates, stage.candidates()
    warm = told = max(ot.epsilon, fresh.temperature(ot.potential.double(), perplexity, state.scale))
    if before is not None and state.temperature:
        told = state.temperature
        if not ot.epsilon:
            told = by_dual(ot, before, fresh, stage.box(fresh, rare(ot, before.samples)))
    warm = max(warm, told)
    state.candidates = fit(ot, stage, before, warm)
    state.temperature = by_misfit(ot, stage, state.candidates, warm, told)
    hold_rare(ot, stage, state.candidates, state.temperature)
    state.fitted, state.chi2 = state.candidates.samples, math.inf
