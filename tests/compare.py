"""Comparison with the float64 definition by regret: how much worse the chosen target's score is than the best."""

import torch
from torch import Tensor

from fastsdot.kernels import naive
from fastsdot.kernels.form import Form

ROUNDING = 2.0**-23


def reference(x: Tensor, y: Tensor, bias: Tensor, form: Form) -> Tensor:
    """s_ij in float64, [B, N]."""
    return naive.scores(x.double(), y.double(), bias.double(), form)


def tolerance(x: Tensor, y: Tensor, bias: Tensor, form: Form, slack: float = 4.0) -> Tensor:
    """Float32 rounding of a row's scores, [B]: half an ulp per addition grows as the root of D for random signs.

    The magnitude is that of the terms summed, ⟨|x|, |y|⟩ for the inner form and the cost itself otherwise.
    """
    d = max(1, x.shape[1])
    if form.kind == "inner":
        size = form.scale * x.double().norm(dim=1) * y.double().norm(dim=1).max()
    else:
        size = reference(x, y, torch.zeros_like(bias), form).amin(1)
    finite = bias[torch.isfinite(bias)].double().abs()
    return slack * ROUNDING * d**0.5 * (size + (finite.max() if finite.numel() else 0.0)) + 1e-300


def regret(score: Tensor, index: Tensor) -> Tensor:
    """score[i, index_i] − min_j score_ij, [B], zero for the best choice and inf for a target that cannot be chosen."""
    chosen = score.gather(1, index.to(score.device)[:, None]).squeeze(1)
    return torch.where(torch.isinf(chosen), torch.inf, chosen - score.amin(1))


def assert_argmin(x: Tensor, y: Tensor, bias: Tensor, form: Form, value: Tensor, index: Tensor) -> None:
    """Every chosen target is within float32 rounding of the best, and every value is that score."""
    score, allowed = reference(x, y, bias, form), tolerance(x, y, bias, form)
    assert index.dtype == torch.int64
    assert index.shape == value.shape == (x.shape[0],)
    excess = regret(score, index) - allowed
    assert (excess <= 0).all(), f"{int((excess > 0).sum())} rows have regret above rounding by up to {excess.max():.3e}"
    error = (value.double().to(score.device) - score.amin(1)).abs() - allowed
    assert (error <= 0).all(), f"{int((error > 0).sum())} values are off by up to {error.max():.3e} above rounding"


class Truth:
    """A problem in float64, and how much of the error that float32 explains each result of a reduction has, [B].

    At most 1 is rounding; of an index the error is its regret. Soft masses count in the rows' share of them, [N].
    """

    def __init__(self, x: Tensor, y: Tensor, bias: Tensor, form: Form, slack: float = 4.0):
        self.score, self.allowed = reference(x, y, bias, form), tolerance(x, y, bias, form, slack)
        self.growth = max(1.0, form.p) if form.kind == "power" else 1.0  # of the rounding of a difference

    def argmin(self, value: Tensor, index: Tensor) -> Tensor:
        error = (value.double() - self.score.amin(1)).abs()
        return torch.maximum(error, regret(self.score, index)) / self.allowed

    def softmin(self, value: Tensor, epsilon: float) -> Tensor:
        expected = -epsilon * torch.logsumexp(-self.score / epsilon, 1)
        return (value.double() - expected).abs() / (self.allowed + epsilon * 1e-6)

    def mass(self, mass: Tensor, epsilon: float, row_weight: Tensor) -> Tensor:
        share, weight = torch.softmax(-self.score / epsilon, 1), row_weight.double()
        allowed = (weight.abs() * (2 * self.allowed / epsilon + 3e-6)) @ share + 1e-9 * weight.abs().sum()
        return (mass.double() - weight @ share).abs() / allowed

    def topk(self, value: Tensor, index: Tensor) -> Tensor:
        best = torch.topk(self.score, value.shape[1], dim=1, largest=False).values
        chosen = self.score.gather(1, index)
        error = torch.maximum((value.double() - best).abs(), (chosen - best).abs())
        twice = (index.sort(1).values.diff(dim=1) == 0).any(1)
        ratio = (error / (self.allowed[:, None] + self.growth * ROUNDING * best.abs())).amax(1)
        return torch.where(twice, torch.inf, ratio)
