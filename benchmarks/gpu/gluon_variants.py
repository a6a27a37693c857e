"""The l1 loop in Gluon on the device, beside the first pass of the library's l1 argmin: right in float64, and timed."""

from collections.abc import Iterator

import torch
from compare import ROUNDING
from problems import CHECKED_COORDINATES, CHECKED_ROWS, Problem
from torch import Tensor

from fastsdot.costs import make_cost
from fastsdot.kernels import triton_argmin, triton_backend
from fastsdot.kernels.triton_launch import k_major, splits

from .recorded import recorded
from .session import CRASHES, Session, reason

SHAPES, SECONDS = ((256, 60_000, 784), (4096, 60_000, 784), (64, 60_000, 784)), 1.0
RECORDED = (triton_argmin, "tile_minima")


def truth(x: Tensor, y: Tensor) -> Tensor:
    """The least distance of each row in float64."""
    parts = y.split(max(1, CHECKED_COORDINATES // y.shape[1]))
    return torch.stack([torch.cdist(x.double(), part.double(), p=1).amin(1) for part in parts]).amin(0)


def contest(session: Session, shape: tuple[int, int, int]) -> dict[str, dict]:
    """{who: seconds, ratio to the library's first pass, and the largest error of values as a share of rounding}."""
    from .gluon_kernel import DEPTH, LAYOUTS, launch

    problem = Problem("l1", *shape, str(session.device))
    cost = make_cost(problem.cost)
    embedding = cost.embed_targets(problem.y)
    x, layout = cost.embed(problem.x, embedding.centre), triton_backend.prepare(embedding.y, embedding.form)
    with recorded(RECORDED) as launched:
        triton_argmin.argmin(x, layout, embedding.column, embedding.form)
    runs, found, (_, n, d) = {"library": launched[0].again()}, {"library": {}}, shape
    expected = truth(x[:CHECKED_ROWS], embedding.y)
    bias = torch.nn.functional.pad(embedding.column, (0, layout[-1].shape[1] - n), value=torch.inf)
    for each in LAYOUTS:
        rows, columns = each.tile
        columns_of_x = k_major(x, rows, DEPTH)
        split = splits(bias.shape[0] // columns, columns_of_x.shape[1] // rows, x.device)

        def run(each=each, columns_of_x=columns_of_x, split=split) -> tuple[Tensor, object]:
            return launch(columns_of_x, layout[-1], bias, each, *split)

        try:
            out, compiled = run()
            error = (out.amin(0)[: len(expected)].double() - expected).abs() / (4 * ROUNDING * d**0.5 * expected)
            found[each.name] = {"error": float(error.max()), "registers": compiled.n_regs, "spills": compiled.n_spills}
        except CRASHES as broke:
            found[each.name] = {"absent": reason(broke)[:160]}
            continue
        if found[each.name]["error"] <= 1:
            runs[each.name] = run
        else:
            off = f"off by {float(error.max()):.3g} × rounding"
            session.failures.append(f"variants: Gluon, {each.name}, {problem}: {off}")
    seconds = session.medians(runs, SECONDS)
    for name, value in seconds.items():
        found[name] |= {"seconds": value, "ratio": value / seconds["library"]}
    return found


def run(session: Session, _: dict) -> Iterator[tuple[str, object]]:
    """{problem: its contest}, or the reason why there is none."""
    if not session.cuda:
        yield "absent", "Gluon has no interpreter; benchmarks/gluon_l1.py prints what it compiles to"
        return
    for shape in SHAPES[:1] if session.small else SHAPES:
        name = "B={}, N={}, D={}".format(*shape)
        if session.left < 0:
            yield name, {"absent": "it came after this part's time"}
            continue
        try:
            yield name, contest(session, shape)
        except (*CRASHES, ImportError) as error:
            session.failures.append(f"variants: Gluon, {name}: {reason(error)}")
            yield name, {"absent": reason(error)}
