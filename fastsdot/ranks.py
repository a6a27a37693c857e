"""Several processes as one: targets in shards, batches in parts, and the same answer on every rank.

Every rank makes the same calls with the same arguments, as the processes that torchrun starts from one script do:

    torch.distributed.init_process_group("gloo", timeout=timedelta(minutes=5))      # "nccl" on GPUs
    ot = SemiDiscreteOT(targets, group=torch.distributed.group.WORLD)

Potential, weights and the solver's state are whole on every rank and stay equal, since samples are drawn by rank 0 and
sent to the others, and since every sum over ranks has the same bits on all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastsdot import kernels
from fastsdot.costs import Cost, Embedding
from fastsdot.errors import InvalidArgument, RankError
from fastsdot.storage import Embedded, Storage, as_rows, embed, fingerprint, flat, place


class Ranks:
    """A process group whose ranks hold `shards` shards of the targets, in size / shards copies.

    Raises `InvalidArgument` where the group cannot be used, and `RankError` where a rank does not answer within the
    timeout that the group was made with.
    """

    def __init__(self, group: dist.ProcessGroup, shards: int | None = None):
        if not dist.is_available() or not dist.is_initialized():
            remedy = "call torch.distributed.init_process_group first"
            raise InvalidArgument("group", "a group of torch.distributed", "none is initialised", remedy)
        self.group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)
        if shards is not None and (shards < 1 or self.size % shards):
            expected = f"a divisor of {self.size}, the number of ranks"
            raise InvalidArgument("shards", expected, repr(shards), "use 1, or as many as ranks")
        self.shards = shards

    def gather(self, own: Tensor) -> Tensor:
        """The tensors of all ranks, of one shape: [size, ...]."""
        found = own.new_empty(self.size, *own.shape)
        self._call(dist.all_gather, list(found), own.contiguous())
        return found

    def sum(self, own: Tensor) -> Tensor:
        """The sum over all ranks."""
        total = own.clone(memory_format=torch.contiguous_format)
        self._call(dist.all_reduce, total)
        return total

    def gather_objects(self, own: object) -> list:
        found = [None] * self.size
        self._call(dist.all_gather_object, found, own)
        return found

    def first(self, make: Callable[[], Tensor], shape: tuple[int, ...], device: torch.device) -> Tensor:
        """make() of rank 0, float32 of that shape, on every rank; where it raises, all do."""
        value, whole = torch.empty(shape, dtype=torch.float32, device=device), False
        try:
            if self.rank == 0:
                value = make().contiguous()
            whole = True
        finally:  # the others wait, and have to know before what was raised goes on
            state = torch.tensor([whole], dtype=torch.uint8, device=device)
            self._call(dist.broadcast, state, dist.get_global_rank(self.group, 0))
        if not state.item():
            raise RankError(self.rank, self.size, "rank 0 could not draw samples")
        self._call(dist.broadcast, value, dist.get_global_rank(self.group, 0))
        return value

    def alone(self, write: Callable[[], None]) -> None:
        """write() on rank 0, for which the others wait; where it raises, all do."""
        whole = False
        try:
            if self.rank == 0:
                write()
            whole = True
        finally:  # the others have to know before what was raised goes on
            whole = self.agree(whole)
        if not whole:
            raise RankError(self.rank, self.size, "rank 0 could not write its file")

    def agree(self, stop: bool) -> bool:
        """The answer of rank 0, for decisions that clocks and callbacks make."""
        return self.gather_objects(stop)[0]

    def _call(self, collective: Callable, *arguments: object) -> None:
        try:
            collective(*arguments, group=self.group)
        except RuntimeError as error:
            raise RankError(self.rank, self.size, f"{collective.__name__} failed: {error}") from error

    def require_equal(self, about: dict[str, str] | Exception) -> None:
        """Raise on every rank unless all say the same, and where one could not start."""
        everyone = self.gather_objects(str(about) if isinstance(about, Exception) else about)
        if isinstance(about, Exception):
            raise about
        for rank, other in enumerate(everyone):
            if isinstance(other, str):
                raise RankError(self.rank, self.size, f"rank {rank} cannot start: {other}")
        for name in about:
            values = [other[name] for other in everyone]
            if len(set(values)) > 1:
                received = ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(values))
                raise InvalidArgument(name, "the same on every rank", received, "start all ranks alike")


def apart(ranks: Ranks | None, own: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
    """call(own) row by row, where each rank has a batch [B, ...] of its own and `call` wants the same on all.

    The batches of all ranks go through one call, and each rank keeps its rows.
    """
    if ranks is None:
        return call(own)
    found = call(ranks.gather(own).flatten(0, 1))
    return found.unflatten(0, (ranks.size, own.shape[0]))[ranks.rank]


@dataclass(frozen=True)
class Shared:
    """Targets [N, *shape] of which this rank holds first ≤ j < last in `own`.

    Indexing with a tensor of indices, the same on every rank, gives those targets on every rank; indexing with a slice
    start:stop of what this rank holds gives those.
    """

    own: Tensor | Storage
    ranks: Ranks
    first: int
    last: int
    shape: torch.Size
    whole: str  # fingerprint of all targets

    @property
    def dtype(self) -> torch.dtype:
        return self.own.dtype

    @property
    def device(self) -> torch.device:
        return self.own.device

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        if isinstance(index, slice):
            return self.own[index.start - self.first : index.stop - self.first]
        rows = torch.zeros(index.shape[0], *self.shape[1:], dtype=self.dtype, device=self.device)
        here = (index >= self.first) & (index < self.last)
        if self.ranks.rank < self.ranks.shards:
            rows[here] = self.own[index[here] - self.first]
        return self.ranks.sum(rows.view(torch.uint8)).view(self.dtype)  # one rank's bytes and the others' zeros

    def spread(self, own: Tensor) -> Tensor:
        """A number of each target that this rank holds, [last − first], as those of all, [N]."""
        one = own if self.ranks.rank < self.ranks.shards else torch.zeros_like(own)  # of all copies
        return kernels.Shards(None, self.ranks, self.first, self.last, len(self)).spread(one)

    def to(self, device: torch.device) -> "Shared":
        return Shared(self.own.to(device), self.ranks, self.first, self.last, self.shape, self.whole)


def share(
    targets: Tensor | np.ndarray,
    device: torch.device | str | None,
    memory: int | None,
    ranks: Ranks,
    about: dict[str, str],
    weights: Tensor | np.ndarray | None,
) -> Shared:
    """The targets over ranks: shared out where their layouts outgrow `memory`, otherwise whole on every rank.

    `ranks.shards` says it where it is not None. Raises `InvalidArgument` on every rank when one was given other targets
    or other options, which `about` holds.
    """
    try:
        rows = as_rows(targets)
        whole = fingerprint(Storage(rows, torch.device("cpu"), 0))
        about = about | {"targets": whole, "shards": str(ranks.shards)}
        about["weights"] = "none" if weights is None else fingerprint(torch.as_tensor(weights))
    except InvalidArgument as error:
        about = error
    ranks.require_equal(about)
    try:
        if ranks.shards is None:
            held = place(targets, device, memory)
            ranks.shards = 1 if isinstance(held, Tensor) else ranks.size
        first, last = kernels.spans(rows.shape[0], ranks.shards)[ranks.rank % ranks.shards]
        own, about = place(targets[first:last], device, memory), {"shards": str(ranks.shards)}
    except InvalidArgument as error:
        about = error
    ranks.require_equal(about)
    return Shared(own, ranks, first, last, rows.shape, whole)


def lay_out(
    cost: Cost, targets: Storage | Shared, requested: dict[str, str | None]
) -> tuple[Embedding, kernels.Blocks | kernels.Shards]:
    """The embedding of targets that are not in one tensor here, without y, and what kernels reduce them by."""
    if isinstance(targets, Storage):
        embedding = embed(cost, targets)
        return embedding, kernels.in_blocks(Embedded(cost, targets, embedding.centre), embedding.form, **requested)
    own, ranks, n = targets.own, targets.ranks, len(targets)
    probe = kernels.Shards(None, ranks, targets.first, targets.last, n)
    part = embed(cost, own, n, probe.once)
    if isinstance(own, Storage):
        local = kernels.in_blocks(Embedded(cost, own, part.centre), part.form, **requested)
    else:
        local = kernels.prepare(cost.embed_rows(flat(own), part.centre), part.form, **requested)
    return part._replace(column=targets.spread(part.column)), replace(probe, local=local)
