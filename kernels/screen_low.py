"""The screen without its certificate: the target whose estimate in bytes is the smallest, and its exact score.

It saves the exact scores of the other targets, and errs where scores are closer than the rounding of the codes. Where
that is no way to tell most targets apart, `suits` says so. `topk` is the screen's own, certified.
"""

import torch
from torch import Tensor

from . import gemm
from .form import Form
from .screen import Problem, fitted, in_parts, prepare, refusal, told_apart as suits, topk
from .screen_bounds import FLOATS

__all__ = ["argmin", "prepare", "refusal", "suits", "topk"]


def argmin(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    if x.dtype not in FLOATS:  # numpy has no bfloat16
        return gemm.argmin(x, layout, bias, form)
    if x.shape[0] == 0:
        return x.new_empty(0), torch.empty(0, dtype=torch.int64)
    layout = fitted(x, layout, bias, form, 1)
    value, index = in_parts(x, layout, lambda part: Problem(part, layout, bias, form, safety=0.0).guess())
    return value.squeeze(1), index.squeeze(1)
