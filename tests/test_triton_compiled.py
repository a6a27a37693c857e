"""What the compiler makes of every Triton kernel, without a GPU: no spill, tensor cores where a dot is meant.

In a process of its own, because a kernel defined while TRITON_INTERPRET is set cannot be compiled.
"""

import json
import sys
from collections import Counter

import pytest

pytest.importorskip("triton")
WITH_DOT = ("tile_minima", "part_minima", "tile_scores", "row_sums", "column_sums")
SMALLEST = 99 * 1024  # shared memory of a program on 8.6, 8.9 and 12.x; 9.0 and 10.0 have 227 KiB


def compiling(*options, slow=False):
    """A run of aot.py; an interpreter, which there may be here, compiles nothing."""
    command = ("-u", "TRITON_INTERPRET", sys.executable, "aot.py", "--json", *options)
    return pytest.param(command, id=" ".join(options), marks=[pytest.mark.slow] * slow)


def compiled(*processes):
    return pytest.mark.parametrize("process", processes, indirect=True)


every_kernel = compiled(
    compiling("--arch", "90"), compiling("--arch", "80", slow=True), compiling("--arch", "100", slow=True)
)
screen, measured = (
    compiled(compiling(part, "--arch", "80", "90"), compiling(part, "--arch", "100", slow=True))
    for part in ("--screen", "--bytes")
)
lists = compiled(compiling("--lists", "--arch", "80", "90"))


@pytest.fixture
def codes(process):
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def spilled(codes):
    return [code["name"] for code in codes if code["stack"] > 0 or code["registers"] > 255]


def with_dot(codes, form):
    """Those that compute a tile of scores; `column_sums` reads it where it was kept."""
    found = [code for code in codes if code["form"] == form and code["kernel"] in WITH_DOT]
    return [code for code in found if code["kernel"] != "column_sums" or " kept" not in code["name"]]


@every_kernel
def test_every_kernel_was_compiled(codes):
    assert {code["kernel"] for code in codes} == {*WITH_DOT, "nearest", "keep", "tile_races"}


@screen
def test_the_screen_runs_on_tensor_cores_without_spills_on_every_architecture(codes):
    first = [code for code in codes if code["kernel"] == "tile_bounds"]
    assert set(Counter(code["arch"] for code in first).values()) == {6}
    assert spilled(codes) == []
    assert [code["name"] for code in first if code["mma"] == 0 or {"SHFL", "LDL", "STL"} & code["loop"].keys()] == []
    assert [code["name"] for code in first if code["shared"] > (SMALLEST if code["arch"] == 80 else 227 * 1024)] == []


@screen
def test_the_screen_costs_a_few_instructions_for_a_hundred_products(codes):
    """All instructions of a tile at D = 784, a coordinate and score; the loop of three products takes 0.13."""
    at_most = {16: 0.12, 64: 0.06, 128: 0.055}
    for code in (code for code in codes if code["kernel"] == "tile_bounds"):
        rows = int(code["name"].split()[3].split("x")[0])
        assert code["per_coordinate"] < at_most[rows], code["name"]
        if rows > 16 and code["arch"] > 80:
            op = "HGMMA" if code["arch"] == 90 else "UTCHMMA"
            assert op in code["loop"], code["name"]
            assert code["per_coordinate"] < 0.04, code["name"]


@screen
def test_the_screen_and_the_kernels_behind_it_are_all_compiled(codes):
    coded = {"encode_samples", "encode_targets", "lower_bias"}
    decided = {"rescore", "keep", "near_sums", "add_shares", "split_rows"}
    plain = {"tile_minima", "part_minima", "nearest", "row_sums", "column_sums"}
    assert {code["kernel"] for code in codes} == {"tile_bounds"} | coded | decided | plain


@measured
def test_l1_in_bytes_takes_one_instruction_for_four_coordinates_and_little_else(codes):
    """256 for a thread's 16 × 4 sums of 4 words, 20 loads and a few more, in registers for two programs at least."""
    first = [code for code in codes if code["kernel"] == "byte_bounds"]
    assert set(Counter(code["arch"] for code in first).values()) == {6}
    for code in first:
        assert code["loop"]["VABSDIFF4"] == 256, code["name"]
        assert code["loop"]["LDG"] == 20, code["name"]
        assert sum(code["loop"].values()) <= 290, code["name"]
        assert not {"SHFL", "LDL", "STL", "BAR", "LDS"} & code["loop"].keys(), code["name"]
        assert code["registers"] <= (232 if " 16x" in code["name"] else 168), code["name"]


@measured
def test_no_kernel_of_l1_in_bytes_spills(codes):
    coded = {"byte_bounds", "encode_bytes", "row_offsets", "lower_bias_l1"}
    assert {code["kernel"] for code in codes} == coded | {"rescore", "keep", "tile_minima", "part_minima"}
    assert spilled(codes) == []


@every_kernel
def test_nothing_is_spilled(codes):
    assert spilled(codes) == []


@every_kernel
def test_shared_memory_fits_two_programs_of_an_a100(codes):
    assert [code["name"] for code in codes if code["shared"] > 112 * 1024] == []


@every_kernel
def test_products_run_on_tensor_cores(codes):
    """Three products a chunk of 32, in two steps of 16 on warp groups, and few instructions beside them."""
    products = with_dot(codes, "inner")
    assert [code["name"] for code in products if code["mma"] < 6 or code["mma"] % 3] == []
    for code in products:
        assert code["per_coordinate"] < (0.75 if " 16x" in code["name"] else 0.33), code["name"]
    warpgroup = [code for code in products if code["arch"] == 90 and " 16x" not in code["name"]]
    assert all(any("HGMMA" in op for op in code["loop"]) for code in warpgroup)


@every_kernel
def test_l1_adds_twice_a_coordinate_and_does_little_else(codes):
    """Two additions a coordinate is the least; FADD2 adds two pairs."""
    for code in with_dot(codes, "l1"):
        rows, columns, depth = (int(v) for v in code["name"].split()[3].split("x"))
        additions = code["loop"].get("FADD", 0) + 2 * code["loop"].get("FADD2", 0)
        assert additions == 2 * rows * columns * depth // 128, code["name"]  # a thread of 128
        assert code["per_coordinate"] < 2.5, code["name"]
        assert not {"SHFL", "LDL", "STL", "BAR"} & code["loop"].keys(), code["name"]


@lists
def test_sums_over_lists_leave_registers_for_two_programs_and_spill_none(codes):
    assert Counter(code["kernel"] for code in codes) == {"list_sums": 8}
    assert spilled(codes) == []
    assert [code["name"] for code in codes if {"LDL", "STL"} & code["loop"].keys() or code["registers"] > 128] == []
