"""Where targets live: laid out whole in the memory that computes, or left where they are and read in blocks.

Kernels lay targets out in float32, with copies of their own beside, about `LAYOUT` bytes a coordinate; a byte of an
image becomes nine. Targets whose layouts fit the limit are laid out once. Others stay in their file or in host memory,
in their own dtype, and every pass reads them in blocks: a thread beside reads and converts the next block while the
kernels work on this one. On CUDA the block goes through pinned memory and a stream of copies instead, unless the stored
targets are on the GPU already: then a block is converted where it is.

A mapped file is read through the file and not through the map: pages of the map would count as this process's memory,
and a file that was cut short would end the process with SIGBUS.
"""

import hashlib
import mmap
import os
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastsdot.costs import Cost, Embedding
from fastsdot.errors import DataError, InvalidArgument, require_finite
from fastsdot.kernels import streaming, threads
from fastsdot.views import Rows

STORED = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
READABLE = {np.dtype(name) for name in ("float64", "float32", "float16", "uint8")}

LAYOUT = 8  # bytes a coordinate that kernels take beside the stored ones: float32, and their own copies
MAPPED_LIMIT = 2**30  # bytes of layouts of a mapped file that are held in host memory by default
DEVICE_SHARE = 0.5  # of the free memory of a GPU, likewise
BLOCK_BYTES = {
    "cpu": 2**25,
    "cuda": 2**33,
}  # of float32 in a block, at most: each block is searched for its own nearest
BLOCK_SHARE = 8  # and at most this part of the limit: two blocks, their layouts and scores
PIECE = {"cpu": 2**17, "cuda": 2**27}  # coordinates converted at once: on a CPU they stay in the L2 cache


def decode(stored: Tensor) -> Tensor:
    """The float32 values of stored targets; a byte k stands for k/255."""
    return stored.float() / 255 if stored.dtype == torch.uint8 else stored.float()


