"""The suite's part that says what to tune: what it checks, what it chooses, and what stays of a step that broke."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not (BENCHMARKS / "gpu_suite.py").exists(), reason="the suite is in the checkout alone")

# Runs the part as it is, and again with bounds that are too high and indices that belong to other rows.
BROKEN = """
import sys
sys.path.insert(0, sys.argv[1])
import gpu_suite
from gpu import bounds_variants, launch_candidates, launch_sweep, tma_kernel, variants

options = ["--small", "--only", "ceilings", "variants", "--out"]
first = gpu_suite.main([*options, sys.argv[2]])

class Wrong:
    def __getitem__(self, grid):
        def launch(**named):
            tma_kernel.tile_bounds[grid](**named)
            named["lower_ptr"][1, 3] += 1
        return launch

class Rolled(launch_sweep.Contest):
    def by(self, launch):
        call = super().by(launch)
        return lambda: tuple(each.roll(1, 0) for each in call())

bounds_variants.tile_bounds, launch_sweep.Contest = Wrong(), Rolled
launch_candidates.SMALL_SWEEPS = launch_candidates.SMALL_SWEEPS[-2:]
variants.STEPS = {name: variants.STEPS[name] for name in ("bounds", "launches")}
second = gpu_suite.main([*options, sys.argv[3]])
sys.exit(10 * first + second)
"""


def python(*arguments, cwd) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def part(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return lambda name: importlib.import_module(f"gpu.{name}")


def test_variants_are_timed_when_they_are_right_and_failures_when_they_are_not(tmp_path):
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    done = python("-c", BROKEN, BENCHMARKS, right, wrong, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads((right / "results.json").read_text())
    assert found["failures"] == []
    variants = found["variants"]
    assert {"predictions", "bounds", "specialised", "gluon", "kept", "launches", "suggested"} <= variants.keys()
    for row in variants["launches"]["rows"]:
        assert row["results"][row["chosen"]]["ratio"] == 1
        assert all(result["seconds"] > 0 for result in row["results"].values())
    contests = {**variants["bounds"], **variants["specialised"]}
    assert all(result["seconds"] > 0 for contest in contests.values() for result in contest.values())
    floors = [result["floor"] for result in variants["predictions"].values() if isinstance(result, dict)]
    assert len(floors) == 7
    assert min(floors) > 0
    text = (right / "README.md").read_text()
    assert "| kernel alone |" in text
    assert "# SCREEN_LAUNCHES, inner: " in text
    found = json.loads((wrong / "results.json").read_text())
    failures = [failure.removeprefix("variants: ") for failure in found["failures"]]
    assert sum(failure.startswith("descriptors, ") for failure in failures) == 1
    assert sum("it does not give the table's result" in failure for failure in failures) == len(failures) - 1 == 4


def row(batch, ratios, table="LAUNCHES", current=("Launch(64, 64, 32, 4, 3)",)):
    results = {name: {"seconds": ratio, "ratio": ratio} for name, ratio in ratios.items()}
    shared = {"table": table, "family": "inner", "capability": 90, "b": batch, "name": f"B={batch}"}
    return {
        **shared,
        "chosen": current[-1],
        "current": current,
        "results": results | {"Launch(16, 64, 64, 4, 9)": {"absent": "spills 4 registers"}},
    }


def test_the_tables_that_measurements_suggest(part):
    own, small, wide = "Launch(64, 64, 32, 4, 3)", "Launch(16, 128, 32, 4, 3)", "Launch(128, 128, 32, 8, 3)"
    rows = [
        row(16, {own: 1.0, small: 0.5, wide: 1.6}),
        row(64, {own: 1.0, small: 2.0, wide: 1.2}),
        *(row(batch, {own: 1.0, small: 3.0, wide: 0.7}) for batch in (256, 1024, 4096)),
        row(256, {own: 1.0, wide: 0.98}, table="COLUMN_LAUNCHES"),
    ]
    first, second = part("launch_choice").suggested(rows)
    assert first["literal"] == f'LAUNCHES["inner"][90] = ({small}, {own}, {wide})'
    assert first["ratio"] == pytest.approx((0.5 * 1.0 * 0.7**3) ** (1 / 5))
    assert second["literal"] is None, "a gain of 2 % changes no table"
    assert part("launch_choice").winners(rows)[0] == ("B=16", own, "1000", small, "0.500")


def test_batches_that_were_not_measured_keep_their_tiles(part):
    current = ("Launch(16, 64, 32, 4, 3)", "Launch(64, 64, 32, 4, 3)", "Launch(128, 64, 32, 8, 3)")
    better, small = "Launch(256, 64, 32, 8, 3)", "Launch(32, 64, 32, 8, 3)"
    found = {current[2]: 1.0, better: 0.6, small: 0.5}
    (entry,) = part("launch_choice").suggested([row(256, found, current=current)])
    assert entry["literal"] == f'LAUNCHES["inner"][90] = ({current[0]}, {current[1]}, {better})'
    assert entry["batches"] == [256]


def test_a_tile_that_was_not_timed_where_it_would_be_taken_is_not_suggested(part):
    own, other = "Launch(64, 64, 32, 4, 3)", "Launch(64, 128, 32, 4, 3)"
    rows = [row(64, {own: 1.0, other: 0.5}), row(256, {own: 1.0})]
    (entry,) = part("launch_choice").suggested(rows)
    assert (entry["literal"], entry["ratio"]) == (None, 1.0)


def test_the_number_of_programs_that_measurements_suggest(part):
    def contest(*ratios):
        return {str(2**i): {"seconds": ratio, "ratio": ratio} for i, ratio in enumerate(ratios, 2)}

    found = {
        "B=64": contest(0.8, 1.0, 1.2),
        "B=256": contest(1.1, 1.0, 0.5),
        "other": {"absent": "refused"},
        "broke": "it did not end",
    }
    (entry,) = part("launch_choice").programs(found)
    assert (entry["literal"], entry["problems"]) == ("PROGRAMS = 16", 2)
    assert entry["ratio"] == pytest.approx(0.6**0.5)
    assert part("launch_choice").programs({"other": {"absent": "refused"}}) == []


def test_the_floor_is_the_largest_limit_of_those_that_were_measured(part, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    predictions = part("predictions")
    kernel = next(kernel for kernel in predictions.KERNELS if kernel.products == 3)
    ceilings = {"fp16": 100.0, "copy": 10.0, "fadd": "not measured", "cache": 50.0}
    limits = predictions.floors(kernel, (100, 20, 5), (64, 128), 2.0, ceilings)
    cached = 4 * 100 * 20 * 5 * (1 / 64 + 1 / 128) / 50
    assert limits == {"products": 2 * 3 * 128 * 20 * 5 / 100, "bytes": 4 * 20 * 5 / 10, "tiles' bytes": cached}
    reading = next(kernel for kernel in predictions.KERNELS if kernel.scores)
    assert predictions.floors(reading, (100, 20, 5), (64, 128), 2.0, ceilings) == {"bytes": 4 * 100 * 20 / 10}


def test_a_step_in_a_process_of_its_own_leaves_what_it_found_when_it_breaks(part, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    alone, session = part("alone"), part("session")
    held = session.Session(importlib.import_module("torch").device("cpu"), True, ())
    held.until = importlib.import_module("time").perf_counter() + 100
    assert "Gluon has no interpreter" in alone.outside("gluon", held, {})["absent"]
    assert held.failures == []
    monkeypatch.setattr(alone.sys, "executable", "false")
    assert alone.outside("gluon", held, {}) == {"broke": "status 1: "}
    assert held.failures == ["variants: gluon: status 1: "]


def test_entries_before_a_failure_are_kept(part):
    alone, session = part("alone"), part("session")
    held, kept = session.Session(importlib.import_module("torch").device("cpu"), True, ()), []

    def step(*_):
        yield "first", 1
        raise RuntimeError("an illegal address")

    found = alone.entries(step, held, {}, lambda found: kept.append(dict(found)))
    assert (kept, found["first"]) == ([{"first": 1}], 1)
    assert held.failures == ["variants: RuntimeError: an illegal address"]


@pytest.mark.slow
def test_variants_compile_without_spills_for_hopper():
    for script, stack in (("tma_bounds.py", 4), ("gluon_l1.py", 3)):  # the cell of a line that holds it
        done = python(BENCHMARKS / script, cwd=BENCHMARKS)
        assert done.returncode == 0, done.stderr
        lines = [line.split("|") for line in done.stdout.splitlines()[2:]]
        assert len(lines) >= 12
        hopper = [line for line in lines if "sm_80" not in line[1] and "sm_100" not in line[1]]
        assert [line for line in hopper if int(line[stack])] == []
