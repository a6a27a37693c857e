"""An interval that holds the transport cost W, from a potential and a coupling on fresh samples.

For x_1 … x_M drawn from the source, φ the c-transform of ψ, b the weights and any coupling π of the samples
(mass 1/M each) with the targets (mass exactly b_j each),

    dual   = mean φ(x_i) + Σ_j b_j ψ_j               primal = Σ_ij π_ij c(x_i, y_j)

Lower end. E dual ≤ W for every ψ that the samples had no part in, and dual is a mean of M independent terms.

Upper end. Let ψ* be optimal and φ* its c-transform. By weak duality on the samples and strong duality for the source,

    primal ≥ W(samples, targets) ≥ mean φ*(x_i) + Σ_j b_j ψ*_j,     whose expectation is W,

so primal falls below W by no more than a mean of M independent terms falls below its expectation. Nothing is asked of
ψ or of π: a poor one makes the interval wide and leaves it valid. With s the standard deviation of φ over the samples,
and s* that of the c-transform that the coupling's own prices give (or s, where that is larger),

    lower = dual − t s / √M       upper = primal + t s* / √M       t: Student's quantile at 1 − (1 − confidence) / 4,

so each end may fail with probability (1 − confidence) / 2: half of it by noise, as the central limit theorem has it,
and the other half is kept for how far the mean of φ is from that limit, and s* from the deviation of φ*, to which it
converges (del Barrio, González-Sanz & Loubes, Annales de l'Institut Henri Poincaré 2024, whose theorem says that
√M (W(samples, targets) − W) tends to N(0, Var φ*)).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastsdot import kernels
from fastsdot.errors import InvalidArgument, require_number
from fastsdot.ots import Sampler
from fastsdot.report import require_confidence, student
from fastsdot.sources import SourceLike
from fastsdot.storage import decode

if TYPE_CHECKING:
    from fastsdot.auction import Auction
    from fastsdot.semidiscrete import SemiDiscreteOT

NOISE = 0.5  # of the failures allowed is left to noise; the rest is for what holds in the limit of many samples only
LIST, ENTRIES = (16, 64), 2**21  # targets in a list: all if few or so many entries hold them, else within these bounds
FINEST = 0.02  # the auction's ε at the end, in standard errors of the dual
FACTOR = 5.0  # by which ε falls each time
BIDS = 100  # a sample, at most
RELISTED, ROUNDS = 2.0, 60  # lists made anew: so many a sample and so many calls, at most
MOVES, FEW = 100, 100_000  # pieces that the search for paths looks at: so many a sample, of so many samples or more
PAIRS = 2**22  # coordinates of pairs whose cost is computed at once


@dataclass(frozen=True)
class Bracket:
    """lower ≤ W ≤ upper with probability `confidence` or more; all but confidence and samples in units of cost.

    dual and primal are the estimates behind the two ends, each with its standard error; they are of the same samples.
    """

    lower: float
    upper: float
    confidence: float
    samples: int
    dual: float
    dual_error: float
    primal: float
    primal_error: float

    @property
    def width(self) -> float:
        """upper − lower, in units of cost."""
        return self.upper - self.lower

    @property
    def noise(self) -> float:
        """What the samples' noise adds to the width; the rest of it is primal − dual."""
        return self.width - (self.primal - self.dual)

    @property
    def relative_width(self) -> float:
        """The width over the absolute value of the middle."""
        middle = abs(self.upper + self.lower) / 2
        return self.width / middle if middle else math.inf

    def __contains__(self, cost: float) -> bool:
        return self.lower <= cost <= self.upper

    def __str__(self) -> str:
        return (
            f"{self.lower:.6g} ≤ W ≤ {self.upper:.6g} at {self.confidence:.4g}, width {self.relative_width:.2%}, "
            f"{self.samples:,} samples"
        )


