"""Conditional transport: one potential per class, so that every sample goes to a target of the class asked for.

    T(x, k) = y_j,   j = argmin over the targets j of class k of c(x, y_j) − ψ_j

Each class is a semi-discrete problem of its own, with the weights b of its targets scaled to sum 1. With β_k the share
of class k of all weight, the pooled marginal error and transport cost are Σ_k β_k χ²_k and Σ_k β_k W_k. Rows without a
label go by one more potential, over all targets, as classifier-free guidance needs where a training loop drops labels.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastsdot import checkpoint, ots, saving
from fastsdot.conditional_report import ConditionalReport, ConditionalSolution
from fastsdot.costs import Pairing
from fastsdot.errors import InvalidArgument, require_number
from fastsdot.labels import Classes, Label, Labels, classify
from fastsdot.progress import Progress
from fastsdot.replay import Replay
from fastsdot.semidiscrete import SemiDiscreteOT
from fastsdot.sources import SourceLike, over_ranks
from fastsdot.stopping import Rule, asks
from fastsdot.storage import Storage, place
from fastsdot.views import Picked
from fastsdot.weights import as_weights

# What a conditional solve ended by, in this order.
UNFINISHED = (ots.Reason.CALLBACK, ots.Reason.MAX_SECONDS, ots.Reason.MAX_SAMPLES)


class ConditionalOT(nn.Module):
    """Optimal transport from a source onto each class of `targets` [N, *shape], and onto all of them.

        T(x, k) = y_j,   j = argmin over the targets j of class k of c(x, y_j) − ψ_j

    labels: [N], a class for each target: integers ≥ 0, or strings. unconditional: whether rows without a label are
    served, by a potential over all targets; with K classes of one size its solve costs K times those of all classes
    together. weights: [N]. The other arguments are those of `SemiDiscreteOT`; `memory` is shared out over the classes
    and counted again for the potential over all.

    `ot[label]` is the class's `SemiDiscreteOT`, `ot[None]` that of all targets; `ot.members(label)` are its targets'
    indices in the data set, and `ot.classes` the labels in order.
    The targets are held once, sorted by class, or read where they are; `torch.save` keeps it so, plain pickle does not.
    Raises `InvalidArgument` for labels that cannot be used, a class without weight, and as `SemiDiscreteOT` does.
    """

    def __init__(
        self,
        targets: Tensor | np.ndarray,
        labels: Tensor | np.ndarray | Sequence[Label],
        *,
        unconditional: bool = False,
        cost: str | Pairing = "sqeuclidean",
        p: float | None = None,
        weights: Tensor | np.ndarray | None = None,
        epsilon: float = 0.0,
        backend: str | None = None,
        precision: str | None = None,
        device: torch.device | str | None = None,
        memory: int | None = None,
    ):
        super().__init__()
        stored = place(targets, device, memory)
        n = stored.shape[0]
        self._classes, codes = classify(labels, n)
        b = as_weights(weights, n).cpu()
        self.shares = _shares(self._classes, codes, b)
        order, sizes = codes.argsort(stable=True), codes.bincount(minlength=len(self.classes)).tolist()
        in_blocks = isinstance(stored, Storage)
        sort = not in_blocks and not torch.equal(order, torch.arange(n))
        whole = stored[order.to(stored.device)] if sort else stored
        members, ends = list(order.split(sizes)), np.cumsum(sizes)
        if in_blocks:
            held = [whole.over(Picked(whole.rows, own)) for own in members]
        else:
            held = [whole[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        if unconditional:
            members.append(torch.arange(n) if in_blocks else order)
            held.append(whole)
        self._labels = [*self.classes, None][: len(held)]
        options = {"cost": cost, "p": p, "epsilon": epsilon, "backend": backend, "precision": precision}
        self.parts = nn.ModuleList()
        for k, (own, index) in enumerate(zip(held, members, strict=True)):
            room = None if memory is None else math.ceil(memory * len(index) / n)
            self.parts.append(SemiDiscreteOT(own, weights=b[index], memory=room, device=stored.device, **options))
            self.register_buffer(f"_members{k}", index.to(stored.device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ConditionalOT":
        """Follow `.to(device)`; classes stay views of the targets of the potential over all."""
        super()._apply(fn, recurse)
        if self._labels[-1] is None and isinstance(self[None].targets, Tensor):
            classes = self.parts[:-1]
            sizes = [part.targets.shape[0] for part in classes]
            for part, own in zip(classes, self[None].targets.split(sizes), strict=True):
                part.targets = own
                part._prepare()
        return self

    @property
    def classes(self) -> list[Label]:
        """The labels, in order."""
        return self._classes.names

    def __getitem__(self, label: Label | None) -> SemiDiscreteOT:
        return self.parts[self._place(label)]

    def members(self, label: Label | None) -> Tensor:
        """The indices in the data set of the targets of `ot[label]`, in its order: int64."""
        return getattr(self, f"_members{self._place(label)}")

    def items(self) -> Iterator[tuple[Label | None, SemiDiscreteOT]]:
        """Every label with its transport, that of all targets last, with None."""
        return zip(self._labels, self.parts, strict=True)

    @property
    def shape(self) -> torch.Size:
        """The shape of one target."""
        return self.parts[0].shape

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    @property
    def epsilon(self) -> float:
        return self.parts[0].epsilon

    def extra_repr(self) -> str:
        return f"classes={len(self.classes)}, unconditional={self._labels[-1] is None}"

    def assign(self, x: Tensor, labels: Labels) -> Tensor:
        """The index in the data set of each T(x, k): [B] int64.

        labels: one for each row, or one for all; −1 or None where there is none. Raises `InvalidArgument` for a label
        that no target has, and for a missing one unless `unconditional`.
        """
        return self._by_class(x, labels, lambda label, rows: self.members(label)[self[label].assign(rows)])

    def transport(self, x: Tensor, labels: Labels) -> Tensor:
        """T(x, k), the target that `assign` chooses: [B, *shape] in the dtype of x."""
        return self._by_class(x, labels, lambda label, rows: self[label].transport(rows))

    forward = transport

    def c_transform(self, x: Tensor, labels: Labels) -> Tensor:
        """φ_k(x), the c-transform of the class's potential: [B]; differentiable as `SemiDiscreteOT.c_transform` is."""
        return self._by_class(x, labels, lambda label, rows: self[label].c_transform(rows))

    def sample(self, x: Tensor, labels: Labels, generator: torch.Generator | None = None) -> Tensor:
        """The index in the data set of a target drawn from the class's entropic plan: [B] int64; for ε > 0."""
        return self._by_class(x, labels, lambda label, rows: self.members(label)[self[label].sample(rows, generator)])

    def barycenter(self, x: Tensor, labels: Labels) -> Tensor:
        """The mean of what `sample` draws: [B, *shape] in the dtype of x; for ε > 0."""
        return self._by_class(x, labels, lambda label, rows: self[label].barycenter(rows))

    def evaluate(
        self,
        source: SourceLike | Mapping[Label | None, SourceLike],
        samples: int = 100_000,
        batch_size: int | None = None,
    ) -> "ConditionalReport":
        """Measure every class on `samples` fresh samples of its own."""
        sources = self._sources(source)
        reports = {label: ot.evaluate(sources[label], samples, batch_size) for label, ot in self.items()}
        return ConditionalReport(reports, self.shares)

    def solve(
        self,
        source: SourceLike | Mapping[Label | None, SourceLike],
        *,
        tol: float | Rule = 0.05,
        max_samples: int | None = None,
        max_seconds: float | None = None,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
        progress: Callable[[Progress], None] | None = None,
        callback: Callable[[dict[str, float]], bool | None] | None = None,
        throw: bool = False,
    ) -> "ConditionalSolution":
        """Solve every class as `SemiDiscreteOT.solve` does, to the same tolerance.

        One source serves all classes: what a callable has drawn for one is used for the others again. A mapping gives
        each class its own, with None for all targets. max_samples bounds what one class sees, max_seconds the time of
        all. callback sees the rows with their class under "class"; where it returns True, the class at hand is the
        last.

        Raises `InvalidArgument` for a mapping without one of the classes, and as `SemiDiscreteOT.solve` does.
        """
        started = time.perf_counter()
        if max_seconds is not None:
            require_number("max_seconds", max_seconds, above=0)
        one = callable(source) and not isinstance(source, Mapping)
        shared = Replay(over_ranks(source, None), self.shape, self.device) if one else None
        sources = self._sources(source) if shared is None else {label: shared.reader() for label in self._labels}
        options = {"tol": tol, "max_samples": max_samples, "batch_size": batch_size, "generator": generator}
        found: dict[Label | None, ots.Solution] = {}
        asked: list[bool] = []  # what the callback returned

        def hear(row: dict[str, float], label: Label | None) -> bool:
            asked.append(asks(callback(row | {"class": label})))
            return asked[-1]

        for label, ot in self.items():
            tell = None if callback is None else partial(hear, label=label)
            if max_seconds is not None:  # to judge a batch there is always time
                options["max_seconds"] = max(1e-9, max_seconds - (time.perf_counter() - started))
            found[label] = ot.solve(sources[label], progress=progress, callback=tell, **options)
            if any(asked):
                break
        unconverged = tuple(label for label in self._labels if label not in found or not found[label].converged)
        reasons = {part.reason for part in found.values()} | ({ots.Reason.CALLBACK} if any(asked) else set())
        solution = ConditionalSolution(
            converged=not unconverged,
            reason=next((reason for reason in UNFINISHED if reason in reasons), ots.Reason.CONVERGED),
            report=ConditionalReport({label: part.report for label, part in found.items()}, self.shares, one),
            samples=sum(part.samples for part in found.values()) if shared is None else shared.drawn,
            seconds=time.perf_counter() - started,
            classes=found,
            unconverged=unconverged,
        )
        if throw and unconverged:
            raise ots.NotConverged(solution)
        return solution

    def save(self, path: str | Path) -> None:
        """Write labels and, of every class, what `SemiDiscreteOT.save` writes, to one safetensors file."""
        codes = torch.empty(sum(len(self.members(label)) for label in self.classes), dtype=torch.int64)
        for k, label in enumerate(self.classes):
            codes[self.members(label).cpu()] = k
        parts = [saving.state_of(part) for part in self.parts]
        state = {"classes": self.classes, "codes": codes, "shares": list(self.shares.values()), "parts": parts}
        checkpoint.write(Path(path), state)

    @classmethod
    def load(cls, path: str | Path, targets: Tensor | np.ndarray, **options) -> "ConditionalOT":
        """Read what `save` wrote, for the same targets; `options` are the constructor's, as for `SemiDiscreteOT.load`.

        Raises `InvalidArgument` when the file is unreadable or was saved for other targets.
        """
        state = checkpoint.read(path, error=InvalidArgument)
        if "parts" not in state:
            raise InvalidArgument("path", "a file written by ConditionalOT.save", str(path), "use SemiDiscreteOT.load")
        parts, codes, names = state["parts"], state["codes"], np.array(state["classes"])
        weights = torch.zeros(len(codes), dtype=torch.float64)
        for k, share in enumerate(state["shares"]):
            weights[codes == k] = share * parts[k]["weights"].double()
        options = saving.options_of(parts[0], options)
        ot = cls(targets, names[codes.numpy()], unconditional=len(parts) > len(names), weights=weights, **options)
        for part, own in zip(ot.parts, parts, strict=True):
            saving.restore(part, own)
        return ot

    def _place(self, label: Label | None) -> int:
        if label not in self._labels:
            remedy = "use a label of the targets" + (", or give unconditional=True" if label is None else "")
            raise InvalidArgument("label", str(self._classes), repr(label), remedy)
        return self._labels.index(label)

    def _sources(self, source: SourceLike | Mapping[Label | None, SourceLike]) -> Mapping[Label | None, SourceLike]:
        """A source for every part."""
        if not isinstance(source, Mapping):
            return dict.fromkeys(self._labels, source)
        missing = [label for label in self._labels if label not in source]
        if missing:
            expected, received = "a source for every class", f"none for {missing[0]!r}"
            raise InvalidArgument("source", expected, received, "add it, or give one source for all classes")
        return source

    def _by_class(self, x: Tensor, labels: Labels, call: Callable[[Label | None, Tensor], Tensor]) -> Tensor:
        """call(label, rows of x with that label) of every label at hand, put back in the order of x."""
        self.parts[0]._flat(x)
        codes = self._classes.codes(labels, x.shape[0])
        if self._labels[-1] is not None and bool((codes < 0).any()):
            received = f"{int((codes < 0).sum())} rows without"
            raise InvalidArgument("labels", f"{self._classes} for every row", received, "give unconditional=True")
        order = codes.argsort(stable=True)
        present, counts = codes[order].unique_consecutive(return_counts=True)
        order = order.to(x.device)
        rows = dict(zip(present.tolist(), order.split(counts.tolist()), strict=True)) or {0: order}
        parts = [call(self._labels[code], x[index]) for code, index in rows.items()]
        return torch.cat(parts)[order.argsort()]


def _shares(classes: Classes, codes: Tensor, b: Tensor) -> dict[Label, float]:
    """The weight of every class. Raises `InvalidArgument` where one has none."""
    mass = torch.zeros(len(classes.names), dtype=torch.float64).index_add(0, codes, b.double()).tolist()
    if 0 in mass:
        label, remedy = classes.names[mass.index(0)], "leave the class out, or weigh one of its targets"
        raise InvalidArgument("weights", "some weight in every class", f"none in class {label!r}", remedy)
    return dict(zip(classes.names, mass, strict=True))
