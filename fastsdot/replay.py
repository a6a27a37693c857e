"""Samples of one source that several solves use, each of them from the first on and every sample once."""

from bisect import bisect_right

import torch
from torch import Tensor

from fastsdot.sources import Source, draw

LIMIT = 2**28  # bytes of samples kept


class Replay:
    """Draws from `source`, kept up to `LIMIT` bytes for the readers to come; behind those, readers draw anew."""

    def __init__(self, source: Source, shape: torch.Size, device: torch.device):
        self.source, self.shape, self.device = source, shape, device
        self.most = LIMIT // (4 * max(1, shape.numel()))
        self.kept: list[Tensor] = []
        self.starts: list[int] = []
        self.count = self.drawn = 0

    def reader(self) -> Source:
        """A source of the same samples from the first on."""
        position = 0

        def read(n: int) -> Tensor:
            nonlocal position
            x = torch.cat([*self._old(position, n), self._new(n - max(0, min(n, self.count - position)))])
            position += n
            return x.unflatten(1, self.shape)

        return read

    def _old(self, position: int, n: int) -> list[Tensor]:
        """Kept samples from `position` on, n of them at most."""
        found, stop = [], min(position + n, self.count)
        at = bisect_right(self.starts, position) - 1
        while position < stop:
            part = self.kept[at][position - self.starts[at] : stop - self.starts[at]]
            found.append(part)
            position, at = position + len(part), at + 1
        return found

    def _new(self, n: int) -> Tensor:
        """n more samples, [n, D], kept where there is room."""
        if not n:
            return torch.empty(0, self.shape.numel(), device=self.device)
        x = draw(self.source, n, self.shape, self.device)
        self.drawn += n
        if self.count + n <= self.most:
            self.kept.append(x)
            self.starts.append(self.count)
            self.count += n
        return x
