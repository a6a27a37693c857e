"""Targets, potentials and samples on which an argmin is easily wrong, all made from one seed.

A case is a set of targets y [N, D]; a potential ψ [N] moves the boundaries between their cells; samples lie near
targets, anywhere, half-way between neighbours, or where the two best targets of a random sample score the same.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Generator, Tensor

from fastsdot.costs import Cost
from fastsdot.data import load

N, D = 2000, 64
KINDS = ("near", "noise", "midpoint", "tie")
POTENTIALS = ("zero", "random", "levelled")
LEVELLING_SAMPLES = 256
BISECTIONS = 26  # enough for a place on a segment in float32


def gaussian(n: int, d: int, g: Generator) -> Tensor:
    return torch.randn(n, d, generator=g)


def clustered(n: int, d: int, g: Generator) -> Tensor:
    centre = gaussian(10, d, g)
    return centre[torch.arange(n) % 10] + 1e-3 * gaussian(n, d, g)


def duplicated(n: int, d: int, g: Generator) -> Tensor:
    return gaussian(-(-n // 4), d, g).repeat(4, 1)[:n]


def student(n: int, d: int, g: Generator) -> Tensor:
    """Student's t with 2 degrees of freedom: its variance is infinite."""
    squares = gaussian(n, 2 * d, g).square().view(n, d, 2).mean(2)
    return gaussian(n, d, g) / squares.sqrt()


def cauchy(n: int, d: int, g: Generator) -> Tensor:
    return gaussian(n, d, g) / gaussian(n, d, g).abs()


@dataclass(frozen=True)
class Case:
    """A set of targets; `share` of all rows go to it, and `file` names the data set that it is read from."""

    name: str
    share: float
    make: Callable[[int, int, Generator], Tensor] | None = None
    n: int | None = N
    d: int = D
    file: str | None = None

    def targets(self, files: dict[str, Path], seed: int) -> Tensor:
        """Float32 [N, D]; images are k/255, a random N of them."""
        g = generator(seed, self.name)
        if self.make is not None:
            return self.make(self.n, self.d, g)
        images = _images(files[self.file])
        return images if self.n is None else images[torch.randperm(len(images), generator=g)[: self.n]]


@cache
def _images(path: Path) -> Tensor:
    images = load(path).images
    return images.flatten(1) if images.is_floating_point() else images.flatten(1).float() / 255


IMAGES = [
    case
    for file in ("MNIST", "Fashion-MNIST")
    for case in (Case(file, 0.1, file=file), Case(f"{file}, all", 1e-3, n=None, file=file))
]
CASES = [
    *IMAGES,
    Case("Gaussian", 0.1, gaussian),
    Case("Gaussian, D=3", 0.1, gaussian, d=3),
    Case("clustered", 0.1, clustered),
    Case("duplicated", 0.1, duplicated),
    Case("mean 1e3", 0.1, lambda n, d, g: 1e3 + gaussian(n, d, g)),
    Case("scale 1e-4", 0.1, lambda n, d, g: 1e-4 * gaussian(n, d, g)),
    Case("Student t, 2 dof", 0.1, student),
    Case("Cauchy", 0.1, cauchy),
]


def generator(seed: int, *what: object) -> Generator:
    """Random numbers of their own for each thing that is drawn, whatever else is drawn before."""
    return Generator().manual_seed(seed << 32 | zlib.crc32(repr(what).encode()))


class Samples:
    """Potentials and samples for targets y [N, D] and a cost; `scores(x, ψ)` is the float64 reference."""

    def __init__(self, name: str, y: Tensor, cost: Cost, scores: Callable[[Tensor, Tensor], Tensor], seed: int):
        self.name, self.y, self.cost, self.scores, self.seed = name, y, cost, scores, seed
        self.centre = y.median(0).values
        self.spread = (y - self.centre).abs().mean(0).clamp(max=1e3)
        self.neighbour = _neighbours(y)
        g = generator(seed, name, cost.name, "potentials")
        costs = scores(self.noise(LEVELLING_SAMPLES, g), torch.zeros(len(y)))
        size = costs.std(1).median().float()
        self.potentials = {
            "zero": torch.zeros(len(y)),
            "random": size * torch.randn(len(y), generator=g),
            "levelled": costs.mean(0).float(),
        }

    def noise(self, rows: int, g: Generator) -> Tensor:
        return self.centre + self.spread * torch.randn(rows, self.y.shape[1], generator=g)

    def near(self, rows: int, g: Generator) -> Tensor:
        """Targets and noise of 10⁻⁶ to 1 times the data's spread; every eighth sample is a target itself."""
        j = torch.randint(len(self.y), (rows,), generator=g)
        size = 10 ** (-6 * torch.rand(rows, 1, generator=g)) * (torch.arange(rows) % 8 > 0)[:, None]
        return self.y[j] + size * self.spread * torch.randn(rows, self.y.shape[1], generator=g)

    def midpoint(self, rows: int, g: Generator) -> Tensor:
        j = torch.randint(len(self.y), (rows,), generator=g)
        return (self.y[j] + self.y[self.neighbour[j]]) / 2

    def tie(self, x: Tensor, potential: Tensor, g: Generator) -> Tensor:
        """Move samples along the line through their two best targets to where both score the same, or nearly so.

        Of the way, 10⁻⁷ to 1 is left out, so that gaps are just below and just above every precision; nothing is left
        out for a quarter of the samples.
        """
        best, second = self.scores(x, potential).topk(2, dim=1, largest=False).indices.T
        gap = (potential[best] - potential[second]).double()
        y, other, x = self.y[best].double(), self.y[second].double(), x.double()
        low, high = torch.zeros(2, len(x), 1, dtype=torch.float64)
        high += 1
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            place = x + middle * (other - y)
            first = (self.cost(place, y) - self.cost(place, other) < gap)[:, None]
            low, high = torch.where(first, middle, low), torch.where(first, high, middle)
        short = 10 ** (-7 * torch.rand(len(x), 1, generator=g)) * (torch.arange(len(x)) % 4 > 0)[:, None]
        return (x + low * (1 - short) * (other - y)).float()

    def draw(self, rows: int, batch: int) -> tuple[Tensor, str]:
        """Samples [rows, D] of batch number `batch`, and the name of its potential; both in turn."""
        kind, potential = KINDS[batch % len(KINDS)], POTENTIALS[batch // len(KINDS) % len(POTENTIALS)]
        g = generator(self.seed, self.name, self.cost.name, batch)
        if kind != "tie":
            return getattr(self, kind)(rows, g), potential
        x = self.near(rows, g) if batch // len(KINDS) % 2 else self.noise(rows, g)
        return self.tie(x, self.potentials[potential], g), potential


def _neighbours(y: Tensor) -> Tensor:
    """A near target of each: the nearest other of those in a block around it."""
    near = []
    for block in y.split(N):
        distance = torch.cdist(block, block).fill_diagonal_(torch.inf)
        near.append(distance.argmin(1) + sum(map(len, near)))
    return torch.cat(near).clamp(max=len(y) - 1)
