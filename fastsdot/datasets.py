"""Targets from map-style data sets: torch's and torchvision's, Hugging Face's, or a list.

An item is a mapping (Hugging Face), a sequence (torch: image, label) or the sample alone; a sample is anything that
numpy reads as numbers: a Tensor, an array, a PIL image, nested lists.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fastsdot.errors import DataError, require_finite

BATCH = 256  # items that a worker reads at a time


class MapStyle(Protocol):
    """What `torch.utils.data.DataLoader` takes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class Labelled:
    """targets [N, *shape], a Tensor or what maps a file; labels [N, ...] in the same order, or None."""

    targets: Tensor | np.memmap
    labels: Tensor | None


def targets_from(
    dataset: MapStyle,
    sample: str | int | None = None,
    label: str | int | None = None,
    *,
    transform: Callable[[Any], Any] | None = None,
    out: str | Path | None = None,
    workers: int = 0,
) -> Labelled:
    """Every item of a data set as targets, in its order: row j is dataset[j], so that `ot.assign` gives its indices.

    `sample` and `label` are keys of an item, or places in it; without `sample` the item is the sample. `transform`
    makes a sample of what was read. Bytes stay uint8, other numbers become float32. With `out`, a .npy file, targets go
    there a batch at a time and are mapped from it, so that they may outgrow memory. `workers` processes read items.

    Raises `DataError` for a data set without items, a missing key, samples that are not numbers, not finite or of
    different shapes or dtypes, and a file that cannot be written.
    """
    if not len(dataset):
        raise DataError("dataset", "at least one item", "none", "check the split")
    read = partial(_read, sample=sample, label=label, transform=transform)
    batches = DataLoader(dataset, BATCH, collate_fn=read, num_workers=workers)
    targets, labels, start = None, [], 0
    for samples, named in batches:
        if targets is None:
            targets = _space((len(dataset), *samples.shape[1:]), samples.dtype, out)
        if samples.dtype != targets.dtype or samples.shape[1:] != targets.shape[1:]:
            _ragged(targets[0], samples[0])
        targets[start : start + len(samples)] = samples
        labels += named
        start += len(samples)
    if out is not None:
        targets.flush()
        targets = np.load(out, mmap_mode="r")
    return Labelled(torch.from_numpy(targets) if out is None else targets, _labels(labels) if labels else None)


def _read(items: list, sample: str | int | None, label: str | int | None, transform: Callable | None):
    """Samples [K, *shape] and labels of some items."""
    values = [_part(item, sample) for item in items]
    arrays = [_numbers(transform(value) if transform else value) for value in values]
    for array in arrays:
        if array.shape != arrays[0].shape or array.dtype != arrays[0].dtype:
            _ragged(arrays[0], array)
    return np.stack(arrays), [] if label is None else [_part(item, label) for item in items]


def _part(item: Any, key: str | int | None) -> Any:
    if key is None:
        return item
    try:
        return item[key]
    except (KeyError, IndexError, TypeError) as error:
        found = f"keys {', '.join(map(repr, item))}" if isinstance(item, Mapping) else f"a {type(item).__name__}"
        raise DataError("dataset", f"items with {key!r}", found, "name what is there") from error


def _numbers(value: Any) -> np.ndarray:
    """One sample as uint8 or float32."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError("dataset", "samples that are numbers", f"{type(value).__name__} ({error})", _CHOOSE) from error
    if array.dtype.kind not in "buif":
        raise DataError("dataset", "samples that are numbers", f"{type(value).__name__}", _CHOOSE)
    array = array if array.dtype == np.uint8 else array.astype(np.float32)
    require_finite("dataset", torch.from_numpy(np.require(array, requirements="W")), DataError)
    return array


_CHOOSE = "name the sample's column, or give a transform"


def _ragged(first: np.ndarray, other: np.ndarray) -> None:
    said = [f"{list(array.shape)} {array.dtype}" for array in (first, other)]
    raise DataError("dataset", "samples of one shape and dtype", " and ".join(said), "give a transform that resizes")


def _space(shape: tuple[int, ...], dtype: np.dtype, out: str | Path | None) -> np.ndarray:
    if out is None:
        return np.empty(shape, dtype)
    try:
        return np.lib.format.open_memmap(out, "w+", dtype, shape)
    except OSError as error:
        raise DataError("out", "a .npy file that can be written", f"{out} ({error})", "name another") from error


def _labels(labels: list) -> Tensor:
    try:
        return torch.as_tensor(np.asarray(labels))
    except (TypeError, ValueError) as error:
        raise DataError("label", "numbers", f"{labels[0]!r}", "encode them as integers") from error
