"""The k smallest scores of a row: exact scores of the targets that lower bounds leave, kept while they are the least.

Bounds come for parts, `WIDTH` targets that lie side by side. Parts up to θ, a number that k bounds or a few more do not
exceed, are opened in order of their index. The largest of the k scores that are kept by then is the limit: no target
above it is among the k smallest, so that of the other parts only those with a bound up to it are opened, and it falls
further. What is kept is float32, ties by index: the same whatever θ, the order and the bounds were.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .form import Form
from .triton_launch import form_constants
from .triton_rescore import count_open, first_where
from .triton_tiles import exact_scores

NONE = tl.constexpr(2**63 - 1)  # the key of no target
INFINITE = tl.constexpr(0x7F800000 << 32)  # an infinite score, plus a target
EMPTY = tl.constexpr(0x7FFFFFFE << 32)  # and of a place that holds none yet, plus the place: above all numbers
LANES = 512  # parts that are looked at together
MOST = 256  # scores that are kept of a row, in registers
REGISTERS = 128  # of a thread; left to itself the assembler saves a few, and spills one
ALL = 2**29  # parts that may be opened, where nothing else decides a row
CHUNK = 64  # targets of a part that are scored together
SPREAD = 4  # minima for each score that is kept, of which the k-th smallest is near that of all bounds


@triton.jit
def order_of(value):
    """float32 as whole numbers of the same order."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def value_of(order):
    return tl.where(order < 0, order ^ 0x7FFFFFFF, order).to(tl.float32, bitcast=True)


@triton.jit
def reached_by(low_ptr, count, k, LANES: tl.constexpr):
    """A number that at least k of the values do not exceed, and few more: the k-th smallest of the lanes' minima."""
    lanes = tl.arange(0, LANES)
    least = tl.full((LANES,), float("inf"), tl.float32)
    for start in range(0, count, LANES):
        low = tl.load(low_ptr + start + lanes, mask=start + lanes < count, other=float("inf"))
        least = tl.minimum(least, low)
    order = order_of(least)
    below = tl.min(order, 0).to(tl.int64)
    above = tl.max(order, 0).to(tl.int64)
    while below < above:
        middle = (below + above) >> 1
        enough = tl.sum((order <= middle).to(tl.int32), 0) >= k
        above = tl.where(enough, middle, above)
        below = tl.where(enough, below, middle + 1)
    return value_of(above.to(tl.int32))


@triton.jit
def insert(kept, worst, key):
    """Put keys in the places of the largest ones that are kept, while they are smaller."""
    least = tl.min(key, 0)
    while least < worst:
        kept = tl.where(kept == worst, least, kept)
        worst = tl.max(kept, 0)
        key = tl.where(key == least, NONE, key)
        least = tl.min(key, 0)
    return kept, worst


