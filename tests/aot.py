"""Compile the Triton kernels ahead of time, without a GPU, and read the machine code.

`python tests/aot.py` prints the table of docs/gpu-kernels.md, `--screen` that of the float16 screen, `--bytes` that of
the screen in bytes, `--lists` that of the sums over lists, `--json` each as data for the tests. It must run without
TRITON_INTERPRET, which replaces the compiler when Triton is imported.

A main loop of I instructions a warp over M scores' coordinates gives the floor of a problem of B·N·D coordinates

    floor = max(B·N·D · 32·I·warps/M / lanes,  products / rate,  bytes read once / bandwidth)

where `lanes` is the rate at which a device issues instructions (times 32 lanes), and products are 3·2·B·N·D at the rate
of float16 for the inner form, 2·B·N·D for its screen. All rates are published peaks.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastsdot.kernels.form import Form
from fastsdot.kernels.triton_argmin import nearest, tile_minima
from fastsdot.kernels.triton_encode import encode_samples, encode_targets, lower_bias
from fastsdot.kernels.triton_encode_l1 import encode_bytes, lower_bias_l1, row_offsets
from fastsdot.kernels.triton_halves import split_rows
from fastsdot.kernels.triton_keep import CHUNK, LANES, MOST, REGISTERS, keep
from fastsdot.kernels.triton_launch import (
    COLUMN_LAUNCHES,
    LAUNCHES,
    SCREEN_LAUNCHES,
    UNALIGNED,
    Launch,
    available,
    form_constants,
)
from fastsdot.kernels.triton_lists import NARROWEST, WIDEST, list_sums, shape
from fastsdot.kernels.triton_near import LANES as NEAR_LANES, add_shares, near_sums
from fastsdot.kernels.triton_rescore import rescore
from fastsdot.kernels.triton_sample import LAUNCHES as RACES, tile_races
from fastsdot.kernels.triton_scores import tile_scores
from fastsdot.kernels.triton_screen_inner import tile_bounds
from fastsdot.kernels.triton_screen_l1 import PADDED, PANEL, WORDS, byte_bounds
from fastsdot.kernels.triton_soft import READING, column_sums, row_sums
from fastsdot.kernels.triton_topk import FINE, part_minima

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
SCREEN = (tile_bounds, rescore, keep, near_sums, add_shares, encode_samples, encode_targets, lower_bias, split_rows)
BYTES = (byte_bounds, encode_bytes, row_offsets, lower_bias_l1)
PLAIN = (tile_minima, part_minima, row_sums, column_sums, nearest, tile_scores, tile_races)
KERNELS = {kernel.__name__: kernel for kernel in (*PLAIN, *SCREEN, *BYTES, list_sums)}
TYPES = {
    **dict.fromkeys(("where_ptr", "group_where_ptr", "part_ptr", "count_ptr", "fallback_ptr", "listed_ptr"), "*i32"),
    **dict.fromkeys(("c", "epsilon", "reach", "unit"), "fp32"),
    **{"index_ptr": "*i64", "seed_ptr": "*i64", "scale_ptr": "*fp64"},
    **dict.fromkeys(("code_ptr", "half_ptr"), "*fp16"),
    **{("tile_bounds", name): "*fp16" for name in ("x_ptr", "y_ptr")},
    **{("byte_bounds", name): "*i32" for name in ("x_ptr", "y_ptr")},
    **{("encode_bytes", "code_ptr"): "*i32", "grid_ptr": "*fp64", "sum_ptr": "*fp64"},
    **{("list_sums", "index_ptr"): "*i32", "mass_ptr": "*i64", ("column_sums", "mass_ptr"): "*fp32"},
}
ALIGNED = {
    "ldx",
    "ldy",
    "ld",
    "stride",
    "width",
}  # besides every pointer; D too, except as the power form and exact scores take it
MMA = re.compile("HMMA|HGMMA|UTC.*MMA")

FORMS = {
    "inner": Form("inner", scale=2.0),
    "l1": Form("power", p=1.0),
    "euclidean": Form("power", p=2.0, root=True),
    "lp 1.5": Form("power", p=1.5),
    "lp 2.7": Form("power", p=2.7),
}
CODES = {"tile_bounds": 2, "byte_bounds": 1}  # bytes of a coordinate of targets where it is not 4; four of 1 are a word
PROBLEM = (256, 1_000_000, 784)  # B, N, D of the predicted floor
# Published peaks: lanes/s of instruction issue, float16 FLOP/s without sparsity, bytes/s.
PEAKS = {
    80: ("A100", 19.5e12, 312e12, 2.04e12),
    90: ("H100 SXM", 33.5e12, 990e12, 3.35e12),
    100: ("B200", 37.5e12, 2250e12, 8e12),
}


@dataclass(frozen=True)
class Case:
    """One kernel, form, architecture, launch, and the remaining constants."""

    kernel: str
    form: str
    arch: int
    launch: Launch
    extra: tuple[tuple[str, int], ...] = ()
    listed: bool = False  # of the rows that the screen left undecided
    aligned: bool = True  # whether D is a multiple of 16
    kept: bool = False  # the scores of a first pass, for a second

    @property
    def name(self) -> str:
        tile = f"{self.launch.rows}x{self.launch.columns}x{self.launch.depth}"
        extra = "".join(f" {key}={value}" for key, value in self.extra)
        rows = " listed" * self.listed + " unaligned" * (not self.aligned) + " kept" * self.kept
        return f"{self.kernel} {self.form} sm_{self.arch} {tile}{extra}{rows}"


@dataclass(frozen=True)
class Code:
    """What the compiler made of a case."""

    name: str
    kernel: str
    form: str
    arch: int
    registers: int
    stack: int
    shared: int
    mma: int  # in the whole kernel
    loop: dict[str, int]  # instructions of the main loop by mnemonic
    around: int  # instructions of the loop around it
    per_coordinate: float  # lanes' instructions of the main loop for one coordinate of one score
    floor_ms: float | None  # predicted, never measured


KEPT = Launch(1, min(FINE, CHUNK), 128, 4, 3)
KEEP = (("WIDTH", FINE), ("LANES", LANES))


def cases(architectures: list[int]) -> list[Case]:
    """Every kernel by every launch for the inner form and l1; for other forms what differs, by the largest launch."""
    found, exact = [], Launch(1, 64, 32, 4, 3)
    for arch in architectures:
        for name, form in FORMS.items():
            rows, columns = available(LAUNCHES, form, arch), available(COLUMN_LAUNCHES, form, arch)
            width = rows[-1].columns
            if name in ("inner", "l1"):
                found += [Case("row_sums", name, arch, launch, kept=kept) for launch in rows for kept in (False, True)]
                found += [Case("tile_races", name, arch, launch) for launch in available(RACES, form, arch)]
                found.append(Case("tile_minima", name, arch, rows[-1], (("WIDTH", width),)))
                found.append(Case("nearest", name, arch, exact, (("WIDTH", width), ("GROUPS", 128))))
                found += [Case("part_minima", name, arch, launch, (("FINE", FINE),)) for launch in rows]
                found += [Case("tile_scores", name, arch, launch) for launch in rows]
                alone = dict.fromkeys(("row_ptr", "count_ptr", "fallback_ptr")).items()
                found.append(Case("keep", name, arch, KEPT, (("K", 16), *KEEP, *alone)))
            elif arch == 100:  # same launches as sm_80, whose register file is as large
                continue
            else:
                rows, columns = rows[-1:], columns[-1:]
            found += [Case("tile_minima", name, arch, launch, (("WIDTH", 1),)) for launch in rows]
            found += [Case("column_sums", name, arch, launch) for launch in columns]
        found.append(Case("column_sums", "inner", arch, READING, kept=True))  # of any form
    single = Launch(1, 1, 32, 4, 3)
    found += [Case("nearest", name, architectures[-1], single, (("WIDTH", 1), ("GROUPS", 128))) for name in FORMS]
    return found


def screen_cases(architectures: list[int]) -> list[Case]:
    """The float16 screen: its first pass by every launch, the rest once, and the plain kernels on listed rows."""
    found, width = [], ("WIDTH", 32)
    for arch in architectures:
        launches = available(SCREEN_LAUNCHES, FORMS["inner"], arch)
        found += [
            Case("tile_bounds", "inner", arch, launch, (width, ("FINE", f))) for f in (32, FINE) for launch in launches
        ]
        found += [Case("keep", "inner", arch, KEPT, (("K", k), *KEEP)) for k in (16, MOST)]
        found.append(Case("near_sums", "inner", arch, KEPT, (("WIDTH", FINE), ("LANES", NEAR_LANES))))
        found.append(Case("add_shares", "inner", arch, KEPT, (("WIDTH", FINE), ("SLOTS", 16))))
        extra = (width, ("LANES", 128), ("CERTIFY", True))
        found.append(Case("rescore", "inner", arch, Launch(1, 32, 32, 2, 3), extra))
        found.append(Case("encode_samples", "inner", arch, Launch(1, 1, 256, 4, 3), (("CENTRED", True),)))
        found.append(Case("encode_targets", "inner", arch, Launch(1, 32, 32, 4, 3)))
        found.append(Case("lower_bias", "inner", arch, Launch(1, 64, 32, 4, 3), (("CENTRED", True),)))
        found.append(Case("split_rows", "inner", arch, Launch(1, 1, 64, 4, 3), (("ROWS", 32), ("half_ptr", None))))
        found.append(Case("split_rows", "inner", arch, Launch(1, 1, 256, 4, 3), (("ROWS", 2),)))
        plain = next(launch for launch in available(LAUNCHES, FORMS["inner"], arch) if launch.rows == 64)
        found.append(Case("tile_minima", "inner", arch, plain, (("WIDTH", 1),), listed=True))
        extra = (("WIDTH", 1), ("GROUPS", 128))
        found.append(Case("nearest", "inner", arch, Launch(1, 1, 32, 4, 3), extra, listed=True))
        found.append(Case("part_minima", "inner", arch, plain, (("FINE", FINE),), listed=True))
        column = available(COLUMN_LAUNCHES, FORMS["inner"], arch)
        found += [Case("row_sums", "inner", arch, plain, listed=True)]
        found += [Case("column_sums", "inner", arch, entry, listed=True) for entry in column if entry.rows == 64]
        listed = {"tile_minima": (("WIDTH", 1),), "part_minima": (("FINE", FINE),), "row_sums": (), "column_sums": ()}
        found += [Case(k, "inner", arch, UNALIGNED, extra, True, False) for k, extra in listed.items()]
    return found


def byte_cases(architectures: list[int]) -> list[Case]:
    """The screen of l1 in bytes: its first pass by every launch, the rest once, and plain kernels on listed rows."""
    found = []
    for arch in architectures:
        launches = available(SCREEN_LAUNCHES, FORMS["l1"], arch)
        for fine in (32, FINE):
            extra = (("FINE", fine), ("PANEL", PANEL))
            found += [Case("byte_bounds", "l1", arch, launch, extra) for launch in launches]
        for few, panel, side in ((32, PANEL, 1), (2, launches[-1].rows, WORDS)):
            extra = (("VECTORS", few), ("PANEL", panel), ("SIDE", side))
            found.append(Case("encode_bytes", "l1", arch, Launch(1, 1, 128 // few, 4, 3), extra))
        found.append(Case("row_offsets", "l1", arch, Launch(128, 1, 1, 4, 3)))
        found.append(Case("lower_bias_l1", "l1", arch, Launch(1, PADDED, 1, 4, 3), (("MARGIN", True),)))
        extra = (("WIDTH", 32), ("LANES", 128), ("CERTIFY", True))
        found.append(Case("rescore", "l1", arch, Launch(1, 32, 32, 2, 3), extra))
        found.append(Case("keep", "l1", arch, KEPT, (("K", 16), *KEEP)))
        (plain,) = available(LAUNCHES, FORMS["l1"], arch)
        for rows in (plain, replace(plain, depth=1)):  # four coordinates at once, where D is a multiple of 4, or one
            found.append(Case("tile_minima", "l1", arch, rows, (("WIDTH", 1),), listed=True))
            found.append(Case("part_minima", "l1", arch, rows, (("FINE", FINE),), listed=True))
    return found


def list_cases(architectures: list[int]) -> list[Case]:
    """Soft choices among lists, by the narrowest and the widest tile, listed or all targets in order; no form."""
    found = []
    for arch in architectures:
        for launch in (Launch(*shape(k), 1, 4, 3) for k in (NARROWEST, WIDEST)):
            found += [Case("list_sums", "inner", arch, launch, (("LISTED", listed),)) for listed in (0, 1)]
    return found


def source_of(case: Case) -> ASTSource:
    kernel, form, launch = KERNELS[case.kernel], FORMS[case.form], case.launch
    tile = {"BM": launch.rows, "BN": launch.columns, "BK": launch.depth}
    constants = form_constants(form) | tile | dict(case.extra) | ({} if case.listed else {"listed_ptr": None})
    constants |= {} if case.kept else {"kept_ptr": None, "width": 0}
    constants |= {} if form.kind == "inner" else {"x_unit_ptr": None, "y_unit_ptr": None}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature, attributes = {}, {}
    for at, name in enumerate(kernel.arg_names):
        kind = TYPES.get((case.kernel, name)) or TYPES.get(name, "*fp32" if name.endswith("_ptr") else "i32")
        plain_product = form.kind == "inner" and "ldx" in kernel.arg_names
        kind = "*fp16" if plain_product and name == "x_ptr" else kind
        signature[name] = "constexpr" if name in constants else kind
        whole = plain_product and name == "D"
        if name not in constants and (name.endswith("_ptr") or (case.aligned and (name in ALIGNED or whole))):
            attributes[(at,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def compile_case(case: Case) -> Code:
    options = {"num_warps": case.launch.warps, "num_stages": case.launch.stages}
    options |= {"maxnreg": REGISTERS} if case.kernel == "keep" else {}
    compiled = triton.compile(source_of(case), target=GPUTarget("cuda", case.arch, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = tool("cuobjdump", "--dump-resource-usage", str(cubin))
        sass = tool("nvdisasm", "-c", "-ndf", str(cubin))  # no dataflow analysis: it takes as long again, and gives up
    registers, stack = (int(v) for v in re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    code, branches = instructions(sass)
    loop, around = main_loop(code, branches)
    mma = sum(bool(MMA.match(op)) for op in code)
    return Code(
        case.name, case.kernel, case.form, case.arch, registers, stack, compiled.metadata.shared, mma,
        dict(loop), around, *predict(case, loop, around),
    )  # fmt: skip


def tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def instructions(sass: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Mnemonics in order, and (target, place) of every backward branch."""
    code, labels, branches = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*);", line):
            if found[1].startswith("BRA") and (to := re.search(r"\.L_x_\d+", found[2])):
                branches.append((to[0], len(code)))
            code.append(found[1])
    return code, [(labels[to], at) for to, at in branches if to in labels and labels[to] < at]


