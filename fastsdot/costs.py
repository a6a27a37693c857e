"""Costs c(x, y) between a sample and a target, each written once.

| name                  | c(x, y)                | kernel form       | unique |
|-----------------------|------------------------|-------------------|--------|
| sqeuclidean           | ‖x − y‖²               | inner (power: D ≤ 16) | yes |
| euclidean             | ‖x − y‖                | power, p=2, root  | no     |
| l1, cityblock         | Σ_d \\|x_d − y_d\\|      | power, p=1        | no     |
| lp                    | Σ_d \\|x_d − y_d\\|^p    | power             | p > 1  |
| dot                   | −⟨x, y⟩                | inner             | yes    |
| cosine                | 1 − ⟨x, y⟩ / (‖x‖ ‖y‖) | inner             | no     |
| a callable            | `cost(x, y)`           | callable          | no     |

*unique* says that the optimal map is unique by the paper's condition (Chen et al. 2019, section 3): c(x, y) = h(x − y)
with h strictly convex and superlinear. −⟨x, y⟩ is ½‖x − y‖² up to terms in x or y alone, so it has the same map.
Other costs can leave points on a cell's boundary with two equally good targets; ties then go to the smallest index.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fastsdot.errors import InvalidArgument
from fastsdot.kernels.form import Form

Pairing = Callable[[Tensor, Tensor], Tensor]

LOW_DIMENSION = 16  # below it, differences are faster and more accurate than a product of matrices
LARGEST = torch.finfo(torch.float32).max / 4  # ‖y‖²


class Embedding(NamedTuple):
    """Targets as kernels see them: c(x, y_j) = row(x) + form(embed(x), y[j]) + column[j]."""

    form: Form
    y: Tensor | None  # [N, D] float32; None where they are read in blocks
    column: Tensor  # [N]
    centre: Tensor  # [D]


@dataclass(frozen=True)
class Cost:
    """A cost, its definition, and how it splits into a kernel's form.

    Calling it gives c(x, y) for x and y of shapes [..., D] that broadcast, as a tensor [...].
    """

    name: str
    definition: Pairing
    unique: bool
    p: float | None = None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.definition(x, y)

    def fit_loss(self, generated: Tensor, transported: Tensor) -> Tensor:
        """FIT's loss, the mean of c(x_i, y_i) over the batch: a scalar (Chen et al. 2019, eq. 4)."""
        return self.definition(generated, transported).mean()

    def embed_targets(self, y: Tensor, centre: Tensor | None = None) -> Embedding:
        """Split c for targets y [N, D]; inner products are taken about a centre, where they round least.

        The centre is the targets' mean, or the one given [D] when y is a part of them. Raises `InvalidArgument` for
        targets whose squares float32 cannot hold.
        """
        column = y.new_zeros(y.shape[0])
        if not self.centred(y.shape[1]):
            centre = y.new_zeros(y.shape[1])
        elif centre is None:
            centre = (sum(part.sum(0) for part in in_float64(y)) / len(y)).to(y.dtype)
        rows = self.embed_rows(y, centre)
        if self.name == "sqeuclidean":
            square = torch.cat([part.square().sum(1) for part in in_float64(rows)])
            _squared(square)
            if self.centred(y.shape[1]):
                return Embedding(Form("inner", scale=2.0), rows, square.to(y.dtype), centre)
        if self.name in ("dot", "cosine"):
            return Embedding(Form("inner"), rows, column, centre)
        if self.p is not None:
            return Embedding(Form("power", p=self.p, root=self.name == "euclidean"), rows, column, centre)
        return Embedding(Form("callable", function=self.definition), rows, column, centre)

    def embed_rows(self, y: Tensor, centre: Tensor) -> Tensor:
        """The targets [K, D] that the kernel's form is given."""
        if self.centred(y.shape[1]):
            return y - centre
        return torch.nn.functional.normalize(y, dim=1, eps=TINY) if self.name == "cosine" else y

    def centred(self, d: int) -> bool:
        """Whether targets are moved to a centre before they are multiplied."""
        return self.name == "dot" or (self.name == "sqeuclidean" and d > LOW_DIMENSION)

    def embed(self, x: Tensor, centre: Tensor) -> Tensor:
        """The samples [B, D] that the kernel's form is given."""
        if self.name == "sqeuclidean":
            return x - centre
        return torch.nn.functional.normalize(x, dim=1, eps=TINY) if self.name == "cosine" else x

    def row(self, x: Tensor, embedding: Embedding) -> Tensor:
        """The part of c that depends on x alone, [B]."""
        if self.name == "sqeuclidean" and embedding.form.kind == "inner":
            return (x - embedding.centre).square().sum(1)
        if self.name == "dot":
            return _dot(x, embedding.centre)  # autocast would lower the precision of x @ centre
        return x.new_full((x.shape[0],), 1.0 if self.name == "cosine" else 0.0)


