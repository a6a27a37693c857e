"""The definition: every score at once, reduced by torch. Dense, any dtype; float64 is the truth in tests."""

import torch
from torch import Tensor

from . import philox
from .form import Form


def refusal(form: Form, reduction: str, device: torch.device, n: int, d: int) -> str | None:
    return None


def prepare(y: Tensor, form: Form) -> list[Tensor]:
    return [y]


def scores(x: Tensor, y: Tensor, bias: Tensor, form: Form) -> Tensor:
    """s_ij, [B, N]; pairs are formed in slices so that at most 2²⁶ coordinates exist at once."""
    width = max(1, 2**26 // max(1, x.shape[0] * x.shape[1]))
    slices = [form.pairwise(x, y[start : start + width]) for start in range(0, y.shape[0], width)]
    return torch.cat(slices, dim=1) + bias


def argmin(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    s = scores(x, layout[0], bias, form)
    value = s.amin(1)
    return value, (s == value[:, None]).to(torch.uint8).argmax(1)  # argmax of a mask is its first column


def softmin(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float) -> Tensor:
    return -epsilon * torch.logsumexp(-scores(x, layout[0], bias, form) / epsilon, dim=1)


def soft_marginal(
    x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float, row_weight: Tensor
) -> tuple[Tensor, Tensor]:
    s = scores(x, layout[0], bias, form) / -epsilon
    return -epsilon * torch.logsumexp(s, dim=1), row_weight @ torch.softmax(s, dim=1)


def topk(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, k: int) -> tuple[Tensor, Tensor]:
    value, index = torch.sort(scores(x, layout[0], bias, form), dim=1, stable=True)
    return value[:, :k].contiguous(), index[:, :k].contiguous()


def sample(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, epsilon: float, seed: Tensor) -> Tensor:
    s = scores(x, layout[0], bias, form).double()
    return (s - epsilon * philox.gumbel(seed, x.shape[0], 0, s.shape[1])).argmin(1)
