"""The screen of `triton_screen` without its certificate: the best target of the tile that looks best in float16.

Its score is within 2ε of the best, ε the bound of docs/certificate-gpu.md; nothing says which rows are exact.
"""

import torch
from torch import Tensor

from .form import Form
from .triton_launch import Launch, on_device
from .triton_screen import prepare as prepare, refusal as refusal, screen, slices


@on_device
def argmin(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, launch: Launch | None = None
) -> tuple[Tensor, Tensor]:
    """Score and index; the score is the exact one of that target."""
    parts = [screen(part, layout, bias.contiguous(), form, launch, None) for part in slices(x, layout)]
    return torch.cat([part.value for part in parts]), torch.cat([part.index for part in parts])
