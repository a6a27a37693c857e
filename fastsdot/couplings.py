"""Couplings: noise paired with the targets that optimal transport sends it to, for flow matching and its kin.

    x0 ~ source,   x1 = T(x0) for ε = 0,   x1 ~ P(· | x0) of the entropic plan for ε > 0

A pair takes one pass over the targets and no batch of data: x1 comes from all N of them, and follows their weights up
to the χ² of the potential, whatever the size of the batch. Source: arXiv 2509.25519, section 3; minibatch couplings,
which these stand in for: Tong et al., TMLR 2024, algorithm 3.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from fastsdot.errors import InvalidArgument, require_number
from fastsdot.semidiscrete import SemiDiscreteOT
from fastsdot.storage import decode

if TYPE_CHECKING:
    from fastsdot.background import Background

Noise = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Pairs:
    """Coupled samples; unpacks as `x0, x1 = pairs`.

    x0, x1: [B, *shape]; index: [B] int64, x1 = y_index; labels: [B, ...], those of the targets, where there are any.
    """

    x0: Tensor
    x1: Tensor
    index: Tensor
    labels: Tensor | None = None
    weights: None = None  # of pairs, which torchebm reads: all equal

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.x0, self.x1))


class Coupling:
    """Pairs of noise and targets under a solved `SemiDiscreteOT`, in the forms that flow-matching packages ask for.

    `coupling(x0)` gives `Pairs` in the order of x0. An x1 that a package passes along is a batch of data that no one
    needs, and is ignored: its place takes the data set's own target, decoded as by `ot.transport`, in the dtype of x0.

    - torchcfm: assign it to the `ot_sampler` of any flow matcher that has one.
    - torchebm: after `torchebm.core.BaseCoupling.register(Coupling)`, give it as `coupling=` of a loss.
    - flow_matching: `x_0, x_1 = coupling(noise)`, then `path.sample(t=t, x_0=x_0, x_1=x_1)`.

    labels: [N, ...], those of the targets; generator: draws what is drawn for ε > 0, the global one by default.
    Raises `InvalidArgument` for labels of another number, and for what `ot.assign` raises it.
    """

    def __init__(
        self,
        ot: SemiDiscreteOT,
        labels: Tensor | np.ndarray | Sequence | None = None,
        *,
        generator: torch.Generator | None = None,
    ):
        n = ot.targets.shape[0]
        if labels is not None:
            labels = torch.as_tensor(labels, device=ot.device)
            if labels.dim() == 0 or labels.shape[0] != n:
                expected = f"shape [{n}, ...], a label for each target"
                raise InvalidArgument("labels", expected, f"{list(labels.shape)}", "give those of ot's targets")
        self.ot, self.labels, self.generator = ot, labels, generator
        self.background: Background | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For another process: a generator and a thread stay where they are."""
        return self.__dict__ | {"generator": None, "background": None}

    @torch.no_grad()
    def __call__(
        self,
        x0: Tensor,
        x1: Tensor | None = None,
        *,
        y: Tensor | None = None,
        generator: torch.Generator | None = None,
        **conditioning: Any,
    ) -> Pairs:
        """x0 [B, *shape] with the target of each.

        Raises `InvalidArgument` for y and other conditioning, which belong to the x1 that is ignored: a network that is
        given them learns them for other targets.
        """
        wrong = [name for name, value in conditioning.items() if value is not None]
        if wrong:
            raise InvalidArgument(wrong[0], "no conditioning but labels y", "some", "leave it out")
        if x1 is not None and x1.shape[1:] != self.ot.shape:
            expected = f"samples of shape {list(self.ot.shape)}, as the targets are"
            raise InvalidArgument("x1", expected, f"{list(x1.shape[1:])}", "give both the same shape")
        if self.background is not None:
            self.background.refresh()
        index, stored, labels = self._choose(x0, y, generator or self.generator)
        return Pairs(x0, decode(stored).to(x0.dtype), index, labels)

    couple = __call__

    def _choose(
        self, x0: Tensor, y: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Index, stored target and label of each x0: assigned for ε = 0, drawn from the plan for ε > 0."""
        if y is not None:
            remedy = "use the labels of the pairs, or a ConditionalCoupling to have targets of the labels asked for"
            raise InvalidArgument("y", "no labels: x0 alone chooses its target", "labels of x1", remedy)
        index = self.ot.sample(x0, generator) if self.ot.epsilon else self.ot.assign(x0)
        return index, self.ot.targets[index], None if self.labels is None else self.labels[index]

    def conditions(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """What a stream of batches has to draw beside the noise of n pairs."""
        return {}

    def sample_plan(self, x0: Tensor, x1: Tensor | None = None, replace: bool = True) -> tuple[Tensor, Tensor]:
        """(x0, x1) as torchcfm's `OTPlanSampler`; `replace` has no meaning, since every x0 is used once."""
        pairs = self(x0, x1)
        return pairs.x0, pairs.x1

    def sample_plan_with_labels(
        self,
        x0: Tensor,
        x1: Tensor | None = None,
        y0: Tensor | None = None,
        y1: Tensor | None = None,
        replace: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """(x0, x1, y0, labels of x1) as torchcfm's `OTPlanSampler`.

        y1 belongs to the x1 that is ignored, and is ignored too, but for a `ConditionalCoupling`, where x1 has the
        labels y1. Raises `InvalidArgument` for a y1 where the coupling has no labels to take its place.
        """
        pairs = self(x0, x1, y=self._asked(y1))
        return pairs.x0, pairs.x1, y0, pairs.labels

    def _asked(self, y1: Tensor | None) -> Tensor | None:
        """The labels y that x1 is to have, from those of a batch: none, since x0 alone chooses its target."""
        if y1 is not None and self.labels is None:
            remedy = "give Coupling(ot, labels) those of all targets"
            raise InvalidArgument("y1", "None, or labels in the coupling", "labels of a batch", remedy)
        return None

    def get_map(self, x0: Tensor, x1: Tensor | None = None) -> Tensor:
        """The plan between x0 and *all* targets, sparse [B, N]: 1/B at (i, j) where x0_i goes to y_j.

        For `sample_map`, as torchcfm's.
        """
        index = self(x0, x1).index
        rows, size = torch.arange(len(index), device=index.device), (len(index), self.ot.targets.shape[0])
        mass = torch.full((len(index),), 1 / max(1, len(index)), device=index.device)
        return torch.sparse_coo_tensor(
            torch.stack((rows, index)), mass, size, is_coalesced=True, check_invariants=False
        )

    def sample_map(self, pi: Tensor, batch_size: int, replace: bool = True) -> tuple[Tensor, Tensor]:
        """(i, j): rows of x0 and indices of *targets*, [batch_size] int64 each; all rows in order where that fits.

        Other sizes draw rows, with or without replacement. Raises `InvalidArgument` for more rows without than there
        are.
        """
        rows, index = pi.indices()
        if batch_size == len(rows):
            return rows, index
        if replace:
            drawn = torch.randint(len(rows), (batch_size,), device=self._draws(pi), generator=self.generator)
        elif batch_size < len(rows):
            drawn = torch.randperm(len(rows), device=self._draws(pi), generator=self.generator)[:batch_size]
        else:
            raise InvalidArgument("batch_size", f"at most {len(rows)}, the rows", str(batch_size), "set replace=True")
        drawn = drawn.to(rows.device)
        return rows[drawn], index[drawn]

    def _draws(self, pi: Tensor) -> torch.device:
        return pi.device if self.generator is None else self.generator.device


class CoupledBatches(IterableDataset):
    """An endless stream of (noise, target, label, index), batch by batch, for `DataLoader(..., batch_size=None)`.

    noise: [B, *shape] from `noise(batch_size, generator)`, N(0, I) by default; target: [B, *shape]; label: [B, ...] or
    None; index: [B] int64. `batches` ends an iteration after so many, of all workers together and on every rank.

    Batch k of rank r is drawn from a seed of its own, made of k, r and the seed that the loader takes from torch's
    generator for every iteration. So neither workers, ranks nor epochs share noise, any number of workers above 0
    yields the same batches in the same order, and `torch.manual_seed` or the loader's `generator=` repeats them.
    Workers keep the potential that they started with; the next iteration's start with the newest.
    Raises `InvalidArgument` unless batch_size and batches are integers above 0.
    """

    def __init__(self, coupling: Coupling, batch_size: int, *, noise: Noise | None = None, batches: int | None = None):
        super().__init__()
        for name, value in (("batch_size", batch_size), ("batches", batches)):
            if value is not None:
                require_number(name, value, above=0, whole=True)
        self.coupling, self.batch_size, self.noise, self.batches = coupling, batch_size, noise, batches
        self.rank: int | None = None
        self.iterations = 0

    def __getstate__(self) -> dict[str, Any]:
        """For another process, where torch.distributed may not be initialised."""
        return self.__dict__ | {"rank": self._rank()}

    def __len__(self) -> int:
        if self.batches is None:
            raise TypeError("an endless stream has no length; give batches=")
        return self.batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor]]:
        info, rank, iteration = get_worker_info(), self._rank() or 0, self.iterations
        self.iterations += 1  # workers that persist keep their seed
        if info:
            self.coupling.background = None  # its thread is in another process
        seed = info.seed - info.id if info else int(torch.empty((), dtype=torch.int64).random_())
        first, step = (info.id, info.num_workers) if info else (0, 1)
        device = self.coupling.ot.device
        for k in count(first, step) if self.batches is None else range(first, self.batches, step):
            mixed = np.random.SeedSequence((seed, iteration, rank, k)).generate_state(1, np.uint64)
            yield self.draw(torch.Generator(device).manual_seed(int(mixed[0])))

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """One batch, by this generator alone."""
        if self.noise is None:
            x0 = torch.randn(self.batch_size, *self.coupling.ot.shape, device=generator.device, generator=generator)
        else:
            x0 = self.noise(self.batch_size, generator)
        pairs = self.coupling(x0, generator=generator, **self.coupling.conditions(self.batch_size, generator))
        return pairs.x0, pairs.x1, pairs.labels, pairs.index

    def _rank(self) -> int | None:
        distributed = torch.distributed
        return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else self.rank
