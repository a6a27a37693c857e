"""The screen of `triton_screen` without its certificate: the best target of the part that looks best in low precision.

Its score is within 2ε of the best, ε the bound of docs/certificate-gpu.md; nothing says which rows are exact. The
other reductions are the screen's own, certified.
"""

import torch
from torch import Tensor

from .form import Form
from .triton_launch import Launch, on_device
from .triton_screen import (
    FINE,
    MODULES,
    prepare as prepare,
    refusal as refusal,
    screen,
    slices,
    soft_marginal as soft_marginal,
    softmin as softmin,
    topk as topk,
)


@on_device
def argmin(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, launch: Launch | None = None
) -> tuple[Tensor, Tensor]:
    """Score and index; the score is the exact one of that target."""
    bias, rows = bias.contiguous(), slices(x, layout[0].shape[0], FINE)
    lowered = MODULES[form.kind].lower(x, layout, bias, form, margin=False)
    parts = [screen(part, layout, bias, lowered, form, launch, None) for part in rows]
    return torch.cat([part.value for part in parts]), torch.cat([part.index for part in parts])
