"""A kernel that does nothing but read memory which the second-level cache holds, over and over."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS, UNROLL = 4096, 8, 4


@triton.jit(do_not_specialize=["blocks", "rounds"])
def reads(value_ptr, total_ptr, blocks, rounds, BLOCK: tl.constexpr, UNROLL: tl.constexpr):
    """total = the sum of `rounds` · UNROLL blocks of values, from a block of the program's own, around and around."""
    offs = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    block = tl.program_id(0) % blocks
    for _ in range(0, rounds):
        for _ in tl.static_range(UNROLL):
            total += tl.load(value_ptr + block * BLOCK + offs)
            block = tl.where(block + 1 == blocks, 0, block + 1)
    tl.store(total_ptr + tl.program_id(0) * BLOCK + offs, total)


def launch(value: Tensor, programs: int, rounds: int) -> Tensor:
    """Each of `programs` reads `rounds` · UNROLL blocks of value [blocks, BLOCK]: [programs, BLOCK]."""
    total = torch.empty(programs, BLOCK, device=value.device)
    reads[(programs,)](value, total, len(value), rounds, BLOCK=BLOCK, UNROLL=UNROLL, num_warps=WARPS)
    return total
