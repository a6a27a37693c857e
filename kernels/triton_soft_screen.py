"""The soft reductions of the screen: sums over the targets near the best, and plain passes for rows with too many."""

from dataclasses import replace

import torch
from torch import Tensor

from . import triton_screen_inner as inner
from .form import Form
from .triton_launch import COLUMN_LAUNCHES, Tiling, in_slices, launch_of_listed, on_device, tiling_of_listed
from .triton_near import UNIT, Near
from .triton_soft import masses, row_values

FINE = 8  # targets of a part
ENTRIES = 2**26  # shares kept at once, and bounds; more rows are taken in slices
# A row's share of two plain passes takes 12·N·D / 495e12 s and exact scores of 8 targets 4·8·D / 3.35e12 s (an H100's
# peaks): as much as those of N / 8 / 50 parts.
WORTH, FEWEST = 50, 32


def most_parts(n: int) -> int:
    """Parts of a row that are opened; with more, plain passes cost less."""
    return max(FEWEST, n // FINE // WORTH)


def slices(x: Tensor, n: int) -> tuple[Tensor, ...]:
    """The rows of x, at most so many at a time that `ENTRIES` suffice for bounds and for shares; none of no rows."""
    return in_slices(x, max(-(-n // FINE), most_parts(n) * FINE), ENTRIES) if len(x) else ()


def near(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float) -> Near:
    bounds = inner.bounds_of(x, layout, bias, form, None, True, FINE)
    return Near(x, layout[0], bias, form, bounds, FINE, most_parts(layout[0].shape[0]), epsilon)


def finish(tiles: Tiling, found: Near, epsilon: float) -> Tensor:
    """Values of the listed rows, in the order of the list; they are written where they belong, too."""
    own, count = row_values(tiles, epsilon, found.listed), len(found.value)
    place = torch.arange(count, device=own.device)
    row = torch.where(place < found.listed[0], found.listed[1:], count).long()  # the others go past the end
    found.value = torch.cat([found.value, own[:1]]).index_copy(0, row, own)[:count]
    return own


@on_device
def softmin(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float) -> Tensor:
    y, bias, values = layout[0], bias.contiguous(), [x.new_empty(0)]
    for part in slices(x, len(y)):
        found = near(part, layout, bias, form, epsilon)
        finish(tiling_of_listed(part, y, bias, form, found.listed), found, epsilon)
        values.append(found.value)
    return torch.cat(values)


@on_device
def soft_marginal(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float, row_weight: Tensor
) -> tuple[Tensor, Tensor]:
    y, bias, values = layout[0], bias.contiguous(), [x.new_empty(0)]
    scale = UNIT / row_weight.abs().sum(dtype=torch.float64).clamp(min=1e-280)
    whole, rest = torch.zeros(len(y), dtype=torch.int64, device=x.device), torch.zeros_like(bias)
    for part, weight in zip(slices(x, len(y)), slices(row_weight, len(y)), strict=True):
        found = near(part, layout, bias, form, epsilon)
        found.add_to(whole, weight, scale)
        tiles = tiling_of_listed(part, y, bias, form, found.listed)
        own = finish(tiles, found, epsilon)
        tiles = replace(tiles, launch=launch_of_listed(COLUMN_LAUNCHES, form, part))
        rest += masses(tiles, own, weight.index_select(0, found.listed[1:]), epsilon, found.listed)
        values.append(found.value)
    return torch.cat(values), (whole / scale).to(rest.dtype) + rest
