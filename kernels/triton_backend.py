"""The Triton backend: which requests it takes, how it lays out targets, and its reductions."""

import torch
import triton
from torch import Tensor

from .form import Form
from .triton_argmin import argmin as argmin
from .triton_halves import units
from .triton_launch import COLUMNS, LOWEST_CAPABILITY, aligned, capability, depth, k_major, on_device
from .triton_sample import sample as sample
from .triton_scores import block_score as block_score
from .triton_soft import soft_marginal as soft_marginal, softmin as softmin
from .triton_topk import topk as topk


def refusal(form: Form, reduction: str, device: torch.device, n: int, d: int) -> str | None:
    if form.kind == "callable":
        return "a callable is not compiled into its kernels; backend 'keops' or 'gemm' runs it"
    if device.type == "cpu" and triton.knobs.runtime.interpret:
        return None
    if device.type != "cuda":
        return f"it needs a CUDA device, not {device.type}"
    if torch.version.hip is not None:
        return "its kernels are compiled and checked for NVIDIA devices only"
    if capability(device) < LOWEST_CAPABILITY:
        return f"it needs compute capability {LOWEST_CAPABILITY / 10}"
    return None


@on_device
def prepare(y: Tensor, form: Form) -> list[Tensor]:
    """y [N, D], then what tiles read: K-major targets, or for the inner form units and, unless D is aligned, a copy."""
    if form.kind == "power":
        return [y, k_major(y, COLUMNS, depth(y.shape[1]))]
    tile_y = aligned(y)
    return [y, units(y), *([] if tile_y is y else [tile_y])]
