"""What must not change a result (tiles, splits, the batch, CUDA graphs), and that a call never waits for the device.

The chosen targets, their values and the k best are the same bit for bit whatever the launch; sums (softmin, masses)
may round differently. It is asked of the backends that Triton compiles; the others are libraries.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from fastsdot.kernels import BACKENDS, prepare
from fastsdot.kernels.form import Form
from fastsdot.kernels.select import REDUCTIONS

from .cases import SEED, Case
from .session import CRASHES, Session, reason

PROGRAMS = (1, 3, 1000)  # a multiprocessor: how finely the targets are split
COSTS, SMALL_COSTS = ("sqeuclidean", "l1", "lp 1.5", "euclidean"), ("sqeuclidean", "l1")
SHAPES, SMALL_SHAPES = [(70, 5003, 784), (300, 2049, 40), (9, 3001, 3)], [(7, 150, 17)]
EXACT = {"argmin", "topk", "sample"}
BY_ROW = {"argmin", "topk"}  # a row's result does not depend on its place in the batch
SUM_ERROR = 1e-5  # of sums, between launches

Call = Callable[..., tuple[Tensor, ...]]


def caller(module, reduction: str, y: list[Tensor], bias: Tensor, form: Form, rows: int) -> Call:
    """A reduction of a backend as its operator calls it, of a batch [B, D] and `launch=`; made before any capture."""
    extra = {
        "softmin": (1.0,),
        "soft_marginal": (1.0, torch.full_like(bias[:1], 1 / max(1, rows)).expand(rows).contiguous()),
        "topk": (5,),
        "sample": (1.0, torch.tensor(SEED, device=bias.device)),
    }.get(reduction, ())

    def run(x: Tensor, **launch) -> tuple[Tensor, ...]:
        result = getattr(module, reduction)(x, y, bias, form, *extra, **launch)
        return result if isinstance(result, tuple) else (result,)

    return run


def same(reduction: str, first: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    if reduction in EXACT:
        return all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    return all(torch.allclose(a, b, rtol=SUM_ERROR, atol=SUM_ERROR) for a, b in zip(first, other, strict=True))


def launches(module, reduction: str, form: Form, device: torch.device, d: int) -> list:
    """Every launch of the tables that the reduction's own module chooses from, or of the common one."""
    from fastsdot.kernels import triton_launch as table

    function = getattr(module, reduction)
    if "launch" not in inspect.signature(function).parameters:
        return []
    home = vars(inspect.getmodule(function))
    tables = [home[name] for name in home if name.endswith("LAUNCHES")] or [table.LAUNCHES]
    found = [entry for rows in tables for entry in table.available(rows, form, table.capability(device))]
    if form.kind != "inner":
        found = [replace(entry, depth=table.depth(d)) for entry in found]
    return list(dict.fromkeys(found))


@contextmanager
def programs(count: int) -> Iterator[None]:
    """Split the targets as if that many programs filled a multiprocessor."""
    from fastsdot.kernels import triton_launch

    before, triton_launch.PROGRAMS = triton_launch.PROGRAMS, count
    try:
        yield
    finally:
        triton_launch.PROGRAMS = before


def vary(run: Call, reduction: str, x: Tensor, choices: list) -> Iterator[tuple[str, bool]]:
    """(what was changed, whether the result is the same) for each launch, split and part of the batch."""
    first = run(x)
    for launch in choices:
        yield f"{launch}", same(reduction, first, run(x, launch=launch))
    for count in PROGRAMS:
        with programs(count):
            yield f"PROGRAMS={count}", same(reduction, first, run(x))
    if reduction in BY_ROW:
        parts = [run(rows) for rows in (x[:1], x[1:4], x[4:])]
        yield "the batch in parts", same(reduction, first, tuple(map(torch.cat, zip(*parts, strict=True))))
    yield "the same call again", all(torch.equal(a, b) for a, b in zip(first, run(x), strict=True))


def graph(run: Call, x: Tensor) -> Iterator[tuple[str, bool]]:
    """Captured once, replayed on other samples: equal to calling, bit for bit."""
    static = x.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(static)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        result = run(static)
    for name, batch in (("graph", x), ("graph, other samples", x.flip(0))):
        static.copy_(batch)
        captured.replay()
        torch.cuda.synchronize()
        expected = run(batch.contiguous())
        yield name, all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


def no_waiting(run: Call, x: Tensor) -> Iterator[tuple[str, bool]]:
    """A warm call that makes torch wait for the device raises here."""
    run(x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    yield "no host synchronisation", True


def checks(session: Session, backend: str, reduction: str, case: Case) -> Iterator[tuple[str, bool]]:
    module, (x, y, bias, form) = BACKENDS[backend].load(), case.operands(session.device)
    if module.refusal(form, reduction, session.device, *y.shape) is not None:
        return
    run = caller(module, reduction, prepare(y, form, backend).layouts[backend], bias, form, len(x))
    yield from vary(run, reduction, x, launches(module, reduction, form, session.device, case.d))
    if session.cuda:
        yield from no_waiting(run, x)
        yield from graph(run, x)


def run(session: Session) -> dict:
    made: dict[str, int] = {}
    left_out = {} if session.cuda else {"graph, no host synchronisation": "they need a GPU"}
    shapes = SMALL_SHAPES if session.small else SHAPES
    costs = SMALL_COSTS if session.small else COSTS
    compiled = [name for name in session.backends if BACKENDS[name].requires == "triton"]
    for name in compiled:
        for case in (Case(cost, "Gaussian", *shape) for shape in shapes for cost in costs):
            if session.left < 0:
                left_out[f"{name}, {case}"] = "it came after this part's time"
                continue
            for reduction in REDUCTIONS:
                at = f"{name} {reduction}"
                try:
                    for what, equal in checks(session, name, reduction, case):
                        made[f"{at}: {kind(what)}"] = made.get(f"{at}: {kind(what)}", 0) + 1
                        if not equal:
                            session.failures.append(f"invariance: {at}, {case}: {what} changed the result")
                except CRASHES as error:
                    session.failures.append(f"invariance: {at}, {case}: {reason(error)}")
    return {"made": made, "left_out": left_out}


def kind(what: str) -> str:
    """Launches and splits are counted together."""
    return "launch" if what.startswith("Launch") else "split" if what.startswith("PROGRAMS") else what
