"""How far a potential is from optimal: marginal error, primal, dual and gap, each with its standard error.

With m the law of the chosen target under the source, b the weights and φ the c-transform of ψ:

    χ²     = Σ_j m_j² / b_j − 1                   0 exactly when every target gets its weight
    dual   = E φ(x) + Σ_j b_j ψ_j                 a lower bound of the transport cost, for every ψ
    primal = E φ(x) + Σ_j m_j ψ_j                 E c(x, T(x)) for ε = 0; E[c + ε KL] of the entropic plan otherwise
    gap    = primal − dual = Σ_j (m_j − b_j) ψ_j

χ² is estimated without bias. From n_j hits in M samples (arXiv 2509.25519, eq. 3.5)

    χ̂² = Σ_j n_j (n_j − 1) / b_j / (M (M − 1)) − 1,

and from K independent batch means m^k where masses are soft, Σ_{k≠l} Σ_j m^k_j m^l_j / b_j / (K (K − 1)) − 1.
"""

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastsdot.errors import InvalidArgument


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float


class Interval(NamedTuple):
    """The ends of a confidence interval."""

    lower: float
    upper: float


class HitMarginal:
    """Hits per target, accumulated over batches of indices."""

    def __init__(self, weights: Tensor):
        self.weights = weights
        self.count = torch.zeros_like(weights, dtype=torch.float64)
        self.samples = 0

    def add(self, index: Tensor) -> None:
        self.count.index_add_(0, index, self.count.new_ones(()).expand_as(index))  # a bincount waits for a GPU
        self.samples += index.numel()

    @property
    def mass(self) -> Tensor:
        return self.count / max(1, self.samples)

    def chi2(self) -> Estimate:
        """χ̂² and the square root of its variance, 2 Σ m²/b² / M² + 4 Var_m(m/b) / M, from factorial moments."""
        m, positive = self.samples, self.weights > 0
        if m < 3:
            return Estimate(math.inf, math.inf)
        n, b = self.count[positive], self.weights[positive].double()
        pairs = n * (n - 1) / (m * (m - 1))
        triples = pairs * (n - 2) / (m - 2)
        total = float((pairs / b).sum())
        spread = max(0.0, float((triples / b**2).sum()) - total**2)
        # Few pairs can be seen under small M; a uniform marginal then still has this much noise.
        noise = max(float((pairs / b**2).sum()), float(n.numel()))
        return Estimate(total - 1, math.sqrt(2 * noise / m**2 + 4 * spread / m))


class SoftMarginal:
    """Mean soft masses per batch, kept as at most 32 groups of equally many batches."""

    GROUPS = 32

    def __init__(self, weights: Tensor):
        self.weights = weights
        self.total = torch.zeros_like(weights, dtype=torch.float64)
        self.groups: list[Tensor] = []
        self.pending, self.waiting, self.size = torch.zeros_like(self.total), 0, 1
        self.batches = self.samples = 0

    def add(self, mass: Tensor, samples: int) -> None:
        """Batches must be of one size."""
        self.total += mass
        self.batches += 1
        self.samples += samples
        self.pending = self.pending + mass
        self.waiting += 1
        if self.waiting < self.size:
            return
        self.groups.append(self.pending / self.size)
        self.pending, self.waiting = torch.zeros_like(self.total), 0
        if len(self.groups) == self.GROUPS:
            self.groups = [(a + b) / 2 for a, b in zip(self.groups[::2], self.groups[1::2], strict=True)]
            self.size *= 2

    @property
    def mass(self) -> Tensor:
        return self.total / max(1, self.batches)

    def chi2(self) -> Estimate:
        """χ̂² over whole groups, with the jackknife's standard error, or as far as χ̂² is below 0, where χ² is not."""
        k = len(self.groups)
        if k < 3:
            return Estimate(math.inf, math.inf)
        positive = self.weights > 0
        m = torch.stack(self.groups)[:, positive]
        products = (m / self.weights[positive].double()) @ m.T
        rows = products.sum(1) - products.diagonal()
        without = (rows.sum() - 2 * rows) / ((k - 1) * (k - 2))
        value, spread = float(rows.sum()) / (k * (k - 1)) - 1, float((without - without.mean()).square().sum())
        return Estimate(value, max(math.sqrt(spread * (k - 1) / k), -value))


