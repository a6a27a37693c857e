"""Tiles that a sweep tries in the place of those that the library's tables hold, and the problems to try them on.

Every candidate was compiled ahead of time for sm_90, with Triton 3.6 and 3.7, without spills. Neighbours of the tables'
own: other depth, columns, warps and buffers. The depth of the power form follows from D and is not a choice.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fastsdot.kernels import triton_launch as library
from fastsdot.kernels.form import Form
from fastsdot.kernels.triton_launch import Launch, Table

from .launch_choice import BATCHES

TABLES: dict[str, Table] = {name: getattr(library, name) for name in ("LAUNCHES", "COLUMN_LAUNCHES", "SCREEN_LAUNCHES")}
_BOTH = (
    Launch(16, 128, 32, 4, 2), Launch(16, 128, 32, 4, 4), Launch(16, 64, 64, 4, 4), Launch(16, 256, 32, 8, 3),
    Launch(64, 128, 32, 8, 3), Launch(64, 64, 64, 4, 3), Launch(128, 64, 64, 8, 3), Launch(128, 64, 32, 8, 4),
)  # fmt: skip
ROW_PRODUCTS = (
    *_BOTH, Launch(16, 128, 32, 4, 3), Launch(16, 128, 64, 4, 3), Launch(64, 128, 32, 4, 2), Launch(64, 128, 32, 4, 4),
    Launch(128, 128, 32, 8, 2), Launch(128, 128, 32, 8, 4), Launch(128, 128, 64, 8, 2), Launch(128, 64, 32, 8, 3),
)  # fmt: skip
COLUMN_PRODUCTS = (*_BOTH, Launch(64, 64, 32, 4, 2), Launch(64, 64, 32, 4, 4), Launch(128, 64, 32, 8, 2))
DIFFERENCES = (
    Launch(8, 512, 4, 4, 2), Launch(16, 256, 4, 4, 2), Launch(16, 256, 4, 2, 2), Launch(16, 512, 4, 8, 2),
    Launch(16, 512, 4, 4, 3), Launch(32, 256, 4, 4, 2), Launch(32, 512, 4, 8, 2), Launch(32, 512, 4, 4, 2),
    Launch(32, 128, 4, 2, 2),
)  # fmt: skip
NEIGHBOURS: dict[str, dict[str, tuple[Launch, ...]]] = {
    "LAUNCHES": {"inner": ROW_PRODUCTS, "power": DIFFERENCES},
    "COLUMN_LAUNCHES": {"inner": COLUMN_PRODUCTS, "power": DIFFERENCES},
    "SCREEN_LAUNCHES": {
        "inner": (
            Launch(16, 128, 128, 4, 3), Launch(16, 256, 64, 4, 3), Launch(16, 256, 64, 8, 4),
            Launch(64, 256, 64, 4, 3), Launch(64, 256, 64, 4, 4), Launch(64, 256, 64, 8, 4),
            Launch(64, 128, 128, 4, 3), Launch(128, 256, 64, 8, 2), Launch(128, 256, 64, 8, 3),
            Launch(128, 128, 64, 8, 4), Launch(128, 128, 64, 4, 3), Launch(128, 128, 64, 4, 4),
            Launch(128, 128, 128, 8, 2), Launch(128, 128, 128, 8, 3), Launch(256, 128, 64, 8, 3),
            Launch(256, 128, 64, 8, 4),
        ),
        "power": (
            Launch(16, 512, 4, 8, 2), Launch(16, 256, 4, 4, 2), Launch(16, 256, 4, 2, 2), Launch(32, 512, 4, 8, 2),
            Launch(32, 128, 4, 4, 2), Launch(64, 256, 4, 8, 2),
        ),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """A kernel, the table that its launches come from, and the reduction by a backend that calls it."""

    table: str
    kernel: str
    backend: str
    reduction: str
    cost: str

    def __str__(self) -> str:
        return f"{self.kernel}, {self.cost}, {self.reduction}"


# What runs most of a solve first: lists by the screens, then l1, then sums.
SWEEPS = (
    Sweep("SCREEN_LAUNCHES", "tile_bounds", "triton_screen", "topk", "sqeuclidean"),
    Sweep("SCREEN_LAUNCHES", "tile_bounds", "triton_screen", "argmin", "sqeuclidean"),
    Sweep("SCREEN_LAUNCHES", "byte_bounds", "triton_screen", "topk", "l1"),
    Sweep("SCREEN_LAUNCHES", "byte_bounds", "triton_screen", "argmin", "l1"),
    Sweep("LAUNCHES", "tile_minima", "triton", "argmin", "l1"),
    Sweep("COLUMN_LAUNCHES", "column_sums", "triton", "soft_marginal", "sqeuclidean"),
    Sweep("COLUMN_LAUNCHES", "column_sums", "triton", "soft_marginal", "l1"),
    Sweep("LAUNCHES", "row_sums", "triton", "softmin", "sqeuclidean"),
    Sweep("LAUNCHES", "row_sums", "triton", "softmin", "l1"),
    Sweep("LAUNCHES", "tile_minima", "triton", "argmin", "sqeuclidean"),
    Sweep("LAUNCHES", "part_minima", "triton", "topk", "l1"),
    Sweep("LAUNCHES", "part_minima", "triton", "topk", "sqeuclidean"),
)
SMALL_SWEEPS = (SWEEPS[1], SWEEPS[3], SWEEPS[4], SWEEPS[5])
TARGETS, DIMENSION = 60_000, 784
LOW = {"sqeuclidean": 32, "l1": 16}  # coordinates; up to 16 the first is no product
MANY, MANY_BATCHES = 1_000_000, (256, 4096)
SMALL_SHAPES, SMALL_CANDIDATES = ((7, 150, 17),), 2

Shape = tuple[int, int, int]


def problems(small: bool) -> Iterator[tuple[Sweep, Shape]]:
    """The centre of every sweep, other batches, many targets for the screen, then few coordinates."""
    if small:
        yield from ((sweep, shape) for shape in SMALL_SHAPES for sweep in SMALL_SWEEPS)
        return
    for b in BATCHES:  # where there are many coordinates, the second soft pass reads scores by a tile of its own
        yield from ((sweep, (b, TARGETS, DIMENSION)) for sweep in SWEEPS if sweep.table != "COLUMN_LAUNCHES")
    for b in MANY_BATCHES:
        yield from ((sweep, (b, MANY, DIMENSION)) for sweep in SWEEPS if sweep.table == "SCREEN_LAUNCHES")
    for b in BATCHES:
        yield from ((sweep, (b, TARGETS, LOW[sweep.cost])) for sweep in SWEEPS)


def candidates(sweep: Sweep, form: Form, chosen: Launch) -> list[Launch]:
    """The table's choice, what it holds for any capability, and their neighbours; of the depth that is asked for."""
    family = library.family(form)
    rows = [chosen, *(launch for row in TABLES[sweep.table].get(family, {}).values() for launch in row)]
    return list(dict.fromkeys((*rows, *NEIGHBOURS[sweep.table].get(family, ()))))
