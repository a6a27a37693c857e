"""Problems for the solver, as data: a set of targets, a source, a cost, a temperature, a scale and weights.

No full product: every value of a factor occurs in several rows, and sets are met by sources, costs and temperatures in
turn. Quick rows are solved in seconds, slow ones take minutes.

    σ        standard deviation of c(x, y_j) less its row and column means; ε is 0, 0.02 σ or 0.5 σ
    decades  weights 10^(−4u) for uniform u, and one target in ten of weight 0

There is no l1 in the plane at ε = 0: samples beyond two targets in both coordinates tie, and no potential divides them.
"""

from dataclasses import dataclass, replace

import target_sets
import torch
from target_sets import Files
from torch import Generator, Tensor, nn

from fastsdot import train
from fastsdot.costs import make_cost
from fastsdot.networks import mlp
from fastsdot.sources import Gaussian, Pushforward, SourceLike, as_source

TEMPERATURES = {"hard": 0.0, "small": 0.02, "large": 0.5}  # ε in units of σ
LATENT, HIDDEN = 32, (256, 256)
ROUNDS = {"untrained": 0, "early": 2, "late": 12}  # of OTS and FIT that a generator has seen
FITTED = 1000  # targets that a generator is trained on, at most
PROBE = 256  # samples and targets behind σ