@torch.no_grad()
def bracket(
    ot: "SemiDiscreteOT",
    source: SourceLike,
    samples: int = 200_000,
    *,
    confidence: float = 0.95,
    batch_size: int | None = None,
) -> Bracket:
    """An interval that holds W(source, targets), for ε = 0; see the module for the formula and the proof.

    The samples are independent draws of `source` and are kept: memory is samples × (4 D + 200) bytes.
    Raises `InvalidArgument` for ε > 0, and `SourceError` for a batch that is not usable.
    """
    require_number("samples", samples, above=1, whole=True)
    require_confidence(confidence)
    if batch_size is not None:
        require_number("batch_size", batch_size, above=0, whole=True)
    require_hard(ot)
    sample = Lists(ot, Sampler(ot, source), samples, batch_size or 4096)
    phi, b = sample.phi, sample.room / samples
    dual = float(phi.mean() + b @ ot.potential.double().cpu().numpy())
    error = float(phi.std(ddof=1)) / math.sqrt(samples)
    excess, prices = couple(sample, error)
    own = float((phi + prices).std(ddof=1)) / math.sqrt(samples)
    primal, t = dual + excess, student(1 - NOISE * (1 - confidence) / 2, samples - 1)
    upper = max(error, own)
    return Bracket(dual - t * error, primal + t * upper, confidence, samples, dual, error, primal, upper)


def require_hard(ot: "SemiDiscreteOT") -> None:
    """Raise `InvalidArgument` for ε > 0."""
    if ot.epsilon:
        remedy = "give the potential to a SemiDiscreteOT with epsilon=0, whose W it brackets as well"
        raise InvalidArgument("epsilon", "0, the cost without entropy", repr(ot.epsilon), remedy)


