"""What an l1 loop in Gluon, with the layout of its tile chosen by hand, compiles to for three architectures.

    python benchmarks/gluon_l1.py

Compiled ahead of time with the Triton that is installed; nothing is run. `gpu_suite.py --only variants` runs it.
"""

from gpu import checkout

checkout.use()

from gpu import ahead, gluon_kernel  # noqa: E402
from triton.experimental.gluon._runtime import GluonASTSource  # noqa: E402


def line(arch: int, layout: gluon_kernel.Layout) -> str:
    source = GluonASTSource(gluon_kernel.tile_minima, *ahead.signature(gluon_kernel.tile_minima, layout.constants, {}))
    code = ahead.machine_code(source, arch, layout.num_warps)
    length, additions = code.loop.total(), code.loop["FADD"] + 2 * code.loop["FADD2"]
    each = length / (layout.own[0] * layout.own[1] * gluon_kernel.DEPTH)
    return f"| sm_{arch} {layout.name} | {code.registers} | {code.stack} | {length} | {additions} | {each:.3f} |"


if __name__ == "__main__":
    print("| tile | registers | stack | loop | FADD | instructions a coordinate |\n|---|---|---|---|---|---|")
    for arch in (80, 90, 100):
        for layout in gluon_kernel.LAYOUTS:
            print(line(arch, layout))
