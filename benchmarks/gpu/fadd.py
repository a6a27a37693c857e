"""A kernel that does nothing but float additions: 16 sums a thread, none of which waits for another."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS, UNROLL = 2048, 4, 32


@triton.jit(do_not_specialize=["iterations"])
def additions(value_ptr, total_ptr, iterations, BLOCK: tl.constexpr, UNROLL: tl.constexpr):  # noqa: N803
    """total = iterations · UNROLL · value, by additions."""
    offs = tl.arange(0, BLOCK)
    value = tl.load(value_ptr + offs)
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(0, iterations):
        for _ in tl.static_range(UNROLL):
            total += value
    tl.store(total_ptr + tl.program_id(0) * BLOCK + offs, total)


def launch(value: Tensor, programs: int, iterations: int) -> Tensor:
    """Each of `programs` adds up value [BLOCK] `iterations` · UNROLL times: [programs, BLOCK]."""
    total = torch.empty(programs, BLOCK, device=value.device)
    additions[(programs,)](value, total, iterations, BLOCK=BLOCK, UNROLL=UNROLL, num_warps=WARPS)
    return total
