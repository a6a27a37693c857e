"""When the alternation provably makes progress, after section 3.3 of Chen et al. 2019.

Let c^β be a metric (β = 1 for l1 and euclidean, ½ for sqeuclidean, 1/p for lp with p > 1), T_c the transport cost,
C(f, g) = E_z c(f(z), g(z)), and b the weights. After OTS with map T and FIT from g to g', the triangle inequality gives

    T_c^β(g'#μ, ν̂) ≤ C^β(T∘g, g') + T_c^β((T∘g)#μ, ν̂),

so the distance falls by the factor 1 − α every round when

    (5)  C^β(T∘g, g) ≤ (1 + ε_ot1) T_c^β(g#μ, ν̂)        OTS: the map costs hardly more than the optimum
    (6)  E_ot2 = T_c^β((T∘g)#μ, ν̂) ≤ α T_c^β(g#μ, ν̂)    OTS: the pushforward is nearly the data
    (7)  C^β(T∘g, g') ≤ (1 − 2α) / (1 + ε_ot1) · C^β(T∘g, g)    FIT: the generator follows the map

T_c is replaced by what is known of it: the semi-dual value bounds it from below in (5) and (6), and E_ot2 is bounded
from above by moving the excess mass to the missing mass by the product coupling.
"""

from dataclasses import dataclass

import torch

from fastsdot import kernels
from fastsdot.costs import Cost
from fastsdot.errors import InvalidArgument, require_number
from fastsdot.report import Report
from fastsdot.semidiscrete import SemiDiscreteOT, decode


@dataclass(frozen=True)
class Precision:
    """Stop `train` when a round cannot be shown to reduce the distance by the factor 1 − alpha.

    alpha, ot1 and fit are α, ε_ot1 and ε_fit: training is done when T_c^β ≤ fit. ot2 bounds E_ot2 in units of
    cost^β besides α T_c^β; None leaves α T_c^β alone. OTS is repeated, a tolerance on χ² halved, and FIT with as many
    steps again, up to `tries` times each. Raises `InvalidArgument` unless 0 < α < ½, ε_ot1 ≥ 0, fit ≥ 0, ot2 > 0 and
    tries ≥ 1.
    Source: (5) to (7) in section 3.3 of Chen et al. 2019, as at the head of `fastsdot.theory`.
    """

    alpha: float = 0.05
    ot1: float = 0.1
    ot2: float | None = None
    fit: float = 0.0
    tries: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5:
            raise InvalidArgument("alpha", "0 < α < ½", repr(self.alpha), "0.05 asks for 5 % a round")
        require_number("ot1", self.ot1, least=0)
        require_number("fit", self.fit, least=0)
        require_number("tries", self.tries, above=0, whole=True)
        if self.ot2 is not None:
            require_number("ot2", self.ot2, above=0)

    @property
    def fit_ratio(self) -> float:
        """The right-hand side of (7) over C^β(T∘g, g)."""
        return (1 - 2 * self.alpha) / (1 + self.ot1)

    def transport_holds(self, ot: SemiDiscreteOT, report: Report) -> bool:
        """(5) and (6), and ot2, on the masses of a report."""
        beta = exponent(ot.cost)
        distance = max(report.dual, 0.0) ** beta
        marginal = marginal_cost(ot, report.mass) ** beta
        near = report.primal**beta <= (1 + self.ot1) * distance
        return near and marginal <= self.alpha * distance and (self.ot2 is None or marginal <= self.ot2)


def exponent(cost: Cost) -> float:
    """β for which c^β is a metric. Raises `InvalidArgument` where there is none."""
    known = {"l1": 1.0, "euclidean": 1.0, "sqeuclidean": 0.5}
    if cost.name == "lp":
        return min(1.0, 1 / cost.p)
    if cost.name not in known:
        raise InvalidArgument(
            "precision",
            "a cost some power of which is a metric",
            f"cost {cost.name!r}",
            "use l1, lp, euclidean or sqeuclidean",
        )
    return known[cost.name]


def marginal_cost(ot: SemiDiscreteOT, mass: torch.Tensor, rows: int = 1024) -> float:
    """An upper bound of T_c(m, b) between masses m and weights b on the targets, in units of cost.

    Σ_ij e_i d_j c(y_i, y_j) / Σ_i e_i with e = (m − b)⁺ and d = (b − m)⁺; a mean over `rows` draws from e.
    """
    excess, missing = (mass - ot.atoms).clamp(min=0), (ot.atoms - mass).clamp(min=0)
    total = float(excess.sum())
    if total <= 0:
        return 0.0
    # Quantiles of e in the order of the targets take no randomness from the run.
    levels = (torch.arange(rows, device=mass.device) + 0.5) / rows * total
    chosen = torch.searchsorted(excess.cumsum(0), levels).clamp(max=mass.numel() - 1)
    y = decode(ot.targets[chosen]).flatten(1)
    d = missing / missing.sum()
    embedding = ot._embedding
    blocks = kernels.scores(ot._embed(y), ot._kernel, embedding.column)
    pairs = sum(score @ d[start:stop] for start, stop, score in blocks)
    if isinstance(ot._kernel, kernels.Shards):  # whose scores are of this rank's targets
        pairs = ot._kernel.once(pairs)
    return total * float((pairs + ot.cost.row(y, embedding)).mean())