class MappedRows:
    """The rows [N, *shape] of a mapped array, read from its file; a copy or pickle of it is the path and the place.

    Raises `DataError` when the file cannot be opened or is shorter than the array.
    """

    def __init__(self, path: str | Path, offset: int, shape: tuple[int, ...], dtype: np.dtype):
        self.path, self.offset, self.shape, self.stored = str(path), offset, torch.Size(shape), np.dtype(dtype)
        self.dtype = torch.float32 if self.stored == np.float64 else getattr(torch, self.stored.name)
        self.row_bytes = self.shape[1:].numel() * self.stored.itemsize
        try:
            self.file = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self.file)
            size = os.fstat(self.file).st_size
        except OSError as error:
            raise DataError("targets", "a file that can be read", f"{self.path} ({error})", "restore it") from error
        if size < offset + self.shape[0] * self.row_bytes:
            self._short(size)

    def __reduce__(self):
        return MappedRows, (self.path, self.offset, tuple(self.shape), self.stored)

    def _short(self, size: int) -> None:
        expected = f"{self.offset + self.shape[0] * self.row_bytes} bytes of targets in {self.path}"
        raise DataError("targets", expected, f"{size}", "the file was cut short: restore it")

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start ≤ j < stop, [stop − start, *shape]. Raises `DataError` when the file ends before them."""
        rows = np.empty((stop - start, *self.shape[1:]), self.stored)
        place, left = self.offset + start * self.row_bytes, memoryview(rows).cast("B")
        while left:
            try:
                count = os.preadv(self.file, [left], place)
            except OSError as error:
                raise DataError("targets", f"readable bytes in {self.path}", str(error), "restore it") from error
            if not count:
                self._short(os.fstat(self.file).st_size)
            place, left = place + count, left[count:]
        return torch.from_numpy(rows).to(self.dtype)

    def gather(self, index: Tensor) -> Tensor:
        """Rows of these indices, each read once."""
        chosen, place = torch.unique(index.cpu(), return_inverse=True)
        rows = [self.read(j, j + 1) for j in chosen.tolist()]
        return torch.cat([torch.empty(0, *self.shape[1:], dtype=self.dtype), *rows])[place]


class HostRows:
    """Rows [N, *shape] of a tensor in host memory, pinned or not."""

    def __init__(self, rows: Tensor):
        self.rows, self.shape, self.dtype = rows, rows.shape, rows.dtype

    def read(self, start: int, stop: int) -> Tensor:
        return self.rows[start:stop]

    def gather(self, index: Tensor) -> Tensor:
        return self.rows[index.to(self.rows.device)]


class DeviceRows(HostRows):
    """Rows of a tensor that is where its blocks are wanted."""


class Storage:
    """Targets [N, *shape] that stay where they are and go to `device` a few at a time.

    Indexing with a tensor of indices or a slice start:stop gives those targets in the stored dtype on the device.
    """

    def __init__(self, rows: Rows, device: torch.device, limit: int):
        self.rows, self.device = rows, device
        self.shape, self.dtype = rows.shape, rows.dtype
        width = 4 * max(1, self.shape[1:].numel())
        self.block = max(1, min(per_device(BLOCK_BYTES, device), limit // BLOCK_SHARE) // width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        if isinstance(index, slice):
            return self.rows.read(index.start, index.stop).to(self.device)
        return self.rows.gather(index).to(self.device)

    def to(self, device: torch.device) -> "Storage":
        moved = Storage.__new__(Storage)
        moved.__dict__.update(self.__dict__, device=device)
        return moved

    def over(self, rows: Rows) -> "Storage":
        """Other rows of the same shape, read likewise."""
        other = Storage.__new__(Storage)
        other.__dict__.update(self.__dict__, rows=rows, shape=rows.shape, dtype=rows.dtype)
        return other

    def blocks(self, convert: Callable[[Tensor], Tensor]) -> Iterator[tuple[int, int, Tensor]]:
        """(start, stop, convert(stored rows)) in order; convert maps [K, *shape] to [K, D] float32, row by row.

        Each block may be overwritten once the next is asked for. Raises `DataError` when the targets cannot be read.
        """
        n, spans = self.shape[0], list(streaming.blocks(self.shape[0], self.block))
        if isinstance(self.rows, DeviceRows) and self.rows.rows.device == self.device:
            for start, stop in spans:
                yield start, stop, convert(self.rows.read(start, stop))
            return
        stage = (CudaStage if self.device.type == "cuda" else HostStage)(self, min(n, self.block), convert)
        for span, loaded in zip(spans, ahead(stage.load, spans), strict=True):
            yield *span, stage.finish(loaded)


def per_device(sizes: dict[str, int], device: torch.device) -> int:
    """The CPU's where a kind of device has none of its own."""
    return sizes.get(device.type, sizes["cpu"])


def ahead(load: Callable, spans: list[tuple[int, int]]) -> Iterator:
    """load(turn, start, stop) of each span in order; the next runs on a thread beside while one is in use.

    turn is 0 and 1 alternately: the result of one turn has been used when the next of that turn is loaded.
    """
    coming = None
    try:
        for i, span in enumerate(spans):
            coming, current = threads.aside(load, i % 2, *span), coming
            if current is not None:
                yield current.result()
        if coming is not None:
            yield coming.result()
    finally:
        if coming is not None:
            coming.cancel()


