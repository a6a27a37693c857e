"""The transport cost as a loss for any generator, and the potential kept where the generator is.

    W(ψ) = E φ(x) + Σ_j b_j ψ_j        φ(x) = min_j c(x, y_j) − ψ_j

is a lower bound of the transport cost from the law of x to the targets for every ψ, and equals it at the best one. With
j = argmin held, the gradient in x is ∇φ(x) = ∇c(x, T(x)); for ε > 0 it is Σ_j p_j(x) ∇c(x, y_j) (Danskin's theorem).
FIT descends c(g'(z), T(g(z))), whose gradient is the same at g' = g: the two differ in which g chooses the target.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastsdot.errors import InvalidArgument, require_number
from fastsdot.ots import Solution
from fastsdot.ranks import apart
from fastsdot.semidiscrete import SemiDiscreteOT
from fastsdot.sources import SourceLike
from fastsdot.stopping import Rule
from fastsdot.storage import decode

AFFINE = (
    "sqeuclidean",
    "dot",
)  # costs whose gradient in x is affine in y, so that a mean of targets stands for them all


class TransportLoss(nn.Module):
    """How far samples are from the targets: loss(x) for x [B, *shape] of any floating dtype, a float32 scalar.

    loss(x) is the batch's estimate of W(ψ), in units of cost; descending it moves each x towards T(x), and for ε > 0
    towards the targets in proportion to p_j(x). loss(x, reference) is FIT's, the mean of c(x_i, T(reference_i)) for
    samples of an older generator from the same latents; for ε > 0 T is the barycentre where c is affine in y up to
    terms in y alone, and otherwise a draw from the plan, whose expected gradient is the plan's.

    The potential is a buffer that the loss does not move: see `Refresh`. Where `ot` has a group of ranks, x is each
    rank's own batch. Raises what `ot.c_transform` raises. Source: Chen et al. 2019, eq. 4 and section 3.3.
    """

    def __init__(self, ot: SemiDiscreteOT):
        super().__init__()
        self.ot = ot

    def forward(self, x: Tensor, reference: Tensor | None = None) -> Tensor:
        if reference is not None:
            return self.ot.cost.fit_loss(x.flatten(1).float(), self.target(reference).flatten(1))
        constant = (self.ot.atoms * self.ot.potential).sum()
        if self.ot.ranks is None:
            return self.ot.c_transform(x).mean() + constant
        if self.ot.epsilon:
            remedy = "give reference=x.detach(), or use a SemiDiscreteOT without a group"
            raise InvalidArgument("reference", "samples, for ε > 0 on several ranks", "None", remedy)
        index = apart(self.ot.ranks, x.detach(), self.ot.assign)
        return (
            self.ot.cost.fit_loss(x.flatten(1).float(), self._take(index)) - self.ot.potential[index].mean() + constant
        )

    @torch.no_grad()
    def target(self, x: Tensor) -> Tensor:
        """T(x), [B, *shape] float32, as the class says for ε > 0."""
        x = x.detach().float()
        if self.ot.epsilon and self.ot.cost.name in AFFINE:
            return apart(self.ot.ranks, x, self.ot.barycenter)
        return self._take(apart(self.ot.ranks, x, self.ot.sample if self.ot.epsilon else self.ot.assign)).view_as(x)

    def _take(self, index: Tensor) -> Tensor:
        return apart(self.ot.ranks, index, lambda i: decode(self.ot.targets[i])).flatten(1)


@dataclass
class Refresh:
    """Keep ψ where the source is while it is trained: `step()`, called once per training step, solves when it is due.

    The first step solves, and then every `every`-th solves again from where it was; tol and max_samples are
    `ot.solve`'s. `log` gets what `measures` makes of each solution: wandb.log, say, or a writer of scalars.

    On several ranks every rank calls it; the potentials agree where `source` is an `EveryRank`, or `ot` has a group.
    For a generator in shards (FSDP) it has to be a `Pushforward` or an `EveryRank`.
    Raises `InvalidArgument` unless `every` is an integer above 0, and in `step` what `ot.solve` raises.
    """

    ot: SemiDiscreteOT
    source: SourceLike
    every: int = 100
    tol: float | Rule = 0.05
    max_samples: int | None = None
    log: Callable[[dict[str, float]], object] | None = None
    steps: int = 0

    def __post_init__(self) -> None:
        require_number("every", self.every, above=0, whole=True)

    def step(self) -> Solution | None:
        """Count a training step; the solution where one was due, and otherwise None."""
        self.steps += 1
        if (self.steps - 1) % self.every:
            return None
        solution = self.ot.solve(self.source, tol=self.tol, max_samples=self.max_samples)
        if self.log:
            self.log(measures(solution))
        return solution


def measures(solution: Solution, prefix: str = "transport/") -> dict[str, float]:
    """The numbers of a solution that are worth a curve: W (the semi-dual value) and χ² with their standard errors,
    whether it converged (1 or 0), samples and seconds."""
    report = solution.report
    return {
        f"{prefix}w": report.dual,
        f"{prefix}w_error": report.dual_error,
        f"{prefix}chi2": report.chi2,
        f"{prefix}chi2_error": report.chi2_error,
        f"{prefix}converged": float(solution.converged),
        f"{prefix}samples": float(solution.samples),
        f"{prefix}seconds": solution.seconds,
    }