class Lists:
    """Samples x [M, D] with φ(x) and, in ascending order, the margins c − ψ_j − φ(x) of their K best targets."""

    def __init__(self, ot: "SemiDiscreteOT", sampler: Sampler, samples: int, batch: int):
        positive = int((ot.atoms > 0).sum())
        self.ot, least, most = ot, *LIST
        few = positive <= most or positive * samples <= ENTRIES
        self.k = positive if few else min(most, max(least, ENTRIES // samples))
        self.whole = self.k == positive
        self.x = torch.empty(samples, ot.shape.numel(), dtype=torch.float32, device=ot.device)
        value, column = (torch.empty(samples, self.k, dtype=dtype) for dtype in (torch.float32, torch.int32))
        bias = ot._bias(ot.potential)
        for start in range(0, samples, batch):
            part = slice(start, min(samples, start + batch))
            self.x[part] = sampler(part.stop - start)
            value[part], column[part] = self.best(self.x[part], bias)
        weights = ot.atoms.double().cpu().numpy()
        self.room = samples * (weights / weights.sum())
        self.phi, self.column = value[:, 0].double().numpy(), column.numpy()
        self.margin = (value - value[:, :1]).numpy()
        self.outside = self.limit(self.margin[:, -1])

    def best(self, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        value, index = kernels.topk(self.ot._embed(x), self.ot._kernel, bias, self.k)
        return value + self.ot.cost.row(x, self.ot._embedding)[:, None], index

    def limit(self, last: np.ndarray) -> np.ndarray:
        """What targets outside a list cost at least, from the last in it."""
        return np.full(last.shape, np.inf) if self.whole else last.astype(np.float64)

    def among(self, rows: np.ndarray, bias: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Of some samples, the K smallest margins under another bias, and their targets."""
        value, index = self.best(self.x[torch.from_numpy(rows).to(self.x.device)], bias)
        return value.double().cpu().numpy() - self.phi[rows, None], index.cpu().numpy()

    def renew(self, rows: np.ndarray, price: np.ndarray) -> None:
        """List the best targets of some samples at the prices of now."""
        potential = self.ot.potential
        value, index = self.among(rows, self.ot._bias(potential - torch.from_numpy(price).to(potential)))
        margin = value - price[index]
        order = margin.argsort(1)
        self.margin[rows], self.column[rows] = np.take_along_axis(margin, order, 1), np.take_along_axis(index, order, 1)
        self.outside[rows] = self.limit(value[:, -1])

    def free(self, rows: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The K smallest margins among targets that are free, +inf where there are fewer, and those targets."""
        bias = self.ot._bias(self.ot.potential)
        return self.among(rows, torch.where(torch.from_numpy(free).to(bias.device), bias, torch.inf))

    def cost(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Margins of some pairs, from the definition of the cost: [P]."""
        step = max(1, PAIRS // self.x.shape[1])
        found = [np.empty(0)]
        for start in range(0, row.shape[0], step):
            i, j = (torch.from_numpy(a[start : start + step]).to(self.x.device) for a in (row, column))
            y = decode(self.ot.targets[j]).reshape(j.shape[0], -1)
            found.append((self.ot.cost(self.x[i], y) - self.ot.potential[j]).double().cpu().numpy())
        return np.concatenate(found) - self.phi[row]


def couple(lists: Lists, error: float) -> tuple[float, np.ndarray]:
    """A coupling with exact marginals: its cost above the dual, and the change of φ(x_i) by its prices, [M].

    Whole samples first, by auction; then fractions, along shortest paths; then whatever lists did not reach.
    """
    from fastsdot import auction, flow  # numba is loaded by those who need it

    samples = lists.phi.shape[0]
    smallest = float(np.abs(lists.phi).mean()) * 1e-7 or 1e-30
    wrong = np.abs(np.bincount(lists.column[:, 0], minlength=lists.room.shape[0]) - lists.room).sum() / (2 * samples)
    finest = max(smallest, FINEST * error)
    epsilon = max(finest, wrong * float(lists.margin.mean()))
    sale = auction.Auction(lists.margin, lists.column, lists.outside, rounded(lists.room))
    served = Service(lists, sale)
    while served(epsilon) and epsilon > finest:
        epsilon = max(finest, epsilon / FACTOR)
        sale.restart()
    row, slot, mass = flow.shift(
        lists.margin, lists.column, sale.slot, sale.price, lists.room, MOVES * max(FEW, samples)
    )
    excess = float((lists.margin[row, slot] * mass).sum())
    left = 1 - np.bincount(row, mass, minlength=samples)
    free = lists.room - np.bincount(lists.column[row, slot], mass, minlength=lists.room.shape[0])
    excess += finish(lists, left.clip(0), free.clip(0))
    return excess / samples, sale.best() - lists.room @ sale.price / samples


def finish(lists: Lists, left: np.ndarray, free: np.ndarray) -> float:
    """Place what is left of the samples where targets have room, the cheapest first; returns Σ mass × margin."""
    from fastsdot.flow import TOLERANCE, corner, place

    total, work = 0.0, RELISTED * left.shape[0]
    while work > 0:
        rows, open = np.flatnonzero(left > TOLERANCE), free > TOLERANCE
        if not rows.size or not open.any():
            break
        margin, column = lists.free(rows, open)
        order = np.argsort(margin, axis=None, kind="stable")[: np.isfinite(margin).sum()]
        own = left[rows]
        total += place(order, margin, column, own, free)
        left[rows] = own
        work -= rows.size
    row, column, mass = corner(left, free)
    return total + float((lists.cost(row, column) * mass).sum())


class Service:
    """Lets an auction's queue bid and renews used-up lists, until its budget is spent."""

    def __init__(self, lists: Lists, auction: "Auction"):
        self.lists, self.auction = lists, auction
        samples = lists.phi.shape[0]
        self.bids, self.renewed, self.rounds = BIDS * samples, int(RELISTED * samples), ROUNDS

    def __call__(self, epsilon: float) -> bool:
        """Whether every sample was placed."""
        while self.auction.unplaced():
            self.bids -= self.auction.serve(epsilon, self.bids)
            rows = self.auction.used_up()
            if rows.size:
                self.renewed, self.rounds = self.renewed - rows.size, self.rounds - 1
                if min(self.renewed, self.rounds) < 0:
                    return False
                self.lists.renew(rows, self.auction.price)
            elif self.bids <= 0:
                return False
        return True


def rounded(room: np.ndarray) -> np.ndarray:
    """room [N] in whole numbers, each less than one away, with the same (whole) sum."""
    edges = np.floor(np.cumsum(room) + 0.5)
    edges[-1] = round(float(room.sum()))
    return np.diff(edges, prepend=0.0)
