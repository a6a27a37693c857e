"""Stages of a solve: fresh samples, and what they say of the potential at which they were drawn."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastsdot import kernels
from fastsdot.candidates import Candidates, listed
from fastsdot.errors import SourceError
from fastsdot.quasirandom import evenly
from fastsdot.report import Report, Survey
from fastsdot.sources import EveryRank, SourceLike, as_source, draw, over_ranks
from fastsdot.stopping import Rule

if TYPE_CHECKING:
    from fastsdot.semidiscrete import SemiDiscreteOT

WIDTH = 4  # lists hold this many times the perplexity of targets, and more where that was seen to be too few
WIDEST = 2**24  # entries of a stage's lists, up to which they may be widened
# Entries of lists that are kept, 8 bytes each: so many, and so many for each target where there is room. With 384 a
# target a solve was stuck at χ² 0.08, and 512 took twice the samples that 1 024 took (docs/solver.md).
ENTRIES, FOR_TARGET = 2**26, 1024
ROOM, DEVICE_SHARE = 2**28, 0.25  # entries on a CPU, and the part of a GPU's memory, at most
COORDINATES = 2**28  # of a stage's samples, up to which they are kept to be listed again
SHOWING = 8192  # samples behind the rise that a target is allowed, at most,
PAIRED = 2**33  # and coordinates of their pairs with targets, unless that is less than a sample for two targets
WINS = 4  # times its share that a target may win alone by what a fit adds to its potential
GROWTH = (0.5, 1.0)  # a stage adds between these parts of the samples that are there


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
    widened: int = 1  # times `WIDTH` that lists have
    candidates: Candidates | None = field(default=None, repr=False)  # of the source as it was, where they are kept

    def to(self, device: torch.device) -> "Ascent":
        moved = {name: getattr(self, name).to(device) for name in ("potential", "mean_cost")}
        return replace(self, **moved, candidates=None)

    def saved(self) -> dict[str, Tensor | float]:
        """What a checkpoint holds: all but the lists, which the next call draws again."""
        return {name: value for name, value in vars(self).items() if name != "candidates"}


class Sampler:
    """Batches from a source, and how many samples were drawn; of several ranks the first draws for all, or each its
    share of an `EveryRank`. With `later`, a GPU looks whether they are finite when `check` is called, so that the host
    waits for no single one: what is made of them counts from then on."""

    def __init__(
        self, ot: "SemiDiscreteOT", source: SourceLike, generator: torch.Generator | None = None, later: bool = False
    ):
        source = over_ranks(source, ot.ranks)
        self.source = as_source(source, device=ot.device, generator=generator)
        self.even = evenly(source, ot.device, generator)
        self.shape, self.device, self.samples = ot.shape, ot.device, 0
        self.ranks = None if isinstance(source, EveryRank) else ot.ranks
        self.later = later and ot.device.type != "cpu" and ot.ranks is None
        self.step: Callable[[], bool] = lambda: False  # called after a batch for a fit: whether the time is up
        # 0 x summed over batches: NaN where one of x is not finite
        self.residue = torch.zeros((), dtype=torch.float32, device=ot.device)

    def __call__(self, n: int, even: bool = False) -> Tensor:
        """`even` for a fit alone: quasi-random where that is known for the source."""
        source = self.even if even and self.even else self.source

        def make() -> Tensor:
            return draw(source, n, self.shape, self.device, finite=not self.later)

        x = make() if self.ranks is None else self.ranks.first(make, (n, self.shape.numel()), self.device)
        self.samples += n
        if self.later:
            self.residue += (0 * x).sum()
        return x

    def check(self) -> None:
        """Raise `SourceError` for batches that were NaN or infinite and not looked at when they were drawn."""
        if not bool(self.residue == 0):
            raise SourceError(
                "source", "finite values", f"NaN or infinite ones in {self.samples:,} samples", "remove or replace them"
            )


class Stage:
    """Fresh samples: lists of candidates, and what they say of the potential at which they were drawn."""

    def __init__(self, ot: "SemiDiscreteOT", perplexity: float):
        self.ot, self.perplexity = ot, perplexity
        self._look()
        self.lists: list[tuple[Tensor, Tensor]] = []
        self.x: list[Tensor] = []  # as kernels see them, the first `COORDINATES`
        self.samples, self.even = 0, False
        self.rows = 0  # of a batch, where all must be of one size
        self.asked = 0  # samples at the last verdict
        self.found = Survey(ot.atoms, ot.potential, soft=ot.epsilon > 0)

    def _look(self) -> None:
        """Take the potential as it is now, and lists as long as they are to be now."""
        ot = self.ot
        k = ot.ascent.widened * 2 ** math.ceil(math.log2(max(2.0, WIDTH * self.perplexity)))
        self.width = k if 2 * k <= int((ot.atoms > 0).sum()) else ot.targets.shape[0]
        self.bias, self.potential = ot._bias(ot.potential), ot.potential.double()
        self.limits: tuple[Tensor, Tensor] | None = None  # how far down and up, once `box` was asked for

    @property
    def whole(self) -> bool:
        """Whether the lists hold all targets."""
        return self.width == self.ot.targets.shape[0]

    def take(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The lists of a batch, kept for a fit."""
        embedded = self.ot._embed(x)
        self.lists.append(listed(embedded, self.ot._kernel, self.bias, self.width))
        self.samples += x.shape[0]
        if self.samples * embedded.shape[1] <= COORDINATES or not self.x:
            self.x.append(embedded)
        return self.lists[-1]

    def add(self, x: Tensor) -> None:
        """Take a batch, and let it judge the potential as well."""
        ot, (value, index) = self.ot, self.take(x)
        if ot.epsilon:
            phi, chosen = ot._marginal(x, ot.potential, ot.epsilon)
        else:
            low, place = value.min(1)
            phi = low + ot.cost.row(x, ot._embedding)
            chosen = index.gather(1, place[:, None]).squeeze(1).long()
        self.found.add(phi, chosen)

    def extend(self, sampler: Sampler, samples: int, batch: int) -> "Stage":
        """Samples that are for a fit alone, fewer when the time is up."""
        self.even, batch = sampler.even is not None, equally(samples, batch)
        while samples > 0:
            self.take(sampler(min(batch, samples), even=True))
            samples = 0 if sampler.step() else samples - batch
        sampler.check()
        return self

    def list_again(self) -> bool:
        """Make the lists anew at the potential as it is now, and wider; False where that cannot be done."""
        if self.whole or len(self.x) < len(self.lists):
            return False
        ot = self.ot
        if 2 * self.samples * self.width <= WIDEST:
            ot.ascent.widened *= 2
        self._look()
        self.lists = [listed(x, ot._kernel, self.bias, self.width) for x in self.x]
        return True

    def candidates(self, onto: Candidates | None = None) -> Candidates:
        """The lists, with others that are kept."""
        found = Candidates(self.ot.atoms, onto.parts if onto else ())
        found.add(self.lists, self.potential, room(len(self.potential), self.potential.device))
        return found

    def box(self, candidates: Candidates, held: Tensor) -> tuple[Tensor, Tensor]:
        """How low and how high each potential may go: no lower than its lists reach, and no higher than to the point
        where the target, alone, would win `WINS` times its share of the samples; not at all where it is held."""
        if self.whole:
            return self.potential - math.inf, torch.where(held, self.potential, math.inf)
        if self.limits is None:
            n, d = self.potential.numel(), self.x[0].shape[1]
            shown = self.shown(min(SHOWING, max(n // 2, PAIRED // (n * d))))
            low = torch.cat([value[:, 0] for value, _ in self.lists])[: len(shown)]
            wins = math.ceil(WINS * len(low) / self.potential.numel())
            rise, _ = kernels.margins(shown, self.ot._kernel, self.bias, low, wins)
            self.limits = candidates.reach(), rise
        reach, rise = self.limits
        return self.potential - reach, self.potential + rise.masked_fill(held, 0.0)

    def shown(self, samples: int) -> Tensor:
        """So many of the samples, in whole batches, but one at least."""
        return torch.cat(self.x[: max(1, samples // self.x[0].shape[0])])


def room(n: int, device: torch.device) -> int:
    """Entries of lists that may be kept for n targets."""
    most = int(DEVICE_SHARE * torch.cuda.mem_get_info(device)[1]) // 8 if device.type == "cuda" else ROOM
    return max(ENTRIES, min(FOR_TARGET * n, most))


def equally(samples: int, batch: int) -> int:
    """The size of batches of at most `batch`, and as equal as can be: kernels are compiled anew for a few rows."""
    return -(-samples // max(1, -(-samples // batch)))


def collect(
    stage: Stage,
    sampler: Sampler,
    rule: Rule,
    samples: int,
    batch: int,
    last: bool,
    show: Callable[[float], None] | None,
    late: Callable[[], bool],
) -> tuple[bool | None, bool]:
    """Draw so many samples, or fewer if the rule is met, or if it is not and nothing will follow, or if it is late; the
    rule's verdict, and whether it is late."""
    n, verdict, expired = stage.ot.targets.shape[0], None, False
    if stage.ot.epsilon:  # soft masses come in batches of one size
        batch = stage.rows = stage.rows or max(1, min(batch, samples // 8))
    else:
        batch = equally(samples, batch)
    least = batch if stage.ot.epsilon else 1
    while samples >= least and not expired:
        stage.add(sampler(min(batch, samples)))
        samples -= batch
        if show:
            show(stage.found.last())
        expired = late()
        # Asking at doubling sizes only: a rule that is asked again and again holds by chance at last.
        if stage.samples >= (2 * stage.asked or rule.samples(n)) or ((last and samples < least) or expired):
            sampler.check()
            stage.asked, verdict = stage.samples, rule.verdict(stage.found)
            if verdict or (last and verdict is False):
                break
    sampler.check()
    return verdict, expired


def following(fitted: int, judged: int, rule: Rule, report: Report) -> int:
    """Samples to add to those that are fitted: as errors that fall as 1/samples would take to satisfy the rule, told
    by the report on what fewer had made, within `GROWTH`."""
    growth = rule.ahead(report) * judged / max(1, fitted) - 1
    return math.ceil(fitted * min(GROWTH[1], max(GROWTH[0], growth)))