class HostStage:
    """Blocks for kernels on the CPU: read and converted by the thread beside, into two buffers in turn."""

    def __init__(self, storage: Storage, rows: int, convert: Callable[[Tensor], Tensor]):
        d = storage.shape[1:].numel()
        self.read, self.convert, self.piece = storage.rows.read, convert, max(1, PIECE["cpu"] // max(1, d))
        self.buffers = [torch.empty(rows, d, dtype=torch.float32) for _ in range(2)]

    def load(self, turn: int, start: int, stop: int) -> Tensor:
        out = self.buffers[turn][: stop - start]
        for part, rows in zip(out.split(self.piece), self.read(start, stop).split(self.piece), strict=True):
            part.copy_(self.convert(rows))
        return out

    def finish(self, loaded: Tensor) -> Tensor:
        return loaded


class CudaStage:
    """Blocks for kernels on a GPU: the thread beside fills pinned memory, a stream of its own copies it over."""

    def __init__(self, storage: Storage, rows: int, convert: Callable[[Tensor], Tensor]):
        self.read, self.convert, self.device = storage.rows.read, convert, storage.device
        self.stream = torch.cuda.Stream(self.device)
        self.pinned = [torch.empty(rows, *storage.shape[1:], dtype=storage.dtype, pin_memory=True) for _ in range(2)]
        self.copied: list[torch.cuda.Event | None] = [None, None]

    def load(self, turn: int, start: int, stop: int) -> tuple[Tensor, torch.cuda.Event]:
        rows = self.read(start, stop)
        if not rows.is_pinned():
            if self.copied[turn] is not None:
                self.copied[turn].synchronize()
            rows = self.pinned[turn][: stop - start].copy_(rows)
        with torch.cuda.stream(self.stream):
            there = rows.to(self.device, non_blocking=True)
            self.copied[turn] = torch.cuda.Event()
            self.copied[turn].record()
        return there, self.copied[turn]

    def finish(self, loaded: tuple[Tensor, torch.cuda.Event]) -> Tensor:
        there, copied = loaded
        current = torch.cuda.current_stream(self.device)
        current.wait_event(copied)
        there.record_stream(current)
        return self.convert(there)


def embed(
    cost: Cost, own: Tensor | Storage, n: int | None = None, join: Callable[[Tensor], Tensor] = lambda total: total
) -> Embedding:
    """`cost.embed_targets` without y, in two passes at most; raises `InvalidArgument` unless all targets are finite.

    Where the targets are a part of n, join takes their sum to the sum of all n, for the centre.
    """
    d = own.shape[1:].numel()
    total = torch.zeros(d, dtype=torch.float64, device=own.device)
    column = torch.empty(own.shape[0], dtype=torch.float32, device=own.device)
    if cost.centred(d):
        for _, _, y in decoded(own):
            total += y.sum(0, dtype=torch.float64)
        total = join(total)
    centre = (total / (n or own.shape[0])).float()
    piece = max(1, per_device(PIECE, own.device) // max(1, d))
    for start, stop, y in decoded(own):
        for first, last in streaming.blocks(stop - start, piece):
            require_finite("targets", y[first:last])
            embedding = cost.embed_targets(y[first:last], centre)
            column[start + first : start + last] = embedding.column
    return embedding._replace(y=None, column=column)


def decoded(own: Tensor | Storage) -> Iterator[tuple[int, int, Tensor]]:
    return own.blocks(flat) if isinstance(own, Storage) else iter([(0, own.shape[0], flat(own))])


@dataclass(frozen=True)
class Embedded:
    """Stored targets as kernels are given them: a `kernels.blocks.Source`."""

    cost: Cost
    storage: Storage
    centre: Tensor

    @property
    def n(self) -> int:
        return self.storage.shape[0]

    @property
    def block(self) -> int:
        return self.storage.block

    def convert(self, stored: Tensor) -> Tensor:
        return self.cost.embed_rows(flat(stored), self.centre)

    def stream(self) -> Iterator[tuple[int, int, Tensor]]:
        return self.storage.blocks(self.convert)

    def rows(self, index: Tensor) -> Tensor:
        return self.convert(self.storage[index])


def flat(stored: Tensor) -> Tensor:
    """Decoded rows, [K, *shape] to [K, D]."""
    return decode(stored).reshape(stored.shape[0], -1)


def place(
    targets: Tensor | np.ndarray | Storage, device: torch.device | str | None, memory: int | None
) -> Tensor | Storage:
    """Targets in the memory that computes where their layouts take at most `memory` bytes, and a `Storage` otherwise.

    A `Storage` stays what it is.

    By default the limit is `MAPPED_LIMIT` for a mapped file on the CPU, `DEVICE_SHARE` of the free memory for what
    has to go to a GPU, and none for what is already there, whose blocks are laid out where it is. Raises
    `InvalidArgument` for targets that cannot be used and `DataError` for a file that cannot be read.
    """
    if isinstance(targets, Storage):
        return targets
    rows = as_rows(targets)
    here = rows.rows.device if isinstance(rows, HostRows) else torch.device("cpu")
    device = torch.empty(0, device=device).device if device is not None else here  # with the GPU's number
    limit = memory if memory is not None else _limit(rows, here, device)
    if rows.shape.numel() * (LAYOUT + rows.dtype.itemsize) > limit:
        return Storage(rows, device, int(limit))
    whole = rows.read(0, rows.shape[0])
    require_finite("targets", whole)
    return whole.to(device)


def _limit(rows: MappedRows | HostRows, here: torch.device, device: torch.device) -> float:
    if device.type == "cuda" and here.type != "cuda":
        return DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]
    return MAPPED_LIMIT if isinstance(rows, MappedRows) else float("inf")


def as_rows(targets: Tensor | np.ndarray) -> MappedRows | HostRows:
    """The rows behind targets that can be used; raises `InvalidArgument` for others."""
    if isinstance(targets, np.ndarray):
        if targets.dtype not in READABLE:
            raise InvalidArgument("targets", "float or uint8", str(targets.dtype), "convert them, to float32 say")
        if targets.ndim < 2 or targets.size == 0:
            _no_targets(targets.shape)
        mapped = _mapped(targets)
        if mapped is not None:
            return mapped
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")  # targets are only read
            targets = torch.as_tensor(np.ascontiguousarray(targets))
    if not isinstance(targets, Tensor):
        raise InvalidArgument(
            "targets", "a Tensor, ndarray or memmap", type(targets).__name__, "wrap them in np.asarray"
        )
    targets = targets.detach()
    if targets.dtype == torch.float64:
        targets = targets.float()
    if targets.dtype not in STORED:
        names = ", ".join(str(t).removeprefix("torch.") for t in STORED)
        raise InvalidArgument("targets", f"one of {names}", str(targets.dtype), "convert them, to float32 say")
    if targets.dim() < 2 or targets.numel() == 0:
        _no_targets(tuple(targets.shape))
    return HostRows(targets) if targets.device.type == "cpu" else DeviceRows(targets)


def _no_targets(shape: tuple[int, ...]) -> None:
    remedy = "give targets[:, None], points on a line" if len(shape) == 1 and shape[0] else "give some targets"
    raise InvalidArgument("targets", "shape [N, D] or [N, ...] with N ≥ 1", f"shape {shape}", remedy)


def _mapped(array: np.ndarray) -> MappedRows | None:
    """The file's rows behind an array that is a whole memmap or consecutive rows of one; None for other arrays."""
    root = array
    while isinstance(root, np.ndarray) and not isinstance(root.base, mmap.mmap):
        root = root.base
    if not isinstance(root, np.memmap) or root.filename is None or root.mode == "c" or not array.flags.c_contiguous:
        return None
    return MappedRows(root.filename, root.offset + array.ctypes.data - root.ctypes.data, array.shape, array.dtype)


def fingerprint(targets) -> str:
    """Shape, dtype and a hash of up to 1 024 evenly spaced targets, of a Tensor or of what `place` or `share` made."""
    if hasattr(targets, "whole"):
        return targets.whole
    n = targets.shape[0]
    few = min(1024, n)
    rows = torch.arange(few) * (n - 1) // max(1, few - 1)
    sample = targets[rows.to(targets.device)].cpu().contiguous()
    digest = hashlib.sha256(sample.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
    return f"{list(targets.shape)} {str(targets.dtype).removeprefix('torch.')} {digest}"
