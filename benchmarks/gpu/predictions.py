"""Each kernel alone at the centre shapes: its floor, predicted from ceilings measured in the same run, and its time.

    floor = max(B·N·D · instructions a coordinate / lanes,  products / rate,  bytes of targets / bandwidth,
                B·N·D · bytes a coordinate · (1 / rows + 1 / columns of a tile) / bandwidth of the second-level cache)

as docs/gpu-kernels.md has it, and what tiles read. Instructions are those of the code that ran (`tests/aot.py`); the
loop of additions stands for the lanes, large products and a copy for the rates; the cache's is measured here.
"""

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from problems import Problem

from fastsdot.costs import make_cost
from fastsdot.kernels import BACKENDS, prepare, triton_argmin, triton_screen_inner, triton_screen_l1, triton_soft
from fastsdot.kernels.triton_launch import Launch, capability
from fastsdot.kernels.triton_screen_l1 import WORDS

from . import l2_kernel
from .invariance import caller
from .recorded import Launched, recorded
from .session import CRASHES, Session, reason

SHAPES, SMALL_SHAPES = ((256, 60_000, 784), (4096, 60_000, 784)), ((7, 150, 17),)
SECONDS = 0.5
CACHED, PROGRAMS, ROUNDS = 2**23, 8, 128  # bytes that are read, programs a multiprocessor, rounds of each


@dataclass(frozen=True)
class Kernel:
    """A kernel by its module and name, and what calls it."""

    module: ModuleType
    name: str
    cost: str
    backend: str
    reduction: str
    products: int  # of a coordinate
    rate: str  # the ceiling of those
    stored: int  # bytes of a coordinate of the targets
    scores: bool = False  # reads scores that were kept instead, each of `stored` bytes


KERNELS = (
    Kernel(triton_screen_inner, "tile_bounds", "sqeuclidean", "triton_screen", "argmin", 1, "fp16", 2),
    Kernel(triton_screen_l1, "byte_bounds", "l1", "triton_screen", "argmin", 0, "fp16", 1),
    Kernel(triton_argmin, "tile_minima", "l1", "triton", "argmin", 0, "fp16", 4),
    Kernel(triton_argmin, "tile_minima", "sqeuclidean", "triton", "argmin", 3, "fp16", 4),
    Kernel(triton_soft, "row_sums", "sqeuclidean", "triton", "softmin", 3, "fp16", 4),
    Kernel(triton_soft, "column_sums", "sqeuclidean", "triton", "soft_marginal", 0, "fp16", 4, scores=True),
    Kernel(triton_soft, "row_sums", "l1", "triton", "softmin", 0, "fp16", 4),
)


def cached_rate(session: Session) -> float:
    """Bytes a second of values that all programs read again and again."""
    programs, rounds = 2, 1
    if session.cuda:
        programs, rounds = PROGRAMS * torch.cuda.get_device_properties(session.device).multi_processor_count, ROUNDS
    value = torch.ones(CACHED // (4 * l2_kernel.BLOCK), l2_kernel.BLOCK, device=session.device)
    total = l2_kernel.launch(value, programs, rounds)
    if not (total == rounds * l2_kernel.UNROLL).all():
        session.failures.append("variants: the loop of reads added up wrongly")
    seconds = session.medians({"reads": lambda: l2_kernel.launch(value, programs, rounds)}, SECONDS)["reads"]
    return 4 * total.numel() * rounds * l2_kernel.UNROLL / seconds


def first_launch(session: Session, kernel: Kernel, shape: tuple[int, int, int]) -> Launched:
    problem, cost = Problem(kernel.cost, *shape, str(session.device)), make_cost(kernel.cost)
    embedding = cost.embed_targets(problem.y)
    x, form = cost.embed(problem.x, embedding.centre), embedding.form
    layout = prepare(embedding.y, form, kernel.backend).layouts[kernel.backend]
    run = caller(BACKENDS[kernel.backend].load(), kernel.reduction, layout, embedding.column, form, shape[0])
    with recorded((kernel.module, kernel.name)) as launches:
        run(x)
    return launches[0]


def instructions(session: Session, kernel: Kernel, launched: Launched) -> float | str:
    """Lanes' instructions a coordinate of a score in the code that ran, or why they are not known."""
    if launched.compiled is None:
        return "interpreted"
    import aot

    named = launched.named
    launch = Launch(*(named.get(key, WORDS) for key in ("BM", "BN", "BK", "num_warps", "num_stages")))
    form = "l1" if kernel.cost == "l1" else "inner"
    case = aot.Case(kernel.name, form, capability(session.device), launch)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(launched.compiled.asm["cubin"])
        try:
            code = aot.instructions(aot.tool("nvdisasm", "-c", str(cubin)))
            return aot.predict(case, *aot.main_loop(*code))[0]
        except (*CRASHES, OSError, subprocess.CalledProcessError) as error:
            return reason(error)


def floors(
    kernel: Kernel, shape: tuple[int, int, int], tile: tuple[int, int], each: float | str, ceilings: dict
) -> dict[str, float]:
    """Seconds of each limit that is known; products are those of whole tiles of rows × columns."""
    (b, n, d), (rows, columns) = shape, tile
    summed = b * n if kernel.scores else b * n * d
    counts = {"instructions": (summed * each if isinstance(each, float) else 0.0, "fadd")}
    if kernel.scores:
        counts["bytes"] = float(kernel.stored * summed), "copy"
    else:
        counts |= {
            "products": (2.0 * kernel.products * -(-b // rows) * rows * n * d, kernel.rate),
            "bytes": (float(kernel.stored * n * d), "copy"),
            "tiles' bytes": (kernel.stored * summed * (1 / rows + 1 / columns), "cache"),
        }
    known = {name: (count, ceilings.get(rate)) for name, (count, rate) in counts.items() if count}
    return {name: count / rate for name, (count, rate) in known.items() if isinstance(rate, float)}


def prediction(session: Session, kernel: Kernel, shape: tuple[int, int, int], ceilings: dict) -> dict:
    launched = first_launch(session, kernel, shape)
    each = instructions(session, kernel, launched)
    limits = floors(kernel, shape, (launched.named["BM"], launched.named["BN"]), each, ceilings)
    seconds = session.medians({"kernel": launched.again()}, SECONDS)["kernel"]
    found = {"instructions a coordinate": each, "limits": limits, "seconds": seconds}
    if limits:
        binding = max(limits, key=limits.get)
        found |= {"limit": binding, "floor": limits[binding], "ratio": seconds / limits[binding]}
    return found


def run(session: Session, ceilings: dict) -> Iterator[tuple[str, object]]:
    """The cache's rate; {kernel and problem: floor, limit, measured seconds and their ratio}, or why there are none."""
    rate = cached_rate(session)
    ceilings = ceilings | {"cache": rate}
    yield "bytes/s of the cache", rate
    for shape in SMALL_SHAPES if session.small else SHAPES:
        for kernel in KERNELS:
            name = "{}, {}, B={}, N={}, D={}".format(kernel.name, kernel.cost, *shape)
            if session.left < 0:
                yield name, {"absent": "it came after this part's time"}
                continue
            try:
                yield name, prediction(session, kernel, shape, ceilings)
            except (*CRASHES, ImportError) as error:
                session.failures.append(f"variants: {name}: {reason(error)}")
                yield name, {"absent": reason(error)}
