"""A stopping rule: solve until a bracket on W is as narrow as asked.

The k-th bracket of a rule is made with confidence 1 − (1 − confidence) / (k (k + 1)). Those shares of the allowed
failures sum to one, so all brackets of a rule hold W together with probability `confidence`, however many there are:
the one that ends a solve is chosen for its width, and holds W as surely as if it had been the only one. They are made
of fresh samples, which took no part in the potential.

A width has two parts, the noise of M samples and primal − dual. The noise may take half of the width that is asked for.
Where primal − dual is within the other half and the noise is not, another bracket is made at once, of as many samples
as its noise wants. Otherwise the potential has to be better first, which lowers the noise too, and M doubles, since the
samples' own cost is a part of primal − dual that falls with M.
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
        """Makes a bracket, and others at once while nothing but noise is in the way."""
        if survey.potential is not self.ot.potential:
            remedy = "make the rule with the SemiDiscreteOT that is solved"
            raise InvalidArgument("tol", "a Width of this SemiDiscreteOT", "that of another one", remedy)
        while True:
            found, more = self._ask(), 2.0
            if found.relative_width <= self.relative:
                return True
            noise_alone = self._excess(found) <= 1
            if noise_alone:
                more = max(more, (found.noise / self._share(found)) ** 2)
            self._next = math.ceil(min(self.max_samples, more * found.samples))
            if not noise_alone or found.samples == self.max_samples:
                return False

    def ahead(self, report: Report) -> float:
        return self._excess(self.brackets[-1]) if self.brackets else 2.0

    def _share(self, found: Bracket) -> float:
        """What the noise may take of the width, and primal − dual too."""
        return self.relative * abs(found.upper + found.lower) / 4

    def _excess(self, found: Bracket) -> float:
        """How many times too large primal − dual is; 2 where W is about 0, of which no width is a small part."""
        share = self._share(found)
        return (found.primal - found.dual) / share if share else 2.0

    def _ask(self) -> Bracket:
        k = len(self.brackets) + 1
        confidence = 1 - (1 - self.confidence) / (k * (k + 1))
        self.brackets.append(self.ot.bracket(self.source, self._next, confidence=confidence))
        return self.brackets[-1]
