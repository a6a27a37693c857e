"""Errors: each names the argument, what was expected, what came, and the remedy."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor


class InvalidArgument(ValueError):
    """A value the caller gave cannot be used."""

    def __init__(self, argument: str, expected: str, received: str, remedy: str):
        super().__init__(f"{argument}: expected {expected}, received {received}; {remedy}")
        self.argument = argument


class BackendUnavailable(InvalidArgument):
    """The backend that was asked for cannot run this reduction here."""


class SourceError(InvalidArgument):
    """A source returned something other than a batch of finite samples."""


class DataError(InvalidArgument):
    """A data file or folder cannot be read as targets."""


class RunError(InvalidArgument):
    """A run folder cannot be used for what was asked."""


class RankError(RuntimeError):
    """Another rank failed, or did not answer within the timeout of its process group."""

    def __init__(self, rank: int, size: int, reason: str):
        super().__init__(f"rank {rank} of {size}: {reason}; see the other ranks, and continue from the last ot.save")


def require_finite(argument: str, values: Tensor, error: type[InvalidArgument] = InvalidArgument) -> None:
    """Raise if any entry is NaN or infinite; skipped while ``torch.compile`` traces."""
    if torch.compiler.is_compiling() or not values.is_floating_point():
        return
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        bad = values.numel() - int(finite.sum())
        raise error(argument, "finite values", f"{bad} NaN or infinite of {values.numel()}", "remove or replace them")


def require_number(
    argument: str, value: object, above: float = -math.inf, whole: bool = False, least: float = -math.inf
) -> None:
    """Raise unless `value` is a finite number above `above` or of at least `least`, and an integer if `whole`."""
    kind = Integral if whole else Real
    if not isinstance(value, kind) or isinstance(value, bool) or not (above < value < math.inf and value >= least):
        bound = f"above {above:g}" if least == -math.inf else f"of at least {least:g}"
        expected = f"{'an integer' if whole else 'a finite number'} {bound}"
        raise InvalidArgument(argument, expected, repr(value), "give such a number")
