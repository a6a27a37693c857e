"""Which backend runs a reduction, and the reason why another cannot."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from operator import ge
from types import ModuleType

import torch

from fastsdot.errors import BackendUnavailable, InvalidArgument

from .form import Form

REDUCTIONS = ("argmin", "softmin", "soft_marginal", "topk", "sample")


# What is promised of the score of the chosen target, least first; a request is served by those that promise as much.
#   low       near the best: chosen among rounded targets, with no bound
#   exact     the best within float32 rounding, by low precision and a proof or by float32 throughout
#   float32   the same, and no step in lower precision
PRECISIONS = ("low", "exact", "float32")


@dataclass(frozen=True)
class Backend:
    """A module that offers `refusal`, `prepare` and the reductions, the package that it needs, what it promises, and
    whether its topk takes a limit of each row, above which nothing need be found."""

    module: str
    requires: str | None = None
    precision: str = "float32"
    limited: bool = False

    def load(self) -> ModuleType:
        return import_module(f"fastsdot.kernels.{self.module}")


BACKENDS = {
    "naive": Backend("naive"),
    "gemm": Backend("gemm"),
    "screen": Backend("screen", requires="numba", precision="exact"),
    "screen_low": Backend("screen_low", requires="numba", precision="low"),
    "numba": Backend("numba_lp", requires="numba"),
    "keops": Backend("keops", requires="pykeops"),
    "triton": Backend("triton_backend", requires="triton", limited=True),
    "triton_screen": Backend("triton_screen", requires="triton", precision="exact", limited=True),
    "triton_low": Backend("triton_low", requires="triton", precision="low", limited=True),
}

# Fastest first. Measured with `make bench` (docs/performance.md says on what); on a GPU predicted from compiled code
# (docs/gpu-kernels.md). A backend that refuses, or that promises less than was asked for, is passed over.
PREFERENCE = {
    ("cpu", "inner"): ("screen_low", "screen", "gemm"),
    ("cpu", "power"): ("screen_low", "screen", "numba", "gemm"),
    ("cpu", "callable"): ("keops", "gemm"),
    ("cuda", "inner"): ("triton_low", "triton_screen", "triton", "gemm"),
    ("cuda", "power"): ("triton_low", "triton_screen", "triton", "keops", "gemm"),
    ("cuda", "callable"): ("keops", "gemm"),
}

# Targets N, coordinates D and N·D below any of which a backend runs only when it is named. The number of samples is
# not known when targets are prepared, and batches of 64 and more are favoured: there the screen breaks even with what
# it stands before (gemm, numba) at about these sizes. With 256 samples it takes 0.6 to 0.9 of the time; with a single
# one it takes 0.06 to 0.15 ms more, 1.3 to 1.7 times as long (docs/performance.md).
LEAST = {
    (name, kind): sizes
    for name in ("screen", "screen_low")
    for kind, sizes in {"inner": (500, 1, 1), "power": (1, 12, 2**16)}.items()
}
# Predicted for 256 samples on an H100: four launches more take as long as float32 sums of 2²⁰ coordinates a sample, and
# a grid of bytes in few coordinates leaves many targets (136 of 600 000 in two coordinates, 5 in eight: N(0, I)).
LEAST |= {(name, "power"): (1, 8, 2**20) for name in ("triton_screen", "triton_low")}


def refusal(backend: str, form: Form, reduction: str, device: torch.device, n: int, d: int) -> str | None:
    """Why `backend` cannot run this reduction, or None when it can.

    Raises `InvalidArgument` for a name that is not a backend.
    """
    if backend not in BACKENDS:
        names = ", ".join(BACKENDS)
        raise InvalidArgument("backend", f"one of {names}, or None", repr(backend), "choose one of these names")
    entry = BACKENDS[backend]
    if entry.requires is not None and find_spec(entry.requires) is None:
        return f"the package {entry.requires} is not installed"
    return entry.load().refusal(form, reduction, device, n, d)


def select(
    form: Form, reduction: str, device: torch.device, n: int, d: int, backend: str | None, precision: str = "exact"
) -> str:
    """The backend that runs `reduction`: the one named, or the fastest that applies and promises `precision`.

    Raises `BackendUnavailable` with the reason when the one named cannot run.
    """
    if backend is not None:
        reason = refusal(backend, form, reduction, device, n, d)
        if reason is not None:
            raise BackendUnavailable(
                "backend",
                f"one that runs {reduction} for the {form.kind} form on {device.type}",
                f"{backend!r}: {reason}",
                "choose another, or None to let fastsdot choose",
            )
        return backend
    order = PREFERENCE.get((device.type, form.kind), ("gemm",))
    enough = PRECISIONS[PRECISIONS.index(precision) :]
    precise = (name for name in order if BACKENDS[name].precision in enough)
    worth = (name for name in precise if all(map(ge, (n, d, n * d), LEAST.get((name, form.kind), (0, 0, 0)))))
    return next(name for name in worth if refusal(name, form, reduction, device, n, d) is None)


def scorer(backends: Iterable[str]) -> str:
    """Of the backends that targets are laid out for, the one that hands out scores; gemm reads them as they are."""
    return next((name for name in ("numba", "triton") if name in backends), "gemm")
