"""What a conditional solve and its evaluation found, class by class and pooled.

With β_k the share of class k of all weight, χ², primal, dual and gap of the pooled plan are Σ_k β_k times the classes'.
"""

import math
from dataclasses import dataclass

from fastsdot.labels import Label
from fastsdot.ots import Reason, Solution
from fastsdot.report import Report


@dataclass(frozen=True)
class ConditionalReport:
    """The `Report` of every class, under its label, and of all targets under None where there is one.

    chi2, primal, dual and gap are pooled over the classes, with standard errors under `name_error`; where the classes
    were measured on the same samples, these are upper bounds.
    """

    classes: dict[Label | None, Report]
    shares: dict[Label, float]
    same_samples: bool = False

    def __getitem__(self, label: Label | None) -> Report:
        return self.classes[label]

    def __getattr__(self, name: str) -> float:
        if name.removesuffix("_error") not in ("chi2", "primal", "dual", "gap"):
            raise AttributeError(name)
        shares = {label: self.shares[label] for label in self.classes if label is not None}
        terms = [share * getattr(self.classes[label], name) for label, share in shares.items()]
        joined = math.hypot(*terms) if name.endswith("_error") and not self.same_samples else math.fsum(terms)
        return joined / math.fsum(shares.values())

    @property
    def empty(self) -> int:
        """How many targets of positive weight no sample of their class chose."""
        return sum(report.empty for label, report in self.classes.items() if label is not None)

    @property
    def worst(self) -> Label | None:
        """The label of the largest χ²."""
        return max(self.classes, key=lambda label: self.classes[label].chi2)

    def to_dict(self) -> dict[str, float]:
        """The pooled numbers."""
        names = ("chi2", "primal", "dual", "gap")
        return {key: getattr(self, key) for name in names for key in (name, f"{name}_error")} | {"empty": self.empty}

    def __str__(self) -> str:
        lines = [f"{'class':<12}{'share':>8}{'chi2':>14}{'primal':>16}"]
        for label, report in self.classes.items():
            share = f"{self.shares[label]:.3f}" if label is not None else "all"
            lines.append(f"{label!s:<12}{share:>8}{report.chi2:>8.3f} ± {report.chi2_error:.3f}{report.primal:>16.5g}")
        lines.append(f"{'pooled':<20}{self.chi2:>8.3f} ± {self.chi2_error:.3f}{self.primal:>16.5g}")
        return "\n".join(lines)


@dataclass(frozen=True)
class ConditionalSolution:
    """The outcome of a conditional solve.

    converged says that every class did, and that of all targets where there is one; unconverged are the labels of those
    that did not, or that a callback left out. samples counts every draw, those that several classes used once.
    """

    converged: bool
    reason: Reason
    report: ConditionalReport
    samples: int
    seconds: float
    classes: dict[Label | None, Solution]
    unconverged: tuple[Label | None, ...]

    @property
    def history(self) -> list[dict[str, float]]:
        """The rows of every class, each with its label under "class"."""
        return [row | {"class": label} for label, part in self.classes.items() for row in part.history]

    def __getitem__(self, label: Label | None) -> Solution:
        return self.classes[label]
