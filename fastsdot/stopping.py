"""When a solve stops: verdicts on fresh samples, which took no part in the potential that they judge."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Protocol

import numpy as np
import torch

from fastsdot.errors import InvalidArgument, require_number
from fastsdot.report import Report, Survey

SURE = 3.0  # standard errors by which χ² has to be below the tolerance


class Rule(Protocol):
    """When to stop, told by fresh samples."""

    def samples(self, n: int) -> int:
        """How many samples a first verdict on n targets takes; the next ones come after twice as many each."""

    def verdict(self, survey: Survey) -> bool | None:
        """True or False, or None where more samples are needed to tell."""

    def ahead(self, report: Report) -> float:
        """The factor by which the ascent should grow before it is worth asking again; errors fall as 1/samples."""


@dataclass(frozen=True)
class Chi2:
    """χ² ≤ tol, by three standard errors of at most tol/4: true below, false above by one, undecided between.

    True also takes 3 / √(tol b) samples for the smallest weight b above 0: that target may hold √(tol b) of the mass
    before χ² is above tol, and a standard error says nothing of what no sample has shown. χ² is dimensionless, and
    unbiased: arXiv 2509.25519, eq. 3.5. Raises `InvalidArgument` unless tol is a finite number above 0.
    """

    tol: float

    def __post_init__(self) -> None:
        require_number("tol", self.tol, above=0)

    def samples(self, n: int) -> int:
        """Enough for a standard error of tol/2 at χ² = 0."""
        return math.ceil(2 * math.sqrt(2 * n) / self.tol)

    def verdict(self, survey: Survey) -> bool | None:
        chi2 = survey.marginal.chi2()
        least = float(survey.weights[survey.weights > 0].min())
        shown = survey.marginal.samples * math.sqrt(self.tol * least) >= SURE
        if shown and chi2.value + SURE * chi2.error <= self.tol and chi2.error <= self.tol / 4:
            return True
        return False if chi2.value - chi2.error > self.tol else None

    def ahead(self, report: Report) -> float:
        return report.chi2 / (0.75 * self.tol)


def asks(answer: object) -> bool:
    """Whether a callback's answer ends a solve: True does, Python's or NumPy's, and nothing that only counts as true,
    such as what `tqdm.update` and `file.write` return."""
    return isinstance(answer, bool | np.bool_) and bool(answer)


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

    Raises `InvalidArgument` unless bins ≥ 1 and 1 ≤ hits, low ≤ hits ≤ high.
    Source: the code of Chen et al. 2019 (256 000 samples in 1 000 bins, each within [200, 320]); bins hold equal
    weight, and there are at most N.
    """

    bins: int = 1000
    hits: int = 256
    low: int = 200
    high: int = 320

    def __post_init__(self) -> None:
        require_number("bins", self.bins, above=0, whole=True)
        require_number("hits", self.hits, above=0, whole=True)
        if not self.low <= self.hits <= self.high:
            expected = f"{self.low} to {self.high}, what bins may have"
            raise InvalidArgument("hits", expected, str(self.hits), "set low and high about it")

    def samples(self, n: int) -> int:
        return self.hits * min(self.bins, n)

    def ahead(self, report: Report) -> float:
        return 2.0  # a verdict takes many samples

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
