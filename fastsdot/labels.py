"""Class labels: the distinct ones in order, and the position of each label given among them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastsdot.errors import InvalidArgument

Label = int | str
Labels = Label | None | Tensor | np.ndarray | Sequence[Label | None]  # None and −1 stand for no label


class Classes:
    """The distinct labels of a data set, integers ≥ 0 or strings, sorted."""

    def __init__(self, names: Sequence[Label]):
        self.names = list(names)
        self.place = {name: k for k, name in enumerate(self.names)}
        self.integers = None if isinstance(self.names[0], str) else torch.tensor(self.names)

    def __str__(self) -> str:
        shown = ", ".join(map(repr, self.names[:5])) + (", …" if len(self.names) > 5 else "")
        return f"one of the {len(self.names)} classes ({shown})"

    def codes(self, labels: Labels, n: int) -> Tensor:
        """The place of each of n labels among the classes, −1 for a missing one: [n] int64 on the CPU.

        One label stands for n equal ones. Raises `InvalidArgument` for a label that is not a class, other kinds of
        labels, and another number of them.
        """
        if labels is None or isinstance(labels, int | str | np.generic):
            return torch.tensor(self._code(labels)).expand(n)
        if isinstance(labels, Tensor | np.ndarray) and self.integers is not None:
            labels = torch.as_tensor(labels).cpu()
            found = self._of_integers(labels) if integral(labels) else None
        else:
            found = torch.tensor([self._code(label) for label in labels], dtype=torch.int64)
        if found is None or found.shape != (n,):
            received = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else f"{len(labels)} labels"
            raise InvalidArgument("labels", f"{n} labels, one for each row", received, "match the samples")
        return found

    def _of_integers(self, labels: Tensor) -> Tensor:
        labels = labels.long()
        at = torch.searchsorted(self.integers, labels).clamp(max=len(self.names) - 1)
        unknown = (self.integers[at] != labels) & (labels != -1)
        if bool(unknown.any()):
            self._unknown(int(labels[unknown][0]))
        return torch.where(labels == -1, -1, at)

    def _code(self, label: Label | None) -> int:
        label = label.item() if isinstance(label, np.generic | Tensor) else label
        if label is None or label == -1:
            return -1
        return self.place[label] if label in self.place else self._unknown(label)

    def _unknown(self, label: Label) -> None:
        raise InvalidArgument(
            "labels", f"{self}, or −1 or None for no label", repr(label), "use a label of the targets"
        )


def integral(labels: Tensor) -> bool:
    return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)


def classify(labels: Tensor | np.ndarray | Sequence[Label], n: int) -> tuple[Classes, Tensor]:
    """The classes of n labels, and each label's place among them [n] int64.

    Raises `InvalidArgument` unless they are n integers ≥ 0 or n strings.
    """
    array = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if array.shape != (n,) or array.dtype.kind not in "iuU":
        received = f"{array.dtype} of shape {list(array.shape)}"
        remedy = "give a class for each target"
        raise InvalidArgument("labels", f"integers ≥ 0 or strings, shape [{n}]", received, remedy)
    names, codes = np.unique(array, return_inverse=True)
    if array.dtype.kind == "i" and names[0] < 0:
        remedy = "number the classes from 0; −1 stands for no label"
        raise InvalidArgument("labels", "integers ≥ 0", f"{names[0]}", remedy)
    return Classes(names.tolist()), torch.from_numpy(codes.astype(np.int64))
