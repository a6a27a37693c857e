"""softmin and soft_marginal from the targets near the best of a row: the others have no share that float32 shows.

With m = min_j s_ij, targets whose score exceeds m + ε T, T = log N + 26 log 2, have less than 2⁻²⁶ of the sum of all
exp(−s_ij / ε) together. Lower bounds say which parts hold others; with s the best score of one of those, in float64,

    v_i = s − ε log Σ_near exp((s − s_ij) / ε),        mass_j = Σ_i r_i exp((v_i − s_ij) / ε).

Masses are added as whole numbers, in units of 2⁻⁶⁰ Σ|r|: their sum does not depend on the order. A row with more parts
than plain passes are worth is left to those.
"""

import math
from functools import cached_property

import torch
import triton
import triton.language as tl
from torch import Tensor

from .form import Form
from .triton_launch import form_constants
from .triton_rescore import Bounds, count_open, lowest, next_open
from .triton_tiles import exact_scores

NEGLIGIBLE = 26 * math.log(2)
LANES = 512
UNIT = 2.0**60
TINY = tl.constexpr(1e-30)


@triton.jit(do_not_specialize=["B", "N", "parts", "groups", "group_size", "most", "reach", "c", "unit"])
def near_sums(
    x_ptr, y_ptr, bias_ptr, row_ptr, B, N, D, lower_ptr, stride, parts, group_ptr, groups, group_size, most,
    reach, c, unit, value_ptr, level_ptr, count_ptr, part_ptr, share_ptr,
    INNER: tl.constexpr, SCALE: tl.constexpr, WHOLE: tl.constexpr, FRACTION: tl.constexpr, ROOT: tl.constexpr,
    WIDTH: tl.constexpr, BK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """One row: v_i, and of each part that was opened, `count` of `most` at most, its number and its targets' exponents.

    part [B, most]; share [B, most, WIDTH], c (s − s_ij) with c = log2(e) / ε; level, log2 Σ_j 2^share. Rows that would
    open more than `most` parts, or have no bounds, count more than that.
    """
    row = tl.program_id(0)
    lower_ptr += tl.cast(row, tl.int64) * stride
    group_ptr += tl.cast(row, tl.int64) * groups
    part_ptr += tl.cast(row, tl.int64) * most
    share_ptr += tl.cast(row, tl.int64) * most * WIDTH
    lanes = tl.arange(0, LANES)
    offs_n = tl.arange(0, WIDTH)
    first = lowest(group_ptr, 0, groups, LANES) * group_size
    part = lowest(lower_ptr, first, tl.minimum(first + group_size, parts), LANES)
    opened = count_open(lower_ptr, parts, tl.load(lower_ptr + part).to(tl.float64) + reach, LANES)
    bounded = tl.load(row_ptr + B + row) < float("inf")
    count = tl.where(bounded & (opened <= most), 0, most + 1)
    score = exact_scores(
        x_ptr, y_ptr, bias_ptr, row, part * WIDTH, N, D, INNER, SCALE, WHOLE, FRACTION, ROOT, WIDTH, BK
    )
    best = tl.min(score, 0)
    origin = tl.where(best < float("inf"), best, 0.0)
    top = tl.full((), 0.0, tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, parts, LANES):
        at = start + lanes
        low = tl.load(lower_ptr + at, mask=at < parts, other=float("inf"))
        part = next_open(low, best + reach, at, -1, parts)
        while (part < parts) & (count <= most):
            score = exact_scores(
                x_ptr, y_ptr, bias_ptr, row, part * WIDTH, N, D, INNER, SCALE, WHOLE, FRACTION, ROOT, WIDTH, BK
            )
            best = tl.minimum(best, tl.min(score, 0))
            share = ((origin - score) * c).to(tl.float32)
            if count < most:
                tl.store(part_ptr + count, part)
                tl.store(share_ptr + count * WIDTH + offs_n, share)
            higher = tl.maximum(top, tl.max(share, 0))
            total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(share - higher), 0)
            top = higher
            count += 1
            part = next_open(low, best + reach, at, part, parts)
    level = top + tl.log2(tl.maximum(total, TINY))
    tl.store(level_ptr + row, level)
    tl.store(value_ptr + row, tl.where(total > 0, origin - unit * level, float("inf")).to(tl.float32))
    tl.store(count_ptr + row, count)


@triton.jit(do_not_specialize=["N", "most"])
def add_shares(
    part_ptr, share_ptr, level_ptr, count_ptr, weight_ptr, scale_ptr, N, most, mass_ptr,
    WIDTH: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Add a row's shares, r_i 2^(share − level) in whole units, to mass [N] int64."""
    row = tl.program_id(0)
    count = tl.load(count_ptr + row)
    count = tl.where(count <= most, count, 0)
    level = tl.load(level_ptr + row)
    weight = tl.load(weight_ptr + row).to(tl.float64) * tl.load(scale_ptr)
    part_ptr += tl.cast(row, tl.int64) * most
    share_ptr += tl.cast(row, tl.int64) * most * WIDTH
    offs_n = tl.arange(0, WIDTH)[None, :]
    for start in range(0, count, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        part = tl.load(part_ptr + slot, mask=slot < count, other=0)
        target = part[:, None] * WIDTH + offs_n
        inside = (slot < count)[:, None] & (target < N)
        share = tl.load(share_ptr + slot[:, None] * WIDTH + offs_n, mask=inside, other=-float("inf"))
        units = tl.floor(weight * tl.exp2(tl.minimum(share - level, 0.0)).to(tl.float64) + 0.5).to(tl.int64)
        tl.atomic_add(mass_ptr + target, units, mask=inside & (units != 0), sem="relaxed")


class Near:
    """The sums of a batch; value [B] is right where count is at most `most`."""

    def __init__(self, x: Tensor, y: Tensor, bias: Tensor, form: Form, bounds: Bounds, width: int, most: int, epsilon):
        (b, d), n, self.width, self.most = x.shape, y.shape[0], width, most
        self.count = torch.empty(b, dtype=torch.int32, device=x.device)
        self.value, self.level = x.new_empty(b), x.new_empty(b)
        self.part = torch.empty(b, most, dtype=torch.int32, device=x.device)
        self.share = x.new_empty(b, most, width)
        reach = epsilon * (math.log(n) + NEGLIGIBLE)
        near_sums[(b,)](
            x, y, bias, bounds.row, b, n, d, bounds.lower, bounds.lower.shape[1], triton.cdiv(n, width), bounds.group,
            bounds.group.shape[1], bounds.size, most, reach, math.log2(math.e) / epsilon,
            math.log(2) * epsilon, self.value, self.level,
            self.count, self.part, self.share,
            **form_constants(form), WIDTH=width, BK=128 if d > 64 else 32, LANES=LANES, num_warps=4,
        )  # fmt: skip

    @cached_property
    def listed(self) -> Tensor:
        """How many rows were left out, and which, in ascending order, [1 + B] int32; the others follow."""
        out = self.count > self.most
        return torch.cat([out.sum()[None], torch.sort((~out).byte(), stable=True).indices]).int()

    def add_to(self, mass: Tensor, weight: Tensor, scale: Tensor) -> None:
        """Add Σ_i r_i p_ij · scale to mass [N] int64."""
        add_shares[(len(self.value),)](
            self.part, self.share, self.level, self.count, weight, scale, len(mass), self.most, mass,
            WIDTH=self.width, SLOTS=16, num_warps=4,
        )  # fmt: skip
