"""Forms: how the kernels sum one pair (x, y)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor


@dataclass(frozen=True)
class Form:
    """The part of a cost that depends on x and y together.

    | kind       | form(x, y)                                                  |
    |------------|-------------------------------------------------------------|
    | "inner"    | −scale · ⟨x, y⟩                                             |
    | "power"    | Σ_d \\|x_d − y_d\\|^p, or its p-th root when `root`             |
    | "callable" | `function(x, y)`, which broadcasts and reduces the last axis |
    """

    kind: Literal["inner", "power", "callable"]
    scale: float = 1.0
    p: float = 1.0
    root: bool = False
    function: Callable[[Tensor, Tensor], Tensor] | None = None

    key: str = field(init=False, compare=False)  # operators take no Python objects and find the form by this name

    def __post_init__(self) -> None:
        if self.kind == "callable":
            _CALLABLES[str(id(self.function))] = self.function
        rest = {"inner": repr(self.scale), "power": f"{self.p!r} {self.root:d}", "callable": str(id(self.function))}
        object.__setattr__(self, "key", f"{self.kind} {rest[self.kind]}")

    def __setstate__(self, state: dict) -> None:
        """A copy holds another function, and has to be found under another name."""
        self.__dict__.update(state)
        self.__post_init__()

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """form(x, y), [..., D] and [..., D] broadcast to [...]."""
        if self.kind == "inner":
            return -self.scale * (x * y).sum(-1)
        if self.kind == "callable":
            return self.function(x, y)
        if self.root:
            return torch.linalg.vector_norm(x - y, ord=self.p, dim=-1)
        distance = (x - y).abs()
        return (distance if self.p == 1 else distance**self.p).sum(-1)

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """form(x_i, y_j), [B, D] and [N, D] to [B, N], in the dtype of the inputs."""
        if self.kind == "inner":
            return -self.scale * (x @ y.T)
        if self.kind == "power" and (self.p == 1 or self.root):
            return torch.cdist(x, y, p=self.p, compute_mode="donot_use_mm_for_euclid_dist")
        return self(x[:, None], y[None])

    def gradient(self, x: Tensor, y: Tensor, weight: Tensor, paired: bool = False) -> Tensor:
        """Σ_j w_ij ∂form(x_i, y_j)/∂x_i, [B, D], for weight [B, N]; when `paired`, y is [B, D] and weight [B, 1]."""
        if self.kind == "inner":
            return -self.scale * (weight * y if paired else weight @ y)
        y = y[:, None] if paired else y[None]
        if self.kind == "callable":
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                return torch.autograd.grad(self.function(x[:, None], y), x, weight)[0]
        difference = x[:, None] - y
        tiny = torch.finfo(x.dtype).tiny
        slope = difference.sign() * (self.p * difference.abs().clamp(min=tiny) ** (self.p - 1) if self.p != 1 else 1)
        if self.root:
            norm = torch.linalg.vector_norm(difference, ord=self.p, dim=-1)
            slope = slope / (self.p * norm ** (self.p - 1)).clamp(min=tiny)[..., None]
        return (weight[..., None] * slope).sum(1)


_CALLABLES: WeakValueDictionary[str, Callable] = WeakValueDictionary()  # each is held by its form


def find(key: str) -> Form:
    """The form of that key."""
    kind, *rest = key.split()
    if kind == "inner":
        return Form("inner", scale=float(rest[0]))
    if kind == "power":
        return Form("power", p=float(rest[0]), root=rest[1] == "1")
    return Form("callable", function=_CALLABLES[rest[0]])
