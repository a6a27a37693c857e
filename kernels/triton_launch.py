"""How the Triton kernels are launched: tile sizes as data, operands as the tiles read them, and how work is split.

Tile sizes were chosen from code compiled ahead of time (docs/gpu-kernels.md: no spill, instructions per unit of work).
None has been timed, and none is tuned when a user calls.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import TypeVar

import torch
from torch import Tensor

from .form import Form
from .triton_halves import ALIGNMENT, halves

Result = TypeVar("Result")


@dataclass(frozen=True)
class Launch:
    """Tile of `rows` × `columns` scores, `depth` coordinates at a time, by `warps` warps in `stages` buffers."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


Table = dict[str, dict[int, tuple[Launch, ...]]]

# By family and lowest compute capability; of a row the first tile that holds the batch, else the last. A batch below
# the smallest tile reads the targets at the speed of memory all the same.
LAUNCHES: Table = {
    "inner": {
        90: (Launch(16, 128, 32, 8, 3), Launch(64, 128, 32, 4, 3), Launch(128, 128, 32, 8, 3)),
        80: (Launch(16, 128, 32, 8, 3), Launch(64, 128, 32, 8, 3)),
    },
    "power": {80: (Launch(16, 512, 4, 4, 2),)},  # 32 rows halve the reads of targets, and spill with Triton 3.9
    "fractional power": {80: (Launch(16, 128, 4, 4, 2),)},
}
# Sums over the rows of a tile need more registers than sums along them: smaller tiles where those above would spill.
COLUMN_LAUNCHES: Table = LAUNCHES | {
    "inner": {
        90: (Launch(16, 128, 32, 8, 3), Launch(64, 64, 32, 4, 3), Launch(128, 64, 32, 8, 3)),
        80: (Launch(16, 128, 32, 8, 3), Launch(64, 128, 32, 8, 3)),
    },
}
# The screens, by the same rule. Float16: a tile of 128 × 256 reads the least for a product (85 FLOP a byte); one
# program fills a multiprocessor; 8.6, 8.9 and 12.x have half the shared memory. Bytes, for l1: 16 × 4 sums a thread, in
# as many rows as the batch has, since targets are read once for those.
_SMALL = (Launch(16, 128, 64, 4, 3), Launch(64, 128, 64, 4, 3), Launch(128, 128, 64, 8, 3))
SCREEN_LAUNCHES: Table = {
    "inner": {
        120: _SMALL,
        90: (Launch(16, 128, 64, 4, 4), Launch(64, 128, 64, 4, 4), Launch(128, 256, 64, 8, 4)),
        80: _SMALL,
    },
    "power": {80: (Launch(16, 512, 4, 4, 2), Launch(32, 256, 4, 4, 2), Launch(64, 128, 4, 4, 2))},
}
COLUMNS = 512  # K-major copies end on a multiple of the widest tile, so that no load needs a mask
UNALIGNED = Launch(16, 64, 16, 4, 2)  # of listed rows whose targets are not aligned: larger tiles spill
PROGRAMS = 8  # per multiprocessor: enough to fill it twice over at any occupancy that these tiles reach
LISTED = 64  # rows of a tile of listed rows, of which there are few or none
LOWEST_CAPABILITY = 80  # the oldest that the kernels are compiled for in tests

# Finding the column inside the loop costs about 3 instructions a score; finding it afterwards reads one tile of targets
# a row again. On an H100 (28.7e12 instructions/s, 3.35 TB/s) the second is less once N exceeds 12 × columns × D.
REREAD = 12


def capability(device: torch.device) -> int:
    """10 × major + minor of the compute capability; the interpreter takes the oldest one's tiles."""
    if device.type != "cuda":
        return LOWEST_CAPABILITY
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def family(form: Form) -> str:
    if form.kind == "inner":
        return "inner"
    return "power" if exponent(form)["FRACTION"] == 0 else "fractional power"


def exponent(form: Form) -> dict[str, int | float]:
    """p as a whole number of multiplications, at most 8, and the rest."""
    whole = min(int(form.p), 8)
    return {"WHOLE": whole, "FRACTION": form.p - whole}


def depth(d: int) -> int:
    """Coordinates of the power form between two tests of its loop; K-major copies have a multiple of it."""
    return min(4, 1 << (d - 1).bit_length()) if d else 1


def available(table: Table, form: Form, capability: int) -> tuple[Launch, ...]:
    """The launches for a form on a device, smallest first."""
    row = table[family(form)]
    return row[max(least for least in row if least <= capability)]


def choose(table: Table, form: Form, device: torch.device, batch: int, d: int) -> Launch:
    """The launch for a batch of that many rows."""
    row = available(table, form, capability(device))
    launch = next((entry for entry in row if entry.rows >= batch), row[-1])
    return launch if form.kind == "inner" else replace(launch, depth=depth(d))


def aligned(v: Tensor) -> Tensor:
    """v with zeros up to a multiple of ALIGNMENT coordinates: itself, or a copy, [n, D] to [n, D']."""
    return torch.nn.functional.pad(v, (0, -v.shape[1] % ALIGNMENT)) if v.shape[1] % ALIGNMENT else v


