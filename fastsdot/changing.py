"""Targets that come, go or change weight: a new transport that starts from the potential of the old one.

A target that stays keeps its ψ. One that enters with mass b_j gets the potential at which it alone would win that mass
from the old targets: with φ their c-transform, j wins x where ψ_j > c(x, y_j) − φ(x), so that

    ψ_j = the b_j-quantile over x of c(x, y_j) − φ(x)            (ε = 0)
    ψ_j = −ε log E_x exp((φ(x) − c(x, y_j)) / ε)                 (ε > 0: Sinkhorn's update of one potential)

A copy of another target gets its potential: at ε = 0 they are one (`fastsdot.atoms`). Without samples of the source,
what enters gets the smallest ψ of its 8 nearest old targets, which seldom wins too much. What a removed target held
falls to its neighbours.
"""

import copy
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastsdot import kernels, ots
from fastsdot.errors import InvalidArgument
from fastsdot.ranks import Shared
from fastsdot.sources import SourceLike
from fastsdot.storage import Storage, as_rows, flat
from fastsdot.views import Joined, Picked
from fastsdot.weights import as_weights

if TYPE_CHECKING:
    from fastsdot.semidiscrete import SemiDiscreteOT

WINS = (4, 16)  # samples that an entering target wins at its potential: at least, and at most
NOISE = 0.02  # the χ² that is granted to chance in ψ, about the entering mass over the wins
NEAR = 8  # old targets whose potentials are looked at where there is no source
BATCH = 4096  # samples at a time
PART = 2**26  # coordinates of entering targets at a time


def add(
    ot: "SemiDiscreteOT",
    targets: Tensor | np.ndarray,
    weights: Tensor | np.ndarray | None = None,
    source: SourceLike | None = None,
) -> "SemiDiscreteOT":
    """The transport onto the old targets followed by these, [K, *shape].

    weights [K] are the shares of the whole that the new targets get, of sum below 1; what the old ones had is scaled to
    the rest. By default a new target gets as much as an old one of positive weight does on average.
    Raises `InvalidArgument` for targets unlike the old ones, weights that cannot be used, and targets over ranks.
    """
    _require_here(ot)
    rows = as_rows(targets)
    k, n = rows.shape[0], len(ot.targets)
    _require_shape(ot, rows.shape)
    if (rows.dtype == torch.uint8) != (ot.targets.dtype == torch.uint8):
        raise InvalidArgument("targets", f"{ot.targets.dtype}, like the old ones", f"{rows.dtype}", "convert them")
    if isinstance(ot.targets, Storage):
        joined = ot.targets.over(Joined([ot.targets.rows, rows]))
    else:
        joined = torch.cat([ot.targets, rows.read(0, k).to(ot.device, ot.targets.dtype)])
    b = None
    if weights is not None:
        shares = torch.as_tensor(weights, dtype=torch.float64, device=ot.device)
        if shares.shape != (k,) or not bool((shares >= 0).all()) or not float(shares.sum()) < 1:
            received = f"shape {list(shares.shape)}, sum {float(shares.sum()):.3g}"
            remedy = "give the shares of the whole that the new targets get"
            raise InvalidArgument("weights", f"shape [{k}], values ≥ 0 of sum below 1", received, remedy)
        b = torch.cat([ot.weights.double() * (1 - shares.sum()), shares])
    origin = torch.cat([torch.arange(n), torch.full((k,), -1)])
    return retarget(ot, joined, origin, b, source)


def remove(ot: "SemiDiscreteOT", index: Tensor | np.ndarray | list[int]) -> "SemiDiscreteOT":
    """The transport onto all targets but these: indices, or a mask [N] of bool. The rest keep their order.

    Raises `InvalidArgument` for indices out of range, where no weight remains, and for targets over ranks.
    """
    _require_here(ot)
    n = len(ot.targets)
    index = torch.as_tensor(index, device=ot.device)
    mask = index.dtype == torch.bool and index.shape == (n,)
    whole = not index.numel() or index.dtype in (torch.int64, torch.int32)
    if not mask and not (whole and bool(((index >= 0) & (index < n)).all())):
        received = f"{index.dtype} of shape {list(index.shape)}" + (
            f" in [{index.min()}, {index.max()}]" if whole else ""
        )
        raise InvalidArgument("index", f"integers from 0 to {n - 1}, or a mask [{n}]", received, "name old targets")
    stays = torch.ones(n, dtype=torch.bool, device=ot.device)
    stays[index if mask else index.long()] = False
    if not bool((ot.weights[stays] > 0).any()):
        raise InvalidArgument("index", "some targets of positive weight to remain", "none", "remove fewer")
    kept = stays.nonzero().squeeze(1)
    rest = ot.targets.over(Picked(ot.targets.rows, kept)) if isinstance(ot.targets, Storage) else ot.targets[kept]
    return retarget(ot, rest, kept)


