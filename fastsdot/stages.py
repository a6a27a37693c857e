"""Stages of a solve: fresh samples, what they say of the potential, and the fit that they lead to."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastsdot import kernels
from fastsdot.candidates import Candidates, listed
from fastsdot.maximise import maximise
from fastsdot.report import Report, Survey
from fastsdot.sources import SourceLike, as_source, draw
from fastsdot.stopping import Rule

if TYPE_CHECKING:
    from fastsdot.semidiscrete import SemiDiscreteOT

PERPLEXITY = 4.0
COOLING = 6.0
PER_DIRECTION = 8
WIDTH = 4  # lists hold this many times the perplexity of targets
ENTRIES = 2**26  # of lists that are kept, 8 bytes each
KEPT = 8192  # samples behind the rise that a target is allowed, at most
WINS = 4  # times its share that a target may win alone by what a fit adds to its potential
TOLERANCE, GAIN = 0.1, 1e-3  # of the noise of a sample: the residual χ², and the growth in units of τ, that end a fit
TRIALS = (1.0, 0.4)  # factors of the temperature that a stage may choose between
GROWTH = (0.25, 1.0)  # a stage adds between these parts of the samples that are there


@dataclass
class Ascent:
    """Where the ascent stands, so that the next call continues it."""

    potential: Tensor  # [N] float64
    mean_cost: Tensor  # [N] E_x c(x, y_j) up to a constant, under the source of the last call
    noise: float  # variance of an entry of mean_cost
    scale: float  # σ
    chi2: float = math.inf  # at most, when it was last judged
    fitted: int = 0  # samples behind the potential
    temperature: float = 0.0  # at which it was fitted; 0 before that
    candidates: Candidates | None = field(default=None, repr=False)  # of the source as it was, where they are kept

    def to(self, device: torch.device) -> "Ascent":
        moved = {name: getattr(self, name).to(device) for name in ("potential", "mean_cost")}
        return replace(self, **moved, candidates=None)

    def saved(self) -> dict[str, Tensor | float]:
        """What a checkpoint holds: all but the lists, which the next call draws again."""
        return {name: value for name, value in vars(self).items() if name != "candidates"}


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


class Stage:
    """Fresh samples: lists of candidates, and what they say of the potential at which they were made."""

    def __init__(self, ot: "SemiDiscreteOT", perplexity: float):
        positive = int((ot.weights > 0).sum())
        k = 2 ** math.ceil(math.log2(max(2.0, WIDTH * perplexity)))
        self.ot, self.width = ot, k if 2 * k <= positive else ot.targets.shape[0]
        self.bias = ot._bias(ot.potential)
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.kept: list[tuple[Tensor, Tensor]] = []  # samples as kernels see them, and their smallest scores
        self.rows = 0  # of a batch, where all must be of one size
        self.found = Survey(ot.weights, ot.potential, soft=ot.epsilon > 0)

    @property
    def samples(self) -> int:
        return sum(value.shape[0] for value, _ in self.batches)

    def candidates(self, onto: Candidates | None = None) -> Candidates:
        """The lists, added to others that are kept."""
        onto = onto or Candidates(self.ot.weights)
        onto.add(self.batches, self.ot.potential, ENTRIES)
        return onto

    def box(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """How low and how high each potential may go: no lower than its lists reach, and no higher than to the point
        where the target, alone, would win `WINS` times its share of the samples."""
        psi = self.ot.potential.double()
        if not self.kept:
            return psi - math.inf, psi + math.inf
        x, low = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        wins = math.ceil(WINS * len(low) / psi.numel())
        return psi - candidates.reach(), psi + kernels.margins(x, self.ot._kernel, self.bias, low, wins).double()

    def add(self, x: Tensor) -> float:
        """Returns the batch's estimate of the semi-dual."""
        ot = self.ot
        value, index = listed(ot._embed(x), ot._kernel, self.bias, self.width)
        self.batches.append((value, index))
        if self.width < ot.targets.shape[0] and sum(len(low) for _, low in self.kept) < KEPT:
            self.kept.append((ot._embed(x), value[:, 0]))
        if ot.epsilon:
            phi, chosen = ot._marginal(x, ot.potential, ot.epsilon)
        else:
            low, place = value.min(1)
            phi = low + ot.cost.row(x, ot._embedding)
            chosen = index.gather(1, place[:, None]).squeeze(1).long()
        self.found.add(phi, chosen)
        return float(phi.double().mean() + (ot.weights * ot.potential).sum(dtype=torch.float64))


