"""What the compiler makes of every Triton kernel, without a GPU: no spill, tensor cores where a dot is meant.

In a process of its own, because a kernel defined while TRITON_INTERPRET is set cannot be compiled.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ARCHITECTURES = ("80", "90", "100")
WITH_DOT = ("tile_minima", "row_sums", "column_sums")


@pytest.fixture(scope="module")
def codes():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("aot.py")), "--json", "--arch", *ARCHITECTURES]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_kernel_was_compiled_for_every_architecture(codes):
    kernels = {(code["kernel"], str(code["arch"])) for code in codes}
    assert kernels == {(k, a) for k in (*WITH_DOT, "nearest", "tile_scores") for a in ARCHITECTURES}


def test_nothing_is_spilled(codes):
    assert [code["name"] for code in codes if code["stack"] > 0 or code["registers"] > 255] == []


def test_shared_memory_fits_two_programs_of_an_a100(codes):
    assert [code["name"] for code in codes if code["shared"] > 112 * 1024] == []


def test_products_run_on_tensor_cores(codes):
    """Three products a chunk, and the split costs less than the compiler's own (450 instructions at 128×128×32)."""
    products = [code for code in codes if code["form"] == "inner" and code["kernel"] in WITH_DOT]
    assert [code["name"] for code in products if code["mma"] < 12 or code["mma"] % 3] == []
    assert [code["name"] for code in products if code["per_coordinate"] > 0.75] == []
    warpgroup = [code for code in products if code["arch"] == 90 and " 16x" not in code["name"]]
    assert all(any("HGMMA" in op for op in code["loop"]) for code in warpgroup)


def test_l1_adds_twice_a_coordinate_and_does_little_else(codes):
    """Two additions a coordinate is the least; FADD2 adds two pairs."""
    loops = [code for code in codes if code["form"] == "l1" and code["kernel"] in WITH_DOT]
    for code in loops:
        rows, columns, depth = (int(v) for v in code["name"].split()[3].split("x"))
        additions = code["loop"].get("FADD", 0) + 2 * code["loop"].get("FADD2", 0)
        assert additions == 2 * rows * columns * depth // 128, code["name"]  # a thread of 128
        assert code["per_coordinate"] < 2.5, code["name"]
        assert not {"SHFL", "LDL", "STL", "BAR"} & code["loop"].keys(), code["name"]
