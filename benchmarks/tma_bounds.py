"""What the screen's first pass compiles to with operands by tensor descriptors, with and without specialised warps.

    python benchmarks/tma_bounds.py

Compiled ahead of time for sm_90 with the Triton that is installed; `benchmarks/gpu_suite.py --only variants` runs it.
"""

import os

os.environ.pop("TRITON_INTERPRET", None)  # which would replace the compiler

from gpu import checkout

checkout.use()

from gpu import ahead  # noqa: E402
from gpu.bounds_variants import VARIANTS, title  # noqa: E402
from gpu.tma_kernel import tile_bounds  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from fastsdot.kernels.triton_launch import Launch  # noqa: E402

ARCH, WIDTH, FINE = 90, 32, (32, 8)
HALVES = dict.fromkeys(("x_ptr", "y_ptr"), "*fp16")


def line(launch: Launch, specialised: bool, fine: int) -> str:
    tile = {"BM": launch.rows, "BN": launch.columns, "BK": launch.depth}
    constants = tile | {"WIDTH": WIDTH, "FINE": fine, "SPECIALISED": specialised}
    source = ASTSource(tile_bounds, *ahead.signature(tile_bounds, constants, HALVES))
    code = ahead.machine_code(source, ARCH, launch.warps, launch.stages)
    figures = (code.registers, code.stack, code.shared, code.mma, code.loop.total(), code.around)
    return f"| {title(launch, specialised)} | {fine} | {' | '.join(map(str, figures))} |"


if __name__ == "__main__":
    header = ("sm_90", "minima of", "registers", "stack", "shared bytes", "MMA", "loop", "around")
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for fine in FINE:
        for specialised, launches in VARIANTS.items():
            for launch in launches:
                print(line(launch, specialised, fine))