def main_loop(code: list[str], branches: list[tuple[int, int]]) -> tuple[Counter[str], int]:
    """Mnemonics, without modifiers, of the innermost loop with the most arithmetic; the size of the loop around."""
    inner = [a for a in branches if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in branches)]

    def mnemonics(span: tuple[int, int]) -> Counter[str]:
        return Counter(op.split(".")[0] for op in code[span[0] : span[1] + 1])

    def arithmetic(span: tuple[int, int]) -> int:
        loop = mnemonics(span)
        mma = sum(count for op, count in loop.items() if MMA.match(op))
        least = loop["FADD"] + 2 * loop["FADD2"] + loop["FFMA"] + loop["DADD"] + loop["DFMA"]
        return 1000 * (mma + loop["VABSDIFF4"]) + least

    if not inner:
        return Counter(), 0
    main = max(inner, key=arithmetic)
    outer = [end - start for start, end in branches if start < main[0] and main[1] < end]
    return mnemonics(main), min(outer) - (main[1] - main[0]) if outer else 0


def predict(case: Case, loop: Counter[str], around: int) -> tuple[float, float | None]:
    """Instructions a coordinate, and the floor in milliseconds for PROBLEM where the peaks are known.

    The screen's loop is short enough for the rest of a tile to count.
    """
    launch, (b, n, d) = case.launch, PROBLEM
    screen, size = case.kernel in CODES, CODES.get(case.kernel, 4)
    depth = launch.depth * (4 if size == 1 else 1)
    lanes_instructions = launch.warps * 32 / (launch.rows * launch.columns)
    each = sum(loop.values()) * lanes_instructions / depth
    if screen:
        each = (sum(loop.values()) * -(-d // depth) + around) * lanes_instructions / d
    floored = {"tile_minima", "row_sums", "column_sums", *CODES}
    if case.arch not in PEAKS or case.kernel not in floored or case.launch == READING:
        return each, None
    _, lanes, products, rate = PEAKS[case.arch]
    rows = -(-b // launch.rows) * launch.rows
    operations = 0 if case.form != "inner" else 2 * rows if screen else 6 * b
    return each, 1e3 * max(b * n * d * each / lanes, operations * n * d / products, size * n * d / rate)


def compile_all(chosen: list[Case]) -> list[Code]:
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(compile_case, chosen))


def table(codes: list[Code]) -> str:
    lines = [
        f"Triton {triton.__version__}",
        "",
        "| kernel | registers | shared | stack | MMA | loop | around | FADD | instructions a coordinate | floor ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for code in codes:
        floor = "" if code.floor_ms is None else f"{code.floor_ms:.2f}"
        fadd = code.loop.get("FADD", 0) + 2 * code.loop.get("FADD2", 0)
        lines.append(
            f"| {code.name} | {code.registers} | {code.shared} | {code.stack} | {code.mma} "
            f"| {sum(code.loop.values())} | {code.around} | {fadd} | {code.per_coordinate:.3f} | {floor} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compile the Triton kernels without a GPU and read the machine code.")
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100])
    parser.add_argument("--screen", action="store_true")
    parser.add_argument("--bytes", action="store_true")
    parser.add_argument("--lists", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chosen = screen_cases if options.screen else byte_cases if options.bytes else list_cases if options.lists else cases
    codes = compile_all(chosen(options.arch))
    print(json.dumps([asdict(code) for code in codes]) if options.json else table(codes))
