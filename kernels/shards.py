"""Targets shared out over ranks, and batches over copies of them: every reduction with one exchange, or two.

W ranks hold C copies of the targets, each cut into T shards of consecutive rows, W = C T: rank c T + s has shard s of
copy c. All ranks call with the same x [B, D] and bias [N]. A rank reduces the rows of its copy over the targets of its
shard; then every rank gathers the B / C results of all and joins them as it would join blocks (see `merge`). A soft
marginal adds up the masses in a second exchange.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, reduce
from typing import Protocol

import torch
from torch import Tensor

from fastsdot.errors import InvalidArgument

from . import merge, ops, philox, streaming
from .blocks import Blocks
from .prepared import Prepared


class Exchange(Protocol):
    """What is asked of a communicator between `size` ranks that hold `shards` shards."""

    size: int
    rank: int
    shards: int

    def gather(self, own: Tensor) -> Tensor:
        """The tensors of all ranks, [size, ...], on every rank."""

    def sum(self, own: Tensor) -> Tensor:
        """Their sum on every rank."""


@dataclass(frozen=True)
class Shards:
    """This rank's targets first ≤ j < last of n, and the ranks that have the others."""

    local: Prepared | Blocks
    ranks: Exchange
    first: int
    last: int
    n: int

    @property
    def form(self):
        return self.local.form

    def backend(self, reduction: str) -> str:
        return self.local.backend(reduction)

    def own(self, bias: Tensor) -> Tensor:
        return bias[self.first : self.last]

    def rows(self, x: Tensor) -> Tensor:
        """The rows of this rank's copy, ⌈B / C⌉ of them, with zeros behind the last."""
        copies, copy = self.ranks.size // self.ranks.shards, self.ranks.rank // self.ranks.shards
        width = -(-x.shape[0] // copies)
        part = x[copy * width : (copy + 1) * width]
        return torch.cat([part, x.new_zeros(width - part.shape[0], *x.shape[1:])]) if part.shape[0] < width else part

    def join(self, own: Tensor, batch: int) -> Tensor:
        """Results for the rows of each copy from each shard, [..., ⌈B / C⌉] here, as [shards, ..., B]."""
        found = self.ranks.gather(own).unflatten(0, (-1, self.ranks.shards))
        return torch.cat(tuple(found), dim=-1)[..., :batch]

    def spread(self, own: Tensor) -> Tensor:
        """Numbers of this rank's targets, [last − first], as those of all, [N]; numbers of copies are added up."""
        whole = own.new_zeros(self.n)
        whole[self.first : self.last] = own
        return self.ranks.sum(whole)

    def once(self, own: Tensor) -> Tensor:
        """The sum over the shards of one copy."""
        return self.ranks.sum(own if self.ranks.rank < self.ranks.shards else torch.zeros_like(own))

    def argmin(self, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        value, index = ops.argmin(self.rows(x), self.local, self.own(bias))
        return self._least(value, index, x.shape[0])

    def _least(self, value: Tensor, index: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        found = self.join(torch.stack([value.double(), (index + self.first).double()]), batch)  # exact to 2⁵³
        best = reduce(merge.argmin, found)
        return best[0].to(value.dtype), best[1].long()

    def topk(self, x: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
        value, index = ops.topk(self.rows(x), self.local, self.own(bias), min(k, self.last - self.first))
        missing = (0, k - value.shape[1])
        value = torch.nn.functional.pad(value.double(), missing, value=torch.inf)
        index = torch.nn.functional.pad((index + self.first).double(), missing)
        found = self.join(torch.stack([value.T, index.T]), x.shape[0]).mT.contiguous()
        best = reduce(partial(merge.topk, k=k), found)
        return best[0].to(x.dtype), best[1].long()

    def softmin(self, x: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        value = ops.softmin(self.rows(x), self.local, self.own(bias), epsilon)
        return merge.softmin(self.join(value, x.shape[0]), epsilon)

    def soft_marginal(self, x: Tensor, bias: Tensor, epsilon: float, row_weight: Tensor) -> tuple[Tensor, Tensor]:
        rows, weight, bias = self.rows(x), self.rows(row_weight), self.own(bias)
        value = ops.softmin(rows, self.local, bias, epsilon)
        whole = merge.softmin(self.join(value, x.shape[0]), epsilon)
        weight = merge.row_weight(weight, self.rows(whole), value, epsilon)
        return whole, self.spread(ops.soft_marginal(rows, self.local, bias, epsilon, weight)[1])

    def sample(self, x: Tensor, bias: Tensor, epsilon: float, seed: Tensor) -> Tensor:
        """All rows on every rank, since a draw depends on the row's place in the batch."""
        race = philox.compiled_race(x.device)
        value, index = streaming.sample(self.scores(x, bias), x.shape[0], epsilon, seed, race)
        found = self.ranks.gather(torch.stack([value, index.double()]))[: self.ranks.shards]
        return reduce(merge.argmin, found)[1].long()

    def average(self, x: Tensor, bias: Tensor, epsilon: float, points: streaming.Rows) -> Tensor:
        own = ops.softmin(x, self.local, self.own(bias), epsilon)
        value = merge.softmin(self.ranks.gather(own)[: self.ranks.shards], epsilon)
        weight = merge.row_weight(torch.ones_like(own), value, own, epsilon)
        return self.once(weight[:, None] * streaming.average(self.scores(x, bias), epsilon, points))

    def scores(self, x: Tensor, bias: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """As in `fastsdot.kernels`, over this rank's targets alone."""
        for start, stop, score in ops.scores(x, self.local, self.own(bias)):
            yield self.first + start, self.first + stop, score

    def moments(self, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, row, square = ops.moments(x, self.local, self.own(bias))
        if self.ranks.rank >= self.ranks.shards:
            mean = torch.zeros_like(mean)
        return self.spread(mean), self.once(row), self.once(square)

    def margins(self, x: Tensor, bias: Tensor, value: Tensor, wins: int) -> tuple[Tensor, Tensor]:
        found = ops.margins(x, self.local, self.own(bias), value, wins)
        last, mean = found if self.ranks.rank < self.ranks.shards else map(torch.zeros_like, found)
        return self.spread(last), self.spread(mean)

    def chosen(self, index: Tensor) -> Tensor:
        """Embedded targets of these indices, [K, D]."""
        here = (index >= self.first) & (index < self.last)
        y = ops.chosen(self.local, (index - self.first).clamp(0, self.last - self.first - 1))
        return self.once(torch.where(here[:, None], y, 0.0))

    def soft_gradient(
        self, x: Tensor, bias: Tensor, value: Tensor, grad: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        grad_x, mass = ops.gradient(x, self.local, self.own(bias), value, grad, epsilon)
        if self.ranks.rank >= self.ranks.shards:
            mass = torch.zeros_like(mass)
        return self.once(grad_x), self.spread(mass)


def spans(n: int, shards: int) -> list[tuple[int, int]]:
    """Consecutive rows for each shard, as equal as can be. Raises `InvalidArgument` for more shards than rows."""
    if not 1 <= shards <= n:
        raise InvalidArgument("shards", f"1 to {n}, the number of targets", str(shards), "use fewer shards")
    return [(s * n // shards, (s + 1) * n // shards) for s in range(shards)]
