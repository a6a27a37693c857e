"""Which problems are timed, the ones that matter most first, since time may run out."""

from collections.abc import Iterator
from dataclasses import dataclass

COSTS, OTHERS = ("sqeuclidean", "l1"), ("soft_marginal", "softmin", "topk", "sample")
DIMENSIONS, BATCHES, TARGETS = (784, 3, 64, 3072, 16, 2), (256, 1024, 4096, 64, 1), (60_000, 1_000_000, 10_000)


@dataclass(frozen=True)
class Row:
    cost: str
    b: int
    n: int
    d: int
    reduction: str = "argmin"
    peers: bool = False  # whether others are timed beside fastsdot

    def __str__(self) -> str:
        return f"{self.cost} {self.reduction}, N={self.n}, D={self.d}, B={self.b}"

    @property
    def coordinates(self) -> int:
        return self.b * self.n * self.d


def wanted() -> Iterator[Row]:
    """The centre, what the project claims, lines through the centre, the other reductions, the rest of the grid."""
    for cost in COSTS:
        yield Row(cost, 256, 60_000, 784, peers=True)
    for b in (4096, 256):
        yield Row("sqeuclidean", b, 1_000_000, 784, peers=True)
    yield Row("l1", 256, 1_000_000, 784, peers=True)
    for cost in COSTS:
        for reduction in OTHERS:
            yield Row(cost, 256, 60_000, 784, reduction)
        yield Row(cost, 1024, 60_000, 784, "soft_marginal")
        yield Row(cost, 1024, 60_000, 784)  # what a solver's default batch costs
    for cost in COSTS:
        for row in (
            *((1024, 60_000, d) for d in DIMENSIONS),
            *((b, 60_000, 784) for b in BATCHES),
            *((256, n, 784) for n in TARGETS),
        ):
            yield Row(cost, *row, peers=True)
    for cost in COSTS:
        for d in DIMENSIONS[1:]:
            for reduction in OTHERS:
                yield Row(cost, 256, 60_000, d, reduction)
    for n in TARGETS:
        for d in DIMENSIONS:
            for b in BATCHES:
                for cost in COSTS:
                    yield Row(cost, b, n, d)


def small() -> Iterator[Row]:
    for cost in COSTS:
        yield Row(cost, 8, 500, 20, peers=True)
        for reduction in ("argmin", *OTHERS):
            yield Row(cost, 3, 300, 5, reduction)


def rows(few: bool) -> list[Row]:
    """Each problem once, as it first comes; with peers where any of its mentions has them."""
    found: dict[tuple, Row] = {}
    for row in small() if few else wanted():
        key = (row.cost, row.b, row.n, row.d, row.reduction)
        found[key] = Row(*key, peers=row.peers or (key in found and found[key].peers))
    return list(found.values())