def reweight(
    ot: "SemiDiscreteOT", weights: Tensor | np.ndarray | None, source: SourceLike | None = None
) -> "SemiDiscreteOT":
    """The transport onto the same targets with other weights [N], as the constructor takes them.

    The targets and what kernels lay out are shared with the old one. Raises `InvalidArgument` as the constructor does.
    """
    shared = (ot.targets, ot.first, ot._kernel, ot._embedding, ot.ranks, ot.options, ot.cost, ot.ascent)
    new = copy.deepcopy(ot, {id(part): part for part in shared})
    new.weights.copy_(as_weights(weights, len(ot.targets)))
    return _carry(ot, new, torch.arange(len(ot.targets), device=ot.device), source)


def retarget(
    ot: "SemiDiscreteOT",
    targets: Tensor | np.ndarray | Storage,
    origin: Tensor | np.ndarray | list[int],
    weights: Tensor | np.ndarray | None = None,
    source: SourceLike | None = None,
) -> "SemiDiscreteOT":
    """The transport onto `targets` [M, *shape], of which the j-th was the old target origin[j], or is new where −1.

    For a data set that was changed elsewhere, such as a file that has grown, and for targets over ranks. weights [M]
    are as the constructor takes them; by default the old ones stay in proportion, and a new target gets as much as an
    old one of positive weight does on average. Raises `InvalidArgument` as the constructor does, and for an origin of
    another shape or that is not an old target.
    """
    shape = (targets if isinstance(targets, Storage) else as_rows(targets)).shape
    _require_shape(ot, shape)
    n, m = len(ot.targets), shape[0]
    origin = torch.as_tensor(origin, device=ot.device)
    fits = origin.shape == (m,) and not origin.is_floating_point()
    if not fits or not bool(((origin >= -1) & (origin < n)).all()):
        received = f"{origin.dtype} of shape {list(origin.shape)}" + (f" up to {origin.max()}" if fits else "")
        raise InvalidArgument("origin", f"integers from −1 to {n - 1}, shape [{m}]", received, "use −1 for new targets")
    if weights is None:
        usual = ot.weights[ot.weights > 0].mean()
        weights = torch.where(origin < 0, usual, ot.weights[origin.clamp(min=0)])
    new = type(ot)(targets, weights=weights, device=ot.device, **ot.options)
    return _carry(ot, new, origin, source)


def _require_shape(ot: "SemiDiscreteOT", shape: torch.Size) -> None:
    if shape[1:] != ot.shape:
        expected = ", ".join(("K", *map(str, ot.shape)))
        raise InvalidArgument("targets", f"shape [{expected}]", f"{list(shape)}", "shape them like the old ones")


def _require_here(ot: "SemiDiscreteOT") -> None:
    if isinstance(ot.targets, Shared):
        remedy = "use retarget, with the targets that there are now"
        raise InvalidArgument("group", "none, since a rank holds a part of the targets", "targets over ranks", remedy)


