"""Problems on which kernels are held to float64: costs × shapes × kinds of data, all from one seed.

Biases hold a random potential with a period of N/4 and, where N allows it, targets that can never be chosen. Of
duplicated data, equal targets therefore have equal scores, and only the first copy may be chosen.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from hard_cases import cauchy, clustered, duplicated, gaussian, generator, student
from torch import Generator, Tensor

from fastsdot.costs import make_cost
from fastsdot.kernels import Form

SEED = 0
EVERY, DEAD = 11, 5  # of every EVERY targets, this one has the bias +inf


def images(n: int, d: int, g: Generator) -> Tensor:
    """Like handwritten digits: k/255 in a disc that fades out, four pixels of five 0."""
    radius = torch.linspace(-1, 1, d).abs()
    ink = torch.rand(n, d, generator=g) < 0.4 * (1 - radius)
    return ink * torch.randint(1, 256, (n, d), generator=g) / 255


KINDS: dict[str, Callable[[int, int, Generator], Tensor]] = {
    "Gaussian": gaussian,
    "images": images,
    "clustered": clustered,
    "duplicated": duplicated,
    "offset 1e3": lambda n, d, g: 1e3 + gaussian(n, d, g),
    "scale 1e-4": lambda n, d, g: 1e-4 * gaussian(n, d, g),
    "Student t, 2 dof": student,
    "Cauchy": cauchy,
}


def weighted(x: Tensor, y: Tensor) -> Tensor:
    """A cost that is none of the named ones."""
    return ((x - y).abs() * torch.linspace(1, 2, x.shape[-1], device=x.device, dtype=x.dtype)).sum(-1)


COSTS: dict[str, tuple] = {
    "sqeuclidean": ("sqeuclidean",),
    "l1": ("l1",),
    "euclidean": ("euclidean",),
    "lp 1.5": ("lp", 1.5),
    "lp 3": ("lp", 3.0),
    "dot": ("dot",),
    "cosine": ("cosine",),
    "callable": (weighted,),
}
SHAPES = [  # (B, N, D)
    (0, 20, 3), (1, 1, 1), (1, 4097, 1), (3, 50, 2), (13, 501, 3), (65, 1025, 5), (17, 10_007, 16), (33, 777, 31),
    (129, 4099, 64), (256, 2048, 128), (5, 30_011, 100), (100, 5000, 784), (7, 999, 785), (20, 1500, 3072),
    (1024, 3001, 17),
]  # fmt: skip
KIND_SHAPES = [(200, 3001, 784), (150, 2000, 3)]
SMALL_SHAPES = [(0, 20, 3), (1, 1, 1), (3, 50, 5), (9, 45, 18)]
SMALL_KIND_SHAPES = [(5, 64, 7)]
SMALL_COSTS = ("dot", "l1")


@dataclass(frozen=True)
class Case:
    cost: str
    kind: str
    b: int
    n: int
    d: int

    def __str__(self) -> str:
        return f"{self.cost}, {self.kind}, B={self.b}, N={self.n}, D={self.d}"

    @property
    def period(self) -> int:
        """Targets before the potential, and duplicated data, repeat."""
        return -(-self.n // 4)

    def operands(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Form]:
        """x [B, D], y [N, D] and bias [N] as the kernels are given them, and the form."""
        g = generator(SEED, self)
        y, x = (KINDS[self.kind](rows, self.d, g).to(device) for rows in (self.n, self.b))
        if self.kind == "clustered" and self.b:  # samples among the clusters, not at clusters of their own
            x = y[torch.randint(self.n, (self.b,), generator=g).to(device)] + 1e-3 * x
        cost = make_cost(*COSTS[self.cost])
        embedding = cost.embed_targets(y)
        costs = cost(y[:1], y[: 2**10])
        spread = float(costs.std()) if self.n > 1 else 1.0
        potential = 0.3 * spread * torch.randn(self.period, generator=g)
        if self.period > EVERY:
            potential[DEAD::EVERY] = -torch.inf
        bias = embedding.column - potential.repeat(4)[: self.n].to(device)
        return cost.embed(x, embedding.centre), embedding.y, bias, embedding.form


def cases(small: bool) -> Iterator[Case]:
    """Cost by cost, the first ones first: Gaussian data in every shape, every other kind in two shapes."""
    others = [kind for kind in KINDS if kind != "Gaussian"]
    for cost in COSTS:
        for shape in SMALL_SHAPES if small else SHAPES:
            yield Case(cost, "Gaussian", *shape)
        if small and cost not in SMALL_COSTS:
            continue
        for shape in SMALL_KIND_SHAPES if small else KIND_SHAPES:
            yield from (Case(cost, kind, *shape) for kind in others)