def fit(ot: "SemiDiscreteOT", candidates: Candidates, box: tuple[Tensor, Tensor], temperature: float) -> Tensor:
    """The potential in the box that maximises the semi-dual over the candidates."""
    weights, potential = candidates.weights, ot.potential.double()
    noise = weights.numel() / (candidates.perplexity(potential, temperature) * candidates.samples)
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
    """Make it the potential, with Σ_j b_j ψ_j = 0, and the state's."""
    ot.potential.copy_(potential - (ot.weights.double() * potential).sum())
    ot.ascent.potential = ot.potential.detach().double()


def size_of(perplexity: float, n: int) -> int:
    """Samples that a level takes: `PER_DIRECTION` for each of N/P directions."""
    return max(256, math.ceil(PER_DIRECTION * n / perplexity))


def cool(ot: "SemiDiscreteOT", sampler: Sampler, pilot: Tensor, scale: float, batch: int, budget: int) -> None:
    """The levels before the last one, each on samples of its own; the first takes the pilot's."""
    n, temperature, stage = ot.targets.shape[0], max(scale, ot.epsilon), Stage(ot, ot.targets.shape[0])
    for x in pilot[: max(1, ENTRIES // (4 * n))].split(batch):
        stage.add(x)
    while True:
        candidates = stage.candidates()
        settle(ot, fit(ot, candidates, stage.box(candidates), temperature))
        perplexity = candidates.perplexity(ot.potential.double(), temperature) / COOLING
        if temperature <= ot.epsilon or perplexity <= PERPLEXITY or sampler.samples + size_of(perplexity, n) > budget:
            return
        temperature = max(ot.epsilon, candidates.temperature(ot.potential.double(), perplexity, temperature))
        stage = Stage(ot, perplexity)
        while (left := size_of(perplexity, n) - stage.samples) > 0:
            stage.add(sampler(min(batch, left)))


def sharing(ot: "SemiDiscreteOT", x: Tensor) -> float:
    """The perplexity at which a solve ends: `PERPLEXITY`, or that of the plan at ε."""
    if not ot.epsilon:
        return PERPLEXITY
    stage = Stage(ot, ot.targets.shape[0])
    stage.add(x[:64])
    return stage.candidates().perplexity(ot.potential.double(), ot.epsilon)


def collect(
    stage: Stage,
    sampler: Sampler,
    rule: Rule,
    samples: int,
    batch: int,
    last: bool,
    show: Callable[[float], None] | None,
) -> bool | None:
    """Draw so many samples, or fewer if the rule is met, or if it is not and nothing will follow; its verdict."""
    n, verdict = stage.ot.targets.shape[0], None
    if stage.ot.epsilon:  # soft masses come in batches of one size
        batch = stage.rows = stage.rows or max(1, min(batch, samples // 8))
    while samples >= (batch if stage.ot.epsilon else 1):
        w = stage.add(sampler(min(batch, samples)))
        samples -= batch
        if show:
            show(w)
        if stage.samples >= rule.samples(n) or samples <= 0:
            verdict = rule.verdict(stage.found)
            if verdict or (last and verdict is False):
                break
    return verdict


def ready(state: Ascent, stage: Stage, rule: Rule, verdict: bool | None, report: Report, perplexity: float) -> bool:
    """Whether to fit now: not while the verdict is near, nor while the potential is better than a fit would be."""
    if verdict is None and rule.ahead(report) < 1:
        return False
    samples = stage.samples + (state.candidates.samples if state.candidates else 0)
    return report.chi2 - report.chi2_error > stage.ot.targets.shape[0] / (perplexity * samples)


def improve(ot: "SemiDiscreteOT", state: Ascent, stage: Stage, perplexity: float) -> None:
    """Fit the potential to the stage's samples and to those before."""
    fresh = stage.candidates()
    box = stage.box(fresh)
    if ot.epsilon:
        state.temperature = ot.epsilon
    elif state.candidates is None or not state.temperature:
        state.temperature = fresh.temperature(ot.potential.double(), perplexity, state.scale)
    else:
        trials = [state.temperature * factor for factor in TRIALS]
        state.temperature = max(trials, key=lambda t: fresh.dual(fit(ot, state.candidates, box, t)))
    state.candidates = stage.candidates(state.candidates)
    state.fitted, state.chi2 = state.candidates.samples, math.inf
    settle(ot, fit(ot, state.candidates, box, state.temperature))


def following(state: Ascent, stage: Stage, rule: Rule, report: Report) -> int:
    """Samples of the next stage: as errors that fall as 1/samples would take to satisfy the rule, within `GROWTH`."""
    before = max(1, state.fitted - stage.samples)
    growth = rule.ahead(report) * before / state.fitted - 1
    return math.ceil(state.fitted * min(GROWTH[1], max(GROWTH[0], growth)))
