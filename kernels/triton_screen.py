"""A certified screen: lower bounds of all scores from fewer bits, then exact scores of the few targets that they leave.

1. A module for the form computes bounds s⁻_ij ≤ s_ij and keeps the smallest of a few targets that lie side by
   side, [B, N / fine], and of each group of those.
2. Among the targets that these bounds leave `rescore` finds the float64 argmin, `keep` the k smallest scores and
   `near_sums` all that have a share in a soft minimum.
3. A row with more candidates than a pass over all targets is worth, or without bounds, goes on a list, which the plain
   kernels read: where it is empty, their programs return at once. The host waits for nothing.

docs/certificate-gpu.md has the proof.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import triton_backend, triton_screen_inner, triton_screen_l1, triton_topk
from .form import Form
from .triton_argmin import argmin_of_listed
from .triton_keep import keep_smallest, room
from .triton_launch import Launch, form_constants, in_slices, on_device
from .triton_rescore import Lowered, rescore
from .triton_soft_screen import soft_marginal as soft_marginal, softmin as softmin

MODULES = {"inner": triton_screen_inner, "power": triton_screen_l1}  # what bounds the scores of a form, by kind
BOUNDS = 2**27  # kept at once; more rows are taken in slices
FINE = 32  # targets of a part; for the k smallest `triton_topk.FINE`
# A row's share of a plain pass takes 6·N·D / 990e12 s for inner products and 2.4·N·D / 33.5e12 s for l1, exact scores
# of 32 targets 4·32·D / 3.35e12 s (an H100's peaks): as much as those of N / 32 / 200 and N / 32 / 16 such parts.
WORTH, FEWEST = {"inner": 200, "power": 16}, 16
PER_TARGET = 4  # parts for each of the k smallest, besides


def refusal(form: Form, reduction: str, device: torch.device, n: int, d: int) -> str | None:
    module = MODULES.get(form.kind)
    if module is None:
        return f"it bounds inner products and l1, and the form is a {form.kind}"
    if reduction == "sample":
        return "it looks at targets near the best alone, and a draw may be any other"
    if form.kind != "inner" and reduction in ("softmin", "soft_marginal"):
        return f"its sums are of inner products alone, and the form is a {form.kind}"
    return module.refusal(form, d) or triton_backend.refusal(form, reduction, device, n, d)


@on_device
def prepare(y: Tensor, form: Form) -> list[Tensor]:
    """y [N, D], and what the form's module makes of it."""
    return MODULES[form.kind].prepare(y, form)


def slices(x: Tensor, n: int, fine: int) -> tuple[Tensor, ...]:
    """The rows of x, at most so many at a time that `BOUNDS` suffice."""
    return in_slices(x, -(-n // fine), BOUNDS)


class Candidates(NamedTuple):
    """What `rescore` finds."""

    value: Tensor  # [B]
    index: Tensor  # [B] int64
    tiles: Tensor  # [B] int32: how many parts were scored exactly, or one more than may be
    listed: Tensor  # [1 + B] int32: how many rows that is, and which, in any order


def most_tiles(form: Form, n: int, fine: int) -> int:
    """Parts of a row that are scored exactly; with more, a plain pass over all targets costs less."""
    return max(FEWEST, n // fine // WORTH[form.kind])


def counters(x: Tensor) -> tuple[Tensor, Tensor]:
    """Room for how many parts each row opened, and for an empty list of rows."""
    zeros = torch.zeros(1 + 2 * x.shape[0], dtype=torch.int32, device=x.device)
    return zeros[1 + x.shape[0] :], zeros[: 1 + x.shape[0]]


def screen(
    x: Tensor, layout: list[Tensor], bias: Tensor, lowered: Lowered, form: Form, launch: Launch | None, most: int | None
) -> Candidates:
    """Both passes, with at most so many parts a row; when None, only that of the smallest score in low precision."""
    y, (b, d) = layout[0], x.shape
    index = torch.empty(b, dtype=torch.int64, device=x.device)
    found = Candidates(x.new_empty(b), index, *counters(x))
    if b:
        bounds = MODULES[form.kind].bounds_of(x, layout, lowered, form, launch, most is not None, FINE)
        rescore[(b,)](
            x, y, bias, bounds.row, b, y.shape[0], d, bounds.lower, bounds.group, -(-y.shape[0] // FINE),
            bounds.group.shape[1], bounds.size, bounds.lower.shape[1], most or 0, *found,
            **form_constants(form), WIDTH=FINE, BK=32, LANES=128, CERTIFY=most is not None, num_warps=2,
        )  # fmt: skip
    return found


@on_device
def certify(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, launch: Launch | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The argmin, how many parts of `FINE` targets a row's bounds left, [B] int32, and whether too many, [B] bool.

    The plain kernels decide those rows: their score is the best within float32 rounding, as without the screen.
    """
    y, bias = layout[0], bias.contiguous()
    most, parts = most_tiles(form, y.shape[0], FINE), []
    lowered = MODULES[form.kind].lower(x, layout, bias, form)
    for part in slices(x, y.shape[0], FINE):
        found = screen(part, layout, bias, lowered, form, launch, most)
        argmin_of_listed(part, layout, bias, form, found.listed, found.value, found.index)
        parts.append((found.value, found.index, found.tiles, found.tiles > most))
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def argmin(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, launch: Launch | None = None
) -> tuple[Tensor, Tensor]:
    return certify(x, layout, bias, form, launch)[:2]


@on_device
def certify_topk(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, k: int, launch: Launch | None = None,
    limit: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The k smallest float64 scores as float32, ascending, ties by index, the targets, and how many parts each row
    opened, or one more than may be: the plain kernels decide such rows. See `triton_topk.topk` for the limit."""
    y, bias, fine = layout[0], bias.contiguous(), triton_topk.FINE
    n, parts = y.shape[0], []
    most = PER_TARGET * k + most_tiles(form, n, fine)
    limits, lowered = slices(triton_topk.highest(x, limit), n, fine), MODULES[form.kind].lower(x, layout, bias, form)
    for part, highest in zip(slices(x, n, fine), limits, strict=True):
        found, (count, listed) = room(part, k), counters(part)
        if len(part):
            row, lower, group, _ = MODULES[form.kind].bounds_of(part, layout, lowered, form, launch, True, fine)
            keep_smallest(part, y, bias, form, lower, fine, found, highest, group, most, row, count, listed)
            triton_topk.keep_of_listed(part, layout, bias, form, listed, lower, found, highest)
        parts.append((*found, count))
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def topk(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, k: int, launch: Launch | None = None,
    limit: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if not triton_topk.keeps(layout[0].shape[0], k):
        return triton_topk.longest(x, triton_backend.prepare(layout[0], form), bias, form, k)
    return certify_topk(x, layout, bias, form, k, launch, limit)[:2]
