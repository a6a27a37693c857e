"""Rows of other rows, read where they are: some of them, or those of several parts one after the other.

Both offer what `storage.MappedRows` and `storage.HostRows` do: shape, dtype, read(start, stop) and gather(index).
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Rows(Protocol):
    """Rows [N, *shape] that are read a few at a time."""

    shape: torch.Size
    dtype: torch.dtype

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start ≤ j < stop, [stop − start, *shape], in host memory."""

    def gather(self, index: Tensor) -> Tensor:
        """Rows of these indices, [K, *shape]."""


class Picked:
    """The rows `index` [K] int64 of other rows; neighbours that are neighbours there too are read at once."""

    def __init__(self, rows: Rows, index: Tensor):
        self.rows, self.index = rows, index.cpu()
        self.shape, self.dtype = torch.Size((len(index), *rows.shape[1:])), rows.dtype

    def read(self, start: int, stop: int) -> Tensor:
        index = self.index[start:stop]
        ends = (torch.nonzero(index.diff() != 1).squeeze(1) + 1).tolist()
        runs = [(int(run[0]), int(run[-1]) + 1) for run in index.tensor_split(ends) if len(run)]
        return torch.cat([none(self), *(self.rows.read(first, last).cpu() for first, last in runs)])

    def gather(self, index: Tensor) -> Tensor:
        return self.rows.gather(self.index[index.cpu()]).cpu()


class Joined:
    """The rows of all parts in their order, in the dtype of the first."""

    def __init__(self, parts: Sequence[Rows]):
        self.parts, self.dtype = list(parts), parts[0].dtype
        self.starts = torch.tensor([0] + [part.shape[0] for part in parts]).cumsum(0).tolist()
        self.shape = torch.Size((self.starts[-1], *parts[0].shape[1:]))

    def read(self, start: int, stop: int) -> Tensor:
        found = [none(self)]
        for part, first in zip(self.parts, self.starts[:-1], strict=True):
            low, high = max(0, start - first), min(part.shape[0], stop - first)
            if low < high:
                found.append(part.read(low, high).to("cpu", self.dtype))
        return torch.cat(found)

    def gather(self, index: Tensor) -> Tensor:
        found, index = torch.empty(len(index), *self.shape[1:], dtype=self.dtype), index.cpu()
        for part, first in zip(self.parts, self.starts[:-1], strict=True):
            here = (index >= first) & (index < first + part.shape[0])
            found[here] = part.gather(index[here] - first).to("cpu", self.dtype)
        return found


def none(rows: Rows) -> Tensor:
    """No rows, [0, *shape]."""
    return torch.empty(0, *rows.shape[1:], dtype=rows.dtype)
