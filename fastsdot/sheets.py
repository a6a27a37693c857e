"""Samples in [−1, 1] as 8-bit images, and many of them tiled into one.

A sample's shape says what it is: (H, W), (H, W, 1 or 3) or (1 or 3, H, W) is an image, anything else is not.
"""

from pathlib import Path

import torch
from torch import Tensor

from fastsdot.errors import InvalidArgument

PAPER = 255  # between the tiles


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether samples of that shape can be shown as grey or RGB images."""
    return (len(shape) == 2 and min(shape) > 1) or (len(shape) == 3 and (shape[-1] in (1, 3) or shape[0] in (1, 3)))


def to_bytes(samples: Tensor) -> Tensor:
    """Samples [n, *shape] of values in [−1, 1] as uint8 [n, H, W, C] with C = 1 or 3; values outside are clamped."""
    images = samples.detach().float().cpu()
    if images.dim() == 3:
        images = images[..., None]
    elif images.shape[-1] not in (1, 3):
        images = images.movedim(1, -1)
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def tile(images: Tensor, columns: int, gap: int = 1) -> Tensor:
    """Images [n, H, W, C] in rows of `columns`, `gap` pixels apart and from the edges, as one [H', W', C]."""
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    sheet = images.new_full((rows * columns, height + gap, width + gap, channels), PAPER)
    sheet[:n, :height, :width] = images
    sheet = sheet.view(rows, columns, height + gap, width + gap, channels).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    border = images.new_full((sheet.shape[0] + gap, sheet.shape[1] + gap, channels), PAPER)
    border[gap:, gap:] = sheet
    return border


def beside(left: Tensor, right: Tensor, gap: int = 1) -> Tensor:
    """Each left image [n, H, W, C] with its right one, as [n, H, 2W + gap, C]."""
    between = left.new_full((*left.shape[:2], gap, left.shape[3]), PAPER)
    return torch.cat([left, between, right], dim=2)


def enlarge(images: Tensor, width: int) -> Tensor:
    """Images [n, H, W, C] with every pixel repeated as often as a width of `width` allows, at least once."""
    factor = max(1, width // images.shape[2])
    return images.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def save(path: Path, sheet: Tensor) -> None:
    """Write an image [H, W, C] of uint8 in the format of the path's suffix.

    Raises `InvalidArgument` without pillow, or when the file cannot be written.
    """
    try:
        from PIL import Image
    except ImportError:
        raise InvalidArgument(
            "out", "pillow to write pictures", "no such package", "pip install 'fastsdot[train]'"
        ) from None
    try:
        Image.fromarray(sheet.squeeze(-1).numpy()).save(path)
    except (OSError, ValueError) as error:
        raise InvalidArgument(
            "out", "a picture that can be written", f"{str(path)!r} ({error})", "name another"
        ) from error