@triton.jit(do_not_specialize=["B", "N", "parts", "smalls", "k", "most"])
def keep(
    x_ptr, y_ptr, bias_ptr, B, N, D, lower_ptr, stride, parts, small_ptr, small_stride, smalls, k, most,
    limit_ptr, value_ptr, index_ptr,
    INNER: tl.constexpr, SCALE: tl.constexpr, WHOLE: tl.constexpr, FRACTION: tl.constexpr, ROOT: tl.constexpr,
    WIDTH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, LANES: tl.constexpr, K: tl.constexpr,
    row_ptr=None, count_ptr=None, fallback_ptr=None, listed_ptr=None,
):  # fmt: skip
    """One row: its k smallest scores, ascending, and their targets, value and index [B, k].

    `lower` [B, parts] are the bounds, and `small` [B, smalls] minima of some of them each, or the bounds again. Where
    row[1] is infinite there are none. `count` is the number of parts that were opened, or most + 1, at once where far
    more are open than may be: such rows join the list `fallback`, whose length precedes it. With `listed`, bounds are
    those of the rows that it names. Scores above `limit` [B] need not be found: (inf, any target) may stand for them.
    """
    place = tl.program_id(0)
    row = place
    if listed_ptr is not None:
        if place >= tl.load(listed_ptr):
            return
        row = tl.load(listed_ptr + 1 + place)
    lower_ptr += tl.cast(place, tl.int64) * stride
    small_ptr += tl.cast(place, tl.int64) * small_stride
    lanes = tl.arange(0, LANES)
    offs_n = tl.arange(0, BN)
    slot = tl.arange(0, K).to(tl.int64)
    kept = tl.where(slot < k, EMPTY + slot, -NONE)
    worst = tl.max(kept, 0)
    count = 0
    if fallback_ptr is not None:
        count = tl.where(tl.load(row_ptr + B + row) < float("inf"), 0, most + 1)
    theta = reached_by(small_ptr, smalls, k, LANES)
    highest = tl.load(limit_ptr + row)
    chunks = tl.cdiv(parts, LANES)
    for step in range(2 * chunks):
        beyond = step >= chunks
        if fallback_ptr is not None:  # known when this is compiled
            first_beyond = step == chunks
            if first_beyond:
                limit = limit_of(worst, highest)
                count = tl.where(count_open(lower_ptr, parts, limit, LANES) <= 2 * most, count, most + 1)
        at = tl.where(beyond, step - chunks, step) * LANES + lanes
        low = tl.load(lower_ptr + at, mask=at < parts, other=float("nan"))
        part = next_part(low, at, -1, parts, theta, limit_of(worst, highest), worst < EMPTY, beyond)
        while (part < parts) & (count <= most):
            for first in tl.static_range(0, WIDTH, BN):
                target = part * WIDTH + first
                score = exact_scores(
                    x_ptr, y_ptr, bias_ptr, row, target, N, D, INNER, SCALE, WHOLE, FRACTION, ROOT, BN, BK
                )
                order = order_of(score.to(tl.float32) + 0.0).to(tl.int64)
                key = tl.where(target + offs_n < N, (order << 32) | (target + offs_n), NONE)
                kept, worst = insert(kept, worst, key)
            count += 1
            part = next_part(low, at, part, parts, theta, limit_of(worst, highest), worst < EMPTY, beyond)
    kept = tl.where(kept < EMPTY, kept, INFINITE + slot)
    kept = tl.sort(tl.where(slot < k, kept, NONE))
    out = tl.cast(row, tl.int64) * k + slot
    tl.store(value_ptr + out, value_of((kept >> 32).to(tl.int32)), mask=slot < k)
    tl.store(index_ptr + out, kept & 0xFFFFFFFF, mask=slot < k)
    if fallback_ptr is not None:
        tl.store(count_ptr + row, count)
        if count > most:
            tl.store(fallback_ptr + 1 + tl.atomic_add(fallback_ptr, 1), row)


@triton.jit
def limit_of(worst, highest):
    """The largest score that is kept once there are k, or the highest that is asked for."""
    return tl.minimum(tl.where(worst < EMPTY, value_of((worst >> 32).to(tl.int32)), float("inf")), highest)


@triton.jit
def next_part(low, places, after, none, theta, limit, full, beyond):
    """The first part after `after` that may hold one of the k smallest: one up to θ, or one beyond."""
    may = (low <= limit) & ((low > theta) == beyond)
    return first_where(may & ((low < float("inf")) | (not full)) & (places > after), places, none)


class Kept(NamedTuple):
    """The k smallest scores of each row, ascending, and their targets."""

    value: Tensor  # [B, k]
    index: Tensor  # [B, k] int64


def room(x: Tensor, k: int) -> Kept:
    return Kept(x.new_empty(x.shape[0], k), torch.empty(x.shape[0], k, dtype=torch.int64, device=x.device))


def keep_smallest(
    x: Tensor, y: Tensor, bias: Tensor, form: Form, lower: Tensor, width: int, found: Kept, limit: Tensor,
    small: Tensor | None = None, most: int = ALL, row: Tensor | None = None, count: Tensor | None = None,
    fallback: Tensor | None = None, listed: Tensor | None = None,
) -> None:  # fmt: skip
    """Fill `found` for the rows of x [B, D], given bounds of `width` targets at a time, [B, N / width or more]."""
    (b, k), (n, d) = found.value.shape, y.shape
    parts = triton.cdiv(n, width)
    tile = small if small is not None and small.shape[1] >= SPREAD * k else lower[:, :parts]
    keep[(b,)](
        x, y, bias, b, n, d, lower, lower.shape[1], parts, tile, tile.stride(0), tile.shape[1], k, most, limit, *found,
        **form_constants(form), WIDTH=width, BN=min(width, CHUNK), BK=128 if d > 64 else 32, LANES=LANES,
        K=max(2, triton.next_power_of_2(k)), row_ptr=row, count_ptr=count, fallback_ptr=fallback, listed_ptr=listed,
        num_warps=4, maxnreg=REGISTERS,
    )  # fmt: skip