def student(p: float, freedom: int) -> float:
    """The quantile at ½ ≤ p < 1 of Student's t with `freedom` ≥ 1 degrees: ∫ cos^(ν − 1) θ dθ up to t = √ν tan θ."""
    if freedom > 1000:
        return NormalDist().inv_cdf(p)
    theta = np.linspace(0, math.pi / 2, 2**17 + 1)
    middle = (theta[1:] + theta[:-1]) / 2
    mass = np.concatenate([[0], np.cumsum(np.cos(middle) ** (freedom - 1))])
    return math.sqrt(freedom) * math.tan(np.interp((2 * p - 1) * mass[-1], mass, theta))


def mean_of(values: list[float], sizes: list[int]) -> Estimate:
    """The mean over batches of so many samples, and its standard error."""
    k, total = len(values), sum(sizes)
    if k < 2:
        return Estimate(values[0] if values else math.nan, math.inf)
    mean = math.fsum(n * v for n, v in zip(sizes, values, strict=True)) / total
    spread = math.fsum(n * (v - mean) ** 2 for n, v in zip(sizes, values, strict=True))
    return Estimate(mean, math.sqrt(spread / (k - 1) / total))


INTERVALS = ("chi2", "primal", "dual", "gap")


def require_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InvalidArgument("confidence", "a number between 0 and 1", repr(confidence), "use 0.95, say")


@dataclass(frozen=True)
class Report:
    """What `evaluate` measured on fresh samples; every `name_error` is the standard error of `name`.

    chi2 is dimensionless, primal, dual and gap are in units of cost, max_ratio is max_j m_j / b_j, empty counts
    targets of positive weight that no sample chose, and floor is the standard error that chi2 would have at χ² = 0.
    The errors of primal, dual and gap come from `batches` means of batches. What can be said with confidence:
    `interval` of an estimate, `starved` of the targets that get too little, `unseen` of those that no sample chose.
    """

    samples: int
    chi2: float
    chi2_error: float
    floor: float
    empty: int
    empty_error: float
    max_ratio: float
    max_ratio_error: float
    primal: float
    primal_error: float
    dual: float
    dual_error: float
    gap: float
    gap_error: float
    batches: int
    mass: Tensor = field(repr=False, compare=False)
    weights: Tensor = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, float]:
        """The numbers, without the masses and weights."""
        return {name: value for name, value in vars(self).items() if not isinstance(value, Tensor)}

    def interval(self, name: str, confidence: float = 0.95) -> Interval:
        """value ± t error of chi2, primal, dual or gap, with t Student's quantile for batches − 1 degrees of freedom.

        Raises `InvalidArgument` for another name, and for a confidence outside (0, 1).
        """
        if name not in INTERVALS:
            remedy = "use starved or unseen for what is known of the masses"
            raise InvalidArgument("name", f"one of {', '.join(INTERVALS)}", repr(name), remedy)
        require_confidence(confidence)
        if self.batches < 2:
            return Interval(-math.inf, math.inf)
        value, error = getattr(self, name), getattr(self, f"{name}_error")
        reach = student((1 + confidence) / 2, self.batches - 1) * error
        return Interval(value - reach, value + reach)

    def starved(self, share: float = 0.0, confidence: float = 0.95) -> int:
        """At most so many targets of positive weight have a mass m_j ≤ share · b_j.

        Counted are those for which that cannot be ruled out, for all N at once: with M samples a target is ruled out by
        m̂_j > p_j = share · b_j and M KL(m̂_j ‖ p_j) > log(N / (1 − confidence)), KL that of two coins. For share = 0 a
        single hit rules out that the cell is empty, and what remains is `empty`, whatever the confidence: cells without
        mass and cells of very little look alike. Raises `InvalidArgument` unless 0 ≤ share < 1.
        Source: Hoeffding, JASA 1963, theorem 1, which soft masses obey as hits do.
        """
        require_confidence(confidence)
        if not 0 <= share < 1:
            raise InvalidArgument("share", "a number from 0 to 1, 1 not included", repr(share), "use 0.1, say")
        positive = self.weights > 0
        m, p = self.mass[positive].double(), share * self.weights[positive].double()
        evidence = torch.special.xlogy(m, m / p) + torch.special.xlogy(1 - m, (1 - m) / (1 - p))
        ruled_out = (m > p) & (self.samples * evidence > math.log(m.numel() / (1 - confidence)))
        return int(m.numel() - ruled_out.sum())

    def unseen(self, confidence: float = 0.95) -> float:
        """No target that none of the M samples chose has more mass than log(N / (1 − confidence)) / M."""
        require_confidence(confidence)
        return min(1.0, math.log(int((self.weights > 0).sum()) / (1 - confidence)) / max(1, self.samples))

    def __str__(self) -> str:
        lines = [f"{self.samples:,} samples"]
        for name in ("chi2", "primal", "dual", "gap", "max_ratio", "empty"):
            lines.append(f"{name:<10}{getattr(self, name):>12.5g} ± {getattr(self, name + '_error'):.2g}")
        return "\n".join(lines)