def _squared(square: Tensor) -> None:
    """Raise for ‖y‖² of which ‖x − y‖², for x as large, is no number of float32."""
    largest = float(square.max())
    if not largest < LARGEST:
        expected, received = f"‖y‖² below {LARGEST:.3g}, which float32 can hold", f"{largest:.3g}"
        raise InvalidArgument("targets", expected, received, "divide targets and samples by one number")


AT_ONCE = 2**24  # coordinates that are float64 at once


def in_float64(y: Tensor) -> Iterator[Tensor]:
    """The rows of y [N, D], in parts."""
    return (part.double() for part in y.split(max(1, AT_ONCE // max(1, y.shape[1]))))


TINY = 1e-30  # a zero vector has cosine 0 with everything, so cost 1


def _sqeuclidean(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().sum(-1)


def _euclidean(x: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x - y, dim=-1)


def _l1(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).abs().sum(-1)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return -(x * y).sum(-1)


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    normalize = torch.nn.functional.normalize
    return 1 - (normalize(x, dim=-1, eps=TINY) * normalize(y, dim=-1, eps=TINY)).sum(-1)


def _lp(p: float) -> Cost:
    return Cost("lp", partial(_power, p=p), unique=p > 1, p=p)


def _power(x: Tensor, y: Tensor, p: float) -> Tensor:
    gap = (x - y).abs()
    # below 1 the slope at 0 is infinite: what is smallest there is taken for 0, with a slope of 0
    return (gap if p >= 1 else gap.clamp(min=torch.finfo(gap.dtype).tiny)).pow(p).sum(-1)


_NAMED = {
    "sqeuclidean": Cost("sqeuclidean", _sqeuclidean, unique=True, p=2.0),
    "euclidean": Cost("euclidean", _euclidean, unique=False, p=2.0),
    "l1": Cost("l1", _l1, unique=False, p=1.0),
    "dot": Cost("dot", _dot, unique=True),
    "cosine": Cost("cosine", _cosine, unique=False),
}
_ALIASES = {"cityblock": "l1"}
NAMES = (*_NAMED, "lp", *_ALIASES)


def make_cost(cost: str | Pairing, p: float | None = None) -> Cost:
    """The cost of that name, or one built from a callable `cost(x, y)` that broadcasts and reduces the last axis.

    Raises `InvalidArgument` for an unknown name, p ≤ 0, a missing p with "lp", or a p that the cost has no use for.
    """
    if cost == "lp":
        if p is None or not 0 < p < float("inf"):
            raise InvalidArgument("p", "a finite number above 0 with cost='lp'", repr(p), "give p=1.5, say")
        return _lp(float(p))
    if p is not None:
        raise InvalidArgument("p", "no value unless cost='lp'", repr(p), "leave p out, or use cost='lp'")
    if callable(cost):
        return Cost(f"callable {getattr(cost, '__name__', type(cost).__name__)}", cost, unique=False)
    name = _ALIASES.get(cost, cost) if isinstance(cost, str) else None
    if name not in _NAMED:
        raise InvalidArgument("cost", f"one of {', '.join(NAMES)}, or a callable", repr(cost), "choose one of these")
    return _NAMED[name]