def k_major(v: Tensor, width: int, rows: int) -> Tensor:
    """vᵀ with zeros up to multiples of `width` columns and `rows` rows: [n, D] to [D', n']."""
    n, d = v.shape
    return torch.nn.functional.pad(v.T, (0, -n % width, 0, -d % rows))


@dataclass(frozen=True)
class Tiling:
    """One call's operands and tiles: x [B, D], y [N, D], bias [N], float32 and contiguous.

    `tile_x` and `tile_y` are what tiles read: halves of samples and aligned targets for the inner form, with the units
    of both, and K-major copies for the power form.
    """

    x: Tensor
    y: Tensor
    bias: Tensor
    tile_x: Tensor
    tile_y: Tensor
    form: Form
    launch: Launch
    units: tuple[Tensor | None, Tensor | None] = (None, None)
    row_major: bool = False  # whatever the form's tiles read as a rule

    @cached_property
    def sizes(self) -> tuple[int, int]:
        return self.x.shape[0], self.y.shape[0]

    @cached_property
    def row_tiles(self) -> int:
        return -(-self.x.shape[0] // self.launch.rows)

    @cached_property
    def target_tiles(self) -> int:
        return -(-self.y.shape[0] // self.launch.columns)

    @property
    def operands(self) -> tuple[Tensor | int, ...]:
        """x, y, bias, units, B, N, D and the leading dimensions, as `score_tile` takes them."""
        d = self.tile_y.shape[self.row_major or self.form.kind == "inner"]
        tiles = self.tile_x, self.tile_y, self.bias, *self.units
        return *tiles, *self.sizes, d, self.tile_x.shape[1], self.tile_y.shape[1]

    @property
    def constants(self) -> dict[str, int | float | bool]:
        return {
            **form_constants(self.form),
            "BM": self.launch.rows,
            "BN": self.launch.columns,
            "BK": self.launch.depth,
            "num_warps": self.launch.warps,
            "num_stages": self.launch.stages,
        }


def form_constants(form: Form) -> dict[str, int | float | bool]:
    return {"INNER": form.kind == "inner", "SCALE": float(form.scale), **exponent(form), "ROOT": form.root}


def tiling(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, launch: Launch | None = None) -> Tiling:
    """The operands of one call, by the launch given or the one chosen for its shape."""
    x, y, bias = x.contiguous(), layout[0], bias.contiguous()
    launch = launch or choose(LAUNCHES, form, x.device, *x.shape)
    if form.kind == "inner":
        unit, tile_x = halves(x)
        return Tiling(x, y, bias, tile_x, (layout[2:] or layout)[0], form, launch, (unit, layout[1]))
    return Tiling(x, y, bias, k_major(x, max(ALIGNMENT, launch.rows), launch.depth), layout[1], form, launch)


def launch_of_listed(table: Table, form: Form, x: Tensor) -> Launch:
    """The launch for rows of x [B, D] that a list names; few are expected, so one tile of them fills the device."""
    if form.kind == "inner" and x.shape[1] % ALIGNMENT:
        return UNALIGNED
    return choose(table, form, x.device, min(len(x), LISTED), x.shape[1])


def tiling_of_listed(x: Tensor, layout: list[Tensor], bias: Tensor, form: Form, listed: Tensor) -> Tiling:
    """The operands for the rows of x that `listed` names after their number, [1 + B] int32, and row-major targets.

    No second copy of the targets is kept for them.
    """
    y, d, launch = layout[0], x.shape[1], launch_of_listed(LAUNCHES, form, x)
    rows = x.index_select(0, listed[1:])
    if form.kind == "inner":
        unit, tile_x = halves(rows)
        return Tiling(rows, y, bias, tile_x, y, form, launch, (unit, layout[1]), row_major=True)
    launch = replace(launch, depth=4 if d % 4 == 0 and y.data_ptr() % 16 == 0 else 1)  # see `power_of_rows`
    return Tiling(rows, y, bias, rows, y, form, launch, row_major=True)


def on_device(reduction: Callable[..., Result]) -> Callable[..., Result]:
    """Run a reduction with the device of x current, which is where Triton launches."""

    @wraps(reduction)
    def run(x: Tensor, *arguments, **options) -> Result:
        with torch.cuda.device_of(x):  # does nothing for a tensor of the CPU
            return reduction(x, *arguments, **options)

    return run


def in_slices(x: Tensor, each: int, most: int) -> tuple[Tensor, ...]:
    """The rows of x, at most so many at a time that `each` numbers of every row are `most` together; all for none."""
    return x.contiguous().split(max(1, most // each) if each else max(1, len(x)))


def splits(parts: int, others: int, device: torch.device) -> tuple[int, int]:
    """How many groups of how many tiles `parts` are split into, so that `others` × groups programs fill the device."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    groups = max(1, min(parts, -(-PROGRAMS * processors // others)))
    size = -(-parts // groups)
    return -(-parts // size), size