@torch.no_grad()
def _carry(ot: "SemiDiscreteOT", new: "SemiDiscreteOT", origin: Tensor, source: SourceLike | None) -> "SemiDiscreteOT":
    """Give `new` the potential: what stays keeps its own, what enters gets one. An ascent starts anew, from there."""
    new.ascent = None
    before, stays = origin.clamp(min=0), origin >= 0
    new.potential.copy_(torch.where(stays, ot.potential[before], 0.0))
    if not bool(ot.potential.any()):  # never solved: there is nothing to go by
        return new
    enters = ~stays if source is None else (~stays | (ot.atoms[before] == 0)) & (new.atoms > 0)
    entering = enters.nonzero().squeeze(1)
    wins = math.ceil(min(max(WINS[0], float(new.atoms[enters].sum()) / NOISE), WINS[1]))
    for index in entering.split(max(1, PART // max(1, ot.shape.numel()))) if len(entering) else ():
        y = flat(new.targets[index])
        value = below(ot, y) if source is None else levels(ot, y, new.atoms[index], source, wins)
        if ot.ranks is not None:
            value = ot.ranks.first(lambda value=value: value, value.shape, ot.device)
        new.potential[index] = value
    if new.first is not None:
        new.potential.copy_(new.potential[new.first])
    return new


def below(ot: "SemiDiscreteOT", y: Tensor) -> Tensor:
    """The smallest potential of the `NEAR` old targets of smallest c(y, y_j), [K], for y [K, D]."""
    bias = torch.where(ot.atoms > 0, ot._embedding.column, torch.inf)
    near = min(NEAR, int((ot.atoms > 0).sum()))
    parts = [kernels.topk(ot._embed(part), ot._kernel, bias, near)[1] for part in y.split(BATCH)]
    return ot.potential[torch.cat(parts)].amin(1)


def levels(ot: "SemiDiscreteOT", y: Tensor, b: Tensor, source: SourceLike, wins: int) -> Tensor:
    """The potential at which y_j [K, D] alone wins its mass b_j [K] from the targets of `ot`: [K].

    Target j is told from its first wins/b_j samples, and from no more than twice as many as all targets would take.
    """
    embedding = ot.cost.embed_targets(y, ot._embedding.centre)
    targets = kernels.prepare(embedding.y, embedding.form, **ot.requested)
    sampler, most = ots.Sampler(ot, source), 2 * wins * (len(ot.targets) + len(y))
    needed = (wins / b.double()).ceil().clamp(max=most).long()
    seen = Soft(len(y), ot.epsilon) if ot.epsilon else Least(needed, wins)
    while (left := int(needed.max()) - sampler.samples) > 0:
        start, x = sampler.samples, sampler(min(BATCH, left))
        phi = ot.c_transform(x.unflatten(1, ot.shape)) if ot.epsilon else ot._marginal(x, ot.potential, 0.0)[0]
        rest = ot.cost.row(x, embedding) - phi
        for first, last, score in kernels.scores(ot._embed(x), targets, embedding.column):
            seen.add(first, last, start, score + rest[:, None])
    return seen.levels(b, sampler.samples)


class Least:
    """The smallest margins c(x, y_j) − φ(x) of each target, of its first needed_j samples."""

    def __init__(self, needed: Tensor, wins: int):
        self.needed, self.wins = needed, wins
        self.least = torch.full((wins, len(needed)), torch.inf, device=needed.device)

    def add(self, first: int, last: int, start: int, margin: Tensor) -> None:
        """Margins [B, last − first] of samples from the start-th on."""
        needed = self.needed[first:last] - start
        if int(needed.min()) < len(margin):
            row = torch.arange(len(margin), device=margin.device)
            margin = margin.masked_fill(row[:, None] >= needed, torch.inf)
        kernels.fold_columns(self.least, first, margin, margin.new_zeros(len(margin)))

    def levels(self, b: Tensor, samples: int) -> Tensor:
        rank = (b.double() * self.needed).round().long().clamp(1, self.wins)
        return self.least.gather(0, rank[None] - 1).squeeze(0)


class Soft:
    """log Σ_x exp(−margin / ε) of each target."""

    def __init__(self, n: int, epsilon: float):
        self.epsilon, self.n, self.total = epsilon, n, None

    def add(self, first: int, last: int, start: int, margin: Tensor) -> None:
        if self.total is None:
            self.total = margin.new_full((self.n,), -math.inf)
        part = torch.logsumexp(margin / -self.epsilon, dim=0)
        self.total[first:last] = torch.logaddexp(self.total[first:last], part)

    def levels(self, b: Tensor, samples: int) -> Tensor:
        return -self.epsilon * (self.total - math.log(samples))
