"""ConditionalCoupling: noise paired with targets of the labels asked for.

    x1 = T(x0, y),   T(·, k) the transport onto the targets of class k

For ε > 0, x1 is drawn from the entropic plan of the class. Pairs with y ~ the classes' shares follow the data set's
targets and labels together, which couplings that choose labels by the noise cannot give to a network that is told y.
"""

import torch
from torch import Tensor

from fastsdot.conditional import ConditionalOT
from fastsdot.couplings import Coupling
from fastsdot.errors import InvalidArgument


class ConditionalCoupling(Coupling):
    """A `Coupling` whose pairs have the labels that the batch brings along.

    They are y1 of torchcfm's `sample_plan_with_labels` and guided flows, and `y=` of torchebm and of a call. −1 stands
    for a label that the loop has dropped, where `ot` is `unconditional`. `CoupledBatches` draws labels by their shares,
    and leaves each out with probability `dropout`.

    Raises `InvalidArgument` where labels are missing, are not the targets', or are strings.
    """

    def __init__(self, ot: ConditionalOT, *, dropout: float = 0.0, generator: torch.Generator | None = None):
        if isinstance(ot.classes[0], str):
            raise InvalidArgument(
                "ot", "integer labels, which batches hold as tensors", "strings", "number the classes"
            )
        if not 0 <= dropout <= 1:
            raise InvalidArgument("dropout", "a probability", repr(dropout), "give a number from 0 to 1")
        parts = [(label, ot.members(label)) for label in ot.classes]
        n = sum(len(members) for _, members in parts)
        self.labels, self._place = (torch.empty(n, dtype=torch.int64, device=ot.device) for _ in range(2))
        for label, members in parts:
            self.labels[members] = label
            self._place[members] = torch.arange(len(members), device=ot.device)
        self.ot, self.dropout, self.generator, self.background = ot, dropout, generator, None

    def _choose(
        self, x0: Tensor, y: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if y is None:
            raise InvalidArgument("y", "a label for each x0", "none", "pass the labels of the batch, or −1 for dropped")
        index = self.ot.sample(x0, y, generator) if self.ot.epsilon else self.ot.assign(x0, y)
        return index, self._stored(index), y

    def _stored(self, index: Tensor) -> Tensor:
        """The stored targets of indices in the data set, which `ot` holds by class."""
        labels, kind = self.labels[index], self.ot[self.ot.classes[0]].targets.dtype
        stored = torch.empty(len(index), *self.ot.shape, dtype=kind, device=index.device)
        for label in labels.unique().tolist():
            rows = labels == label
            stored[rows] = self.ot[label].targets[self._place[index[rows]]]
        return stored

    def conditions(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Labels [n] drawn by the classes' shares, −1 for those left out."""
        shares = torch.tensor([self.ot.shares[label] for label in self.ot.classes], device=generator.device)
        drawn = torch.multinomial(shares, n, replacement=True, generator=generator)
        y = torch.tensor(self.ot.classes, device=generator.device)[drawn]
        if self.dropout:
            y[torch.rand(n, device=generator.device, generator=generator) < self.dropout] = -1
        return {"y": y}

    def _asked(self, y1: Tensor | None) -> Tensor | None:
        return y1
