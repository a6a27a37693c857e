"""A stopping rule: solve until a bracket on W is as narrow as asked.

The k-th bracket of a rule is made with confidence 1 − (1 − confidence) / (k (k + 1)). Those shares of the allowed
failures sum to one, so all brackets of a rule hold W together with probability `confidence`, however many there are:
the one that ends a solve is chosen for its width, and holds W as surely as if it had been the only one. They are made
of fresh samples, which took no part in the potential.

A width has two parts, the noise of M samples and primal − dual, and either may stand in the way. M is such that the
noise takes half of the width that is asked for, and at least doubles from one bracket to the next, since the samples'
own cost is a part of primal − dual that falls with M; the rest is the potential's.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastsdot.bracket import Bracket, require_hard
from fastsdot.errors import InvalidArgument, require_number
from fastsdot.report import Report, Survey, require_confidence
from fastsdot.sources import SourceLike

if TYPE_CHECKING:
    from fastsdot.semidiscrete import SemiDiscreteOT

FIRST = 10_000  # samples of the first bracket, and one a target at least
NOISE = 0.5  # of the width that is asked for
ASKED = 1000  # samples of the survey before the first bracket, and one a target at least


@dataclass(eq=False)
class Width:
    """relative_width of a bracket on W at most `relative`: ``ot.solve(source, tol=Width(0.02, ot, source))``.

    ot is the one that is solved, source the same distribution, whose draws must be independent of those of the solve;
    max_samples bounds the samples of one bracket, and with them the width that can be reached. `bracket` is the last
    one, which satisfied the rule where the solve converged; with probability `confidence` all of `brackets` hold W.
    `drawn` counts their samples, which `Solution.samples` and the solve's max_samples leave out.

    Raises `InvalidArgument` for ε > 0, and from a solve of another `SemiDiscreteOT`.
    """

    relative: float
    ot: "SemiDiscreteOT" = field(repr=False)
    source: SourceLike = field(repr=False)
    confidence: float = 0.95
    max_samples: int = 200_000
    brackets: list[Bracket] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        require_number("relative", self.relative, above=0)
        require_number("max_samples", self.max_samples, above=1, whole=True)
        require_confidence(self.confidence)
        require_hard(self.ot)
        self._next = min(self.max_samples, max(FIRST, self.ot.targets.shape[0]))

    @property
    def bracket(self) -> Bracket | None:
        return self.brackets[-1] if self.brackets else None

    @property
    def drawn(self) -> int:
        return sum(bracket.samples for bracket in self.brackets)

    def samples(self, n: int) -> int:
        return max(ASKED, n)

    def verdict(self, survey: Survey) -> bool:
        """Makes a bracket, and another one at once where the noise alone is wider than what is asked for."""
        if survey.potential is not self.ot.potential:
            remedy = "make the rule with the SemiDiscreteOT that is solved"
            raise InvalidArgument("tol", "a Width of this SemiDiscreteOT", "that of another one", remedy)
        while True:
            found = self._ask()
            if found.relative_width <= self.relative:
                return True
            if found.noise <= self._allowed(found) or found.samples == self.max_samples:
                return False

    def ahead(self, report: Report) -> float:
        if not self.brackets:
            return 2.0
        last = self.brackets[-1]
        allowed = (1 - NOISE) * self._allowed(last)
        return (last.primal - last.dual) / allowed if allowed else 2.0

    def _allowed(self, found: Bracket) -> float:
        return self.relative * abs(found.upper + found.lower) / 2

    def _ask(self) -> Bracket:
        k = len(self.brackets) + 1
        confidence = 1 - (1 - self.confidence) / (k * (k + 1))
        found = self.ot.bracket(self.source, self._next, confidence=confidence)
        self.brackets.append(found)
        allowed = NOISE * self._allowed(found)
        wanted = found.samples * max(2.0, (found.noise / allowed) ** 2 if allowed else 2.0)
        self._next = math.ceil(min(self.max_samples, wanted))
        return found
