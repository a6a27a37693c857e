"""Prepared targets: what depends on y alone, computed once for thousands of steps."""

from dataclasses import dataclass

from torch import Tensor

from fastsdot.errors import BackendUnavailable, InvalidArgument

from .form import Form
from .select import BACKENDS, PRECISIONS, REDUCTIONS, select


@dataclass(frozen=True)
class Prepared:
    """Targets laid out for the backends that run their reductions.

    `layouts[backend]` is a list of tensors whose first is y [N, D]; `plan[reduction]` is the backend that runs it,
    and `refusals[reduction]` the error to raise where the backend that the user named cannot.
    """

    form: Form
    y: Tensor
    layouts: dict[str, list[Tensor]]
    plan: dict[str, str]
    refusals: dict[str, BackendUnavailable]

    def backend(self, reduction: str) -> str:
        if reduction in self.refusals:
            raise self.refusals[reduction]
        return self.plan[reduction]


def prepare(y: Tensor, form: Form, backend: str | None = None, precision: str | None = None) -> Prepared:
    """Lay out targets y [N, D], floating point and finite, for `backend` or for the fastest of that `precision`.

    Precision is one of `PRECISIONS`, by default "exact"; a backend that is named has its own.
    Raises `BackendUnavailable` when the backend named cannot run even the argmin, `InvalidArgument` for a precision
    that is not one, or that is given with a backend.
    """
    if precision is not None and (backend is not None or precision not in PRECISIONS):
        expected = "None with a backend" if backend is not None else f"one of {', '.join(PRECISIONS)}, or None"
        raise InvalidArgument("precision", expected, repr(precision), "name a precision or a backend, or neither")
    try:
        return _prepare(y, form, backend, precision or "exact")
    except BackendUnavailable:
        if backend is not None:
            raise
        return _prepare(y, form, "gemm", "exact")  # a dtype, or a callable that means another thing on LazyTensors


def _prepare(y: Tensor, form: Form, backend: str | None, precision: str) -> Prepared:
    n, d = y.shape
    plan, refusals = {}, {}
    for reduction in REDUCTIONS:
        try:
            plan[reduction] = select(form, reduction, y.device, n, d, backend, precision)
        except BackendUnavailable as error:
            if reduction == "argmin":
                raise
            refusals[reduction] = error
    y = y.contiguous()
    name = plan["argmin"]
    first = BACKENDS[name].load()
    if backend is None and hasattr(first, "suits") and not first.suits(y, form):
        for reduction in (reduction for reduction, chosen in plan.items() if chosen == name):
            plan[reduction] = select(form, reduction, y.device, n, d, None, "float32")
    layouts = {name: BACKENDS[name].load().prepare(y, form) for name in set(plan.values())}
    return Prepared(form, y, layouts, plan, refusals)
