"""Whole solves with defaults: χ² after 20 samples a target, and seconds to χ² ≤ 0.1 beside other solvers.

The curves behind the second are drawn by `python benchmarks/races.py`.
"""

import os
from pathlib import Path

import pytest
import races
import suite
import torch
from solvers import OURS
from suite_problems import PROBLEMS
from target_sets import Absent, Files

DATA = os.environ.get("FASTSDOT_DATA")  # where npm packages with data sets were installed, see target_sets
FILES = Files(Path(DATA) if DATA else None, suite.CACHE)
SAMPLES_PER_TARGET = 20
LEAST_CAP = 4.0  # processor seconds
QUICK = [problem for problem in PROBLEMS if problem.quick]
RACED = [problem for problem in PROBLEMS if problem.name in races.RACES]


def named(problem) -> str:
    return problem.name


@pytest.mark.parametrize("problem", QUICK, ids=named)
def test_chi2_after_20_samples_a_target(benchmark, row, problem):
    try:
        ot, source = suite.build(problem, FILES)
    except Absent as absent:
        pytest.skip(str(absent))
    n = problem.n
    suite.build(problem, FILES)[0].solve(source, max_samples=n)  # compile outside the clock
    torch.manual_seed(0)
    solution = benchmark.pedantic(ot.solve, (source,), {"max_samples": SAMPLES_PER_TARGET * n, "tol": 0.01}, rounds=1)
    torch.manual_seed(suite.FRESH_SEED)
    report = ot.evaluate(source, suite.FRESH * n)
    row(f"χ² {report.chi2:.4f} ± {report.chi2_error:.4f}, {problem.name}", "fastsdot", solution.seconds)
    benchmark.extra_info |= {
        "chi2": report.chi2,
        "chi2_error": report.chi2_error,
        "samples_per_target": solution.samples / n,
    }
    assert solution.samples <= SAMPLES_PER_TARGET * n


@pytest.mark.parametrize("problem", RACED, ids=named)
def test_time_to_chi2(benchmark, row, problem):
    try:
        found = benchmark.pedantic(races.race, (problem, FILES, LEAST_CAP), rounds=1)
    except Absent as absent:
        pytest.skip(str(absent))
    for name, entry in found["contestants"].items():
        result = races.ratio(found, name) if name != OURS.name else "not within the cap"
        row(f"processor time to χ² ≤ {races.BOUND}, {problem.name}", name, entry.get("time") or result)
        benchmark.extra_info[name] = {key: entry.get(key) for key in ("time", "rate", "absent")} | {
            "chi2": min((point["chi2"] for point in entry["curve"]), default=None)
        }
