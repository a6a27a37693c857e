"""What an l1 loop in Gluon, with the layout of its tile chosen by hand, compiles to for three architectures.

    python benchmarks/gluon_l1.py

A thread owns `own` = rows × targets of a tile, loads that many samples' and targets' coordinates itself, and takes two
additions a coordinate. Compiled ahead of time with the Triton that is installed; nothing is run.
"""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
INSTRUCTION = re.compile(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+ )?([A-Z0-9_]+)")
DEPTH = 4  # coordinates between two tests of the loop
# own, threads and warps of a tile, rows × targets each
LAYOUTS = (
    ([8, 8], [4, 8], [2, 2]),
    ([16, 4], [1, 32], [1, 4]),
    ([8, 16], [4, 8], [1, 4]),
    ([16, 8], [2, 16], [1, 4]),
)


@gluon.jit
def tile_minima(
    x_ptr, y_ptr, bias_ptr, out_ptr, D, ldx, ldy, tiles,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """min_j Σ_d |x_id − y_jd| + bias_j over tiles of K-major operands."""
    offs_m = gl.program_id(0) * BM + gl.arange(0, BM, layout=gl.SliceLayout(1, LAYOUT))
    offs_n = gl.arange(0, BN, layout=gl.SliceLayout(0, LAYOUT))
    best = gl.full([BM], float("inf"), gl.float32, layout=gl.SliceLayout(1, LAYOUT))
    for tile in range(0, tiles):
        x_ptrs, y_ptrs = x_ptr + offs_m, y_ptr + tile * BN + offs_n
        total = gl.full([BM, BN], 0.0, gl.float32, layout=LAYOUT)
        for _ in range(0, D, BK):
            for _ in gl.static_range(BK):
                total += gl.abs(gl.expand_dims(gl.load(x_ptrs), 1) - gl.expand_dims(gl.load(y_ptrs), 0))
                x_ptrs += ldx
                y_ptrs += ldy
        score = total + gl.expand_dims(gl.load(bias_ptr + tile * BN + offs_n), 0)
        best = gl.minimum(best, gl.min(score, 1))
    gl.store(out_ptr + offs_m, best)


def tool(name: str, option: str, cubin: Path) -> str:
    return subprocess.run([TOOLS / name, option, cubin], capture_output=True, text=True, check=True).stdout


def innermost(sass: str) -> Counter:
    """Instructions of the shortest loop that adds."""
    lines, labels, loops = sass.splitlines(), {}, []
    for i, line in enumerate(lines):
        if label := re.match(r"(\.L_x_\d+):", line.strip()):
            labels[label[1]] = i
        if (jump := re.search(r"BRA.*(\.L_x_\d+)", line)) and jump[1] in labels:
            found = [
                re.search(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+ )?([A-Z0-9_]+)", row) for row in lines[labels[jump[1]] : i]
            ]
            loops.append(Counter(match[1] for match in found if match) + Counter(BRA=1))
    return min((loop for loop in loops if loop["FADD"] + loop["FADD2"]), key=Counter.total)


def compiled(arch: int, own: list[int], threads: list[int], warps: list[int]) -> str:
    """A row of the table."""
    layout = gl.BlockedLayout(own, threads, warps, [1, 0])
    rows, columns = (a * b * c for a, b, c in zip(own, threads, warps, strict=True))
    pointers, sizes = ("x_ptr", "y_ptr", "bias_ptr", "out_ptr"), ("D", "ldx", "ldy", "tiles")
    constants = {"BM": rows, "BN": columns, "BK": DEPTH, "LAYOUT": layout}
    signature = dict.fromkeys(pointers, "*fp32") | dict.fromkeys(sizes, "i32") | dict.fromkeys(constants, "constexpr")
    names = list(signature)
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in (*pointers, "ldx", "ldy")}
    values = {(names.index(name),): value for name, value in constants.items()}
    source = GluonASTSource(tile_minima, signature, values, aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps[0] * warps[1]})
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(binary.asm["cubin"])
        usage = tool("cuobjdump", "--dump-resource-usage", cubin)
        loop = innermost(tool("nvdisasm", "-c", cubin))
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    ratio = loop.total() / (own[0] * own[1] * DEPTH)
    name = f"sm_{arch} {rows}x{columns}x{DEPTH}, {own[0]}x{own[1]} a thread"
    return f"| {name} | {registers} | {stack} | {loop.total()} | {loop['FADD'] + 2 * loop['FADD2']} | {ratio:.3f} |"


if __name__ == "__main__":
    print("| tile | registers | stack | loop | FADD | instructions a coordinate |\n|---|---|---|---|---|---|")
    for arch in (80, 90, 100):
        for layout in LAYOUTS:
            print(compiled(arch, *layout))
