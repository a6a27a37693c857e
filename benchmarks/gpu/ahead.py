"""What a kernel compiles to ahead of time, without a GPU: registers, spills, tensor cores, the length of its loop."""

import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import aot
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@dataclass(frozen=True)
class Code:
    registers: int
    stack: int  # bytes of what spills
    shared: int
    mma: int  # in the whole kernel
    loop: Counter[str]  # instructions of the main loop by mnemonic
    around: int  # instructions of the loop around it


def machine_code(source: ASTSource, arch: int, warps: int, stages: int = 3) -> Code:
    options = {"num_warps": warps, "num_stages": stages}
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(binary.asm["cubin"])
        usage = aot.tool("cuobjdump", "--dump-resource-usage", str(cubin))
        code, branches = aot.instructions(aot.tool("nvdisasm", "-c", str(cubin)))
    registers, stack = (int(value) for value in re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    mma = sum(bool(aot.MMA.match(op)) for op in code)
    return Code(registers, stack, binary.metadata.shared, mma, *aot.main_loop(code, branches))


def signature(kernel: object, constants: dict[str, object], types: dict[str, str]) -> tuple[dict, dict, dict]:
    """Types, constants and alignment of a kernel's arguments: memory and leading dimensions are multiples of 16."""
    found, aligned = {}, {}
    for at, name in enumerate(kernel.arg_names):
        found[name] = "constexpr" if name in constants else types.get(name, "*fp32" if name.endswith("_ptr") else "i32")
        if name not in constants and (name.endswith("_ptr") or name.startswith(("ld", "stride"))):
            aligned[(at,)] = [["tt.divisibility", 16]]
    return found, constants, aligned
