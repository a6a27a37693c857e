"""Soft choices of samples that are lists of candidate targets, in one pass over the lists.

With u_ij = shift_j − score_ij for the targets j ∈ L_i of row i, and p_i = softmax(u_i / τ),

    soft_lists     Σ_i τ log Σ_j exp(u_ij / τ),   Σ_i H(p_i) = −Σ_ij p_ij log p_ij   and   m_j = Σ_i p_ij
    best_of_lists  max_j u_ij for each row

Differences are taken in units of cost, where they are exact near the largest, so no temperature overflows. A target
whose shift is −inf has no share; a row of such targets has the value −inf, and neither mass nor entropy.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from . import torch_lists

FUSED = {"cpu": ("numba", "numba_lists")}  # the package that each needs
if torch.version.hip is None:  # for which no kernel here is compiled and checked
    FUSED["cuda"] = "triton", "triton_lists"


class Sums(NamedTuple):
    """Sums over the rows: of values in units of cost, of entropies, and masses, [N] float64."""

    value: float
    entropy: float
    mass: Tensor


@cache
def fused(device: str) -> ModuleType | None:
    package, module = FUSED.get(device, ("", ""))
    return import_module(f"fastsdot.kernels.{module}") if package and find_spec(package) else None


def implementation(values: Tensor) -> ModuleType:
    """The module that runs float32 or other values on their device."""
    chosen = fused(values.device.type) if values.dtype == torch.float32 else None
    return chosen or torch_lists


def shared(index: Tensor) -> Tensor | None:
    """The one list of rows that were expanded from it, [k], or None."""
    return index[0] if index.shape[0] > 1 and index.stride(0) == 0 else None


def soft_lists(score: Tensor, index: Tensor, shift: Tensor, temperature: float) -> Sums:
    """The sums for score [M, k], index [M, k] int32 and shift [N] at τ, in units of cost.

    An index of rows expanded from one is not read again for each.
    """
    run, whole = implementation(score).soft, shared(index)
    shift = shift.to(score.dtype)
    if whole is None:
        return Sums(*run(score, index, shift, temperature))
    value, entropy, mass = run(score, None, shift[whole], temperature)
    return Sums(value, entropy, mass.new_zeros(shift.numel()).index_add_(0, whole, mass))


def best_of_lists(score: Tensor, index: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """max_j u_ij of each row, [M], and the first of its targets that has it."""
    whole, shift = shared(index), shift.to(score.dtype)
    taken = torch_lists.taken(shift, index) if whole is None else shift[whole]
    value, place = (taken - score).max(1)
    return value, index.gather(1, place[:, None]).squeeze(1)
