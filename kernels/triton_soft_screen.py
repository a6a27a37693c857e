"""The soft reductions of the screen: sums over the targets near the best, and plain passes for rows with too many."""

import torch
from torch import Tensor

from . import triton_screen_inner as inner
from .form import Form
from .triton_launch import COLUMN_LAUNCHES, in_slices, launch_of_listed, on_device, tiling_of_listed
from .triton_near import UNIT, Near
from .triton_rescore import Lowered
from .triton_soft import KEPT, keeps, marginal, row_values

FINE = 8  # targets of a part
ENTRIES = 2**26  # shares kept at once, and bounds; more rows are taken in slices
# A row's share of plain passes takes 6·N·D / 990e12 + 8·N / 3.35e12 s where scores are kept, and exact scores of 8
# targets 4·8·D / 3.35e12 s (an H100's peaks): as much as those of N / 8 / 130 parts for D = 784.
WORTH, FEWEST = 130, 32


def most_parts(n: int) -> int:
    """Parts of a row that are opened; with more, plain passes cost less."""
    return max(FEWEST, n // FINE // WORTH)


def slices(x: Tensor, n: int, kept: bool = False) -> tuple[Tensor, ...]:
    """The rows of x, at most so many at a time that `ENTRIES` suffice for bounds and for shares; none of no rows.

    Where scores are kept they are at most as many as those may be, too.
    """
    scores = -(-n * ENTRIES // KEPT) if kept else 0
    return in_slices(x, max(-(-n // FINE), most_parts(n) * FINE, scores), ENTRIES) if len(x) else ()


def near(x: Tensor, layout: list[Tensor], bias: Tensor, lowered: Lowered, form: Form, epsilon: float) -> Near:
    bounds = inner.bounds_of(x, layout, lowered, form, None, True, FINE)
    return Near(x, layout[0], bias, form, bounds, FINE, most_parts(layout[0].shape[0]), epsilon)


def write(found: Near, own: Tensor) -> None:
    """Values of the listed rows, in the order of the list, to where they belong."""
    count = len(found.value)
    place = torch.arange(count, device=own.device)
    row = torch.where(place < found.listed[0], found.listed[1:], count).long()  # the others go past the end
    found.value = torch.cat([found.value, own[:1]]).index_copy(0, row, own)[:count]


@on_device
def softmin(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float) -> Tensor:
    y, bias, values = layout[0], bias.contiguous(), [x.new_empty(0)]
    lowered = inner.lower(x, layout, bias, form)
    for part in slices(x, len(y)):
        found = near(part, layout, bias, lowered, form, epsilon)
        write(found, row_values(tiling_of_listed(part, layout, bias, form, found.listed), epsilon, found.listed))
        values.append(found.value)
    return torch.cat(values)


@on_device
def soft_marginal(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float, row_weight: Tensor
) -> tuple[Tensor, Tensor]:
    y, bias, values = layout[0], bias.contiguous(), [x.new_empty(0)]
    lowered = inner.lower(x, layout, bias, form)
    scale = UNIT / row_weight.abs().sum(dtype=torch.float64).clamp(min=1e-280)
    whole, rest = torch.zeros(len(y), dtype=torch.int64, device=x.device), torch.zeros_like(bias)
    kept = keeps(form, len(x), *y.shape)
    for part, weight in zip(slices(x, len(y), kept), slices(row_weight, len(y), kept), strict=True):
        found = near(part, layout, bias, lowered, form, epsilon)
        found.add_to(whole, weight, scale)
        tiles = tiling_of_listed(part, layout, bias, form, found.listed)
        second = launch_of_listed(COLUMN_LAUNCHES, form, part)
        own, mass = marginal(tiles, weight.index_select(0, found.listed[1:]), epsilon, second, found.listed)
        write(found, own)
        values.append(found.value)
        rest += mass
    return torch.cat(values), (whole / scale).to(rest.dtype) + rest