class Survey:
    """Accumulates batches of c-transforms and masses into a `Report`."""

    def __init__(self, weights: Tensor, potential: Tensor, soft: bool):
        self.weights, self.potential = weights, potential
        self.marginal = SoftMarginal(weights) if soft else HitMarginal(weights)
        self.sizes: list[int] = []
        self.phi: list[Tensor] = []
        self.paid: list[Tensor] = []  # Σ_j m_j ψ_j of each batch

    def add(self, phi: Tensor, chosen: Tensor) -> None:
        """phi [B] and either the chosen indices [B] or the batch's soft masses [N]."""
        self.sizes.append(phi.numel())
        self.phi.append(phi.mean(dtype=torch.float64))
        if isinstance(self.marginal, HitMarginal):
            self.paid.append(self.potential[chosen].mean(dtype=torch.float64))
            self.marginal.add(chosen)
        else:
            mass = chosen.double()
            self.paid.append((mass * self.potential).sum())
            self.marginal.add(mass, phi.numel())

    @property
    def owed(self) -> float:
        """Σ_j b_j ψ_j."""
        return float((self.weights.double() * self.potential).sum())

    def last(self) -> float:
        """The last batch's estimate of the semi-dual."""
        return float(self.phi[-1]) + self.owed

    def report(self) -> Report:
        b = self.weights.double()
        owed, chi2 = self.owed, self.marginal.chi2()
        values, paid = (torch.stack(found).tolist() if found else [] for found in (self.phi, self.paid))
        phi = mean_of(values, self.sizes)
        primal = mean_of([p + q for p, q in zip(values, paid, strict=True)], self.sizes)
        gap = mean_of([q - owed for q in paid], self.sizes)
        mass, m = self.marginal.mass, self.marginal.samples
        positive = b > 0
        ratio = torch.where(positive, mass / b, 0.0)
        top = int(ratio.argmax())
        missed = torch.exp(-m * torch.maximum(mass, b)[positive])
        return Report(
            samples=m,
            chi2=chi2.value,
            chi2_error=chi2.error,
            floor=math.sqrt(2 * int(positive.sum())) / max(1, m),
            empty=int((mass[positive] == 0).sum()),
            empty_error=float((missed * (1 - missed)).sum().sqrt()),
            max_ratio=float(ratio[top]),
            max_ratio_error=float((mass[top] * (1 - mass[top]) / max(1, m)).sqrt() / b[top]),
            primal=primal.value,
            primal_error=primal.error,
            dual=phi.value + owed,
            dual_error=phi.error,
            gap=gap.value,
            gap_error=gap.error,
            batches=len(self.sizes),
            mass=mass.float(),
            weights=self.weights.clone(),
        )