@dataclass(frozen=True)
class Problem:
    """One row; `p` belongs to the cost lp, and targets and source are multiplied by `scale`."""

    set: str
    n: int
    from_: str
    cost: str
    temperature: str = "hard"
    scale: float = 1.0
    weighting: str = "equal"
    quick: bool = False
    slow: bool = False

    @property
    def name(self) -> str:
        """Set, number of targets, source and cost, and what else is not the default."""
        scale = "" if self.scale == 1 else f"{self.scale:.0e}".replace("e-0", "e-").replace("e+0", "e")
        temperature = "" if self.temperature == "hard" else self.temperature
        rest = (temperature, scale, "" if self.weighting == "equal" else self.weighting)
        return "-".join(filter(None, (f"{self.set}{self.n}", self.from_, self.cost, *rest)))

    @property
    def p(self) -> float | None:
        return 1.5 if self.cost == "lp" else None

    def targets(self, files: Files) -> Tensor:
        """Float32 [N, D]. Raises `target_sets.Absent`."""
        return self.scale * target_sets.targets(self.set, self.n, files)

    def weights(self) -> Tensor | None:
        """[N], or None for equal ones."""
        if self.weighting == "equal":
            return None
        random = Generator().manual_seed(1)
        weights = 10 ** (-4 * torch.rand(self.n, generator=random))
        weights[torch.randperm(self.n, generator=random)[: self.n // 10]] = 0
        return weights

    def source(self, files: Files) -> SourceLike:
        """What draws from torch's global generator; N(0, I) of scale 1 is given as users give it, by its width."""
        y = target_sets.targets(self.set, self.n, files)
        d = y.shape[1]
        if self.from_ == "uniform":
            edge = torch.full((d,), self.scale)
            return torch.distributions.Uniform(-edge, edge)
        if self.from_ == "noise":
            return d if self.scale == 1 else Pushforward(Times(self.scale), Gaussian(d))
        network = generator(self.set, self.from_, y[:FITTED], files, ROUNDS[self.from_])
        return Pushforward(network if self.scale == 1 else nn.Sequential(network, Times(self.scale)), Gaussian(LATENT))

    def epsilon(self, targets: Tensor, source: SourceLike) -> float:
        """The temperature in units of cost."""
        factor = TEMPERATURES[self.temperature]
        return factor * spread_of(self, targets, source) if factor else 0.0


def spread_of(problem: Problem, targets: Tensor, source: SourceLike) -> float:
    """σ from a seeded probe."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        x = as_source(source, device=targets.device)(PROBE).double()
    y = targets[torch.linspace(0, len(targets) - 1, PROBE).long()].double()
    cost = make_cost(problem.cost, problem.p)(x[:, None], y[None])
    return float((cost - cost.mean(0) - cost.mean(1, keepdim=True) + cost.mean()).std())


class Times(nn.Module):
    """x ↦ scale · x."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def generator(name: str, stage: str, y: Tensor, files: Files, rounds: int) -> nn.Module:
    """A perceptron after so many rounds of `fastsdot.train` onto y, trained once and then read from the cache."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = mlp(LATENT, y.shape[1:], HIDDEN)
        if rounds:

            def trained() -> dict[str, Tensor]:
                train(network, y, LATENT, rounds=rounds, max_samples=20 * len(y), batch_size=256)
                return network.state_dict()

            path = files.cache / f"generator-{name}-{len(y)}-{stage}-{rounds}.safetensors"
            network.load_state_dict(target_sets.kept(path, trained))
    return network


def row(name: str, n: int, source: str, cost: str, *rest: str | float) -> Problem:
    """A problem from its values in any order."""
    problem = Problem(name, n, source, cost)
    for value in rest:
        if value in TEMPERATURES:
            problem = replace(problem, temperature=value)
        elif value == "decades":
            problem = replace(problem, weighting=value)
        elif value in ("quick", "slow"):
            problem = replace(problem, **{value: True})
        else:
            problem = replace(problem, scale=float(value))
    return problem


PROBLEMS = [
    row("digits", 1797, "noise", "sqeuclidean", "quick"),
    row("digits", 1797, "noise", "l1"),
    row("digits", 1797, "noise", "euclidean", 1e3),
    row("digits", 1797, "noise", "lp", "small"),
    row("digits", 1797, "noise", "sqeuclidean", "decades", "quick"),
    row("digits", 1797, "uniform", "sqeuclidean", 1e-3),
    row("digits", 1797, "uniform", "dot", "small"),
    row("digits", 1797, "untrained", "l1", "quick"),
    row("digits", 1797, "untrained", "sqeuclidean", "quick"),
    row("digits", 1797, "untrained", "dot", 1e3),
    row("digits", 1797, "early", "l1", "quick"),
    row("digits", 1797, "early", "sqeuclidean", "small", 1e3),
    row("digits", 1797, "early", "euclidean"),
    row("digits", 1797, "late", "l1", "quick"),
    row("digits", 1797, "late", "l1", "small"),
    row("digits", 1797, "late", "l1", "decades"),
    row("digits", 1797, "late", "sqeuclidean", 1e-3),
    row("digits", 1797, "late", "lp"),
    row("digits", 1797, "late", "dot", "large"),
    row("fashion", 5000, "noise", "sqeuclidean"),
    row("fashion", 5000, "noise", "l1", 1e3),
    row("fashion", 5000, "uniform", "dot"),
    row("fashion", 5000, "untrained", "l1"),
    row("fashion", 5000, "early", "l1"),
    row("fashion", 5000, "late", "l1"),
    row("fashion", 5000, "late", "sqeuclidean"),
    row("fashion", 5000, "late", "euclidean", "small", 1e-3),
    row("fashion", 60_000, "noise", "sqeuclidean", "slow"),
    row("fashion", 60_000, "late", "l1", "slow"),
    row("mnist", 5000, "noise", "sqeuclidean"),
    row("mnist", 5000, "noise", "sqeuclidean", "decades"),
    row("mnist", 5000, "untrained", "sqeuclidean", 1e-3),
    row("mnist", 5000, "late", "lp"),
    row("mnist", 60_000, "noise", "sqeuclidean", "slow"),
    row("cifar", 5000, "noise", "sqeuclidean"),
    row("cifar", 5000, "early", "l1"),
    row("moons", 2000, "uniform", "sqeuclidean", "quick"),
    row("moons", 2000, "late", "dot"),
    row("circles", 2000, "noise", "l1", "small"),
    row("circles", 2000, "uniform", "euclidean", 1e3),
    row("roll", 2000, "noise", "lp", "small"),
    row("roll", 2000, "noise", "sqeuclidean", "large"),
    row("squares", 2000, "uniform", "sqeuclidean", "quick"),
    row("squares", 2000, "uniform", "sqeuclidean", 1e-3, "decades"),
    row("squares", 2000, "uniform", "l1", "large"),
    row("line", 500, "noise", "sqeuclidean", "quick"),
    row("line", 500, "uniform", "lp", 1e3),
    row("line", 500, "noise", "sqeuclidean", "small", "decades"),
    row("words", 2000, "noise", "sqeuclidean"),
    row("words", 2000, "uniform", "l1", 1e-3),
    row("words", 5000, "noise", "euclidean"),
    row("words", 5000, "noise", "dot", "large"),
    row("words", 20_000, "noise", "sqeuclidean", "slow"),
    row("clusters", 1000, "noise", "sqeuclidean", "quick"),
    row("clusters", 1000, "noise", "l1", "small"),
    row("clusters", 1000, "late", "euclidean", 1e3, "decades"),
]
